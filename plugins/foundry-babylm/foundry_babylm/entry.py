"""The configuration of an entry: that of `foundry init`, with the budget and the checkpoints of a track."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foundry_babylm.tracks import Track
from foundry_core import FoundryError, load_config, starting_yaml, write_answer

POSITIONS = 512
"""Tokens that the pipeline's fine-tuning reads at a time: --sequence_length in strict/scripts/eval_finetuning.sh."""


def write_yaml(track: Track, architecture: str, name: str | None, output: str | None) -> None:
    """Print the configuration of an entry, or write it to a new file.

    Raises:
        FoundryError: There is no such architecture, the name is not one of an experiment, or the file exists.
    """
    text, to_fill_in = entry_yaml(track, architecture, name or f"{architecture}-{track.name}")
    write_answer(text, output)
    sys.stderr.write("".join(f"to fill in before training: {line}\n" for line in to_fill_in))


def entry_yaml(track: Track, architecture: str, name: str) -> tuple[str, list[str]]:
    """Return the configuration as YAML, and a line for each key that has to be filled in.

    Raises:
        FoundryError: There is no such architecture, or the name is not one of an experiment.
    """
    settings: dict[str, Any] = {
        "data.training_corpus": f"corpora/train_{track.corpus}M",
        "data.test_corpus": "corpora/dev",
        "training.epochs": None,
        "training.train_words": f"{track.seen}M",
        "training.evaluate_every_steps": None,
        "training.evaluate_at": "checkpoints",
        "training.checkpoints.every_steps": None,
        "training.checkpoints.log_base": None,
        "training.checkpoints.milestones.words": [f"{millions}M" for millions in track.checkpoints.values()],
        "training.checkpoints.names": "babylm",
        "training.checkpoints.ephemeral_minutes": 30,
    }
    title = (
        f"An entry to the BabyLM challenge, track {track.name}, with at most {track.corpus}M words of text, of which "
        f"at most {track.seen}M are seen, repetitions included"
    )
    text = starting_yaml(architecture, name, settings, title)
    with TemporaryDirectory(prefix="foundry-babylm-") as folder:
        path = Path(folder, "entry.yaml")
        path.write_text(text, "utf-8")
        try:
            able = load_config(path).capabilities
        except FoundryError as error:
            problems = str(error).replace(f"{path}:", "line ").splitlines()
            for problem in problems:
                if of_name := problem.partition(": experiment_name: ")[2]:
                    raise FoundryError(f"--name: {of_name}") from error
            return text, problems
    if not able.unbounded_length:
        settings["data.max_sequence_length"] = min(POSITIONS, able.longest_sequence or POSITIONS)
        text = starting_yaml(architecture, name, settings, title)
    return text, []
