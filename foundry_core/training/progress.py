"""Progress bars of long work, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

from foundry_core.training.console import Stderr

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

Figures: TypeAlias = "Callable[[Any], Sequence[ProgressColumn]]"
"""Makes the columns after the bar, given the module rich.progress, which is not imported where there is no terminal."""


@contextmanager
def _bar(label: str, total: int, figures: Figures, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar with a label and figures; yield the function that updates it with the keywords of rich."""
    from rich.console import Console

    console = Console(file=cast(IO[str], Stderr()))
    if quiet or not console.is_terminal:
        yield lambda **changes: None
        return
    from rich import progress as rich

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), *figures(rich))
    with rich.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, line="")

        def update(**changes: Any) -> None:
            progress.update(task, **changes)

        yield update


@contextmanager
def reading(label: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress in bytes; yield the function to call with the bytes read so far."""

    def figures(rich: Any) -> Sequence[ProgressColumn]:
        return rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn()

    with _bar(label, total, figures, quiet=quiet) as update:
        yield lambda done: update(completed=done)


@contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show progress in things; yield the function to call with the name of each as it begins."""
    begun = count()
    with _bar(label, total, lambda rich: (rich.MofNCompleteColumn(), rich.TimeElapsedColumn())) as update:
        yield lambda name: update(description=f"{label} {name}", completed=next(begun))


@contextmanager
def scoring(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in tokens; yield the function to call with the number of further ones."""
    with _bar(label, total, lambda rich: (rich.MofNCompleteColumn(), rich.TimeRemainingColumn())) as update:
        yield lambda tokens: update(advance=tokens)


@contextmanager
def working(label: str, total: int) -> Iterator[Callable[[float, str], None]]:
    """Show progress in parts of things; yield the function to call with how much is done, and what is being done."""

    def figures(rich: Any) -> Sequence[ProgressColumn]:
        done, line = rich.TextColumn("{task.completed:.1f}/{task.total}"), rich.TextColumn("{task.fields[line]}")
        return done, rich.TimeElapsedColumn(), line

    with _bar(label, total, figures) as update:
        yield lambda done, line: update(completed=done, line=line)
