"""Folders for programs of others, what foundry computes with their models, and what those programs read in them.

`tests/peers_probe.py` is what runs beside those programs. As a command, this measures on checkpoints in its own
environment, and on exported folders in those of the Pythons that it is given, and writes `docs/evaluation/peers.json`
and the table of the page beside it:

    python -m tests.peers .venv-4.51.3/bin/python .venv-5.24.0/bin/python
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel

from docs.generator.peers import DATA, PAGE, with_table
from foundry_core import BaseLanguageModel, load_config, run
from foundry_core.checkpoints.exported import export
from foundry_core.evaluation.sentence_scores import sentence_scores
from foundry_core.registry.loading import get_architecture
from foundry_core.testing.toy_language import write_corpus
from foundry_core.tokenization.encoding import separator_id, text_ids
from foundry_core.tokenization.tokenizer_folder import load_tokenizer

CLOSE = 1e-4
ARCHITECTURES = ("gpt2", "bert", "lstm", "gru", "rnn", "mamba")
TOKENIZERS = ("word", "bpe")
OURS = ("foundry_core", "foundry_gpt2", "foundry_bert", "foundry_rnn", "foundry_mamba")
PROBE = Path(__file__).parent / "peers_probe.py"

Case = dict[str, Any]
Cases = Mapping[str, Case]


def checkpoints(home: Path) -> Cases:
    """Train a small model of each architecture with each tokenizer, and return the cases of their checkpoints."""
    corpus = write_corpus(home, train_sentences=400, test_sentences=20, seed=1, pairs_each=2)
    # A capital, and a full stop that is not a word of its own.
    texts = [line[:1].upper() + line[1:].removesuffix(" .") + "." for line in corpus.test.read_text().splitlines()]
    (home / "texts.txt").write_text("\n".join(texts * 10))
    cases = {}
    for architecture in ARCHITECTURES:
        for tokenizer in TOKENIZERS:
            folder = _trained(home / f"{architecture}-{tokenizer}", architecture, tokenizer, home / "texts.txt")
            cases[f"{architecture} {tokenizer}"] = {"folder": str(folder), **_expected(folder, texts)}
    return cases


def _trained(folder: Path, architecture: str, tokenizer: str, corpus: Path) -> Path:
    """Train a model for 30 steps and return its checkpoint."""
    sizes = dict(get_architecture(architecture).examples["tiny"])
    if architecture == "gpt2":  # TransformerLens 2 takes this ratio of the widths for granted
        sizes = {"transformer": {**sizes["transformer"], "intermediate_hidden_size": 4 * 32}}
    run(
        load_config(
            {
                "experiment_name": "peers",
                "data": {"training_corpus": str(corpus), "max_sequence_length": 48, "batch_size": 4},
                "tokenizer": {"tokenizer_type": tokenizer, "vocab_size": 300},
                "model": {"architecture": architecture, **sizes},
                "training": {
                    "output_dir": str(folder),
                    "train_steps": 30,
                    "learning_rate": 0.01,
                    "device": "cpu",
                    "objective": "masked_lm" if architecture == "bert" else "causal_lm",
                },
            }
        ),
        quiet=True,
    )
    return folder / "checkpoint-30"


def _expected(checkpoint: Path, texts: list[str]) -> Case:
    """Return what foundry computes with a checkpoint, in the words of `tests/peers_probe.py`."""
    model, tokenizer = BaseLanguageModel.from_pretrained(checkpoint), load_tokenizer(checkpoint)
    auto, masked = model.context.objective.auto_class, not model.context.objective.causal
    (ids,) = text_ids(tokenizer, texts[:1])
    row = (
        [int(tokenizer.cls_token_id), *ids, int(tokenizer.sep_token_id)] if masked else [separator_id(tokenizer), *ids]
    )
    place = len(row) - 2
    token = row[place if masked else place + 1]
    if masked:
        row[place] = int(tokenizer.mask_token_id)
    row_BT = torch.tensor([row])
    with torch.no_grad():
        logits_TV = model.eval()(row_BT).logits[0]
        body = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
        states = body(row_BT, output_hidden_states=True)
    return {
        "architecture": model.config.architecture.name,
        "auto": auto,
        "masked": masked,
        "texts": texts,
        "scores": sentence_scores(model, tokenizer, texts),
        "ids": row,
        "logits": logits_TV.tolist(),
        "states": states.last_hidden_state[0].tolist(),
        "first states": states.hidden_states[1][0].tolist(),
        "target": [place, token],
        "score": float(logits_TV.log_softmax(-1)[place, token]),
        "products": _products(checkpoint, auto, row_BT, place, token).tolist(),
    }


def _products(checkpoint: Path, auto: str, row_BT: torch.Tensor, place: int, token: int) -> torch.Tensor:
    """Return the gradient of a token's log-probability times each input vector, summed over its width, (T,)."""
    model = getattr(transformers, auto).from_pretrained(checkpoint, trust_remote_code=True).eval()
    vectors_BTE: torch.Tensor = model.get_input_embeddings()(row_BT).detach().requires_grad_()
    score = model(inputs_embeds=vectors_BTE).logits[0, place].log_softmax(-1)[token]
    (gradient_BTE,) = torch.autograd.grad(score, vectors_BTE)
    return (gradient_BTE * vectors_BTE).sum(-1)[0].detach()


