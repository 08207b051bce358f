"""Take a first look: write a corpus of a toy English, train a GPT-2, a BERT and an
LSTM on it, print what each has learned, and write a page with their learning
curves. Nothing is downloaded.

This takes about two minutes on two cores. You can then edit its YAMLs and
train them again with foundry train.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from foundry_core.cli.common import large_imports, path_argument, report, seed_argument, table, yaml_scalar
from foundry_core.errors import UsageError, warned_once
from foundry_core.storage.files import remove_tree, write_file

EXAMPLE = "example:\n  foundry quickstart my-first-models"

_MARKER = "quickstart.json"

_YAML = """\
# Written by foundry quickstart. Train it again with: foundry train {file} training.output_dir=runs/again
experiment_name: {name}
random_seed: {seed}
data:
  training_corpus: {train}   # one sentence, that is one document, a line
  test_corpus: {test}
  max_sequence_length: 24
  batch_size: 32
tokenizer:
  tokenizer_type: word                         # so that the model's tokens are the grammar's words
  vocab_size: 200
  output_dir: {tokenizer}
model:
  architecture: {name}
{model}
training:
  output_dir: {output}
{training}
  train_tokens: {tokens}
  warmup_ratio: 0.05
  lr_scheduler: linear
  precision: fp32                              # the same for all models of the table, on any machine
  compile: false
  checkpoints: {{every_steps: 500}}
  evaluate_every_steps: 500
  suites:
    - {suite}   # name, format and path; scored at each evaluation
