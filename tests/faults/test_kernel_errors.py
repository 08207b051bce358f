"""Real errors of the kernel: what injected ones stand for."""

import ctypes
import os
import re
import resource
from pathlib import Path

import pytest

from foundry_core.checkpoints.checkpoint import newest_valid
from foundry_core.storage.files import remove_tree
from tests.faults.harness import Ended, in_child

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, PRIVATE = 1, 32, (1 << 18) | (1 << 14)
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def wrong_after(ended: Ended, line: str, judge):
    """Return what is wrong when a run should have ended with one line that matches."""
    alike = ended.code == 8 and len(ended.errors) == 1 and re.fullmatch(line, ended.errors[0])
    wrong = [] if alike else [f"ended with {ended.code}, saying {ended.errors}"]
    return wrong + judge.checkpoints(ended.of("acknowledged"))


def test_a_limit_on_the_size_of_a_file(fresh):
    fresh.scenario.alone()
    sizes = sorted((each.stat().st_size, each.name) for each in fresh.scenario.run_folder.rglob("*") if each.is_file())
    (largest, name) = sizes[-1]

    def limited(tell):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
        tell(("run", fresh.scenario.train()))

    fresh.scenario.reset()
    ended = in_child(limited).of("run")[0]
    line = rf"cannot write \S+/{re.escape(name)} \([\d,]+ bytes\): File too large"
    assert wrong_after(ended, line, fresh) + fresh.going_on() == []


def called(function, *arguments):
    """A function of the C library; raises OSError when it fails."""
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def on_a_small_disk(trial):
    """Carry out `trial(mount)` where mounts are the child's own; `mount(folder, flags, size)` is one in memory."""

    def enter(tell):
        user, group = os.getuid(), os.getgid()
        try:
            called(LIBC.unshare, NEW_MOUNTS | (NEW_USER if user else 0))
            if user:
                for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                    Path("/proc/self", name).write_text(content)
            called(LIBC.mount, b"none", b"/", None, PRIVATE, None)
        except OSError as error:
            tell(("refused", str(error)))
            return

        def mount(folder, flags, size):
            called(LIBC.mount, b"none", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode())

        tell(("wrong", trial(mount)))

    ended = in_child(enter)
    for reason in ended.of("refused"):
        pytest.skip(f"mounting a small disk is not permitted here: {reason}")
    assert (ended.code, ended.errors) == (0, [])
    assert ended.of("wrong") == [[]]


def test_a_disk_that_is_full(fresh):
    def trial(mount):
        fresh.scenario.reset()
        fresh.scenario.run_folder.mkdir()
        mount(fresh.scenario.run_folder, 0, "100k")
        ended = fresh.scenario.train()
        line = r"cannot write \S+/\.(checkpoint|optimizer)-\S+ \([\d,]+ bytes\): No space left on device"
        wrong = wrong_after(ended, line, fresh)
        mount(fresh.scenario.run_folder, REMOUNT, "10m")
        return wrong + fresh.going_on()

    on_a_small_disk(trial)


def test_a_disk_that_nobody_may_write_to(fresh):
    def trial(mount):
        fresh.scenario.reset()
        fresh.scenario.run_folder.mkdir()
        mount(fresh.scenario.run_folder, 0, "10m")
        wrong = fresh.going_on()
        mount(fresh.scenario.run_folder, REMOUNT | READ_ONLY, "10m")
        wrong += wrong_after(
            fresh.scenario.train(), r"cannot write \S+/run/\.lock \(\d+ bytes\): Read-only file system", fresh
        )
        mount(fresh.scenario.run_folder, REMOUNT, "10m")
        return wrong + fresh.going_on()

    on_a_small_disk(trial)


def as_somebody(act):
    """Carry out `act(tell)` as a user to whom permissions apply."""

    def become(tell):
        if os.geteuid() == 0:
            LIBC.setfsgid(NOBODY)
            LIBC.setfsuid(NOBODY)
        act(tell)

    return in_child(become)


def test_a_folder_that_this_user_may_not_write_to(fresh):
    fresh.scenario.reset()
    fresh.scenario.run_folder.mkdir(mode=0o555)
    ended = as_somebody(lambda tell: tell(("run", fresh.scenario.train()))).of("run")[0]
    fresh.scenario.run_folder.chmod(0o755)
    line = r"cannot write \S+/run/\.lock \(\d+ bytes\): Permission denied"
    assert wrong_after(ended, line, fresh) + fresh.going_on() == []


def test_token_files_of_a_read_only_tokenizer_go_to_the_run(fresh):
    def trial(mount):
        scenario, tokenizer = fresh.scenario, fresh.scenario.folder / "tokenizer"
        mount(tokenizer, 0, "10m")
        scenario.reset()
        wrong = fresh.going_on()
        remove_tree(tokenizer / "tokens")
        mount(tokenizer, REMOUNT | READ_ONLY, "10m")
        scenario.reset()
        ended = scenario.train()
        wrong += [] if (ended.code, ended.errors) == (0, []) else [f"ended with {ended.code}, saying {ended.errors}"]
        return wrong + ([] if list(scenario.run_folder.glob("tokens/*.tokens")) else ["no token file in the run"])

    on_a_small_disk(trial)


def test_a_checkpoint_that_this_user_may_not_read_is_passed_over(fresh):
    fresh.scenario.reset()
    fresh.scenario.train()
    path = fresh.scenario.run_folder / "checkpoint-4" / "model.safetensors"
    path.chmod(0)
    told = as_somebody(lambda tell: tell(("newest", newest_valid(fresh.scenario.run_folder)))).of("newest")
    line = f"checkpoint-4 is passed over: {path} cannot be read: Permission denied"
    assert told == [(fresh.scenario.run_folder / "checkpoint-0", [line])]
