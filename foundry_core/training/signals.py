"""Signals that ask a run to end: at a step boundary, where a checkpoint can be saved; before training, at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from foundry_core.errors import StoppedError
from foundry_core.systems import REPEATED_SIGNALS, STOP_SIGNALS


class _Asked(KeyboardInterrupt):
    """Raised by a signal that need not wait; code that catches Exception does not catch it."""


class StopRequest:
    """Notes the first of `STOP_SIGNALS` while it is active; a second one has its usual effect, at once.

    Ignored signals stay ignored, as those of `nohup`. Does nothing outside the main thread, where Python does not allow
    handlers.

    Attributes:
        requested: The name of the signal, or None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._at_once = False

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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        for each in REPEATED_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.requested = signal.Signals(number).name
        if self._at_once:
            raise _Asked

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
