"""Starting: processor time to the first optimizer step, against a script for transformers' Trainer; the light verbs.

The data are prepared. A process is stopped by a hook after its first step, and tells what it has taken since it began.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.inputs import SIZES
from benchmarks.measuring import Finding, Gate, NotMeasuredError, Ratio, Row, in_process

ROOT = Path(__file__).parents[1]
FOUNDRY = "import sys; from foundry_core.cli import main; sys.exit(main())"
_LIMITS = {"gpt2": (0.7, 0.5), "lstm": (0.5, 0.35)}
_LIGHT = 30.0
"""Limit of a light verb, in times of a bare Python."""

_STOP = """\
import os, sys, time
from foundry_core import hookimpl

@hookimpl
def foundry_step_ended(report):
    os.write(1, f"{time.process_time()}\\n".encode())
    os._exit(0)
"""

_SCRIPT = """\
import os, sys, time
from datasets import load_from_disk
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainerCallback,
    TrainingArguments,
)

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        os.write(1, f"{time.process_time()}\\n".encode())
        os._exit(0)

folder, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
arguments = TrainingArguments(output, per_device_train_batch_size=12, report_to="none", use_cpu=True)
Trainer(
    model, arguments, train_dataset=load_from_disk(folder + "/rows"), callbacks=[Stop()],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
).train()
"""


def dataset(_: Gate, folder: Path) -> None:
    """Save the rows as a script for transformers would have prepared them."""
    try:
        from datasets import Dataset
    except ImportError:
        raise NotMeasuredError("datasets is not installed") from None
    import numpy as np

    rows = np.load(folder / "rows.npy").tolist()
    Dataset.from_dict({"input_ids": rows}).save_to_disk(str(folder / "transformers" / "rows"))


def _run(arguments: list[str], threads: int = 1) -> tuple[float, str]:
    """Run a process; return its processor seconds and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise NotMeasuredError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def measure(folder: Path, rounds: int, *, quick: bool) -> Iterator[Finding]:
    """Measure the first steps and the light verbs."""
    commands: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    for name, of in (("gpt2", "gpt2 tiny"), ("lstm", "lstm 2x200")):
        size = replace(SIZES[of].shrunk() if quick else SIZES[of], steps=1)
        arguments = {"size": size, "folder": folder / name, "rows": 96}
        facts = in_process("benchmarks.contenders:prepared", arguments, threads=2)
        hook, yaml = folder / name / "stop_at_first_step.py", folder / name / "x.yaml"
        hook.write_text(_STOP)
        yaml.write_text(json.dumps(facts["settings"] | {"plugins": [hook.stem]}))
        commands[name] = ["-c", FOUNDRY, "train", str(yaml), "--plugin", str(hook)]
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    try:
        in_process("benchmarks.starting:dataset", {"folder": folder / "gpt2"})
        commands["script"] = [str(script), str(folder / "gpt2" / "transformers"), str(folder / "out")]
    except NotMeasuredError as error:
        problems["script"] = str(error)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):  # the first one compiles byte code and reads files into memory
        for name, command in list(commands.items()):
            extra = [f"training.output_dir={folder / name}/out-{number}"] if name in _LIMITS else []
            try:
                taken = float(_run([*command, *extra])[1].strip().splitlines()[-1])
            except (NotMeasuredError, IndexError, ValueError) as error:
                problems[name] = str(error)
                commands.pop(name)
                continue
            if number:
                times[name].append(taken)
    rows = []
    for name, limits in _LIMITS.items():
        problem = problems.get(name) or problems.get("script")
        ratio = None if problem else Ratio.of(times[name], times["script"])
        note = problem or " to ".join(f"{statistics.median(times[each]):.2f} s" for each in (name, "script"))
        rows.append(Row("start", f"first step, {name}", "Trainer script", ratio, *limits, lower=True, note=note))
    yield "first step", rows, times
    yield "light verbs", *_light_verbs(rounds)


def _light_verbs(rounds: int) -> tuple[list[Row], dict[str, list[float]]]:
    verbs = {
        "python -c pass": ["-c", "pass"],
        "foundry --help": ["-c", FOUNDRY, "--help"],
        "foundry plugins list": ["-c", FOUNDRY, "plugins", "list"],
        "foundry validate": ["-c", FOUNDRY, "validate", "configs/gpt2.yaml"],
    }
    times: dict[str, list[float]] = {name: [] for name in verbs}
    for number in range(rounds + 1):
        for name, command in verbs.items():
            taken = _run(command)[0]
            if number:
                times[name].append(taken)
    bare = times["python -c pass"]
    rows = [
        Row("start", name, "bare Python", Ratio.of(times[name], bare), _LIGHT, lower=True)
        for name in verbs
        if name != "python -c pass"
    ]
    return rows, times