def exported(cases: Cases, home: Path) -> Cases:
    """Export each checkpoint for processes without foundry, and return the cases of these folders."""
    found = {}
    for number, (name, case) in enumerate(
        cases.items()
    ):  # not by name: TransformerLens 2 draws conclusions from a path
        folder, checkpoint = home / str(number), Path(case["folder"])
        model, tokenizer = BaseLanguageModel.from_pretrained(checkpoint), load_tokenizer(checkpoint)
        export(model, tokenizer, folder, standalone=True)
        found[name] = {**case, "folder": str(folder)}
    return found


def probed(python: str, cases: Cases, home: Path, *, without: Sequence[str] = ()) -> Any:
    """Return what programs of the environment of a Python, an absolute path, read in the folders of the cases.

    without: Packages that the process cannot import.
    """
    home.mkdir()
    (home / "cases.json").write_text(json.dumps({"without": without, "cases": cases}), encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    command = [python, "-I", str(PROBE), str(home / "cases.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=home)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")
    return json.loads(ended.stdout)


def wrong(found: Any) -> list[str]:
    """Return what in an answer differs from ours, a line each."""
    return [
        f"{peer} {seen['version']} with transformers {found['transformers']}: {name}: {what}: {value}"
        for peer, seen in found["peers"].items()
        for name, differences in seen["cases"].items()
        for what, value in differences.items()
        if not isinstance(value, float) or not value <= CLOSE
    ]


def summary(found: Any, folders: str) -> dict[str, Any]:
    """Return what `docs/evaluation/peers.json` keeps of an answer: the largest difference for each architecture.

    folders: What the folders were written by.
    """
    peers = {}
    for peer, seen in found["peers"].items():
        largest = dict[str, float]()
        for name, differences in seen["cases"].items():
            architecture = name.partition(" ")[0]
            largest[architecture] = max(largest.get(architecture, 0.0), *differences.values())
        peers[peer] = {
            "version": seen["version"],
            "differences": {architecture: float(f"{value:.1e}") for architecture, value in largest.items()},
        }
    versions = {name: found[name] for name in ("transformers", "torch", "python")}
    return {"folders": folders, **versions, "peers": peers}


def measure(pythons: list[str]) -> list[str]:
    """Write what is measured into the documentation, unless something differs, and return what does."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="foundry-peers-") as place:
        home = Path(place)
        os.environ.update(HF_HOME=str(home / "cache"), HF_HUB_OFFLINE="1")
        cases = checkpoints(home)
        answers = [(probed(sys.executable, cases, home / "own"), "checkpoint")]
        folders = exported(cases, home / "exported")
        answers += [
            (probed(python, folders, home / str(number), without=OURS), "exported")
            for number, python in enumerate(pythons)
        ]
    differing = [line for found, _ in answers for line in wrong(found)]
    if not differing:
        data = {"close": CLOSE, "environments": [summary(found, kind) for found, kind in answers]}
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), data), encoding="utf-8")
    return differing


if __name__ == "__main__":
    sys.exit("\n".join(measure([os.path.abspath(each) for each in sys.argv[1:]])) or None)  # noqa: PTH100 - links stay
