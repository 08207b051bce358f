"""Measure foundry side by side with what people use instead. See benchmarks/README.md.

python -m benchmarks                        # everything, about 50 minutes on two cores
python -m benchmarks train --sizes "gpt2 tiny" "lstm 2x200" --nanogpt PATH --examples PATH
python -m benchmarks train --no-peers --variant eager:training.compile=false
python -m benchmarks prepare score --rounds 3
python -m benchmarks --quick                # a smoke run: small models, one round
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import report
from benchmarks.inputs import SIZES
from benchmarks.measuring import Finding, Row, in_process, machine
from benchmarks.preparing import TOKENIZERS


def _variant(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, overrides = text.partition(":")
    if not overrides:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:section.key=value[,section.key=value]")
    return name, tuple(overrides.split(","))


def _train(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import training

    chosen = training.Options(
        folder=folder,
        rounds=options.rounds,
        quick=options.quick,
        sizes=tuple(options.sizes),
        threads=options.threads,
        nanogpt=options.nanogpt,
        examples=options.examples,
        variants=tuple(options.variant),
        peers=options.peers,
        compiled=options.compiled,
        bf16=options.bf16,
    )
    return training.measure(chosen)


def _memory(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    """Measure peak memory alone: one round of the sizes that have a limit, without compiled peers."""
    from benchmarks import training

    sizes = ("gpt2 small", "gpt2 base")
    chosen = training.Options(
        folder=folder, rounds=1, quick=options.quick, sizes=sizes, compiled=False, bf16=False, nano=False
    )
    for name, rows, found in training.measure(chosen):
        yield name, [row for row in rows if row.part == "memory" or row.result is None], found


def _prepare(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import preparing

    if options.quick:
        quick = preparing.Options(folder, 1, 0.05, 300, ("bpe",))
        return preparing.measure(quick)
    rounds = max(1, min(options.rounds, 3))
    return preparing.measure(preparing.Options(folder, rounds, options.megabytes, 8000, tuple(options.tokenizers)))


def _score(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import scoring

    return scoring.measure(folder, options.rounds, quick=options.quick)


def _save(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import saving

    return saving.measure(folder, options.rounds, quick=options.quick)


def _start(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import starting

    return starting.measure(folder, options.rounds, quick=options.quick)


def _grow(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import growth

    return growth.measure(folder, max(1, min(options.rounds, 3)), quick=options.quick)


def _scale(options: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    from benchmarks import scaling

    return scaling.measure(folder, options.rounds, quick=options.quick)


Part: TypeAlias = Callable[[argparse.Namespace, Path], Iterator[Finding]]
PARTS: dict[str, Part] = {
    "train": _train,
    "prepare": _prepare,
    "score": _score,
    "save": _save,
    "start": _start,
    "grow": _grow,
    "scale": _scale,
}
FURTHER: dict[str, Part] = {"memory": _memory}
"""Parts that `train` contains."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all by default), memory")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--quick", action="store_true", help="small inputs and models, one round: a smoke run")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks.json"),
        help="JSON; the table in Markdown and plots are put beside it",
    )
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="SIZE", help="for train"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each contender of train (1)")
    parser.add_argument("--nanogpt", metavar="PATH", help="checkout of nanoGPT")
    parser.add_argument("--examples", metavar="PATH", help="checkout of pytorch/examples")
    parser.add_argument("--variant", type=_variant, action="append", default=[], metavar="NAME:KEY=VALUE,...")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="train: foundry alone")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="train: no compiled peers")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="train: peers in bf16; default: if it pays"
    )
    parser.add_argument("--megabytes", type=float, default=8.0, help="prepare: size of each text (8)")
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), choices=TOKENIZERS, help="for prepare")
    options = parser.parse_args()
    parts = PARTS | FURTHER
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}: choose from {', '.join(parts)}")
    if options.quick:
        options.rounds = min(options.rounds, 2)
    described = machine()
    described["peak_gflops"] = in_process("benchmarks.measuring:one_peak")
    print(report.described(described), flush=True)
    rows: list[Row] = []
    results: dict[str, Any] = {"machine": described, "began": time.strftime("%Y-%m-%dT%H:%M:%S"), "options": {}}
    results["options"] = {key: value if key != "output" else str(value) for key, value in vars(options).items()}
    for part in options.parts or PARTS:
        start = time.perf_counter()
        results[part] = {}
        with tempfile.TemporaryDirectory(prefix="foundry-bench-") as folder:
            for name, found, details in parts[part](options, Path(folder)):
                rows += found
                results[part][name] = details
                results["rows"] = [asdict(row) | {"verdict": row.verdict} for row in rows]
                options.output.write_text(json.dumps(results, indent=1) + "\n")
                print(f"\n{report.table(found)}", flush=True)
        print(f"\n{part}: {time.perf_counter() - start:.0f} s", flush=True)
    if len(options.parts) != 1:
        print(f"\n{report.table(rows)}")
    text = f"{report.described(described)}\n\n{report.table(rows, markdown=True)}\n"
    options.output.with_suffix(".md").write_text(text)
    _plot(rows, results, options.output)
    return 0


def _plot(rows: list[Row], results: dict[str, Any], output: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return
    from benchmarks import growth

    report.plot(rows, output.with_suffix(".png"))
    for name, draw in (("train", report.plot_losses), ("grow", growth.plot)):
        if name in results:
            draw(results[name], output.with_suffix(f".{name}.png"))


if __name__ == "__main__":
    sys.exit(main())
