"""Write a commented YAML to start from, for any installed architecture.

Keys, defaults and comments come from the classes that check the YAML, the architecture's own included. Sizes and the
learning rate are those of the architecture's recipe. What people set is written out; every other key stands with its
default behind a "# " to be removed. The file trains as it is once corpora/train.txt and corpora/dev.txt exist.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, load_plugins, write_answer, yaml_scalar
from foundry_core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from foundry_core.registry.architecture import Architecture, Capabilities
    from foundry_core.schema import ModelConfig

EXAMPLE = """\
examples:
  foundry init lstm > lstm.yaml
  foundry init gpt2 --name small -o small.yaml
  foundry init my_arch --plugin my_arch.py"""

Place = tuple[str, ...]

COMMENT_COLUMN = 40
WIDTH = 110

# Keys that people set although they have a default; those that get a value of ours are in `_values`.
_WRITTEN_OUT: set[Place] = {
    ("random_seed",),
    ("data", "batch_size"),
    ("tokenizer", "vocab_size"),
    ("training", "learning_rate"),
    ("logging", "log_every_steps"),
}

# What two keys have to do with each other, which no single field's description says.
_NOTES: dict[Place, str] = {
    ("training", "epochs"): "; one of four, the others stay null",
    ("training", "warmup_ratio"): "; with warmup_steps null",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="ARCHITECTURE", help="its name: see foundry plugins list")
    parser.add_argument("-o", "--output", metavar="FILE", help="a file that does not exist yet; default: stdout")
    parser.add_argument("--name", help="experiment_name, and the folder under runs/; default: the architecture's name")
    add_plugin_argument(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.config.loading import load_config
    from foundry_core.config.yaml_source import YamlSource
    from foundry_core.registry.loading import get_architecture

    load_plugins(options)
    architecture = get_architecture(options.architecture)
    text = starting_yaml(architecture, options.name or architecture.name)
    to_fill_in: list[str] = []
    try:
        load_config(YamlSource.parse(text, "configuration").data)
    except ConfigError as error:
        for problem in error.problems:
            if problem.key == "experiment_name":
                raise UsageError(f"--name: {problem.message}") from error
            to_fill_in.append(f"to fill in before training: {problem.key}: {problem.message}\n")
    write_answer(text, options.output)
    sys.stderr.write("".join(to_fill_in))


def starting_yaml(architecture: Architecture, name: str) -> str:
    """A whole configuration for an architecture: every key of every section, with its meaning."""
    from foundry_core.config.experiment import ExperimentConfig

    title = f"A configuration to start from: {architecture.name}, {' '.join(architecture.summary.split())}."
    lines = [
        *textwrap.wrap(title, WIDTH, initial_indent="# ", subsequent_indent="# "),
        "# Keys behind a '# ' show their default: remove the '# ' to set one (and that of its section, if hidden).",
        "# Then: foundry validate FILE, foundry plan FILE, foundry train FILE.",
    ]
    start = _model_section(architecture, architecture.recipe.get("model", {}))
    outline = _Outline(architecture, _values(architecture, name, start), start)
    for entry in outline.section(ExperimentConfig, (), None):
        if entry.opens_section and entry.depth == 0:
            lines.append("")
        lines += entry.lines()
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Entry:
    """A key of the file. hidden_at: the depth at which it is behind a "# "; None when it is set."""

    depth: int
    text: str
    comment: str
    opens_section: bool = False
    hidden_at: int | None = None

    def lines(self) -> list[str]:
        """The key, and its comment in a column of its own."""
        if self.hidden_at is None:
            start = "  " * self.depth + self.text
        else:
            start = "  " * self.hidden_at + "# " + "  " * (self.depth - self.hidden_at) + self.text
        if not self.comment:
            return [start]
        first, *rest = textwrap.wrap(self.comment, WIDTH - COMMENT_COLUMN - 2, break_on_hyphens=False)
        start = start.ljust(COMMENT_COLUMN - 1)
        return [f"{start} # {first}", *(f"{'':{COMMENT_COLUMN}}# {line}" for line in rest)]


class _Outline:
    """The keys of a configuration for one architecture, in the order of the classes that check them."""

    def __init__(self, architecture: Architecture, values: Mapping[Place, Any], start: ModelConfig | None):
        """start: The `model:` section to write; None when the architecture recommends none."""
        self.architecture = architecture
        self.values = values
        self.start = start

    def section(self, model: type[BaseModel], place: Place, default: BaseModel | None) -> list[_Entry]:
        """All keys of a section. default: the section as it is when left out, where it may be."""
        from pydantic_core import PydanticUndefined

        entries: list[_Entry] = []
        for name, field in model.model_fields.items():
            value = getattr(default, name, PydanticUndefined)
            if value is PydanticUndefined and not field.is_required():
                value = field.get_default(call_default_factory=True, validated_data={})
            entries += self._entries(name, field, (*place, name), value)
        return entries

    def _entries(self, name: str, field: FieldInfo, place: Place, default: Any) -> list[_Entry]:
        """One key, and those below it when it is a section."""
        from pydantic import BaseModel

        depth, comment = len(place) - 1, field.description or ""
        default = self.start if place == ("model",) else default
        model = self.architecture.config_class if place == ("model",) else _section_class(field, default)
        if model is not None:
            inner = self.section(model, place, default if isinstance(default, BaseModel) else None)
            entries = [_Entry(depth, f"{name}:", comment, opens_section=True), *inner]
            # A section without one key that is set would be null, which is refused: it is hidden as a whole.
            hidden = all(entry.hidden_at is not None for entry in inner)
            return [replace(entry, hidden_at=depth) for entry in entries] if hidden else entries
        value = self._value(place, default)
        # Of an architecture's own section everything is shown that has a value: its sizes are what people set.
        own = place[0] == "model" and value is not None
        shown = own or field.is_required() or place in self.values or place in _WRITTEN_OUT
        text = f"{name}: {_yaml(value)}"
        return [_Entry(depth, text, comment + _NOTES.get(place, ""), hidden_at=None if shown else depth)]

    def _value(self, place: Place, default: Any) -> Any:
        """Return what the file gives a key: a value of ours, the recipe's, the default, or that of an example."""
        from pydantic_core import PydanticUndefined

        if place in self.values:
            return self.values[place]
        if default is not PydanticUndefined:
            return default
        for example in self.architecture.examples.values():
            value: Any = {"model": example}
            for key in place:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None


