"""The suites that a local `make test` leaves out, and when."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.selection import ROOT, SUITES, changed_files, left_out


def test_a_suite_is_left_out_until_a_dependency_changes() -> None:
    assert left_out(["README.md", "foundry_core/cli/train.py"]) == ["tests/conformance", "tests/faults"]
    assert left_out(["foundry_core/storage/files.py"]) == ["tests/conformance"]
    assert left_out(["tests/conformance/bases.py", "README.md"]) == ["tests/faults"]
    assert left_out([path for paths in SUITES.values() for path in paths]) == []
    assert left_out(None) == []


def test_the_paths_that_a_suite_depends_on_exist() -> None:
    assert [path for paths in SUITES.values() for path in paths if not (ROOT / path).exists()] == []


def test_the_last_commit_and_uncommitted_files_count_as_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert changed_files(tmp_path) is None
    git("init")
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
        git("add", name)
        git("commit", "-m", name)
    (tmp_path / "first").write_text("edited")
    (tmp_path / "third").write_text("untracked")
    assert changed_files(tmp_path) == ["first", "second", "third"]


def test_without_an_earlier_commit_every_suite_runs(tmp_path: Path) -> None:
    subprocess.run(["git", "init"], cwd=tmp_path, check=True, capture_output=True)
    assert left_out(changed_files(tmp_path)) == []
