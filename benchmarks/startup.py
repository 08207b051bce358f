"""Measure how long the light verbs take compared with bare Python, and the imports of training.

    python benchmarks/startup.py

The limit is 30 times bare Python. The imports of training are measured with and without the garbage collector. The
commands are interleaved, so that a busy period of the machine affects all of them; medians are compared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 11
LIMIT = 30
FOUNDRY = "import sys; from foundry_core.cli import main; sys.exit(main())"
COMMANDS = {
    "python -c pass": ("pass",),
    "foundry --help": (FOUNDRY, "--help"),
    "foundry plugins list": (FOUNDRY, "plugins", "list"),
    "foundry validate configs/gpt2.yaml": (FOUNDRY, "validate", "configs/gpt2.yaml"),
}

TRAINER = "import foundry_core.training.trainer"
PAUSED = f"from foundry_core.cli.common import large_imports\nwith large_imports(): {TRAINER}"


def seconds(arguments: tuple[str, ...]) -> float:
    """Run a process and return the elapsed seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> int:
    for arguments in COMMANDS.values():  # an unmeasured run compiles byte code and loads files into memory
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    bare = medians["python -c pass"]
    print(f"{'median of ' + str(ROUNDS):<36}{'seconds':>9}{'times bare Python':>20}")
    for name, median in medians.items():
        print(f"{name:<36}{median:>9.3f}{median / bare:>20.1f}")
    slowest = max(medians.values()) / bare
    print(f"limit {LIMIT} times: {'held' if slowest < LIMIT else 'NOT held'}")
    pairs = [(seconds((PAUSED,)), seconds((TRAINER,))) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"imports of training without garbage collection: {ratio:.2f} of the time with it")
    return 0 if slowest < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
