"""The steps of `data.steps` at work: the documents of a corpus in, those to train on out, and an account of each step.

They are applied while the documents are read. Memory does not grow with the corpus, but for the digests of
`deduplicate`. A control reads the corpus once more, to count what it has to drop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.corpus.account import ByteAccount, StepCount
from foundry_core.corpus.core_steps import Change, Totals, control, core_change
from foundry_core.corpus.files import shown
from foundry_core.errors import DataError, FoundryError, PluginError, one_line
from foundry_core.registry.corpus_step import CONTROL, CorpusStep
from foundry_core.registry.isolation import cause, failing_as
from foundry_core.registry.loading import import_string


class Source(Protocol):
    """The documents that steps are applied to."""

    @property
    def digest(self) -> str: ...

    def documents(self, account: ByteAccount | None = None) -> Iterator[str]: ...


@dataclass(frozen=True)
class Step:
    """One step with its settings.

    Attributes:
        owner: The distribution that it or its function is from; None for core.
        place: Its key in the YAML.
        inner: The step that a control is the control of.
    """

    name: str
    settings: Any
    kind: CorpusStep
    owner: str | None
    place: str
    inner: Step | None = None

    @classmethod
    def of(cls, config: ExperimentConfig, step: Mapping[str, Any], place: str) -> Step:
        """Return the step that a mapping of `data.steps` describes."""
        ((name, settings),) = step.items()
        inner = cls.of(config, settings.of, f"{place}.{name}.of") if name == CONTROL else None
        kind = config.chosen.plugins.offers.corpus_steps[name]
        return cls(name, settings, kind, config.step_owner(name, settings), f"{place}.{name}", inner)

    @property
    def in_place(self) -> bool:
        """Check whether it leaves holes."""
        return bool(getattr(self.settings, "in_place", False))

    @property
    def unit(self) -> str:
        """Unit that it looks at: document or line."""
        return str(getattr((self.inner or self).settings, "unit", "document"))

    @property
    def plain(self) -> dict[str, Any]:
        """The step as plain data, as in the YAML, without defaults."""
        return {self.name: self.settings.model_dump(mode="json", exclude_defaults=True)}

    @property
    def line(self) -> str:
        """The step in one line, for tables."""
        number = self.place.split(".")[2]
        return one_line(f"{int(number) + 1} {self.name} {_flow(self.plain[self.name])}").rstrip()

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """The content of each file that it reads, by its key."""
        paths = {key: getattr(self.settings, key) for key in self.kind.files}
        found = {}
        for key, path in paths.items():
            if isinstance(path, str):
                try:
                    found[key] = Path(path).read_bytes()
                except OSError as error:
                    raise DataError(f"{self.place}.{key}: {shown(Path(path))}: {error.strerror}") from error
        return found

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides about what it does: a file counts by its content, a package by its version."""
        settings = dict(self.plain[self.name])
        for key, content in self.contents.items():
            settings[key] = hashlib.sha256(content).hexdigest()
        if self.inner is not None:
            settings["of"] = self.inner.identity
        return {"step": self.name, "settings": settings, "owner": self.owner}

    def change(self) -> Change:
        """Return what it does to a text, for one pass; not of a control.

        Raises:
            PluginError: The function of a package cannot be made.
            DataError: A word list or a table cannot be read.
        """
        if self.kind.function is None:
            return core_change(self.name, self.settings, self.contents)
        make = import_string(self.kind.function)
        with failing_as(f"the corpus step {self.name} of {self.owner}, {self.kind.function},"):
            change: Change = make(self.settings)
        if not callable(change):
            raise PluginError(f"{self.kind.function} returned a {type(change).__name__}, not a function of a text")
        return change

    def failed(self, problem: str) -> FoundryError:
        """Return the error of a step that does not do what it has to."""
        if self.owner is None:
            return DataError(f"{self.place}: {problem}")
        return PluginError(f"{self.place}: the corpus step {self.name} of {self.owner} {problem}")


class _Stage:
    """A step in one pass over the corpus. Counts what it does."""

    def __init__(self, step: Step, change: Change):
        self.step, self.count = step, StepCount(step.line)
        self._apply = self._to_lines if step.unit == "line" else self.looked_at
        self._change = change

    def __call__(self, text: str, number: int) -> str | None:
        """Return the text as the step leaves it, None where it is left out."""
        after = self._apply(text, number)
        if after is text:
            return text
        if after is None or not after or after.isspace():
            self.count.drop(text)
            return None
        if after != text:
            self.count.change(text, after)
        return after

    def looked_at(self, text: str, number: int) -> str | None:
        """Return what the step makes of one unit, without counting it."""
        after = self._called(text, number)
        if after is None or after is text or after == text:
            return after
        if not isinstance(after, str):
            raise self.step.failed(f"returned a {type(after).__name__}, not a text or None")
        if self.step.kind.drops:
            raise self.step.failed("changed a text, although it is declared to drop only")
        if "\0" in after or any("\ud800" <= c <= "\udfff" for c in after if c > "\ud7ff"):
            raise self.step.failed("returned a text with a NUL or a lone surrogate, which are not text")
        return after

    def _to_lines(self, text: str, number: int) -> str | None:
        lines = text.split("\n")
        kept = [
            line
            for place, line in enumerate(lines)
            if not line.strip() or self.looked_at(line, number << 32 | place) is not None
        ]
        self.count.lines_dropped += len(lines) - len(kept)
        return text if len(kept) == len(lines) else "\n".join(kept)

    def _called(self, text: str, number: int) -> str | None:
        try:
            return self._change(text, number)
        except FoundryError:
            raise
        except Exception as error:
            if self.step.owner is None and (self.step.inner is None or self.step.inner.owner is None):
                raise
            raise self.step.failed(f"fails: {cause(error)}") from error


