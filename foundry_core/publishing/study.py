"""Runs that are published together: the table that stands in the card of each, and the collection of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten

from foundry_core.analysis.figures import FIGURES, Suite, figures_of, suites_of
from foundry_core.analysis.intervals import Estimate
from foundry_core.analysis.notes import notes_on
from foundry_core.analysis.runs import Run
from foundry_core.analysis.tables import shown
from foundry_core.publishing.markdown import NONE, link, plain, table
from foundry_core.publishing.scores import Scores

_LONGEST_TITLE, _LONGEST_DESCRIPTION, _LONGEST_NOTE = 60, 150, 500
"""Characters that the hub takes for a collection."""


@dataclass(frozen=True)
class Collection:
    """A list of repositories on the hub, with a note on each."""

    title: str
    namespace: str
    description: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Study:
    """Runs and the repositories that they become.

    Attributes:
        runs: The runs, in the order of the study.
        repositories: The repository of each, by the folder of its run.
    """

    runs: Sequence[Run]
    repositories: Mapping[Path, str]

    def text(self, own: Run) -> str:
        """Return a table with a row for each cell of the study, that of a run in bold, and notes on it."""
        rows = []
        for name, runs in self._groups.items():
            label = f"**{plain(name)}**" if own in runs else plain(name)
            links = ", ".join(link(self.repositories[run.folder], str(run.seed_label)) for run in runs)
            values = [" ± ".join(filter(None, shown(each, self._found[name].get(each)))) for each in self._titles]
            rows.append([label, links, *(value or NONE for value in values)])
        text = table(["model", "seeds", *map(plain, self._titles.values())], rows)
        return "\n\n".join([text, *([" ".join(self._notes)] if self._notes else [])])

    @cached_property
    def _suites(self) -> tuple[Suite, ...]:
        return suites_of(self.runs)

    @cached_property
    def _found(self) -> dict[str, dict[str, Estimate]]:
        """The figures of each cell: read once, and not again for the card of each run."""
        return {name: figures_of(runs, self._suites) for name, runs in self._groups.items()}

    @cached_property
    def _titles(self) -> dict[str, str]:
        """The columns of figures, which some cell has."""
        names = ("parameters", "loss", "bits_per_byte")
        titles = {name: FIGURES[name] for name in names} | {suite.name: suite.name for suite in self._suites}
        return {name: title for name, title in titles.items() if any(name in each for each in self._found.values())}

    @cached_property
    def _notes(self) -> list[str]:
        several = any(len(runs) > 1 for runs in self._groups.values())
        notes = ["Behind ± is half of the 95 % interval of the mean over seeds (t distribution)."] if several else []
        return notes + [plain(note) for note in notes_on(self.runs, self._suites)]

    @cached_property
    def _groups(self) -> dict[str, list[Run]]:
        """Return the runs of each cell, by its name; where there are no cells, each run by its own."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault("-".join(run.cell.values()) or run.folder.name, []).append(run)
        return groups

    def collection(self, title: str, namespace: str) -> Collection:
        """Return the list of the repositories."""
        several = [
            ", ".join(dict.fromkeys(run.architecture for run in self.runs)),
            ", ".join(dict.fromkeys(f"seed {run.seed_label}" for run in self.runs)),
        ]
        about = f"{len(self.runs)} language models trained by foundry: {'; '.join(several)}"
        items = []
        for run in self.runs:
            size = f"{run.parameters:,} parameters" if run.parameters else ""
            facts = [f"{run.architecture}, seed {run.seed_label}", size, Scores(run).summary()]
            items.append((self.repositories[run.folder], shorten("; ".join(filter(None, facts)), _LONGEST_NOTE)))
        return Collection(title[:_LONGEST_TITLE], namespace, shorten(about, _LONGEST_DESCRIPTION), items)