logging: {{log_every_steps: 20}}
"""

_TRANSFORMER = """\
  transformer: {layers: 2, embedding_size: 64, hidden_size: 64, intermediate_hidden_size: 256, attention_heads: 4,
                activation_function: gelu, dropout: 0.0, attention_dropout: 0.0}"""
_RNN = "  rnn: {embedding_size: 128, hidden_size: 128, num_layers: 1, dropout: 0.0}"
_CAUSAL = "  objective: causal_lm\n  learning_rate: 5.0e-3"
_MASKED = "  objective: masked_lm\n  mlm_probability: 0.3\n  learning_rate: 3.0e-3"

# Package, model, training. The rows are short for all because BERT needs them: with 64 tokens in a row it takes over 2M
# words to leave the unigram plateau, with 24 a quarter of that.
_EXPERIMENTS = {
    "gpt2": ("foundry-gpt2", _TRANSFORMER, _CAUSAL),
    "bert": ("foundry-bert", _TRANSFORMER, _MASKED),
    "lstm": ("foundry-rnn", _RNN, _CAUSAL),
}

_EXPLANATION = """\
All models have read the same words in the same rows and order, with the same
tokenizer. The test loss is in nats per word.
The floor is the loss of the grammar itself on the test text: no causal model
can do better in the long run. (The entropy of the grammar is {entropy:.3f} a word.)
The loss of a masked model answers another question and has no such floor.
The last columns are the agreement of subject and verb ("the keys to the cabinet
are") with 0, 1 or 2 nouns of the other number between them; chance is 50%."""


def configure(parser: argparse.ArgumentParser) -> None:
    what = "folder (default: quickstart)"
    parser.add_argument("folder", nargs="?", default="quickstart", type=path_argument, metavar="DIR", help=what)
    parser.add_argument("--seed", type=seed_argument, default=1, metavar="N", help="random seed (default 1)")


def execute(options: argparse.Namespace) -> None:
    quickstart(options.folder, seed=options.seed)


@warned_once()
def quickstart(folder: str | Path, *, seed: int = 1, share: float = 1.0) -> dict[str, dict[str, Any]]:
    """Write the corpus and the YAMLs, train the architectures that are installed, print the table.

    Args:
        folder: Where to write: a new or empty folder, or one of an earlier quickstart.
        seed: Seeds the corpus and the training.
        share: Scales the corpus and the training; the promised figures hold for 1.

    Returns:
        The figures of the table by architecture.
    """
    with large_imports():
        import torch

        from foundry_core.analysis.comparison import compare
        from foundry_core.analysis.folders import find_runs
        from foundry_core.analysis.runs import open_run
        from foundry_core.cli.compare import PAGE, write_page
        from foundry_core.config.loading import load_config
        from foundry_core.registry.discovery import installed
        from foundry_core.testing.toy_language import write_corpus
        from foundry_core.training.console import compact, duration
        from foundry_core.training.run import run

    started, folder = time.monotonic(), Path(folder)
    # A second thread helps models this small little, and costs tenfold where the other core is busy: threads that wait
    # for each other at every small operation wait for whoever holds that core.
    torch.set_num_threads(1)
    names = [name for name in _EXPERIMENTS if name in installed()]
    for name in sorted(_EXPERIMENTS.keys() - names):
        sys.stderr.write(f"{name} is not installed and left out: pip install {_EXPERIMENTS[name][0]}\n")
    if not names:
        raise UsageError("no architecture is installed: pip install foundry-gpt2 foundry-bert foundry-rnn")
    yamls = {name: _yaml(folder, name, seed, share) for name in _EXPERIMENTS}
    _make_room(folder, yamls)
    sentences = {"train_sentences": round(share * 120_000), "test_sentences": round(share * 2_000)}
    corpus = write_corpus(folder / "corpus", **sentences, seed=seed)
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        config = load_config(folder / f"{name}.yaml")
        run(config)
        trained = open_run(config.training.output_dir)
        results[name] = {
            "parameters": trained.parameters,
            "tokens_per_second": harmonic_mean(each["tokens_per_second"] for each in trained.steps),
            "test_loss": trained.evaluated[-1]["loss"],
            "test_floor": corpus.test_floor if config.objective.causal else None,
            "agreement": [
                each["accuracy"]
                for each in trained.scored
                if each["level"] == "phenomenon" and each["step"] == trained.step
            ],
        }
    rows = [
        (
            name,
            compact(figures["parameters"] or 0),
            compact(figures["tokens_per_second"]),
            f"{figures['test_loss']:.3f}",
            "" if figures["test_floor"] is None else f"{figures['test_floor']:.3f}",
            *(f"{accuracy:.1%}" for accuracy in figures["agreement"]),
        )
        for name, figures in results.items()
    ]
    header = ("model", "parameters", "tokens/s", "test loss", "floor", "0 attractors", "1", "2")
    report(f"\n{table(header, rows)}\n\n{_EXPLANATION.format(entropy=corpus.entropy_per_token)}")
    page = folder / PAGE
    runs = find_runs(folder / "runs" / name for name in names)
    write_page(compare(runs, "What three models have learned", ["training.learning_rate"]), page)
    report(f"Learning curves, conditions and settings side by side: {page}")
    _mark(folder, yamls, seed=seed, results=results)
    report(f"Took {duration(time.monotonic() - started)}. Next: foundry generate {folder}/runs/{names[0]} --samples 5")
    return results


def _yaml(folder: Path, name: str, seed: int, share: float) -> str:
    _, model, training = _EXPERIMENTS[name]
    paths = {
        "train": folder / "corpus" / "train.txt",
        "test": folder / "corpus" / "test.txt",
        "tokenizer": folder / "tokenizer",
        "output": folder / "runs" / name,
        "file": folder / f"{name}.yaml",
        "suite": f"agreement=blimp={folder / 'corpus' / 'minimal_pairs.jsonl'}",
    }
    settings = {"name": name, "seed": seed, "model": model, "training": training}
    quoted = {key: yaml_scalar(str(path)) for key, path in paths.items()}
    return _YAML.format(**settings, tokens=round(share * 1_600_000), **quoted)


def _make_room(folder: Path, yamls: Mapping[str, str]) -> None:
    """Write the YAMLs into a new or empty folder, or into one of an earlier quickstart.

    There the corpus, the tokenizer and the three runs are removed; everything else stays, and a YAML that was edited
    is refused.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            written = dict(json.loads((folder / _MARKER).read_bytes())["yamls"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{folder} exists and is not an earlier quickstart: name another folder") from None
        for name in yamls:
            path = folder / f"{name}.yaml"
            if path.exists() and path.read_bytes() != written.get(name, "").encode():
                raise UsageError(f"{path} was changed since quickstart wrote it: move it away, or name another folder")
        for path in (folder / "corpus", folder / "tokenizer", *(folder / "runs" / name for name in yamls)):
            remove_tree(path)
    _mark(folder, yamls)  # first, so that a quickstart that was interrupted can be repeated
    for name, text in yamls.items():
        write_file(folder / f"{name}.yaml", text.encode())


def _mark(folder: Path, yamls: Mapping[str, str], **facts: Any) -> None:
    write_file(folder / _MARKER, (json.dumps({"yamls": yamls, **facts}, indent=1) + "\n").encode())
