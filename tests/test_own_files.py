"""Tests of what a run takes for its own in the folders that it is given, and what it leaves alone."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import RunInfo, load_config, run
from foundry_core.errors import UsageError
from foundry_core.storage.files import AppendedLines, StorageError, publish_folder, remove_leftovers, write_file
from foundry_core.storage.lock import RunLock, lock_owner
from foundry_core.training.sinks import MetricsFile
from tests.each import each


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


FOREIGN = (".vim.old", ".cache.tmp", ".notes.123.tmp", ".bashrc.1.old", ".foundry-0123456789abcdef.tmp", "x.old")
LEFT = (
    ".checkpoint-4.foundry-0123456789abcdef.tmp",
    ".run.json.foundry-fedcba9876543210.tmp",
    ".checkpoint-1.foundry-0000000000000077.old",
)


def test_tidying_removes_what_foundry_has_named_and_nothing_else(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    folder = Path(config.training.output_dir)
    for name in (*FOREIGN, *LEFT):
        (folder / name).mkdir(parents=True)
        (folder / name / "letter.txt").write_text("dear")
    run(config, quiet=True)
    run(config, resume=True, quiet=True)
    assert all((folder / name / "letter.txt").read_text() == "dear" for name in FOREIGN)
    assert not any((folder / name).exists() for name in LEFT)


def test_tidying_does_not_follow_a_link_to_a_tokenizer_of_others(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    shared = tmp_path / "shared"
    (shared / "tokens").mkdir(parents=True)
    Path(config.training.output_dir).mkdir()
    (Path(config.training.output_dir) / "tokenizer").symlink_to(shared)
    theirs = [
        shared / ".tokenizer.json.foundry-0123456789abcdef.tmp",
        shared / "tokens" / ".0123456789abcdef.tokens.foundry-0123456789abcdef.tmp",
    ]
    for path in theirs:
        path.write_text("being written by another run")
    run(config, quiet=True)
    assert all(path.exists() for path in theirs)


def test_an_unfinished_file_is_a_leftover_with_a_unique_name(tmp_path, monkeypatch):
    """Two containers have the same process id."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen: list[Any] = []

    def look(sink):
        with publish_folder(tmp_path / "checkpoint-1", {}) as other:
            seen.extend(path.name for path in tmp_path.glob(".*"))
            other.write("weights", b"2")
        sink.write("weights", b"1")

    with publish_folder(tmp_path / "checkpoint-1", {}) as sink:
        look(sink)
    assert len(set(seen)) == 2
    assert (tmp_path / "checkpoint-1" / "weights").read_bytes() == b"1"
    for name in seen:
        (tmp_path / name).mkdir()
    assert remove_leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_nothing_is_written_through_a_link_that_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / f".x.foundry-{'0' * 16}.tmp").symlink_to(tmp_path / "letter.txt")
    with pytest.raises(StorageError, match="File exists"):
        write_file(tmp_path / "x", b"content")
    assert (tmp_path / "letter.txt").read_text() == "dear"


def link(path):
    target = path.with_name("letter.txt")
    target.write_text("dear")
    path.symlink_to(target)


def dangling_link(path):
    path.symlink_to(path.with_name("letter.txt"))


@each("name", [".lock", "metrics.jsonl"])
@each("make", [link, dangling_link, os.mkfifo, os.mkdir])
def test_a_link_or_a_fifo_in_place_of_a_run_file_is_refused(experiment, tmp_path, name, make):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    folder = Path(config.training.output_dir)
    folder.mkdir()
    make(folder / name)
    letter = folder / "letter.txt"
    before = letter.read_text() if letter.exists() else None
    with pytest.raises(StorageError, match=rf"^cannot write \S+/{name}: it is not a plain file; remove it$"):
        run(config, quiet=True)
    assert (letter.read_text() if letter.exists() else None) == before


@pytest.mark.parametrize("opened", [AppendedLines, lambda path: RunLock(path.parent)], ids=["lines", "lock"])
def test_a_link_created_at_the_last_moment_is_not_followed(tmp_path, monkeypatch, opened):
    monkeypatch.setattr("foundry_core.storage.files.require_plain", lambda path: None)
    link(tmp_path / ".lock")
    with pytest.raises(StorageError, match=r"cannot write .*/\.lock"):
        opened(tmp_path / ".lock")
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_disk_without_locks_is_one_line(tmp_path, monkeypatch):
    def none_there(descriptor, *, blocking):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("foundry_core.storage.lock.lock_descriptor", none_there)
    with pytest.raises(StorageError, match=r"^cannot write \S+/\.lock \(\d+ bytes\): No locks available$"):
        RunLock(tmp_path)


def test_the_owner_is_described_behind_the_byte_that_is_locked(tmp_path):
    path = tmp_path / ".lock"
    path.write_bytes(b"of a run that was killed, " * 9)
    with RunLock(tmp_path):
        assert path.read_bytes()[:1] == b"\n"  # nobody else may read it on Windows
        assert lock_owner(path).startswith(f"pid {os.getpid()} on ")


def test_foreign_lines_of_the_log_are_dropped_on_resuming(experiment, tmp_path, capsys):
    config = experiment(
        "lstm", tmp_path, training={"train_steps": 6, "checkpoints": {"steps": [3]}}, logging={"log_every_steps": 1}
    )
    run(config, quiet=True)
    path = Path(config.training.output_dir) / "metrics.jsonl"
    whole = path.read_bytes().splitlines()
    foreign = [b"\xff", b"\xfe\x00", b"7", b'{"step": "3"}', b"[" * 100_000, b"", b'{"kind": "train"']
    path.write_bytes(b"\n".join([*foreign[:3], *whole, *foreign[3:]]))
    run(config, resume=True, quiet=True)
    assert path.read_bytes().splitlines() == whole
    assert "muted" not in capsys.readouterr().err


def test_a_log_that_cannot_be_read_stops_the_run_by_name(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    read = Path.read_bytes
    denied = PermissionError(13, "Permission denied")

    def refuse(self):
        if self == path:
            raise denied
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*metrics\.jsonl: Permission denied"):
        MetricsFile(path).foundry_run_started(RunInfo("x", tmp_path, {}, 1, 0))


def test_a_configuration_of_the_users_own_is_not_replaced(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    path = Path(config.training.output_dir) / "config.yaml"
    path.parent.mkdir()
    text = "# the one that worked\n" + yaml.safe_dump(config.resolved())
    path.write_text(text)
    with pytest.raises(
        UsageError, match=r"/config\.yaml was not written by a run, and would be replaced .*: give it an"
    ):
        run(load_config(path), quiet=True)
    assert path.read_text() == text


def test_a_run_resumes_from_the_configuration_it_wrote(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    written = load_config(Path(config.training.output_dir) / "config.yaml", ["training.train_steps=3"])
    assert run(written, resume=True, allowed_changes=["training.train_steps"], quiet=True).step == 3
    assert load_config(Path(config.training.output_dir) / "config.yaml") == written
