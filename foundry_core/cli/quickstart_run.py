"""`foundry quickstart`: the toy language, three architectures, one table."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foundry_core.cli.common import report, table, yaml_scalar
from foundry_core.config.loading import load_config
from foundry_core.errors import UsageError
from foundry_core.evaluation.minimal_pairs import read_pairs, score_pairs
from foundry_core.models.base import BaseLanguageModel
from foundry_core.registry.discovery import installed
from foundry_core.registry.hookspecs import EvaluationReport, StepReport, hookimpl
from foundry_core.storage.files import remove_tree, write_file
from foundry_core.testing.toy_language import ToyCorpus, write_corpus
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.training.console import compact, duration
from foundry_core.training.run import run

_MARKER = "quickstart.json"
_TRAIN_SENTENCES, _TEST_SENTENCES = 120_000, 2_000
_TRAIN_TOKENS = 1_600_000

_YAML = """\
# Written by foundry quickstart. Train it again with: foundry train {file} training.output_dir=runs/again
experiment_name: {name}
random_seed: {seed}
data:
  training_corpus: {train}   # one sentence, that is one document, a line
  test_corpus: {test}
  max_sequence_length: {length}
  batch_size: {batch}
tokenizer:
  tokenizer_type: word                         # so that the model's tokens are the grammar's words
  vocab_size: 200
  output_dir: {tokenizer}
