"""Signals that ask a run to end: at a step boundary, where a checkpoint can be saved; before training, at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from foundry_core.errors import EndedElsewhereError, StoppedError
from foundry_core.systems import REPEATED_SIGNALS, STOP_SIGNALS, unblock_stop_signals


class _Asked(KeyboardInterrupt):
    """Raised by a signal that need not wait; code that catches Exception does not catch it."""


class StopRequest:
    """Notes the first of `STOP_SIGNALS` while it is active; a second one has its usual effect, at once.

    Ignored signals stay ignored, as those of `nohup`. Does nothing outside the main thread, where Python does not allow
    handlers.

    Args:
        patience: Seconds after the first signal in which another one is part of the same request: a scheduler signals
            each process of a run, and so does what started them. Then signals are also ignored once a run has stopped,
            and those that were blocked while the process started arrive.

    Attributes:
        requested: The name of the signal, or None.
    """

    def __init__(self, *, patience: float = 0.0) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._at_once = False
        self._patience, self._ignored_until = patience, 0.0

    @property
    def flags(self) -> list[bool]:
        """For each of `STOP_SIGNALS` whether it was the one."""
        return [number.name == self.requested for number in STOP_SIGNALS]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal leave the block with StoppedError: there is nothing to save yet."""
        try:
            self._at_once = True
            if self.requested:
                raise _Asked
            yield
        except _Asked:
            raise StoppedError(
                f"stopped by {self.requested} before training began, nothing is lost: start it again as it was started"
            ) from None
        finally:
            self._at_once = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self._before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._note)
            if self._patience:
                unblock_stop_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._patience and isinstance(error, StoppedError | EndedElsewhereError):
            for number in self._before:  # it would end the process on its way out, with another exit code
                signal.signal(number, signal.SIG_IGN)
        else:
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() > self._ignored_until:
                self._restore()
                signal.raise_signal(number)
            return
        self._ignored_until = time.monotonic() + self._patience
        if not self._patience:
            self._restore()
        for each in REPEATED_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.requested = signal.Signals(number).name
        if self._at_once:
            raise _Asked

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
