"""The committed names of weights: written on demand, read by a check, kept beside those of other architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foundry_core.cli import main
from foundry_core.cli.new_plugin import plugin_files
from foundry_core.testing.kit.keys import committed as read_commitments
from foundry_core.testing.kit.keys import fixed_numbers

from .packages import NAME, PACKAGE, RIGHT, failures, installed

WRITTEN = plugin_files(NAME)[f"{PACKAGE}/state_keys.txt"]
"""The list that `foundry new-plugin` writes."""

FIXED = [0.4745943311136216, 0.6813754250761122, -0.8368126207496971]
"""Another machine or version must give the same."""

NAMES = [line for line in WRITTEN.splitlines() if line and not line.startswith(("#", "["))]


@pytest.fixture
def committed(tmp_path: Path) -> Iterator[Path]:
    """The list of a package on the path."""
    with installed(RIGHT, tmp_path):
        yield tmp_path / PACKAGE / "state_keys.txt"


def test_the_list_has_the_names_of_every_example_in_order(committed: Path) -> None:
    assert len(NAMES) > 20
    assert committed.read_text() == WRITTEN
    (found,) = read_commitments(committed).values()
    assert found.names == NAMES
    assert len(found.sums) == 6


def test_written_again_it_keeps_others_commitments(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = read_commitments(committed)[f"{NAME}: tiny, causal_lm"].sums
    other = f"[another: tiny, causal_lm] 1.5 -2\n[another: tiny, masked_lm]\n{NAMES[0]}\n\n"
    committed.write_text(other + "\n".join(["[yet_another: tiny, causal_lm]", *NAMES]) + "\n")
    assert main(["check", NAME, "--write-keys"]) == 0
    assert capsys.readouterr().out == f"{committed}\n"
    assert read_commitments(committed) == {
        "another: tiny, causal_lm": (NAMES[:1], [1.5, -2]),
        "another: tiny, masked_lm": (NAMES[:1], []),
        f"{NAME}: tiny, causal_lm": (NAMES, sums),
        "yet_another: tiny, causal_lm": (NAMES, []),
    }
    assert committed.read_text().count(NAMES[1]) == 1


def test_a_difference_names_what_was_added_and_what_is_missing(tmp_path: Path) -> None:
    renamed = RIGHT.model.replace("self.embedding", "self.table")
    (reason,) = failures(RIGHT.but(model=renamed), tmp_path, "keys").values()
    assert reason.endswith("table.weight added; embedding.weight missing")


def test_another_function_under_the_same_names_is_found(tmp_path: Path) -> None:
    """The approximation of an activation differs in the fifth digit."""
    model = RIGHT.model.replace("nn.GELU()", 'nn.GELU(approximate="tanh")')
    (reason,) = failures(RIGHT.but(model=model), tmp_path, "keys").values()
    assert re.search(
        "with the same names, logits differ from those that .*state_keys.txt promises by [0-9.]+e-05 of the", reason
    )


def test_weights_are_fixed_by_names_and_places_alone() -> None:
    first, longer, other = fixed_numbers("weight", 3), fixed_numbers("weight", 100_000), fixed_numbers("bias", 3)
    assert first.tolist() == longer[:3].tolist() == pytest.approx(FIXED, abs=1e-15)
    assert not torch.equal(first, other)
    assert float(longer.abs().max()) <= 1
    assert abs(float(longer.mean())) < 0.01
    assert float(longer.std()) == pytest.approx(3**-0.5, abs=0.01)


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
