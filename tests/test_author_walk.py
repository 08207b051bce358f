"""The way of a third party: from nothing to a package that is checked, trains, opens in transformers, and is removed.

In an environment that holds the wheel of core and no other part of this repository, with the commands as an author and
a user type them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli.new_plugin import KINDS
from foundry_core.testing.toy_language import write_corpus

pytestmark = pytest.mark.long

AUTHORS_COMMANDS = (
    "foundry new-plugin mine",
    "pip wheel --no-deps --wheel-dir dist ./foundry-mine",
    "pip install dist/foundry_mine-0.1.0-py3-none-any.whl",
    "foundry plugins list",
    "foundry check mine",
)
"""The tutorial, word for word."""

USERS_COMMANDS = (
    "foundry init mine -o mine.yaml",
    "foundry train mine.yaml tokenizer.tokenizer_type=word model.mine.hidden_size=64 training.epochs=null "
    "training.train_steps=50",
    "foundry generate runs/mine --prompt 'the man' --tokens 5",
)

OPENING = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "runs/mine/checkpoint-50"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids = AutoTokenizer.from_pretrained(folder)("the man is old .", return_tensors="pt")["input_ids"]
loss = model(ids, labels=ids).loss
print(type(model).__name__, bool(torch.isfinite(loss)))
"""

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(environment: Any, tmp_path: Path) -> Shell:
    """Runs a command line in an empty folder, in the clean environment; pip there reaches for no network."""
    pip = environment.folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {environment.python} "$@"\n')
    pip.chmod(0o755)
    variables = {
        "PATH": os.pathsep.join([str(environment.folder / "bin"), os.environ["PATH"]]),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # sic: pip reads it as the value of build isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def type_in(*command: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        words = shlex.split(command[0]) if len(command) == 1 else command
        return subprocess.run(words, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False)

    return type_in


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_guide_shows_these_commands() -> None:
    guide = (Path(__file__).parents[1] / "plugins" / "README.md").read_text()
    assert "```\n" + "".join(f"{command}\n" for command in AUTHORS_COMMANDS) + "```\n" in guide


@pytest.mark.slow
def test_an_author_ships_an_architecture_in_five_commands(shell: Shell, tmp_path: Path) -> None:
    assert len(AUTHORS_COMMANDS) <= 5
    assert not list(tmp_path.iterdir())
    for command in AUTHORS_COMMANDS:
        if command.startswith("foundry check") and shell("foundry check --help").returncode != 0:
            continue  # a core without the conformance kit
        answer = done(shell(command))
        if command == "foundry plugins list":
            (line,) = [line for line in answer.splitlines() if line.startswith("mine")]
            assert line.split()[1:3] == ["foundry-mine", "0.1.0"]
            assert "unusable" not in line

    assert done(shell("foundry plugins doctor")).endswith("1 plugin is fine\n")
    corpus = write_corpus(tmp_path / "corpora", train_sentences=2000, test_sentences=50, seed=1)
    corpus.test.rename(tmp_path / "corpora" / "dev.txt")
    for command in USERS_COMMANDS:
        done(shell(command))
    assert done(shell("python", "-c", OPENING)) == "FoundryMineForCausalLM True\n"

    done(shell("pip uninstall --yes foundry-mine"))
    assert "no architecture is installed" in done(shell("foundry plugins list"))
    assert shell("python", "-c", "import foundry_mine").returncode == 1
    refused = shell("foundry validate mine.yaml")
    assert (refused.returncode, "Unknown architecture: 'mine'. Available: none." in refused.stderr) == (2, True)
    closed = shell("foundry evaluate runs/mine")
    assert (closed.returncode, "It was made with foundry-mine 0.1.0." in closed.stderr) == (6, True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_passes_its_own_continuous_integration(
    kind: str, environment: Any, shell: Shell, tmp_path: Path
) -> None:
    done(shell(f"foundry new-plugin mine --kind {kind}"))
    folder = tmp_path / "foundry-mine"
    for arguments in (
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy", "--python-executable", str(environment.python), "--cache-dir", str(tmp_path / "types")],
    ):
        done(shell(sys.executable, "-m", *arguments, cwd=folder))
    kit = shell("python", "-c", "from foundry_core.testing import conformance")
    if kit.returncode != 0:
        pytest.skip("the rest needs the conformance kit")
    done(shell("pip install --no-deps ./foundry-mine"))
    try:
        done(shell("python", "-m", "pytest", cwd=folder))
    finally:
        done(shell("pip uninstall --yes foundry-mine"))
