"""The folder of a tokenizer: saving, loading, and the digest of everything that shapes encoding."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import TokenizerError
from foundry_core.run_folder import SENTENCEPIECE_MODEL, TOKENIZER_CONFIG, TOKENIZER_MODEL
from foundry_core.storage.files import InPlaceFolder, scratch_reported
from foundry_core.storage.manifest import parse_json, read_plain_file
from foundry_core.tokenization.limits import check_bounds

SPECIAL_TOKEN_ROLES = ("unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
KIND_KEY = "foundry_tokenizer_type"
"""The setting that names the type of a tokenizer that core has trained."""

_PROBE = "a \N{SNOWMAN}1\n"
_SETTINGS = (
    *SPECIAL_TOKEN_ROLES,
    *("clean_up_tokenization_spaces", "model_input_names", "model_max_length", "padding_side", "truncation_side"),
    KIND_KEY,
)


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """Return the files that `AutoTokenizer.from_pretrained` loads, and sentencepiece's own model with them."""
    with scratch_reported(), tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    settings = json.loads(files[TOKENIZER_CONFIG])
    # transformers 5 writes "TokenizersBackend", a name that version 4 does not know.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    files[TOKENIZER_CONFIG] = (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
    return files | getattr(tokenizer, "foundry_files", {})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write the files of a tokenizer into a folder; other files in it stay."""
    sink = InPlaceFolder(folder)
    for name, content in tokenizer_files(tokenizer).items():
        sink.write(name, content)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, never from the network.

    Of tokenizer_config.json only the settings in `_SETTINGS` are taken: others of transformers name files, repositories
    and code. Raises TokenizerError when there is no tokenizer.json, or one that cannot be read.
    """
    path = folder / TOKENIZER_MODEL
    if not path.is_file():
        raise TokenizerError(f"{folder} contains no tokenizer.json: name the folder that a tokenizer was saved in")
    try:
        raw = read_plain_file(path)
        check_bounds(parse_json(path, raw))
        backend = Tokenizer.from_str(raw.decode())
        # A file may ask for 10^12 tokens of padding.
        backend.no_padding()
        backend.no_truncation()
        path = folder / TOKENIZER_CONFIG
        stored = parse_json(path, read_plain_file(path))
        settings = {name: stored[name] for name in _SETTINGS if stored.get(name) is not None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
        tokenizer.decode(tokenizer(_PROBE)["input_ids"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parser of `tokenizers` raises no narrower class; where it panics, not even one
        reason = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer in {folder} cannot be read, train it again: {reason}") from error
    model = folder / SENTENCEPIECE_MODEL
    tokenizer.foundry_files = {SENTENCEPIECE_MODEL: read_plain_file(model)} if model.is_file() else {}
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 (hex) of everything that shapes encoding; padding and truncation of earlier calls do not."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    shape = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    roles = {role: str(name) for role, name in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([shape, roles], sort_keys=True).encode()).hexdigest()
