"""Progress bars of long work, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import IO, TYPE_CHECKING, Any, cast

from foundry_core.training.console import Stderr

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@contextmanager
def _bar(label: str, total: int, *figures: ProgressColumn, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar with a label and figures; yield the function that updates it with the keywords of rich."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=cast(IO[str], Stderr()))
    if quiet or not console.is_terminal:
        yield lambda **changes: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), *figures, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, line="")

        def update(**changes: Any) -> None:
            progress.update(task, **changes)

        yield update


@contextmanager
def reading(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress in bytes; yield the function to call with the bytes read so far."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _bar(label, total, *figures, quiet=quiet) as update:
        yield lambda done: update(completed=done)


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show progress in things; yield the function to call with the name of each as it begins."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    begun = count()
    with _bar(label, total, MofNCompleteColumn(), TimeElapsedColumn()) as update:
        yield lambda name: update(description=f"{label} {name}", completed=next(begun))


@contextmanager
def scoring(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in tokens; yield the function to call with the number of further ones."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with _bar(label, total, MofNCompleteColumn(), TimeRemainingColumn()) as update:
        yield lambda tokens: update(advance=tokens)


@contextmanager
def working(label: str, total: int) -> Iterator[Callable[[float, str], None]]:
    """Show progress in parts of things; yield the function to call with how much is done, and what is being done."""
    from rich.progress import TextColumn, TimeElapsedColumn

    figures = (TextColumn("{task.completed:.1f}/{task.total}"), TimeElapsedColumn(), TextColumn("{task.fields[line]}"))
    with _bar(label, total, *figures) as update:
        yield lambda done, line: update(completed=done, line=line)
