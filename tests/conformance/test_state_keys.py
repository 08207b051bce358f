"""The committed names of weights: written on demand, read by a check, kept beside those of other architectures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_core.cli import main
from foundry_core.cli.new_plugin import plugin_files
from foundry_core.testing.kit import keys

from .packages import NAME, PACKAGE, RIGHT, failures, installed

WRITTEN = plugin_files(NAME)[f"{PACKAGE}/state_keys.txt"]
"""The list that `foundry new-plugin` writes."""

NAMES = [line for line in WRITTEN.splitlines() if line and not line.startswith(("#", "["))]


def names_in(path: Path) -> dict[str, list[str]]:
    return {title: each.names for title, each in keys.committed(path).items()}


@pytest.fixture
def committed(tmp_path: Path) -> Iterator[Path]:
    """The list of a package on the path."""
    with installed(RIGHT, tmp_path):
        yield tmp_path / PACKAGE / "state_keys.txt"


def test_the_list_has_the_names_of_every_example_in_order(committed: Path) -> None:
    assert len(NAMES) > 20
    assert committed.read_text() == WRITTEN
    assert names_in(committed) == {f"{NAME}: tiny, causal_lm": NAMES}


def test_written_again_it_keeps_others_commitments(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = f"[another: tiny, causal_lm]\n[another: tiny, masked_lm]\n{NAMES[0]}\n\n[yet_another: tiny, causal_lm]\n"
    committed.write_text(other + "".join(f"{name}\n" for name in NAMES))
    assert main(["check", NAME, "--write-keys"]) == 0
    assert capsys.readouterr().out == f"{committed}\n"
    assert names_in(committed) == {
        "another: tiny, causal_lm": NAMES[:1],
        "another: tiny, masked_lm": NAMES[:1],
        f"{NAME}: tiny, causal_lm": NAMES,
        "yet_another: tiny, causal_lm": NAMES,
    }
    assert committed.read_text().count(NAMES[1]) == 1


def test_a_difference_names_what_was_added_and_what_is_missing(tmp_path: Path) -> None:
    renamed = RIGHT.model.replace("self.embedding", "self.table")
    (reason,) = failures(RIGHT.but(model=renamed), tmp_path, "keys").values()
    assert reason.endswith("table.weight added; embedding.weight missing")


def test_without_a_package_there_is_nothing_to_write_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "unpackaged.py"
    path.write_text(
        "from foundry_core import BaseLanguageModel, ModelConfig, register_architecture\n"
        "@register_architecture('unpackaged', config=ModelConfig)\n"
        "class Unpackaged(BaseLanguageModel): ...\n"
    )
    assert main(["check", "unpackaged", "--plugin", str(path), "--write-keys"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --write-keys: 'unpackaged' ")
    assert error.count("\n") == 1
