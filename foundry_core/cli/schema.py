"""Print one JSON schema (draft 2020-12) of the whole YAML, for editors: keys, defaults and meanings while typing.

The section model: is one of the installed architectures, each with its own keys. Objectives, optimizers and tokenizer
types are core's and those of installed packages, whether or not plugins: makes them active. An editor that speaks the
YAML language server takes the schema from a comment in the first line of the YAML:

  # yaml-language-server: $schema=foundry.schema.json

What a schema cannot say (heads divide hidden_size, exactly one budget) foundry validate checks.
"""

from __future__ import annotations

import argparse
import json
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import add_plugin_argument, load_plugins
from foundry_core.errors import PluginError, warn

if TYPE_CHECKING:
    from pydantic import BaseModel

    from foundry_core.registry.architecture import Architecture

EXAMPLE = "example:\n  foundry schema > foundry.schema.json"

Offered = dict[str, dict[str, Any]]
_NULL = {"type": "null"}

DIALECT = "https://json-schema.org/draft/2020-12/schema"
COUNT_PATTERN = r"^[0-9]+(\.[0-9]+)?[kKmMbB]$"


def configure(parser: argparse.ArgumentParser) -> None:
    add_plugin_argument(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    from foundry_core.registry.discovery import EXTENSIONS, installed
    from foundry_core.registry.loading import active_modules, available_architectures, get_architecture

    modules = load_plugins(options)
    usable = []
    for name in available_architectures():
        try:
            architecture = get_architecture(name)
            schema_of([architecture])
        except PluginError as error:
            warn(f"left out: {error}")
        except Exception as error:  # noqa: BLE001 - whatever a plugin's classes do, the other schemas are printed
            reason = str(error).split("\n")[0]
            warn(f"left out: '{name}' has no JSON schema: {type(error).__name__}: {reason}")
        else:
            usable.append(architecture)
            modules += active_modules(architecture)
    for point in (point for points in installed(EXTENSIONS).values() for point in points):
        try:
            modules += active_modules(None, [point.module])
        except PluginError as error:
            warn(f"left out: {error}")
    print(json.dumps(schema_of(usable, _offered(modules)), indent=1))


def _offered(modules: list[ModuleType]) -> Offered:
    """Descriptors by the key that names them, and by their name; of two with one name, the first."""
    from foundry_core.registry import hooks

    found: Offered = {"objective": {}, "optimizer": {}, "tokenizer_type": {}}
    for module in [None, *dict.fromkeys(modules)]:
        try:
            offers = hooks.offers(hooks.hook_manager([] if module is None else [module]))
        except PluginError as error:
            warn(f"left out: {error}")
            continue
        found["objective"] = {**offers.objectives, **found["objective"]}
        found["optimizer"] = {**offers.optimizers, **found["optimizer"]}
        found["tokenizer_type"] = {**offers.tokenizer_types, **found["tokenizer_type"]}
    return found


def schema_of(architectures: list[Architecture], offered: Offered | None = None) -> dict[str, Any]:
    """The schema of a configuration whose `model:` is one of these architectures.

    offered: what objectives, optimizers and tokenizer types there are; default, core's own.
    """
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

    from foundry_core.config import experiment as config
    from foundry_core.config import sections as config_sections

    class Generator(GenerateJsonSchema):
        """pydantic's, except that a count may be written as 10M and that keys get no title of their own."""

        def generate_inner(self, schema: Any) -> JsonSchemaValue:
            # The bounds of a count are checked after it is read, around it.
            count = schema
            while count["type"] == "function-after":
                count = count["schema"]
            if count["type"] == "function-before" and count["function"]["function"] is config_sections.count:
                return {
                    "anyOf": [
                        {"type": "integer", "minimum": 1, "maximum": config_sections.MOST_COUNT},
                        {"type": "string", "pattern": COUNT_PATTERN},
                    ]
                }
            return super().generate_inner(schema)

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    offered = _offered([]) if offered is None else offered
    settings = {
        f"{key}_settings": list(dict.fromkeys(each.settings for each in offered[key].values() if each.settings))
        for key in ("objective", "optimizer")
    }
    classes: list[type[BaseModel]] = [
        config.ExperimentConfig,
        *dict.fromkeys(each.config_class for each in architectures),
        *dict.fromkeys(each for one in settings.values() for each in one),
    ]
    references, document = models_json_schema([(each, "validation") for each in classes], schema_generator=Generator)
    definitions: dict[str, Any] = document["$defs"]

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        reference = references[(model, "validation")]["$ref"]
        return dict(definitions[reference.rpartition("/")[2]])

    whole = definition(config.ExperimentConfig)
    training = definitions["TrainingConfig"]["properties"]
    for keys, name in (
        (training, "objective"),
        (training, "optimizer"),
        (definitions["TokenizerConfig"]["properties"], "tokenizer_type"),
    ):
        keys[name]["enum"] = sorted(offered[name])
        if name != "optimizer":  # null leaves it to the architecture
            keys[name]["enum"].append(None)
            del keys[name]["type"]
    for name, sections in settings.items():
        training[name]["anyOf"] = [*({"$ref": references[(each, "validation")]["$ref"]} for each in sections), _NULL]
    if architectures:
        variants = [_of_architecture(each, definition(each.config_class)) for each in architectures]
        whole["properties"] = {**whole["properties"], "model": {"anyOf": variants}}
    used = _reachable(whole, definitions)
    return {
        "$schema": DIALECT,
        **whole,
        "title": "foundry experiment",
        "description": "one YAML for each experiment: foundry train FILE",
        "$defs": {name: definitions[name] for name in sorted(used)},
    }


def _of_architecture(architecture: Architecture, section: dict[str, Any]) -> dict[str, Any]:
    """`model:` for one architecture; written out for each, since several may share a class."""
    from pydantic_core import to_jsonable_python

    name = {**section["properties"]["architecture"], "const": architecture.name}
    recipe = {"architecture": architecture.name, **architecture.recipe.get("model", {})}
    return {
        **section,
        "examples": [to_jsonable_python(recipe)],
        "title": architecture.name,
        "description": architecture.summary,
        "properties": {**section["properties"], "architecture": name},
    }


def _reachable(schema: Any, definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that a schema refers to, directly or not."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            name = str(item.get("$ref", "")).removeprefix("#/$defs/")
            if name in definitions and name not in found:
                found.add(name)
                waiting.append(definitions[name])
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found
