"""Measure memory and time for preparing a large corpus: training the tokenizer and writing the token file.

    python benchmarks/prepare_memory.py --megabytes 1000 --tokenizer bpe

Writes a corpus of words drawn from a Zipf distribution over an open vocabulary (new words keep appearing, as in natural
text: Heaps' law), runs `foundry tokenizer train` and `foundry data prepare` on it in separate processes, and prints the
time and the peak resident memory of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from foundry_core.registry.loading import get_architecture

_CONFIG = """\
experiment_name: memory
data: {{training_corpus: {corpus}}}
tokenizer: {{tokenizer_type: {tokenizer}, vocab_size: 8000, output_dir: {folder}/tokenizer}}
model: {model}
training: {{output_dir: {folder}/run, epochs: 1}}
"""


def write_corpus(path: Path, megabytes: int, seed: int = 0) -> int:
    """Write lines of words; return the approximate number of distinct words."""
    generator = np.random.default_rng(seed)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
    written, largest = 0, 0
    with path.open("wb") as file:
        while written < megabytes * 10**6:
            # Zipf with exponent 1.25: ranks are unbounded, so distinct words grow like a power of the length.
            ranks = generator.zipf(1.25, 200_000) % 10**9
            largest = max(largest, len(np.unique(ranks)))
            lines = []
            for start in range(0, len(ranks), 20):
                lines.append(b" ".join(_word(rank, letters) for rank in ranks[start : start + 20].tolist()))
            block = b" .\n".join(lines) + b" .\n"
            file.write(block)
            written += len(block)
    return largest


def _word(rank: int, letters: np.ndarray) -> bytes:
    """Spell a rank: short for frequent words, and unique."""
    spelling = bytearray()
    rank += 26
    while rank:
        rank, digit = divmod(rank, 26)
        spelling.append(letters[digit])
    return bytes(spelling)


def measure(command: list[str]) -> tuple[float, float]:
    """Run a process and return its seconds and peak resident megabytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument(
        "--tokenizer", default="bpe", choices=["sentencepiece", "wordpiece", "bpe", "character", "word"]
    )
    parser.add_argument("--architecture", default="gpt2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.txt"
        write_corpus(corpus, options.megabytes)
        config = folder / "x.yaml"
        recipe = get_architecture(options.architecture).recipe["model"]
        model = json.dumps({"architecture": options.architecture, **recipe})
        config.write_text(_CONFIG.format(corpus=corpus, folder=folder, tokenizer=options.tokenizer, model=model))
        print(f"corpus {corpus.stat().st_size / 1e6:.0f} MB, tokenizer {options.tokenizer}", flush=True)
        for verb in (["tokenizer", "train"], ["data", "prepare"]):
            seconds, peak = measure([sys.executable, "-m", "foundry_core.cli", *verb, str(config)])
            print(f"foundry {' '.join(verb)}: {seconds:.0f} s, peak {peak:.0f} MB resident", flush=True)
        tokens = sum(path.stat().st_size for path in (folder / "tokenizer" / "tokens").glob("*.tokens"))
        print(f"token file {tokens / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
