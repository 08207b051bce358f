"""Write a commented YAML to start from, for any installed architecture.

The keys that people usually set are written out, with the sizes and the learning
rate that the architecture recommends. Every other key stands behind a "# " with
its default. The file is ready to train once corpora/train.txt and corpora/dev.txt
exist.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from foundry_core.cli.common import add_plugin_argument, load_plugins, write_answer, yaml_scalar
from foundry_core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from foundry_core.registry.architecture import Architecture, Capabilities
    from foundry_core.schema import ModelConfig

EXAMPLE = """\
examples:
  foundry init lstm > lstm.yaml
  foundry init gpt2 --name small -o small.yaml
  foundry init my_arch --plugin my_arch.py"""

COMMENT_COLUMN = 40
WIDTH = 110

# Keys that people set although they have a default; those that get another value than that are in `_values`.
_WRITTEN_OUT = {
    "random_seed",
    "data.batch_size",
    "tokenizer.vocab_size",
    "training.learning_rate",
    "logging.log_every_steps",
}

# What two keys have to do with each other, which the description of a single field does not mention.
_NOTES = {
    "training.epochs": "; one of four, the others stay null",
    "training.warmup_ratio": "; with warmup_steps null",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="NAME", help="an architecture that foundry plugins list shows")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to this new file instead of stdout")
    parser.add_argument(
        "--name", metavar="TEXT", help="name of the experiment and of its folder in runs/ (default: the architecture)"
    )
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
    """Return a whole configuration for an architecture: every key of every section, with its meaning."""
    from foundry_core.config.experiment import ExperimentConfig
    from foundry_core.registry.architecture import Capabilities
    from foundry_core.registry.loading import blamed_on, capabilities_of, shipped_by

    recommended = architecture.recipe.get("model", {})
    sections = [_model_section(architecture, each) for each in (recommended, {}, *architecture.examples.values())]
    with blamed_on(shipped_by(architecture.name)):
        able = (capabilities_of(architecture, section) for section in sections if section is not None)
        values = _values(architecture, name, next(able, Capabilities()))
    title = f"A configuration to start from: {architecture.name}, {' '.join(architecture.summary.split())}."
    lines = [
        *textwrap.wrap(title, WIDTH, initial_indent="# ", subsequent_indent="# "),
        "# Keys behind a '# ' show their default: remove the '# ' to set one (and that of its section, if hidden).",
        "# Then: foundry validate FILE, foundry plan FILE, foundry train FILE.",
    ]
    for entry in _Outline(architecture, values, sections[0]).section(ExperimentConfig):
        if entry.depth == 0 and entry.text.endswith(":"):
            lines.append("")
        lines += entry.lines()
    return "\n".join(lines) + "\n"


class _Entry(NamedTuple):
    """A key of the file. hidden_at: the depth of the "# " before it; None when it is set."""

    depth: int
    text: str
    comment: str
    hidden_at: int | None

    def lines(self) -> list[str]:
        """Return the key, with its comment in the comment column."""
        start = "  " * self.depth + self.text
        if self.hidden_at is not None:
            start = f"{start[: 2 * self.hidden_at]}# {start[2 * self.hidden_at :]}"
        if not self.comment:
            return [start]
        first, *rest = textwrap.wrap(self.comment, WIDTH - COMMENT_COLUMN - 2, break_on_hyphens=False)
        return [
            f"{start.ljust(COMMENT_COLUMN - 1)} # {first}",
            *(f"{'':{COMMENT_COLUMN}}# {line}" for line in rest),
        ]


class _Outline:
    """The keys of a configuration for one architecture, in the order of the classes that check them."""

    def __init__(self, architecture: Architecture, values: Mapping[str, Any], start: ModelConfig | None):
        """start: The `model:` section to write; None when the architecture recommends none."""
        self.architecture = architecture
        self.values = values
        self.start = start

    def section(self, model: type[BaseModel], prefix: str = "", default: Any = None) -> list[_Entry]:
        """Return all keys of a section. default: the section as it is when left out, where it can be."""
        from pydantic import BaseModel
        from pydantic_core import PydanticUndefined

        entries: list[_Entry] = []
        depth = prefix.count(".")
        for name, field in model.model_fields.items():
            key, comment, value = prefix + name, field.description or "", getattr(default, name, PydanticUndefined)
            if value is PydanticUndefined and not field.is_required():
                value = field.get_default(call_default_factory=True, validated_data={})
            inner: Any = type(value) if isinstance(value, BaseModel) else field.annotation
            if key == "model":
                value, inner = self.start, self.architecture.config_class
            if (isinstance(value, BaseModel) or field.is_required()) and _is_section(inner):
                keys = self.section(inner, f"{key}.", value)
                # A section without a key that is set would be null, which is refused: it is hidden as a whole.
                hidden = all(entry.hidden_at is not None for entry in keys)
                keys = [_Entry(depth, f"{name}:", comment, None), *keys]
                entries += [entry._replace(hidden_at=depth) for entry in keys] if hidden else keys
                continue
            value = self._value(key, value)
            # Whatever has a value in the section of an architecture is shown: its sizes are what people set.
            shown = key.startswith("model.") and value is not None
            shown = shown or field.is_required() or key in self.values or key in _WRITTEN_OUT
            text = f"{name}: {yaml_scalar(value)}"
            entries.append(_Entry(depth, text, comment + _NOTES.get(key, ""), None if shown else depth))
        return entries

    def _value(self, key: str, default: Any) -> Any:
        """Return what the file sets a key to: a value of ours, the recipe's, the default, or that of an example."""
        from pydantic_core import PydanticUndefined, to_jsonable_python

        if key in self.values:
            return self.values[key]
        if default is not PydanticUndefined:
            return to_jsonable_python(default)
        for example in self.architecture.examples.values():
            value: Any = {"model": example}
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None


def _is_section(annotation: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _values(architecture: Architecture, name: str, able: Capabilities) -> dict[str, Any]:
    """Return the keys that do not get their default: placeholders, the recipe, and what the architecture decides."""
    objective = next(iter(able.objectives), "causal_lm")
    return {
        "experiment_name": name,
        "data.training_corpus": "corpora/train.txt",
        "data.test_corpus": "corpora/dev.txt",
        "data.max_sequence_length": min(128, able.longest_sequence or 128),
        "tokenizer.tokenizer_type": architecture.default_tokenizer,
        "model.architecture": architecture.name,
        "training.output_dir": f"runs/{name}",
        "training.objective": objective,
        "training.epochs": 10,
        "training.lr_scheduler": "cosine",
        "training.warmup_ratio": 0.05,
        "training.evaluate_every_steps": 500,
        "training.checkpoints.every_steps": 1000,
        "training.checkpoints.log_base": 2,
        **({"training.mlm_probability": 0.15} if objective == "masked_lm" else {}),
        **{
            f"{section}.{key}": value
            for section, keys in architecture.recipe.items()
            if section != "model"
            for key, value in keys.items()
        },
    }


def _model_section(architecture: Architecture, settings: Mapping[str, Any]) -> ModelConfig | None:
    """Return a `model:` section, or None if these settings are not a whole one."""
    from pydantic import ValidationError

    try:
        return architecture.config_class.model_validate({"architecture": architecture.name, **settings})
    except ValidationError:
        return None