def _values(architecture: Architecture, name: str, start: ModelConfig | None) -> dict[Place, Any]:
    """Return the keys that do not get their default: placeholders, the recipe, and what the architecture decides."""
    capabilities = _capabilities(architecture, start)
    objective = next(iter(capabilities.objectives), "causal_lm")
    values: dict[Place, Any] = {
        ("experiment_name",): name,
        ("data", "training_corpus"): "corpora/train.txt",
        ("data", "test_corpus"): "corpora/dev.txt",
        ("data", "max_sequence_length"): min(128, capabilities.longest_sequence or 128),
        ("tokenizer", "tokenizer_type"): architecture.default_tokenizer,
        ("model", "architecture"): architecture.name,
        ("training", "output_dir"): f"runs/{name}",
        ("training", "objective"): objective,
        ("training", "epochs"): 10,
        ("training", "lr_scheduler"): "cosine",
        ("training", "warmup_ratio"): 0.05,
        ("training", "evaluate_every_steps"): 500,
        ("training", "checkpoints", "every_steps"): 1000,
        ("training", "checkpoints", "log_base"): 2,
    }
    if objective == "masked_lm":
        values["training", "mlm_probability"] = 0.15
    for section, keys in architecture.recipe.items():
        if section != "model":
            values |= {(section, key): value for key, value in keys.items()}
    return values


def _capabilities(architecture: Architecture, start: ModelConfig | None) -> Capabilities:
    """Return what the architecture can do with its recipe, with its defaults, or with an example of its own."""
    from foundry_core.registry.architecture import Capabilities
    from foundry_core.registry.loading import blamed_on, capabilities_of, shipped_by

    examples = (_model_section(architecture, settings) for settings in ({}, *architecture.examples.values()))
    for config in (start, *examples):
        if config is not None:
            with blamed_on(shipped_by(architecture.name)):
                return capabilities_of(architecture, config)
    return Capabilities()


def _model_section(architecture: Architecture, settings: Mapping[str, Any]) -> ModelConfig | None:
    """Return a `model:` section; None for settings that are not a whole one."""
    from pydantic import ValidationError

    try:
        return architecture.config_class.model_validate({"architecture": architecture.name, **settings})
    except ValidationError:
        return None


def _section_class(field: FieldInfo, default: Any) -> type[BaseModel] | None:
    """The class of a key that is a section and not null."""
    from pydantic import BaseModel

    if isinstance(default, BaseModel):
        return type(default)
    annotation = field.annotation
    if field.is_required() and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _yaml(value: Any) -> str:
    """A default as YAML on one line."""
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value)
    if isinstance(plain, list):
        return f"[{', '.join(map(_yaml, plain))}]"
    if isinstance(plain, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in plain.items())}}}"
    return yaml_scalar(plain)