model:
  architecture: {name}
{model}
training:
  output_dir: {output}
  objective: {objective}
  learning_rate: {rate}
  train_tokens: {tokens}
  warmup_ratio: 0.05
  lr_scheduler: {scheduler}
{more}  checkpoints: {{every_steps: 500}}
logging: {{log_every_steps: 20}}
"""

_TRANSFORMER = """\
  transformer: {layers: 2, embedding_size: 64, hidden_size: 64, intermediate_hidden_size: 256, attention_heads: 4,
                activation_function: gelu, dropout: 0.0, attention_dropout: 0.0}"""

_EXPERIMENTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model": _TRANSFORMER,
        "objective": "causal_lm",
        "rate": "5.0e-3",
        "batch": 32,
        "length": 64,
        "scheduler": "linear",
        "more": "",
    },
    "bert": {
        "model": _TRANSFORMER,
        "objective": "masked_lm",
        "rate": "3.0e-3",
        "batch": 32,
        # Short rows: with 64 tokens BERT takes over 2M words to leave the unigram plateau, with 24 a quarter of that.
        "length": 24,
        "scheduler": "linear",
        "more": "  mlm_probability: 0.3\n",
    },
    "lstm": {
        "model": "  rnn: {embedding_size: 128, hidden_size: 128, num_layers: 1, dropout: 0.0}",
        "objective": "causal_lm",
        "rate": "5.0e-3",
        "batch": 32,
        "length": 64,
        "scheduler": "linear",
        "more": "",
    },
}


@dataclass
class _Curve:
    """An observer that keeps what the table and the picture show."""

    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    test_loss: float = float("nan")

    @hookimpl
    def foundry_step_ended(self, report: StepReport) -> None:
        before = self.tokens[-1] if self.tokens else 0
        self.seconds += (report.tokens_seen - before) / report.tokens_per_second
        self.tokens.append(report.tokens_seen)
        self.losses.append(report.loss)

    @hookimpl
    def foundry_evaluated(self, report: EvaluationReport) -> None:
        self.test_loss = report.loss


def quickstart(folder: str | Path, *, seed: int = 1, share: float = 1.0) -> dict[str, dict[str, Any]]:
    """Write the corpus and the YAMLs into `folder`, train the installed ones of the three, print the table.

    share: of the corpus and of the training; what is promised of the result holds for 1. Returns the figures of the
    table by architecture.
    """
    started = time.monotonic()
    folder = Path(folder)
    # Models this small gain little from a second thread, and lose tenfold to it when the other core is busy: threads
    # that wait for each other at every small operation wait for whoever holds that core.
    torch.set_num_threads(1)
    yamls = {name: _yaml(folder, name, seed, share) for name in _EXPERIMENTS}
    _make_room(folder, yamls)
    corpus = write_corpus(
        folder / "corpus",
        train_sentences=round(share * _TRAIN_SENTENCES),
        test_sentences=round(share * _TEST_SENTENCES),
        seed=seed,
    )
    pairs = read_pairs(corpus.minimal_pairs)
    names = [name for name in _EXPERIMENTS if name in installed()]
    for name in sorted(set(_EXPERIMENTS) - set(names)):
        sys.stderr.write(
            f"{name} is not installed and left out: pip install foundry-{'rnn' if name == 'lstm' else name}\n"
        )
    if not names:
        raise UsageError("no architecture is installed: pip install foundry-gpt2 foundry-bert foundry-rnn")
    rows, curves = [], {}
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        config = load_config(folder / f"{name}.yaml")
        curve = _Curve()
        state = run(config, extra_observers=[curve])
        checkpoint = Path(config.training.output_dir) / f"checkpoint-{state.step}"
        model = BaseLanguageModel.from_pretrained(checkpoint)
        accuracies = [score.accuracy for score in score_pairs(model, load_tokenizer(checkpoint), pairs)]
        causal = config.objective.causal
        parameters = model.get_parameter_count().total
        speed = state.tokens_seen / curve.seconds
        floor = corpus.entropy_per_token if causal else None
        rows.append(
            (
                name,
                compact(parameters or 0),
                compact(speed),
                f"{curve.test_loss:.3f}",
                f"{corpus.test_floor:.3f}" if causal else "",
                *(f"{accuracy:.1%}" for accuracy in accuracies),
            )
        )
        curves[name] = curve
        results[name] = {
            "parameters": parameters,
            "tokens_per_second": speed,
            "test_loss": curve.test_loss,
            "entropy_floor": floor,
            "test_floor": corpus.test_floor if causal else None,
            "agreement": accuracies,
        }
    header = ("model", "parameters", "tokens/s", "test loss", "floor", "0 attractors", "1", "2")
    report("\n" + table(header, rows) + "\n\n" + _explanation(corpus))
    picture = _picture(folder / "curves.png", curves, results, corpus)
    if picture is not None:
        report(f"Learning curves: {picture}")
    _mark(folder, yamls, seed=seed, results=results)
    example = "gpt2" if "gpt2" in names else names[-1]
    report(f"Took {duration(time.monotonic() - started)}. Next: foundry generate {folder}/runs/{example} --samples 5")
    return results


def _yaml(folder: Path, name: str, seed: int, share: float) -> str:
    settings = _EXPERIMENTS[name]
    paths = {
        "train": folder / "corpus" / "train.txt",
        "test": folder / "corpus" / "test.txt",
        "tokenizer": folder / "tokenizers" / settings["objective"],
        "output": folder / "runs" / name,
        "file": folder / f"{name}.yaml",
    }
    quoted = {key: yaml_scalar(str(path)) for key, path in paths.items()}
    amount = {"tokens": round(share * _TRAIN_TOKENS)}
    return _YAML.format(name=name, seed=seed, **settings | amount | quoted)


def _make_room(folder: Path, yamls: Mapping[str, str]) -> None:
    """An empty folder, or one that an earlier quickstart filled; anything else is the user's and stays.

    Of an earlier quickstart only what this one writes anew is removed: its corpus, its tokenizers, its three runs. A
    YAML of its that was edited since is refused.
    """
    marker = folder / _MARKER
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not marker.is_file():
            raise UsageError(f"{folder} exists and is not an earlier quickstart: name another folder")
        try:
            written = json.loads(marker.read_bytes())["yamls"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{marker} is damaged: remove {folder}, or name another folder") from None
        for name in yamls:
            path = folder / f"{name}.yaml"
            if path.exists() and _digest(path.read_bytes()) != written.get(name):
                raise UsageError(f"{path} was changed since quickstart wrote it: move it away, or name another folder")
        for path in (folder / "corpus", folder / "tokenizers", *(folder / "runs" / name for name in yamls)):
            remove_tree(path)
    # Written first, so that a quickstart that was interrupted can be repeated.
    _mark(folder, yamls)
    for name, text in yamls.items():
        write_file(folder / f"{name}.yaml", text.encode())


def _mark(folder: Path, yamls: Mapping[str, str], **facts: Any) -> None:
    digests = {name: _digest(text.encode()) for name, text in yamls.items()}
    write_file(folder / _MARKER, (json.dumps({"yamls": digests, **facts}, indent=1) + "\n").encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _explanation(corpus: ToyCorpus) -> str:
    return (
        "Each has seen the same number of words. Test loss is in nats per word; the floor is what the grammar itself\n"
        "scores on the test text: no causal model does better in the long run. Its own entropy is "
        f"{corpus.entropy_per_token:.3f} a word.\n"
        "A masked model is asked another question: its loss has no such floor. The last columns: agreement of subject\n"
        "and verb (the keys to the cabinet are) with 0, 1 or 2 nouns of the other number between; chance is 50 %."
    )


def _picture(
    path: Path, curves: dict[str, _Curve], results: dict[str, dict[str, Any]], corpus: ToyCorpus
) -> Path | None:
    """Learning curves above the floor, and agreement beside them; needs matplotlib, which is an extra."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return None
    import io

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), gridspec_kw={"width_ratios": [3, 2]})
    colours = {"gpt2": "#3b6fb6", "bert": "#d1802f", "lstm": "#3a8f5c"}
    for name, curve in curves.items():
        masked = " (masked)" if results[name]["entropy_floor"] is None else ""
        left.plot(
            [t / 1e6 for t in curve.tokens], curve.losses, label=name + masked, color=colours[name], linewidth=1.6
        )
    left.axhline(corpus.entropy_per_token, color="black", linestyle="--", linewidth=1, label="entropy of the grammar")
    left.set(xlabel="million words seen", ylabel="training loss (nats per word)", title="Learning the toy language")
    left.legend(frameon=False)
    for index, name in enumerate(curves):
        accuracies = results[name]["agreement"]
        places = [attractors + 0.26 * (index - (len(curves) - 1) / 2) for attractors in range(len(accuracies))]
        right.bar(places, [100 * a for a in accuracies], width=0.24, color=colours[name], label=name)
    right.axhline(50, color="black", linestyle=":", linewidth=1)
    right.set(
        xticks=[0, 1, 2],
        ylim=(0, 104),
        xlabel="attractors",
        ylabel="agreement right (%)",
        title="The keys to the cabinet are",
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    write_file(path, buffer.getvalue())
    return path
