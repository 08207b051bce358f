"""Preparing data: text to token files, against run_clm's path with `datasets.map`.

Both start from a trained tokenizer and from files, in a process that has imported what it needs, and end with rows on
the disk. The time is the elapsed one, with two threads or processes where they are asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.inputs import TEXTS, write_text
from benchmarks.measuring import Contender, Finding, Gate, NotMeasuredError, Ratio, Row, in_process, race

TOKENIZERS = ("bpe", "wordpiece", "sentencepiece", "word", "character")
_LIMITS = {1: (3.5, 7.0), 2: (2.5, 4.0)}
_LENGTH = 128


def config(tokenizer: str, corpus: Path, folder: Path, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of a preparation."""
    sizes = {"layers": 2, "embedding_size": 32, "hidden_size": 32, "intermediate_hidden_size": 64, "attention_heads": 2}
    return {
        "experiment_name": "preparation",
        "data": {"training_corpus": str(corpus), "max_sequence_length": _LENGTH},
        "tokenizer": {"tokenizer_type": tokenizer, "vocab_size": vocabulary, "output_dir": str(folder / "tokenizer")},
        "model": {"architecture": "gpt2", "transformer": sizes},
        "training": {"output_dir": str(folder / "run"), "epochs": 1},
    }


def trained(_: Gate, settings: dict[str, Any]) -> None:
    """Train the tokenizer that both begin with."""
    from foundry_core.config.loading import load_config
    from foundry_core.data.preparation import train_tokenizer_from_config

    train_tokenizer_from_config(load_config(settings))


def ours(gate: Gate, settings: dict[str, Any]) -> None:
    """Prepare as `foundry data prepare` does, from nothing but the tokenizer in each round."""
    from foundry_core.cli.common import prepare_data
    from foundry_core.config.loading import load_config
    from foundry_core.run_folder import TOKENS

    loaded = load_config(settings)
    while True:
        shutil.rmtree(Path(settings["tokenizer"]["output_dir"], TOKENS), ignore_errors=True)
        _, data = prepare_data(loaded)
        gate.pass_(tokens=data.train_rows.total_tokens)


def run_clm(gate: Gate, corpus: Path, folder: Path, processes: int) -> None:
    """Prepare as run_clm of transformers does: load_dataset, a map that tokenizes, a map that groups into rows."""
    try:
        import datasets
    except ImportError:
        raise NotMeasuredError("datasets is not installed") from None
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.model_max_length = 10**9
    cache, workers = folder / f"cache {processes}", processes if processes > 1 else None

    def tokenize(examples: dict[str, Any]) -> Any:
        return tokenizer(examples["text"])

    def group(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // _LENGTH * _LENGTH
        rows = {key: [ids[i : i + _LENGTH] for i in range(0, total, _LENGTH)] for key, ids in joined.items()}
        return {**rows, "labels": rows["input_ids"].copy()}

    while True:
        shutil.rmtree(cache, ignore_errors=True)
        kind = "json" if corpus.suffix == ".jsonl" else "text"
        raw = datasets.load_dataset(kind, data_files=str(corpus), cache_dir=str(cache), split="train")
        encoded = raw.map(tokenize, batched=True, num_proc=workers, remove_columns=raw.column_names)
        rows = encoded.map(group, batched=True, num_proc=workers)
        gate.pass_(tokens=len(rows) * _LENGTH)


@dataclass(frozen=True)
class Options:
    """Extent of the preparation: megabytes of text, and the tokenizers."""

    folder: Path
    rounds: int = 3
    megabytes: float = 8.0
    vocabulary: int = 8000
    tokenizers: tuple[str, ...] = TOKENIZERS


def measure(options: Options) -> Iterator[Finding]:
    """Measure every tokenizer on each text and each format."""
    for text in TEXTS:
        content = TEXTS[text](round(options.megabytes * 1e6))
        for json_lines in (False, True):
            kind = "JSON lines" if json_lines else "text"
            for tokenizer in options.tokenizers:
                name = f"{tokenizer}, {text}, {kind}"
                folder = options.folder / name.replace(", ", "-").replace(" ", "-")
                corpus = folder / f"corpus.{'jsonl' if json_lines else 'txt'}"
                write_text(corpus, content, json_lines=json_lines)
                settings = config(tokenizer, corpus, folder, options.vocabulary)
                try:
                    in_process("benchmarks.preparing:trained", {"settings": settings}, threads=2)
                except NotMeasuredError as error:
                    yield name, [Row("prepare", name, "", None, note=str(error))], {}
                    continue
                own = Contender("foundry", "benchmarks.preparing:ours", {"settings": settings}, threads=2)
                peers = {count: _peer(corpus, folder, count) for count in _LIMITS}
                race([own, *peers.values()], options.rounds, name)
                found = {
                    each.name: {"error": each.error} if each.error else _figures(each, options.megabytes)
                    for each in (own, *peers.values())
                }
                yield name, [_row(name, own, peer, *_LIMITS[count]) for count, peer in peers.items()], found
                shutil.rmtree(folder)


def _peer(corpus: Path, folder: Path, processes: int) -> Contender:
    arguments = {"corpus": corpus, "folder": folder, "processes": processes}
    name = "run_clm, " + ("one process" if processes == 1 else f"{processes} processes")
    return Contender(name, "benchmarks.preparing:run_clm", arguments, threads=2)


def _figures(contender: Contender, megabytes: float) -> dict[str, Any]:
    return {
        "megabytes_per_second": [megabytes / each["wall"] for each in contender.rounds],
        "megabytes_per_processor_second": [megabytes / each["processor"] for each in contender.rounds],
        "tokens": contender.rounds[-1]["tokens"],
        "peak_memory": contender.rounds[-1]["peak_memory"],
    }


def _row(name: str, own: Contender, peer: Contender, at_least: float, aim: float) -> Row:
    error = own.error or peer.error
    ratio = None if error else Ratio.of([1 / each["wall"] for each in own.rounds], [1 / p["wall"] for p in peer.rounds])
    return Row("prepare", name, peer.name, ratio, at_least, aim, note=error or "")
