"""Tests of how long the kit takes: half a minute for an architecture on one core, told in processor time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "lstm", "gru", "rnn", "mamba", "ngram", "transformers"])
def test_an_architecture_is_checked_in_half_a_minute(
    architecture: str, record_property: Callable[[str, object], None]
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "foundry_core.cli", "check", architecture], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = used.ru_utime + used.ru_stime
    record_property("seconds", round(seconds, 1))
    assert process.returncode == 0
    assert seconds < 30
