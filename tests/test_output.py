"""Writing to the terminal stops nothing: its reader has gone, a disk is full, the shell has closed it."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import RunInfo, StepReport, hookimpl
from foundry_core.errors import warn
from foundry_core.registry.hooks import hook_manager
from foundry_core.storage.lock import lock_owner
from foundry_core.training.console import Console
from foundry_core.training.notifier import Notifier
from foundry_core.training.progress import reading

FOUNDRY = f"{sys.executable} -m foundry_core.cli"


def shell(line, cwd):
    """A line of bash; `$?` of it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def written(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 30}, logging={"log_every_steps": 1})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config.resolved()))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize(
    "redirected",
    ["2>&1 | head -n 1; exit ${PIPESTATUS[0]}", ">/dev/full 2>&1", ">&- 2>&-", "<&- >&-"],
    ids=["head", "full", "closed", "stdout closed"],
)
def test_a_run_goes_to_its_end_whatever_becomes_of_what_it_says(written, redirected):
    done = shell(f"{FOUNDRY} train x.yaml {redirected}", written)
    assert done.returncode == 0, done
    assert (written / "run" / "checkpoint-30").is_dir()
    assert lock_owner(written / "run" / ".lock").startswith("pid ")
    assert "Exception ignored" not in done.stdout + done.stderr


@pytest.mark.long
def test_a_failed_run_keeps_its_exit_code_without_an_output(written):
    assert shell(f"{FOUNDRY} train x.yaml data.training_corpus=none.txt 2>/dev/full", written).returncode == 4


@pytest.mark.long
def test_an_unprintable_result_warns_but_a_text_is_an_error(written):
    done = shell(f"{FOUNDRY} train x.yaml --quiet >/dev/full", written)
    assert (done.returncode, done.stderr) == (0, "warning: stdout cannot be written: No space left on device\n")
    printed = shell(f"{FOUNDRY} schema >/dev/full", written)
    assert (printed.returncode, printed.stderr) == (8, "error: cannot write the output: No space left on device\n")


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code"),
    [("schema", 0), ("--help", 0), ("compare run --json", 0), ("seen run --step 3", 0), ("check lstm", 8)],
)
def test_a_closed_reader_is_success_only_for_plain_text(written, arguments, code):
    if " run " in arguments:
        shell(f"{FOUNDRY} train x.yaml --quiet", written)
    done = shell(f"{FOUNDRY} {arguments} | true; exit ${{PIPESTATUS[0]}}", written)
    assert done.returncode == code
    assert done.stderr == ("error: cannot write the output: Broken pipe\n" if code else "")


class Gone:
    """A stream whose reader has gone."""

    encoding = "utf-8"

    def __init__(self, *, terminal):
        self.terminal = terminal

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("stream", [Gone(terminal=False), Gone(terminal=True), None], ids=["pipe", "terminal", "none"])
def test_progress_and_warnings_stop_nothing(monkeypatch, stream):
    class Failing:
        @hookimpl
        def foundry_run_ended(self, step):
            raise RuntimeError("an observer's own")

    monkeypatch.setattr(sys, "stderr", stream)
    before = sys.stdout
    warn("nobody hears it")
    with reading("encoding", 10) as progress:
        progress(5)
    told = []

    class Hearing(Console):
        @hookimpl
        def foundry_run_ended(self, step):
            super().foundry_run_ended(step)
            told.append(step)

    notifier = Notifier(hook_manager([Hearing(), Failing()]))
    facts: dict[str, Any] = {"experiment_name": "x", "output_dir": Path("x"), "config": {}, "total_steps": 3}
    notifier.tell("foundry_run_started", run=RunInfo(**facts, first_step=0, facts={}))
    notifier.tell("foundry_run_ended", step=3)
    assert told == [3]
    assert sys.stdout is before


def test_a_step_says_its_share_of_communication_if_there_is_any():
    stream = io.StringIO()
    for share in (0.0, 0.125):
        Console(stream).foundry_step_ended(
            StepReport(1, 2, 0.1, 4.5, 0.1, 1.0, 5, 5, 1000.0, 60.0, communication=share)
        )
    alone, together = stream.getvalue().splitlines()
    assert alone.endswith("1k tokens/s  01:00 left")
    assert "tokens/s  12% communication  01:00 left" in together
