"""The jobs of examples/slurm under stand-ins for SLURM: what they start, what a signal does, what is queued again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import ExperimentConfig
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.checkpoints.verification import verify_run
from foundry_core.run_folder import CELLS, MANIFEST
from tests.each import each

ROOT = Path(__file__).parents[1]
JOBS, GUIDE = ROOT / "examples" / "slurm", ROOT / "docs" / "training" / "clusters.md"

# Each process of a step leads a group, to which this shell does not belong. The code is the highest of theirs.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
code=0 pids=()
for ((task = 0; task < TASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=$TASKS setsid "$@" & pids+=($!)
done
echo "${pids[@]}" > "$STEP"
for pid in "${pids[@]}"; do wait "$pid"; ended=$?; ((ended > code)) && code=$ended; done
exit "$code"
"""
SCONTROL = """#!/bin/bash
case $1 in
requeue) echo "$2" >> "$REQUEUED" ;;
show) printf '%s\\n' node1 node2 ;;
esac
"""
FOUNDRY = '#!/bin/bash\nexec "$PYTHON" -m foundry_core.cli "$@"\n'
TELLING = """#!/bin/bash
echo "$MASTER_ADDR" ${RANK+"$RANK $LOCAL_RANK $WORLD_SIZE"} "$OMP_NUM_THREADS: $*" >> "$TOLD"
exit "$CODE"
"""


class Slurm:
    """A queue of this machine: submits jobs, signals their steps, and knows what was queued again."""

    def __init__(self, folder: Path):
        self.folder, self.requeued_file = folder, folder / "requeued"
        self.jobs: list[subprocess.Popen[str]] = []
        self.put(srun=SRUN, scontrol=SCONTROL, foundry=FOUNDRY)

    def put(self, **programs: str) -> None:
        for name, text in programs.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def sbatch(self, job: str, *arguments: object, job_id: int = 36, tasks: int = 1, **environment: object) -> int:
        """Start a job, and return its place in `jobs`."""
        slurm = {"JOB_ID": job_id, "CPUS_PER_TASK": 1, "JOB_NODELIST": "node[1-2]", "RESTART_COUNT": 0}
        given = {f"SLURM_{name}": value for name, value in slurm.items()} | environment
        given |= {"PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "TASKS": tasks}
        given |= {"STEP": self.folder / f"step{len(self.jobs)}", "REQUEUED": self.requeued_file}
        self.jobs.append(
            subprocess.Popen(
                ["bash", str(JOBS / job), *map(str, arguments)],
                env=os.environ | {name: str(value) for name, value in given.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pipesize=4096,  # a run that logs each step does not get to its end unread
            )
        )
        return len(self.jobs) - 1

    def until(self, at: int, happens: str) -> None:
        """Wait until a job prints a line that begins so."""
        output = self.jobs[at].stdout
        assert output is not None
        assert any(line.startswith(happens) for line in output)

    def send(self, at: int, number: signal.Signals) -> None:
        """Signal every process of a job's step."""
        for group in (self.folder / f"step{at}").read_text().split():
            os.killpg(int(group), number)

    def ended(self, at: int) -> tuple[int, str]:
        """Return the exit code of a job, and what it printed."""
        printed, _ = self.jobs[at].communicate(timeout=120)
        return self.jobs[at].returncode, printed

    @property
    def requeued(self) -> list[str]:
        return self.requeued_file.read_text().split() if self.requeued_file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm").mkdir()
    cluster = Slurm(tmp_path / "slurm")
    yield cluster
    for job in cluster.jobs:
        if job.poll() is None:
            job.kill()


def before_the_limit(job: str) -> signal.Signals:
    """Return the signal that a job asks for. It goes to its steps: with `B:` it would go to the shell alone."""
    (name,) = re.findall(r"^#SBATCH --signal=(\w+)@\d+$", (JOBS / job).read_text(), re.MULTILINE)
    return signal.Signals[f"SIG{name}"]


ONE, NODES, ARRAY = "one_process.sbatch", "several_nodes.sbatch", "study_array.sbatch"
COMMANDS = {
    ONE: ["8: train x.yaml a=1 --resume auto"],
    "several_processes.sbatch": ["2: train x.yaml a=1 --processes 4 --resume auto"],
    NODES: [f"node1 {rank} {rank % 2} 4 8: train x.yaml a=1 --resume auto" for rank in range(4)],
    ARRAY: ["8: study x.yaml a=1 --cell 2"],
}


def test_every_job_starts_what_it_is_for(tmp_path: Path, slurm: Slurm) -> None:
    slurm.put(foundry=TELLING)
    assert {path.name for path in JOBS.iterdir()} == set(COMMANDS)
    assert all(job in GUIDE.read_text() for job in COMMANDS)
    for job, commands in COMMANDS.items():
        told = tmp_path / job
        tasks = len(commands)
        environment: dict[str, Any] = {"TOLD": told, "CODE": 0, "SLURM_CPUS_PER_TASK": 8, "SLURM_ARRAY_TASK_ID": 2}
        code, printed = slurm.ended(slurm.sbatch(job, "x.yaml", "a=1", tasks=tasks, **environment))
        assert (code, printed) == (0, "")
        assert sorted(line.strip() for line in told.read_text().splitlines()) == commands
        head = (JOBS / job).read_text().partition("\n\n# Whatever")[0]
        assert "#SBATCH --requeue\n" in head
        assert before_the_limit(job) is signal.SIGUSR1


@each(
    ("code", "starts", "requeued"),
    [(0, 1, False), (75, 0, True), (75, 99, True), (75, 100, False), (2, 0, False), (7, 0, False), (137, 0, False)],
)
def test_only_code_75_is_queued_again(slurm: Slurm, code: int, starts: int, requeued: bool) -> None:
    slurm.put(foundry=TELLING)
    array = {"SLURM_ARRAY_JOB_ID": 36, "SLURM_ARRAY_TASK_ID": 2}
    for job in COMMANDS:
        before = slurm.requeued
        environment: dict[str, Any] = {"TOLD": "/dev/null", "CODE": code, "SLURM_RESTART_COUNT": starts, **array}
        assert slurm.ended(slurm.sbatch(job, "x.yaml", tasks=2, **environment)) == (code, "")
        # Of an array one job alone: its own number may be that of the whole.
        assert slurm.requeued[len(before) :] == ["36_2" if job == ARRAY else "36"] * requeued


Experiment = Callable[..., ExperimentConfig]


@pytest.mark.long
def test_a_job_is_queued_again_until_its_run_is_finished(experiment: Experiment, slurm: Slurm, tmp_path: Path) -> None:
    config = experiment("lstm", tmp_path, training={"train_steps": 400}, logging={"log_every_steps": 1})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config.resolved()))
    first = slurm.sbatch(ONE, tmp_path / "x.yaml")
    slurm.until(first, "step 3/")
    slurm.send(first, before_the_limit(ONE))
    code, printed = slurm.ended(first)
    assert (code, slurm.requeued) == (75, ["36"]), printed
    (stopped,) = re.findall(r"^stopped by SIGUSR1 after step \d+ of 400: go on from (\S+)", printed, re.MULTILINE)
    assert checkpoints(config.training.output_dir)[-1].name == stopped
    second = slurm.sbatch(ONE, tmp_path / "x.yaml", SLURM_RESTART_COUNT=1)
    code, printed = slurm.ended(second)
    assert (code, slurm.requeued) == (0, ["36"]), printed
    assert verify_run(config.training.output_dir)[1] == []
    assert "step 3/" not in printed
    assert checkpoints(config.training.output_dir)[-1].name == "checkpoint-400"


