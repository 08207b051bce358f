"""One task at a time beside the training loop."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Carries out a task in a thread of its own, or at once when it is not enabled.

    A task that failed raises its error in the caller, at the next `start` or `finish`. done: called with each task's
    result, in the caller's thread.
    """

    def __init__(self, done: Callable[[T], None], *, enabled: bool):
        self._done, self._enabled = done, enabled
        self._thread: Thread | None = None
        self._results: list[T] = []
        self._error: BaseException | None = None

    def start(self, task: Callable[[], T]) -> None:
        """Begin a task, after the one before has ended."""
        self.finish()
        if not self._enabled:
            self._done(task())
            return
        self._thread = Thread(target=self._carry_out, args=(task,), name="foundry-saving")
        self._thread.start()

    def _carry_out(self, task: Callable[[], T]) -> None:
        try:
            self._results.append(task())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            self._error = error

    def finish(self) -> None:
        """Wait for the task under way, if there is one."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._done(self._results.pop())
