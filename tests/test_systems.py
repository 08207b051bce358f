"""Systems other than Linux, as far as they can be stood in for: what they lack is taken away from this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from foundry_core import ExperimentConfig, run
from foundry_core.evaluation.suites.kept import result_path
from foundry_core.run_folder import checkpoint_name, milestone_name
from foundry_core.study.grid import axes_of
from tests.each import each

WITHOUT = """
import os, signal, sys
import filelock  # has its own lock for each system
sys.modules.update(fcntl=None, termios=None, pwd=None, grp=None)
for name in "SIGHUP SIGUSR1 SIGUSR2 SIGXCPU SIGALRM pthread_sigmask".split():
    delattr(signal, name)
for name in "sched_getaffinity fork O_DIRECT O_NOFOLLOW O_NONBLOCK getuid geteuid".split():
    delattr(os, name)
"""
"""Run by every Python at its start: what Windows lacks, and macOS some of it, is not there."""

PROGRAM = """
import importlib, json, multiprocessing, os, pkgutil, signal, sys
from torch.utils.data._utils import signal_handling
signal_handling.IS_WINDOWS = True  # torch uses both elsewhere
del signal.SIGCHLD, os.register_at_fork
multiprocessing.set_start_method("spawn")
import foundry_core
failed = {}
for module in pkgutil.walk_packages(foundry_core.__path__, "foundry_core."):
    if module.name.endswith((".export", "__main__")):
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = repr(error)
from foundry_core.cli import main
print(json.dumps([failed, main(["train", sys.argv[1], "--quiet"])]))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="stands in for other systems on Linux")
def test_what_other_systems_lack_changes_no_bit(experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> None:
    weights = []
    for name, workers in {"here": 0, "elsewhere": 1}.items():
        config = experiment("lstm", tmp_path / name, training={"train_steps": 3, "num_workers": workers})
        weights.append(Path(config.training.output_dir) / checkpoint_name(3) / "model.safetensors")
        if name == "here":
            run(config, quiet=True)
    (tmp_path / "x.yaml").write_text(json.dumps(config.resolved()))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.yaml")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{}, 0], done.stderr
    assert len({sha256(path.read_bytes()).hexdigest() for path in weights}) == 1
    names = {path.name for path in (tmp_path / "elsewhere").rglob("*")}
    assert {"checkpoint-3", ".lock"} < names
    assert [name for name in names if REFUSED.search(name)] == []


REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Names of files that Windows refuses."""


@each("text", ["a:b", "1/2", "x < y", "what?", "C:\\corpora\\train.txt", 'the "old" one.', "*.txt", "a\tb|c"])
def test_a_name_made_of_what_users_write_fits_every_system(text: str) -> None:
    (axis,) = axes_of({"data.training_corpus": [text, {"train.txt": text}]}, [], [])
    names = [*(choice.name for choice in axis.choices), result_path(Path("checkpoint-1"), text, "sum").name]
    assert [name for name in [*names, milestone_name(10**7)] if REFUSED.search(name)] == []