@pytest.mark.slow
def test_an_array_trains_each_cell_and_what_was_killed(experiment: Experiment, slurm: Slurm, tmp_path: Path) -> None:
    base = experiment("lstm", tmp_path, training={"train_steps": 1000}).resolved()
    study = {"output_dir": str(tmp_path / "study"), "base": base, "grid": {}, "seeds": [1, 2]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(study))

    def array(cells: Iterable[int]) -> list[int]:
        return [
            slurm.sbatch(ARRAY, tmp_path / "x.yaml", job_id=35 + cell, SLURM_ARRAY_JOB_ID=36, SLURM_ARRAY_TASK_ID=cell)
            for cell in cells
        ]

    first, second = array([1, 2])
    while not (tmp_path / "study" / "seed1" / "checkpoint-0" / MANIFEST).exists():
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended with {slurm.jobs[first].wait(timeout=0.05)}")
    slurm.send(first, signal.SIGKILL)
    assert [slurm.ended(at)[0] for at in (first, second)] == [137, 0]
    assert [slurm.ended(at)[0] for at in array([1, 2])] == [0, 0]
    assert slurm.requeued == []
    for cell in json.loads((tmp_path / "study" / CELLS).read_text())["cells"]:
        folder = tmp_path / "study" / cell["folder"]
        assert checkpoints(folder)[-1].name == "checkpoint-1000"
        assert verify_run(folder)[1] == []
