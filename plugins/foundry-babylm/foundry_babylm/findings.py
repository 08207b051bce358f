"""What the official pipeline stumbles over in a run, or in a folder that `foundry export` wrote.

What it does with a model is read from strict/ of github.com/babylm-org/babylm-eval at 45fe2c1: the versions it pins
(requirements.txt), fine-tuning (finetune/classifier_model.py, finetune/dataset.py, scripts/eval_finetuning.sh), the
scores of sentences (sentence_zero_shot/dataset.py), surprisal at each checkpoint (AoA_word/evaluation_functions.py).
Only files of JSON are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_babylm.entry import POSITIONS
from foundry_babylm.tracks import MILLION, TRACKS, Track
from foundry_core import FoundryError, load_config, open_run

if TYPE_CHECKING:
    from foundry_core import ExperimentConfig

PINNED = "transformers 4.51.3"
"""What the pipeline installs."""
_OPENED = ("AutoModel", "AutoModelForSequenceClassification")
_ANOTHER = "enter another architecture"
_FINAL_TOKEN = "--take_final --padding_side left"
_ADDS_TOKENS = re.compile("SpecialToken|BertProcessing|RobertaProcessing")


@dataclass(frozen=True)
class Finding:
    """What is wrong, and what to do about it.

    Attributes:
        stops: Whether it stops the pipeline or breaks a rule of the track; otherwise it is only worth knowing.
    """

    what: str
    cure: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{'stops' if self.stops else 'note'}: {self.what}: {self.cure}"


def report(folder: str, track: Track | None) -> None:
    """Print the findings of a run or of an exported folder, each as a line.

    Raises:
        FoundryError: One of them stops the pipeline, or the folder is neither.
    """
    path = Path(folder)
    if (path / "config.json").is_file():
        found = [*_of_folder(path, _experiment(path), exported=True), *_of_name(path)]
    else:
        found = list(_of_run(path, track))
    for each in found:
        print(each)
    stops = sum(each.stops for each in found)
    if stops:
        raise FoundryError(f"{folder}: of {len(found)} findings {stops} stop the official pipeline or break a rule")
    print(f"{folder}: nothing stops the official pipeline")


def _of_run(path: Path, track: Track | None) -> Iterator[Finding]:
    run = open_run(path)
    plan = run.record["plan"]
    text = plan["words_per_epoch"]
    fitting = [each for each in TRACKS.values() if text <= each.corpus * MILLION]
    track = track or next(iter(fitting), list(TRACKS.values())[-1])
    if text > track.corpus * MILLION:
        yield Finding(
            f"the text has {text:,} words, the track {track.name} allows {track.corpus}M",
            "train on less text, such as by data.steps",
        )
    planned = max(run.words, (plan.get("budget") or {}).get("words") or 0)
    if planned > track.seen * MILLION:
        yield Finding(
            f"the model sees {planned:,} words, the track {track.name} allows {track.seen}M",
            f"set training.train_words: {track.seen}M, or resume the run with less",
        )
    # A run that has ended falls short of its budget by less than a step, and the budget is its last milestone.
    asked = run.config["training"].get("train_words") if run.finished else None
    yield from _of_names(path, track, {row["folder"]: row for row in run.saved}, max(run.words, asked or 0))
    if not run.saved:
        yield Finding("the run has no checkpoints", f"foundry train --resume {path}/config.yaml")
        return
    newest = Path(run.saved[-1]["folder"])
    yield from _of_folder(newest, load_config(path / "config.yaml"), exported=False)
    yield from _of_name(path)


def _of_names(path: Path, track: Track, saved: Mapping[str, Mapping[str, Any]], seen: int) -> Iterator[Finding]:
    """Yield what is wrong with the names of the checkpoints, of which those within the words seen have to be there."""
    due = [name for name, millions in track.checkpoints.items() if millions * MILLION <= seen]
    missing = [name for name in due if not (path / name).is_dir()]
    if missing:
        yield Finding(
            f"there is no {', '.join(missing)}",
            "checkpoints.names: babylm and milestones.words, as foundry babylm init writes them; for checkpoints that "
            "are there, foundry train --resume adds the names",
        )
    first: dict[str, str] = {}
    for name in (name for name in due if name not in missing):
        target = (path / name).resolve().name
        words = saved.get(str(path / target), {}).get("words_seen") or 0
        if words > track.checkpoints[name] * MILLION:
            yield Finding(f"{name} has seen {words:,} words", "remove the link, and name a checkpoint that saw fewer")
        if first.setdefault(target, name) != name:
            yield Finding(
                f"{first[target]} and {name} are both {target}", "train with steps of fewer than a million words"
            )
    rest = [name for name in track.checkpoints if name not in due]
    if rest:
        fewer = f", or enter those that there are with foundry babylm collect --last {due[-1]}" if due else ""
        yield Finding(
            f"after {seen:,} words there is no {rest[0]}, and the official script collects all up to {rest[-1]}",
            f"train on{fewer}",
            stops=False,
        )
    if due:
        yield Finding(
            "the pipeline ignores the revision of a local folder, and would score one model under every name",
            "foundry push, or foundry export each into a folder of its own, such as "
            f"entry/{due[0]}/{path.resolve().name}",
            stops=False,
        )


def _of_folder(folder: Path, experiment: ExperimentConfig | None, *, exported: bool) -> Iterator[Finding]:
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    mapped, masked = config.get("auto_map"), "MaskedLM" in str(config.get("architectures"))
    if mapped is not None and _imports_foundry(folder):
        without = f"{PINNED}, which the pipeline pins, cannot open a folder that imports foundry"
        if experiment is not None and experiment.architecture.standalone is None:
            yield Finding(f"{without}, and there is no standalone file of {experiment.architecture.name}", _ANOTHER)
        elif exported:
            yield Finding(without, "write it with foundry export --standalone")
        else:
            yield Finding(without, "foundry export CHECKPOINT FOLDER --standalone for each checkpoint", stops=False)
    lacking = [name for name in _OPENED if mapped is not None and name not in mapped]
    if lacking:
        yield Finding(f"GLUE is fine-tuned, and there is no {' and no '.join(lacking)}", _ANOTHER)

    fixed = mapped is None if experiment is None else not experiment.capabilities.unbounded_length
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if fixed and positions is not None and positions < POSITIONS:
        yield Finding(
            f"the model reads {positions} tokens, fine-tuning on GLUE {POSITIONS}",
            f"train with data.max_sequence_length: {POSITIONS}, or with model.transformer.max_positions: {POSITIONS}",
        )
    if tokenizer.get("pad_token") is None:
        yield Finding("the tokenizer has no pad token for batches", "tokenizer.special_tokens: {pad_token: <pad>}")
    if tokenizer.get("bos_token") is None and (exported or config.get("bos_token_id") is None):
        yield Finding("the tokenizer has no bos token, and AoA would be NaN", "write it with foundry export")
    if masked and tokenizer.get("mask_token") is None:
        yield Finding("the tokenizer has no mask token", "tokenizer.special_tokens: {mask_token: <mask>}")
    if not masked:
        yield Finding(
            "eval_finetuning.sh classifies by the state of the first token, which has seen nothing of the text",
            f"add {_FINAL_TOKEN} to its commands",
            stops=False,
        )
        if not _ADDS_TOKENS.search(str(_json(folder / "tokenizer.json").get("post_processor"))):
            yield Finding(
                "the tokenizer puts nothing before a text, so that the first token of a sentence is not scored",
                "foundry evaluate scores it; the pipeline cannot",
                stops=False,
            )


def _of_name(path: Path) -> Iterator[Finding]:
    name = path.resolve().name
    if Path(name).stem != name:
        what = f"the pipeline writes the results of {name} into results/{Path(name).stem}"
        yield Finding(what, "export into a folder without a dot in its name", stops=False)


def _experiment(folder: Path) -> ExperimentConfig | None:
    """Return the experiment that an exported folder keeps; None where it has been removed for publication."""
    given = _json(folder / "config.json").get("foundry", {}).get("experiment")
    return load_config(given) if given is not None else None


def _imports_foundry(folder: Path) -> bool:
    files = (file.read_text("utf-8") for file in folder.glob("*.py"))
    return any(re.search(r"^\s*(import|from) foundry", text, re.MULTILINE) for text in files)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise FoundryError(f"{path} is not an object of JSON")
    return content
