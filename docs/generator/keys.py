"""Every key of a YAML, from the JSON schema: type, default, description and an example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from docs.generator.text import block, code, escaped, page
from foundry_core.cli.schema import COUNT_PATTERN, schema_of
from foundry_core.registry.architecture import Architecture
from foundry_core.registry.loading import available_architectures, get_architecture
from foundry_core.study.definition import StudySection

Schema = dict[str, Any]
STEP = "#/$defs/CorpusStep"

EXAMPLES: dict[str, Any] = {
    "experiment_name": "lstm",
    "plugins": ["foundry_mine"],
    "data.training_corpus": "corpora/train.txt",
    "data.training_corpus.NAME.path": "corpora/books",
    "data.training_corpus.NAME.share": 0.3,
    "data.test_corpus": "corpora/test.txt",
    "data.validation_corpus": "corpora/dev.txt",
    "data.files": "*.train",
    "data.documents.delimiter": "<|endoftext|>",
    "data.tokens_per_row": 126,
    "data.order_settings": {"epochs": 2},
    "data.steps": [{"drop": {"matching": r"(?i)\bif\b"}}],
    "tokenizer.path": "tokenizers/gpt2",
    "tokenizer.output_dir": "tokenizers/shared",
    "tokenizer.special_tokens": {"eos_token": "<|endoftext|>"},
    "training.output_dir": "runs/lstm",
    "training.objective_settings": {"share": 0.5},
    "training.epochs": 10,
    "training.train_steps": 1000,
    "training.train_tokens": "10M",
    "training.train_words": "100M",
    "training.train_bytes": "50M",
    "training.optimizer_settings": {"smoothing": 0.95},
    "training.asgd_nonmonotonic_interval": 5,
    "training.schedule_settings": {"cycles": 2},
    "training.decay_steps": 5000,
    "training.decay_ratio": 0.2,
    "training.step_after_epochs": 4,
    "training.warmup_steps": 500,
    "training.warmup_ratio": 0.05,
    "training.start_from": "runs/base/checkpoint-1000",
    "training.evaluate_every_steps": 500,
    "training.evaluate_at": "checkpoints",
    "training.suites": ["blimp/data"],
    "training.early_stopping_patience": 3,
    "training.checkpoints.keep": 2,
    "training.checkpoints.ephemeral_minutes": 10,
    "training.checkpoints.names": "babylm",
    "output_dir": "studies/sizes",
    "base": "configs/gpt2.yaml",
    "grid": {"training.learning_rate": [0.001, 0.003]},
    "seeds": [1, 2, 3],
    "match.parameters": "2M",
    "match.by": "model.transformer.hidden_size",
    "suites": ["blimp/data"],
    "every_steps": 500,
    "log_base": 2,
    "steps": [1, 10, 100],
    "milestones.words": ["1M", "10M"],
    "milestones.tokens": ["5M"],
    "milestones.bytes": ["20M"],
    "milestones.epochs": [0.5, 1],
    "logging.wandb_project": "small-models",
    "seeds.initialisation": 1,
    "seeds.data_order": 2,
    "seeds.masking": 3,
    "seeds.dropout": 4,
    "matching": r"(?i)\bif\b",
    "function": "foundry_mine.syntax:is_passive",
    "words": ["whom", "whose"],
    "only_words": "lists/first_words.txt",
    "by": "it",
    "table": {"is": "are", "are": "is"},
    "others": "X",
    "share": 0.1,
    "of": {"drop": {"matching": r"(?i)\bif\b"}},
    "transformer.layers": 4,
    "transformer.embedding_size": 192,
    "transformer.hidden_size": 192,
    "transformer.intermediate_hidden_size": 768,
    "transformer.attention_heads": 6,
    "transformer.max_positions": 512,
    "rnn.embedding_size": 192,
    "rnn.hidden_size": 256,
    "rnn.num_layers": 2,
    "rnn.last_hidden_size": 192,
    "rnn.input_dropout": 0.4,
    "rnn.hidden_dropout": 0.25,
    "rnn.output_dropout": 0.4,
    "rnn.embedding_dropout": 0.1,
    "rnn.weight_drop": 0.5,
    "rnn.init_range": 0.1,
    "rnn.forget_bias": 1.0,
    "mamba.hidden_size": 128,
    "mamba.num_layers": 4,
    "mamba.time_step_rank": 8,
    "ngram.order": 5,
    "transformers.model_type": "llama",
    "rnn.rnn_type": "lstm",
}
"""Examples for keys without a default, by the key or by what it ends with."""


GUIDES = {
    "data": "[corpora](../how-to/corpora.md), [batching](../training/batching.md), [steps](../training/steps.md)",
    "tokenizer": "[tokenizers](../training/given.md)",
    "training": "[budgets, checkpoints, evaluations](../training/budgets.md), [schedules](../training/schedules.md), "
    "[GPUs](../how-to/several_gpus.md), [performance](../explanation/performance.md)",
    "logging": "[Weights & Biases and TensorBoard](../how-to/wandb.md)",
    "seeds": "[the order of the data](../explanation/order.md)",
}
"""Pages that explain the keys of a section."""


@dataclass(frozen=True)
class Key:
    """A key of the YAML. name: with dots. types: what it takes, in Markdown. default: None if it is required."""

    name: str
    types: str
    default: str | None
    description: str
    example: Any

    def markdown(self) -> str:
        facts = [f"Type: {self.types}" if self.types else "A section", self._default()]
        if self.example is not None:
            last = self.name.rpartition(".")[2]
            facts.append(f"Example: {code(f'{last}: {flow(self.example)}')}")
        lines = [
            f"### {code(self.name)}",
            _sentence(self.description, self.types),
            " · ".join(fact for fact in facts if fact),
        ]
        return "\n\n".join(line for line in lines if line)

    def _default(self) -> str:
        return "Required" if self.default is None else f"Default: {self.default}" if self.default else ""


def flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        plain = value.replace("_", "").replace("/", "").replace(".", "").replace("-", "").isalnum()
        return value if plain else "'" + value.replace("'", "''") + "'"
    return json.dumps(value)


def _sentence(text: str, types: str) -> str:
    # Not a value that is explained, as in "auto: ..." and "adamw, sgd".
    word = re.match(r"([a-z]+),? |(?:budget|instead):|(?:warm-up|dropout)\b", text)
    begins = text[:1].upper() + text[1:] if word and code(word.group(1) or "") not in types else text
    return escaped(begins) + ("" if text.endswith((".", ":")) else ".") if text else ""


class Reader:
    """Reads the JSON schema of a YAML as a list of keys."""

    def __init__(self, schema: Schema):
        self.schema = schema

    def resolved(self, part: Schema) -> Schema:
        """Return the definition that a part refers to, with the description of the place that refers to it."""
        if "$ref" not in part:
            return part
        found = self.schema["$defs"][part["$ref"].rpartition("/")[2]]
        return {**found, **{name: part[name] for name in ("description", "default") if name in part}}

    def variants(self, part: Schema) -> list[Schema]:
        """Return the alternatives of a part, or the part alone."""
        part = self.resolved(part)
        several = part.get("anyOf") or part.get("oneOf") or [part]
        return [self.resolved(each) for each in several]

    def keys(self, section: Schema, place: str = "") -> Iterator[Key]:
        """Yield the keys of a section in their order, each followed by those inside it."""
        for name, part in section.get("properties", {}).items():
            key = f"{place}.{name}".removeprefix(".")
            yield self.key(key, part, name in section.get("required", ()))
            yield from self.inside(key, part)

    def inside(self, key: str, part: Schema) -> Iterator[Key]:
        """Yield the keys of the sections that a key may have as its value; steps are described once."""
        if part.get("$ref") == STEP:
            return
        for variant in self.variants(part):
            yield from self.keys(variant, key)
            for each in variant.get("patternProperties", {}).values():
                yield from self.keys(self.resolved(each), f"{key}.NAME")

    def key(self, name: str, part: Schema, required: bool) -> Key:
        whole = self.resolved(part)
        given = whole.get("default")
        section = isinstance(given, Mapping) or (required and not self.types(part))
        default = None if required else "" if section or "default" not in whole else code(flow(given))
        if default and whole.get("description", "").endswith("default: the architecture's"):
            default = "the architecture's"
        # Without a plugin there are no such settings, and the schema has nothing but null.
        types = "section with what the plugin asks for, or `null`" if name.endswith("_settings") else self.types(part)
        return Key(name, types, default, whole.get("description", ""), self.example(name, part, given))

    def example(self, name: str, part: Schema, default: Any) -> Any:
        parts = name.split(".")
        for at in range(len(parts)):
            if (end := ".".join(parts[at:])) in EXAMPLES:
                return EXAMPLES[end]
        for variant in self.variants(part):
            others = [each for each in variant.get("enum", ()) if each not in (None, default)]
            if others:
                return others[0]
            if "const" in variant and default is None:
                return variant["const"]
            if variant.get("type") == "boolean":
                return not default
        return default if not isinstance(default, Mapping) and default not in (None, [], ()) else None

    def types(self, part: Schema) -> str:
        """Return what a key takes; an empty text for a section alone."""
        if part.get("$ref") == STEP:
            return "step"
        whole = self.resolved(part)
        if "enum" in whole:
            return _enum(whole["enum"])
        variants = self.variants(part)
        found = [self._type(each) or ("section" if len(variants) > 1 else "") for each in variants]
        return " or ".join(dict.fromkeys(each for each in found if each))

    def _type(self, part: Schema) -> str:
        if "enum" in part:
            return _enum(part["enum"])
        if "const" in part:
            return code(part["const"])
        kind = part.get("type")
        if kind in ("integer", "number"):
            return ("whole number" if kind == "integer" else "number") + _bounds(part)
        if kind == "array":
            if "prefixItems" in part:
                return f"list of {len(part['prefixItems'])}: " + ", ".join(map(self.types, part["prefixItems"]))
            inner = self.types(part["items"]) if part.get("items") else ""
            return f"list of {inner}" if inner else "list"
        if kind is None and "properties" not in part:
            return "text, list or mapping"
        if kind == "object":
            if "properties" in part:
                return ""
            several = part.get("patternProperties") or part.get("additionalProperties")
            return "mapping of names to sections" if part.get("patternProperties") else "mapping" if several else ""
        if kind == "string":
            return "count such as `10M`" if part.get("pattern") == COUNT_PATTERN else "text"
        return {"boolean": "`true` or `false`", "null": "`null`"}.get(str(kind), "")


def _enum(values: list[Any]) -> str:
    shown = [code("null" if each is None else str(each)) for each in values]
    return "one of " + ", ".join(shown) if len(shown) > 1 else shown[0]


def _bounds(part: Schema) -> str:
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    words = []
    if low is not None and abs(low) < 2**31 - 1:
        words.append(f"{'from' if 'minimum' in part else 'above'} {low:,}")
    if high is not None and abs(high) < 2**31 - 1:
        words.append(f"{'to' if 'maximum' in part else 'below'} {high:,.0f}" if high >= 1 else f"to {high}")
    return " " + (" " if "minimum" in part and "maximum" in part else ", ").join(words) if words else ""


def described() -> tuple[Reader, list[Architecture]]:
    """Return a reader of the schema with every installed architecture, and the architectures."""
    architectures = [get_architecture(name) for name in available_architectures()]
    return Reader(schema_of(architectures)), architectures


def keys_page() -> str:
    """Return the page of every key except those of `model`."""
    reader, _ = described()
    top, parts = reader.schema["properties"], []
    plain = [name for name in top if reader.types(top[name]) and name != "model"]
    required = reader.schema["required"]
    parts.append("## Top level")
    parts += [reader.key(name, top[name], name in required).markdown() for name in plain]
    for name in top:
        if name not in plain and name != "model":
            parts += [f"## {code(name)}", f"Explained in {GUIDES[name]}." if name in GUIDES else ""]
            parts += [key.markdown() for key in reader.keys(reader.resolved(top[name]), name)]
    parts += _steps(reader)
    parts += ["## Keys of a study", "The YAML of `foundry study`: see [studies](../evaluation/studies.md)."]
    study = StudySection.model_json_schema()
    parts += [key.markdown() for key in Reader(study).keys(study)]
    introduction = (
        "One YAML describes one experiment. These are all of its keys, made from the code; those under `model` "
        "depend on the architecture and have [a page of their own](models.md). Any key can be given on the command "
        "line, as in `foundry train lstm.yaml training.learning_rate=1e-3`, and `foundry schema` prints the same for "
        "editors.\n\n"
        "Unknown keys are refused, numbers are not read from text, and all problems of a file are reported at once."
    )
    return page("Keys of the YAML", introduction, *parts)


def _steps(reader: Reader) -> Iterator[str]:
    yield "## Steps of `data.steps`"
    yield "Each entry of `data.steps` has the name of a step, and its settings: see [steps](../training/steps.md)."
    for variant in reader.schema["$defs"]["CorpusStep"]["anyOf"]:
        ((name, settings),) = variant["properties"].items()
        yield from (key.markdown() for key in reader.keys(reader.resolved(settings), f"data.steps.{name}"))


def models_page() -> str:
    """Return the page of the keys under `model`, by architecture; those that share a schema stand together."""
    reader, architectures = described()
    by_class: dict[type, list[Architecture]] = {}
    for each in architectures:
        by_class.setdefault(each.config_class, []).append(each)
    variants = {each["title"]: each for each in reader.variants(reader.schema["properties"]["model"])}
    choice = {
        "description": next(iter(variants.values()))["properties"]["architecture"]["description"],
        "enum": list(variants),
    }
    parts = ["## Architecture", reader.key("model.architecture", choice, required=True).markdown()]
    shown = {"model.architecture"}
    for group in by_class.values():
        names = [each.name for each in group]
        parts.append("## " + ", ".join(map(code, names)))
        parts.append("\n".join(f"* {code(each.name)}: {escaped(each.summary)}" for each in group))
        example = {"model": variants[names[0]]["examples"][0]}
        parts.append(block("\n".join(_yaml(example)), "yaml"))
        keys = list(reader.keys(variants[names[0]], "model"))
        again = [key.name.rpartition(".")[2] for key in keys if key.name in shown and key.name.count(".") > 1]
        if again:
            parts.append(f"Explained above: {', '.join(map(code, again))}.")
        for key in keys:
            if key.description and key.types and key.name not in shown:
                parts.append(key.markdown())
                shown.add(key.name)
        if not all(key.description for key in keys):
            parts.append(
                "All other keys are fields of the library's configuration class of that type, which its documentation "
                "explains. `foundry init transformers` writes those of a Llama, `foundry schema` has all of them."
            )
    introduction = (
        "The keys under `model` of the architectures that foundry ships; [models](../training/models.md) has the "
        "settings of published ones. Sizes have no default. Each example is what `foundry init` writes; `foundry "
        "plugins show NAME` prints the same for an architecture of another package."
    )
    return page("Keys of the models", introduction, *parts)


def _yaml(data: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")
        else:
            yield f"{indent}{key}: {flow(value)}"
