"""Write a commented YAML to start from, for any installed architecture.

The keys that people usually set are written out, with the sizes and the
learning rate that the architecture recommends. All other keys are commented
out, with their defaults. The corpora are corpora/train.txt and corpora/dev.txt.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from foundry_core.cli.common import (
    add_plugin_argument,
    load_plugins,
    path_argument,
    text_argument,
    write_answer,
    yaml_scalar,
)
from foundry_core.errors import ConfigError, UsageError, one_line

if TYPE_CHECKING:
    from foundry_core.registry.architecture import Architecture
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
    "training.epochs": "; one of five, the others stay null",
    "training.warmup_ratio": "; with warmup_steps null",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="NAME", help="an architecture, installed or registered with --plugin")
    parser.add_argument(
        "-o", "--output", type=path_argument, metavar="FILE", help="write to this new file instead of stdout"
    )
    parser.add_argument(
        "--name", type=text_argument, metavar="TEXT", help="name of the experiment (default: the architecture)"
    )
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.config.loading import load_config
    from foundry_core.config.yaml_source import YamlSource

    load_plugins(options)
    text = starting_yaml(options.architecture, options.name or options.architecture)
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


def starting_yaml(
    architecture: Architecture | str,
    name: str,
    settings: Mapping[str, Any] | None = None,
    title: str = "A configuration to start from",
) -> str:
    """Return a whole configuration for an architecture as YAML: every key of every section, with its meaning.

    Args:
        architecture: What `model.architecture` names.
        name: The name of the experiment.
        settings: Keys by their full names, such as `training.train_words`, that get another value than `foundry init`
            writes; None is the default of the key, as a comment.
        title: What the comment at the top begins with.

    Raises:
        PluginError: There is no such architecture.
    """
    from foundry_core.config.experiment import ExperimentConfig
    from foundry_core.registry.loading import get_architecture

    if isinstance(architecture, str):
        architecture = get_architecture(architecture)
    values = {**_values(architecture, name), **(settings or {})}
    values = {key: value for key, value in values.items() if value is not None}
    title = f"{title}: {architecture.name}, {' '.join(architecture.summary.split())}."
    lines = [
        *textwrap.wrap(title, WIDTH, initial_indent="# ", subsequent_indent="# "),
        "# Keys behind a '# ' show their default: remove the '# ' to set one (and that of its section, if hidden).",
        "# Then: foundry validate FILE, foundry plan FILE, foundry train FILE.",
    ]
    for entry in _entries(ExperimentConfig, values):
        if entry.depth == 0 and entry.text.endswith(":"):
            lines.append("")
        lines += entry.lines(WIDTH)
    return "\n".join(lines) + "\n"


def model_section(architecture: Architecture, width: int) -> str:
    """Return the `model:` section of the same configuration."""
    values = _values(architecture, architecture.name)
    entries = _entries(values["model"], values, "model.")
    return "\n".join(["model:", *(line for entry in entries for line in entry.lines(width))])


class _Entry(NamedTuple):
    """A key of the file. hidden_at: the depth of the "# " before it; None when it is set."""

    depth: int
    text: str
    comment: str
    hidden_at: int | None

    def lines(self, width: int) -> list[str]:
        """Return the key, with its comment in the comment column."""
        start = "  " * self.depth + self.text
        if self.hidden_at is not None:
            start = f"{start[: 2 * self.hidden_at]}# {start[2 * self.hidden_at :]}"
        if not self.comment:
            return [start]
        first, *rest = textwrap.wrap(
            one_line(" ".join(self.comment.split())), width - COMMENT_COLUMN - 2, break_on_hyphens=False
        )
        further = [f"{'':{COMMENT_COLUMN}}# {line}" for line in rest]
        return [f"{start.ljust(COMMENT_COLUMN - 1)} # {first}", *further]


def _entries(section: Any, values: Mapping[str, Any], prefix: str = "") -> list[_Entry]:
    """Return all keys of a section.

    Args:
        section: Its class, or its default where it can be left out.
        values: What keys are set to instead of their defaults, by their full names.
        prefix: The name of the section, with a dot.
    """
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    def is_section(value: Any) -> bool:
        return isinstance(value, BaseModel) or (isinstance(value, type) and issubclass(value, BaseModel))

    entries: list[_Entry] = []
    depth = prefix.count(".")
    model: Any = section if isinstance(section, type) else type(section)
    for name, field in model.model_fields.items():
        key, comment = prefix + name, field.description or ""
        value = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        value = values.get(key, value if isinstance(section, type) else getattr(section, name))
        if field.is_required() and value is None and is_section(field.annotation):
            value = field.annotation
        if is_section(value):
            inner = _entries(value, values, f"{key}.")
            # A section without a key that is set would be null, which is refused: it is hidden as a whole.
            hidden = all(entry.hidden_at is not None for entry in inner)
            inner = [_Entry(depth, f"{name}:", comment, None), *inner]
            entries += [entry._replace(hidden_at=depth) for entry in inner] if hidden else inner
        else:
            # Whatever has a value in the section of an architecture is shown: its sizes are what people set.
            shown = field.is_required() or key in values or key in _WRITTEN_OUT
            shown = shown or (key.startswith("model.") and value is not None)
            text = f"{name}: {yaml_scalar(to_jsonable_python(value))}"
            entries.append(_Entry(depth, text, comment + _NOTES.get(key, ""), None if shown else depth))
    return entries


def _values(architecture: Architecture, name: str) -> dict[str, Any]:
    """Return the keys that do not get their default: placeholders, the recipe, and what the architecture decides."""
    from foundry_core.registry.architecture import Capabilities
    from foundry_core.registry.loading import blamed_on, capabilities_of, shipped_by

    candidates = [architecture.recipe.get("model", {}), {}, *architecture.examples.values()]
    model = next((found for each in candidates if (found := _model_section(architecture, each))), None)
    able = Capabilities()
    if model is not None:
        with blamed_on(shipped_by(architecture.name)):
            able = capabilities_of(architecture, model)
    objective = next(iter(able.objectives), "causal_lm")
    values = {
        "experiment_name": name,
        "data.training_corpus": "corpora/train.txt",
        "data.test_corpus": "corpora/dev.txt",
        "data.max_sequence_length": min(128, able.longest_sequence or 128),
        "tokenizer.tokenizer_type": architecture.default_tokenizer,
        "model": architecture.config_class if model is None else model,
        "model.architecture": architecture.name,
        "training.output_dir": f"runs/{name}",
        "training.objective": objective,
        "training.epochs": 10,
        "training.lr_scheduler": "cosine",
        "training.warmup_ratio": 0.05,
        "training.evaluate_every_steps": 500,
        "training.checkpoints.every_steps": 1000,
        "training.checkpoints.log_base": 2,
    }
    if objective == "masked_lm":
        values["training.mlm_probability"] = 0.15
    for section, keys in architecture.recipe.items():
        values |= {f"{section}.{key}": value for key, value in keys.items() if section != "model"}
    return values


def _model_section(architecture: Architecture, settings: Mapping[str, Any]) -> ModelConfig | None:
    """Return a `model:` section, or None if these settings are not a whole one."""
    from pydantic import ValidationError

    try:
        return architecture.config_class.model_validate({"architecture": architecture.name, **settings})
    except ValidationError:
        return None
