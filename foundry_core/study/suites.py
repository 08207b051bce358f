"""The suites of a study: read before its cells are trained, and looked for among the results that a cell has kept."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from foundry_core.errors import ConfigError, DataError, Problem, UsageError, warned_once, warnings_silenced
from foundry_core.registry.hooks import hooks_in
from foundry_core.registry.loading import plugin_files
from foundry_core.run_folder import CHECKPOINT
from foundry_core.study.definition import Cell, Study

if TYPE_CHECKING:
    from foundry_core.evaluation.suites.reading import LoadedSuite


def check_suites(study: Study) -> None:
    """Read the suites of a study as its cells will, which would otherwise fail one by one once they are trained.

    Raises:
        ConfigError: A suite is not there, or not what it should be.
    """
    if not study.settings.suites:
        return
    from foundry_core.evaluation.suites.reading import read_suite
    from foundry_core.training.suites import check_names

    problems: dict[Problem, None] = {}
    with warned_once():
        for modules in dict.fromkeys(map(_offering, study.cells)):
            suites = []
            for at, spec in enumerate(study.settings.suites):
                try:
                    suites.append(read_suite(spec, modules, installed=True))
                except (UsageError, DataError) as error:
                    problems |= dict.fromkeys(study.problem(("suites", at), str(error)).problems)
            try:
                check_names(suites)
            except UsageError as error:
                problems |= dict.fromkeys(study.problem(("suites",), str(error)).problems)
    if problems:
        raise ConfigError(list(problems))


def _offering(cell: Cell) -> tuple[ModuleType, ...]:
    """Return the modules that may offer suites to a cell."""
    named = [sys.modules[name] for name in sorted(plugin_files)]
    active = dict.fromkeys([*cell.config.chosen.plugins.modules, *named])
    return tuple(each for each in active if "foundry_suites" in hooks_in(each))


class KeptScores:
    """The results that cells of a study have kept of its suites, which are read again for the first cell that asks."""

    def __init__(self, study: Study):
        self._specs = study.settings.suites
        self._suites: dict[tuple[ModuleType, ...], list[LoadedSuite]] = {}

    def complete(self, cell: Cell) -> bool:
        """Check whether every checkpoint of a cell has whole results of every suite as it is now."""
        if not self._specs:
            return True
        from foundry_core.evaluation.suites.kept import stored
        from foundry_core.evaluation.suites.reading import read_suite

        modules = _offering(cell)
        if modules not in self._suites:
            with warnings_silenced(True):  # `check_suites` has printed them
                self._suites[modules] = [read_suite(spec, modules, installed=True) for spec in self._specs]
        return all(
            stored(folder, suite, "sum") is not None
            for folder in cell.folder.glob("checkpoint-*")
            if CHECKPOINT.match(folder.name)
            for suite in self._suites[modules]
        )
