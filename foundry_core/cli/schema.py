"""Print the JSON schema (draft 2020-12) of the YAML. Editors use it for
completion and help. It covers the architectures, objectives, optimizers,
schedules and tokenizer types that are installed.

Editors that support the YAML language server read the name of the schema from
the first line of the YAML:

  # yaml-language-server: $schema=foundry.schema.json

Rules between keys (exactly one budget, for instance) are for foundry validate.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, load_plugins
from foundry_core.errors import PluginError, traced, warn

if TYPE_CHECKING:
    from pydantic import BaseModel

    from foundry_core.registry.architecture import Architecture

EXAMPLE = "example:\n  foundry schema > foundry.schema.json"

Offered = dict[str, dict[str, Any]]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
COUNT_PATTERN = r"^[0-9]+(\.[0-9]+)?[kKmMbB]$"


def configure(parser: argparse.ArgumentParser) -> None:
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.registry.discovery import EXTENSIONS, installed
    from foundry_core.registry.isolation import failing_as
    from foundry_core.registry.loading import active_modules, available_architectures, get_architecture

    modules = load_plugins(options)
    usable = []
    for name in available_architectures():
        with _left_out():
            architecture = get_architecture(name)
            with failing_as(f"the JSON schema of '{name}'"):
                architecture.config_class.model_json_schema()
            modules += active_modules(architecture)
            usable.append(architecture)
    for points in installed(EXTENSIONS).values():
        for point in points:
            with _left_out():
                modules += active_modules(None, [point.module])
    print(json.dumps(schema_of(usable, _offered(modules)), indent=1))


@contextmanager
def _left_out() -> Iterator[None]:
    """Skip a plugin whose code fails in this block, with a warning."""
    try:
        yield
    except PluginError as error:
        traced(error)
        warn(f"left out: {error}")


def _offered(modules: list[ModuleType]) -> Offered:
    """Return the descriptors of core and of modules, by the key that names them and by their name."""
    from foundry_core.registry import hooks

    found: Offered = {"objective": {}, "optimizer": {}, "schedule": {}, "tokenizer_type": {}, "corpus_step": {}}
    for module in [None, *dict.fromkeys(modules)]:
        with _left_out():
            offers = hooks.offers(hooks.hook_manager([] if module is None else [module]))
            for key, descriptors in found.items():
                found[key] = {**getattr(offers, f"{key}s"), **descriptors}  # of two with one name, the first
    return found


def _one_key(name: str, value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


def schema_of(architectures: list[Architecture], offered: Offered | None = None) -> dict[str, Any]:
    """Return the schema of a configuration whose `model:` is one of these architectures.

    Args:
        architectures: Descriptors, each with a variant of `model:`.
        offered: Objectives, optimizers, schedules and tokenizer types by name; core's by default.
    """
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
    from pydantic_core import to_jsonable_python

    from foundry_core.config import sections as config_sections
    from foundry_core.config.experiment import ExperimentConfig

    class Generator(GenerateJsonSchema):
        """Pydantic's generator, except that a count can be written as 10M, and that keys have no title."""

        def generate_inner(self, schema: Any) -> JsonSchemaValue:
            count = schema
            while count["type"] == "function-after":  # the bounds of a count, which are checked after it is read
                count = count["schema"]
            if count["type"] == "function-before" and count["function"]["function"] is config_sections.count:
                number = {"type": "integer", "minimum": 1, "maximum": config_sections.MOST_COUNT}
                return {"anyOf": [number, {"type": "string", "pattern": COUNT_PATTERN}]}
            return super().generate_inner(schema)

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    offered = _offered([]) if offered is None else offered
    settings = {
        f"{key}_settings": list(dict.fromkeys(each.settings for each in offered[key].values() if each.settings))
        for key in ("objective", "optimizer", "schedule")
    }
    sections = [each.config_class for each in architectures]
    steps = {name: each.schema for name, each in offered["corpus_step"].items()}
    classes = dict.fromkeys([ExperimentConfig, *sections, *chain(*settings.values()), *steps.values()])
    references, document = models_json_schema([(each, "validation") for each in classes], schema_generator=Generator)
    definitions: dict[str, Any] = document["$defs"]

    def reference(model: type[BaseModel]) -> Any:
        return references[model, "validation"]

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        return dict(definitions[reference(model)["$ref"].rpartition("/")[2]])

    training, tokenizer = (definitions[name]["properties"] for name in ("TrainingConfig", "TokenizerConfig"))
    for keys, name in ((training, "objective"), (training, "optimizer"), (tokenizer, "tokenizer_type")):
        keys[name]["enum"] = sorted(offered[name])
        if name != "optimizer":  # null leaves it to the architecture
            keys[name]["enum"].append(None)
            for kind in ("type", "anyOf"):
                keys[name].pop(kind, None)
    training["lr_scheduler"]["enum"] = sorted(offered["schedule"])
    for name, models in settings.items():
        training[name]["anyOf"] = [*map(reference, models), {"type": "null"}]
    one_of_them = {"$ref": "#/$defs/CorpusStep"}
    definitions["CorpusStep"] = {
        "anyOf": [_one_key(name, reference(section)) for name, section in sorted(steps.items())]
    }
    definitions["DataConfig"]["properties"]["steps"]["items"] = one_of_them
    controlled = definitions["ControlSettings"]["properties"]["of"]
    definitions["ControlSettings"]["properties"]["of"] = {"description": controlled["description"], **one_of_them}
    whole = definition(ExperimentConfig)
    if architectures:
        variants = []
        for each in architectures:  # written out for each, since several can share a class
            section = definition(each.config_class)
            fixed = {**section["properties"]["architecture"], "const": each.name}
            recipe = to_jsonable_python({"architecture": each.name, **each.recipe.get("model", {})})
            facts = {"examples": [recipe], "title": each.name, "description": each.summary}
            variants.append(section | facts | {"properties": section["properties"] | {"architecture": fixed}})
        whole["properties"] = whole["properties"] | {"model": {"anyOf": variants}}
    used: dict[str, Any] = {}
    waiting = [whole]
    while waiting:
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(waiting.pop())):
            if name not in used:
                used[name] = definitions[name]
                waiting.append(definitions[name])
    return {
        "$schema": DIALECT,
        **whole,
        "title": "foundry experiment",
        "description": "one YAML for each experiment: foundry train FILE",
        "$defs": dict(sorted(used.items())),
    }
