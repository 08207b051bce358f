"""Every file and folder name that a run writes, once, with what it holds. Light.

<training.output_dir>/
  config.yaml                 CONFIG: the configuration with every default written out
  run.json                    RECORD: versions, device, precision, corpora, and the plan of the run
  metrics.jsonl               METRICS: one JSON object for each logged step and each evaluation
  .lock                       LOCK: held while a run writes to the folder
  tensorboard/                TENSORBOARD: event files, where logging.tensorboard is set
  profile/                    PROFILE: of the newest run with --profile
    trace.json                PROFILE_TRACE: the profiled steps, for a viewer of Chrome's trace format
    table.txt                 PROFILE_TABLE: where their time went
  scores/                     SCORES: results of suites
    <checkpoint>/<suite>.json   accuracies by paradigm and phenomenon, with the digests of checkpoint and suite
    <checkpoint>/<suite>.tsv    the same items one by one
    <checkpoint>/<suite>.regions.tsv  of formulas, the surprisals of the regions that they compare
  tokens/                     TOKENS: token files, if this user may not write to the folder of a shared tokenizer
  tokenizer/                  TOKENIZER: unless tokenizer.output_dir names another folder
    tokenizer.json            TOKENIZER_MODEL: vocabulary and rules, as the tokenizers library stores them
    tokenizer_config.json     TOKENIZER_CONFIG: special tokens and settings, as transformers stores them
    sentencepiece.model       SENTENCEPIECE_MODEL: of a sentencepiece tokenizer, the trained pieces
    foundry.json              TOKENIZER_ORIGIN: what the tokenizer was made from, and its digest
    .tokenizer.lock           TOKENIZER_LOCK: held while the tokenizer is trained
    tokens/                   TOKENS: token files of the corpora, each under the digest of its inputs; counts of
                              the test documents that also stand in training
  checkpoint-<step>/          checkpoint_name(step)
    config.json               MODEL_CONFIG: the transformers configuration; under `foundry` what rebuilds the model
    model.safetensors         WEIGHTS: the weights, each shared tensor once
    generation_config.json    GENERATION_CONFIG: of a causal model, the special tokens of generation
    modeling_foundry.py       MODELING: what the auto classes import, for architectures that transformers lacks
    optimizer.safetensors     OPTIMIZER: the tensors of the optimizer's state, unless they are kept apart
    trainer_state.json        TRAINER_STATE: step, position in the data, schedule, log
    MANIFEST.json             MANIFEST: size and sha256 of every file, itself included
    tokenizer.json, tokenizer_config.json, sentencepiece.model: the tokenizer as above
  optimizer-<step>/           optimizer_name(step): OPTIMIZER of the checkpoint of that step, and a MANIFEST of its own
  chck_<words>                milestone_name(words): where training.checkpoints.names is set, a relative link to the
                              checkpoint of that milestone; made after it, and again by every run that goes on

<output_dir of a study>/
  study.yaml                  STUDY: the study with its base experiment written out; `foundry study` takes it, too
  cells.json                  CELLS: what the cells are, written before the first one is trained:
    format                    1
    study                     sha256 of what the cells follow from: base, grid, seeds, match
    axes                      in their order, {name, keys, values}: the key of the grid (`seed` for the seeds), the
                              dotted keys of the experiment that it sets, and the names of its values
    cells                     in their order, {name, folder, values, parameters, matched}: the folder of the run
                              relative to this one; by axis, the name of its value; the number of parameters (null
                              unless they are matched) and, by dotted key, the widths that were found for it
  configs/<cell>.yaml         CELL_CONFIGS: the experiment of each cell, an ordinary YAML
  logs/<cell>.log             CELL_LOGS: what `foundry train` printed, all starts one after another
  tokenizers/<digest>/        TOKENIZERS: tokenizers as above, each for all cells that make the same one
  <cell>/                     the run of a cell, as above
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
RECORD = "run.json"
METRICS = "metrics.jsonl"
LOCK = ".lock"
TENSORBOARD = "tensorboard"

PROFILE = "profile"
PROFILE_TRACE = "trace.json"
PROFILE_TABLE = "table.txt"

SCORES = "scores"

STUDY = "study.yaml"
CELLS = "cells.json"
CELL_CONFIGS = "configs"
CELL_LOGS = "logs"
TOKENIZERS = "tokenizers"

TOKENIZER = "tokenizer"
TOKENIZER_MODEL = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCEPIECE_MODEL = "sentencepiece.model"
TOKENIZER_ORIGIN = "foundry.json"
TOKENIZER_LOCK = ".tokenizer.lock"
TOKENS = "tokens"

MODEL_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
MODELING = "modeling_foundry.py"
OPTIMIZER = "optimizer.safetensors"
TRAINER_STATE = "trainer_state.json"
MANIFEST = "MANIFEST.json"

CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")
OPTIMIZER_FOLDER = re.compile(r"optimizer-(\d+)\Z")
MILESTONE = re.compile(r"chck_(\d+)([KM]?)\Z")
_SIZES = {"M": 10**6, "K": 10**3, "": 1}


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"checkpoint-{step}"


def optimizer_name(step: int) -> str:
    """Return the name of the folder of an optimizer's state that is kept apart from its checkpoint."""
    return f"optimizer-{step}"


def milestone_name(words: int) -> str:
    """Return the name of the checkpoint after so many words, as BabyLM writes it: `chck_10M`."""
    suffix, size = next((suffix, size) for suffix, size in _SIZES.items() if words % size == 0)
    return f"chck_{words // size}{suffix}"


def milestone_words(name: str) -> int | None:
    """Return the words that a name of `milestone_name` is about; None for any other name."""
    match = MILESTONE.match(name)
    return int(match.group(1)) * _SIZES[match.group(2)] if match is not None else None


def no_checkpoints(folder: Path, lacking: str = "does not contain checkpoints") -> str:
    """Return what is wrong with a folder in which checkpoints were looked for, and what to name in its place.

    lacking: What it lacks, unless it is a checkpoint itself, or contains runs.
    """
    if not folder.is_dir():
        return f"{folder}: there is no such folder"
    if CHECKPOINT.match(folder.name) and (folder / MANIFEST).is_file():
        return f"{folder} is a checkpoint: name its run, {folder.parent}"
    for pattern in (f"*/{RECORD}", f"*/*/{RECORD}"):
        if runs := sorted(each.parent for each in folder.glob(pattern)):
            return f"{folder} is not a run, but contains runs: name one, such as {runs[0]}"
    return f"{folder} {lacking}"
