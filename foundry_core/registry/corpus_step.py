"""Descriptors of the steps that change a training corpus: core's and those of `foundry_corpus_steps`. Light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from foundry_core.registry.checks import check, check_import_string, check_name, check_names
from foundry_core.schema import ConfigSection

CONTROL = "control"
"""The name of core's step that has another step in its settings, under `of`."""


class DroppingSettings(ConfigSection):
    """Settings of every step that leaves text out; those of a plugin's are a subclass."""

    unit: Literal["document", "line"] = Field("document", description="what is kept or dropped: documents, or lines")
    in_place: bool = Field(
        False, description="leave holes that are neither read nor predicted, so that all other text stays in its row"
    )


@dataclass(frozen=True)
class CorpusStep:
    """A step of `data.steps`. Raises PluginError for an invalid name, function, settings or files.

    Attributes:
        name: The key of the step in the YAML.
        function: Import string of a function `f(settings)` that returns a function `change(text, number)`: the text to
            train on, or None to leave it out. `number` is that of the document in the corpus, from 0; of a line it is
            larger. `f` is called before each pass over the corpus, and a pass begins with number 0, so that what
            `change` remembers is of this pass. It must not depend on anything else: random numbers follow from a seed
            in the settings and the number or the text. None: core's own.
        settings: Schema of what the YAML gives under the name. None: `DroppingSettings` if `drops`, otherwise nothing.
        drops: The step returns each text as it is or leaves it out. Such a step can leave holes (`in_place`), look at
            lines (`unit`) and have a `control`; its settings are a subclass of `DroppingSettings`.
        files: The settings that name files. The content of the files becomes part of the digest of the corpus.
    """

    name: str
    summary: str
    function: str | None = None
    settings: type[ConfigSection] | None = None
    drops: bool = False
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("corpus step", self.name)
        field = f"the corpus step '{self.name}': its"
        if self.function is not None:
            check_import_string(f"{field} function", self.function)
        check_names(f"{field} files", self.files)
        known = set(self.schema.model_fields)
        for name in self.files:
            check(name in known, f"{field} files", name, "one of its settings")
        if self.drops:
            own = self.function is None  # core's control drops what a step inside it looks at
            check(
                own or issubclass(self.schema, DroppingSettings),
                f"{field} settings",
                self.schema,
                "a subclass of DroppingSettings, as it drops text",
            )

    @property
    def schema(self) -> type[ConfigSection]:
        """The class of its settings."""
        return self.settings or (DroppingSettings if self.drops else ConfigSection)


def flat_steps(steps: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield name and settings of each step, and after a control those of the step that it is the control of."""
    for step in steps:
        for name, settings in step.items():
            yield name, settings
            if name == CONTROL:
                yield from flat_steps([settings.of])