@dataclass(frozen=True)
class Steps:
    """The steps of an experiment, in their order."""

    steps: tuple[Step, ...]
    counted: dict[tuple[str, int], Totals] = field(default_factory=dict, compare=False, repr=False)
    """Amounts that each control has to drop, by the digest of the corpus and the place of the control."""

    @classmethod
    def of(cls, config: ExperimentConfig) -> Steps | None:
        """Return the steps of an experiment, None if it has none."""
        steps = enumerate(config.data.steps)
        return cls(tuple(Step.of(config, step, f"data.steps.{n}") for n, step in steps)) if config.data.steps else None

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over what the steps do: names, settings, content of files, releases of packages."""
        identities = [step.identity | {"in_place": step.in_place} for step in self.steps]
        return hashlib.sha256(json.dumps(["foundry steps 1", identities], sort_keys=True).encode()).hexdigest()

    @property
    def plain(self) -> list[dict[str, Any]]:
        """The steps as plain data, as in the YAML, without defaults."""
        return [step.plain for step in self.steps]

    @property
    def leave_holes(self) -> bool:
        """Check whether there is a step that leaves holes."""
        return any(step.in_place for step in self.steps)

    @property
    def moving(self) -> Steps | None:
        """Return the steps that leave no holes, which stand before those that do; None without any."""
        steps = tuple(step for step in self.steps if not step.in_place)
        return Steps(steps, self.counted) if steps else None

    def applied(self, source: Source, account: ByteAccount) -> Iterator[tuple[int, str, bool]]:
        """Yield number and text of each document, with True if it is left and False if a step leaves a hole for it.

        Raises:
            DataError: Nothing is left.
            PluginError: The function of a package fails, or returns something else than a text.
        """
        stages = [_Stage(step, self._change(source, place)) for place, step in enumerate(self.steps)]
        yield from self._numbered(source, account, stages)

    def _numbered(self, source: Source, account: ByteAccount, stages: list[_Stage]) -> Iterator[tuple[int, str, bool]]:
        """Apply the stages; yield also the number that a text has in the corpus."""
        documents = 0
        for number, document in enumerate(source.documents(account)):
            documents += 1
            text = document
            for stage in stages:
                after = stage(text, number)
                if after is None:
                    if stage.step.in_place:
                        yield number, text, False
                    break
                text = after
            else:
                yield number, text, True
        for stage in stages:
            stage.count.enter(account)
            documents -= stage.count.documents_dropped
            if not documents:
                dropped = f"{stage.count.documents_dropped:,} document{'s' * (stage.count.documents_dropped > 1)}"
                raise DataError(f"{stage.step.place}: leaves nothing of the corpus: it drops the last {dropped}.")

    def _change(self, source: Source, place: int) -> Change:
        """Return what a step does in one pass over a corpus."""
        step = self.steps[place]
        if step.inner is None:
            return step.change()
        return control(step.settings, step.inner.change(), self._totals(source, place), step.place)

    def _totals(self, source: Source, place: int) -> Totals:
        """Count, in a pass over the corpus, what the step that a control stands for would drop."""
        key = source.digest, place
        if key not in self.counted:
            step, totals = self.steps[place], Totals()
            assert step.inner is not None
            everything = step.settings.among == "all"
            stages = [_Stage(each, self._change(source, number)) for number, each in enumerate(self.steps[:place])]
            inner = _Stage(step.inner, step.inner.change())
            for number, text, kept in self._numbered(source, ByteAccount(), stages):
                for unit, of_unit in _units(text, number, step.unit) if kept else ():
                    dropped = inner.looked_at(unit, of_unit) is None
                    totals.count(unit, dropped=dropped, available=everything or not dropped)
            self.counted[key] = totals
        return self.counted[key]


def _flow(value: Any) -> str:
    """Return plain data in one line, like YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(each)}' for key, each in value.items())}}}" if value else ""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _units(text: str, number: int, unit: str) -> Iterator[tuple[str, int]]:
    """Yield what a step of this unit looks at, with its number."""
    if unit == "document":
        yield text, number
        return
    for place, line in enumerate(text.split("\n")):
        if line.strip():
            yield line, number << 32 | place
