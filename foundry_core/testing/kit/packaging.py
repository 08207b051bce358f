"""Checks of the package: entry point, light import, schema, capabilities, hooks and side effects."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from foundry_core import __version__
from foundry_core.config.loading import load_config
from foundry_core.errors import ConfigError, did_you_mean
from foundry_core.models.base import create_model
from foundry_core.models.building import build, build_context
from foundry_core.models.interface import LanguageModel
from foundry_core.random_streams import seed_generators
from foundry_core.registry import hookspecs
from foundry_core.registry.architecture import PLUGIN_API_VERSION
from foundry_core.registry.discovery import Installed, installed
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.loading import active_modules, import_string, shipped_by
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import (
    NonconformanceError,
    NotLookedAtError,
    check,
    differentiated,
    listed,
    require,
)
from foundry_core.testing.kit.json_schema import alternatives, kinds
from foundry_core.testing.kit.processes import forked, fresh, fresh_command
from foundry_core.testing.kit.reopened import elsewhere
from foundry_core.testing.kit.surroundings import changed, settings, watched

HEAVY = ("torch", "transformers", "numpy")
LONGEST_IMPORT = 0.25
"""Seconds that importing a descriptor may take in addition to starting Python."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("foundry_"))


def _package(suite: Suite) -> Installed:
    point = shipped_by(suite.architecture.name)
    if point is None:
        raise NotLookedAtError("registered in this process, not shipped by a package")
    return point


@check(
    "packaging",
    "entry-point",
    scope="architecture",
    fix='In pyproject.toml, write dependencies = ["model-foundry>=0.1,<0.2"] and, under '
    '[project.entry-points."foundry.architectures"], one line NAME = "package:descriptor". In the descriptor, write '
    f"plugin_api_version={PLUGIN_API_VERSION} as a number.",
)
def entry_point(suite: Suite) -> None:
    """Exactly one distribution provides the name, the descriptor has the same name and states the plugin API that it
    is written for, and the distribution requires model-foundry with an upper bound.
    """
    point = _package(suite)
    claims = installed()[point.name]
    require(len(claims) == 1, f"claimed by {listed([str(claim) for claim in claims])}")
    requirements = [Requirement(text) for text in metadata.requires(point.distribution) or ()]
    own = [each for each in requirements if canonicalize_name(each.name) == "model-foundry"]
    require(bool(own), f"{point} does not require model-foundry")
    for each in own:
        bounded = any(part.operator in ("<", "<=", "==", "~=") for part in each.specifier)
        require(bounded, f"{point} requires {each}, without an upper bound")
        require(each.specifier.contains(__version__, prereleases=True), f"{point} requires {each}, not {__version__}")
    stated = suite.architecture.plugin_api_version is not None
    require(stated, f"{point.target} does not state plugin_api_version={PLUGIN_API_VERSION}")


@check(
    "packaging",
    "light-import",
    scope="architecture",
    fix="Pass `model_class` as an import string, and import torch only in the module of the model.",
)
def light_import(suite: Suite) -> None:
    """Importing the descriptor does not import torch, transformers or numpy, and takes at most 250 ms more than bare
    Python.
    """
    module = _package(suite).module
    program = f"import sys, {module}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    heavy = fresh(program).split()
    require(not heavy, f"importing {module} imports {listed(heavy)}")
    # Processor time is hardly affected by other programs; the best of a few pairs counts.
    best = math.inf
    for _ in range(3):
        best = min(best, _seconds(f"import {module}") - _seconds("pass"))
        if best <= LONGEST_IMPORT:
            return
    raise NonconformanceError(
        f"importing {module} takes {1000 * best:.0f} ms over bare Python, allowed is {1000 * LONGEST_IMPORT:.0f} ms"
    )


def _seconds(code: str) -> float:
    """Return the processor time of a fresh Python process that runs a line."""
    command, environment = fresh_command(code)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return used.ru_utime + used.ru_stime


@check(
    "packaging",
    "schema",
    scope="architecture",
    fix="Derive every section from ConfigSection, which forbids unknown keys and converts nothing, and declare "
    "every key as Field(..., description=...) of a plain type.",
)
def schema(suite: Suite) -> None:
    """Unknown keys and wrong values are refused under the name of the key, every key has a description, a resolved
    configuration reads back unchanged, and the recipe is valid.
    """
    architecture = suite.architecture
    for section in _sections(architecture.config_class):
        for name, field in section.model_fields.items():
            require(bool((field.description or "").strip()), f"{section.__name__}.{name} has no description")
    try:
        exported = architecture.config_class.model_json_schema()
        json.dumps(exported)
    except Exception as error:
        raise NonconformanceError(f"no JSON schema: {type(error).__name__}: {error}") from error
    recipe: dict[str, Any] = {"model": suite.cases[0].settings, **architecture.recipe}
    recipe["training"] = {"objective": None, "train_steps": None, "epochs": 1, **recipe.get("training", {})}
    try:
        suite.cases[0].config_with(**recipe)
    except ConfigError as error:
        raise NonconformanceError(f"the recipe is refused: {error}") from error
    examples = {case.example: case for case in suite.cases}
    mutations: dict[tuple[tuple[str, ...], str], tuple[Case, Any]] = {}
    for case in examples.values():
        resolved = case.config.resolved()
        require(load_config(resolved) == case.config, f"{case.example}: it differs after writing and reading it")
        for key, wrong in _mutations(resolved["model"], exported, exported):
            mutations.setdefault((key, repr(wrong)), (case, wrong))
    for (key, _), (case, wrong) in mutations.items():
        _require_refused(case, key, wrong)


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the class of a section and of all sections below it."""
    yield model
    for field in model.model_fields.values():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if inspect.isclass(candidate) and issubclass(candidate, BaseModel):
                yield from _sections(candidate)


_MISSING = object()
_UNKNOWN_KEY = "no_such_key"
_SAMPLES: dict[str, Any] = {
    "string": "some text",
    "integer": 3,
    "number": 2.5,
    "boolean": True,
    "array": [1],
    "object": {},
    "null": None,
}


def _mutations(values: Mapping[str, Any], part: Any, whole: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield keys, each with a value that must be refused there according to the JSON schema."""
    yield (_UNKNOWN_KEY,), 1
    part = alternatives(part, whole)[0]
    for name in part.get("required", ()):
        yield (name,), _MISSING
    for name, value in values.items():
        if name == "architecture":
            continue
        choices = alternatives(part.get("properties", {}).get(name, {}), whole)
        accepted = {kind for each in choices for kind in kinds(each)}
        if "number" in accepted:
            accepted.add("integer")
        for kind, sample in _SAMPLES.items():
            if accepted and kind not in accepted:
                yield (name,), sample
        if accepted & {"number", "integer"}:
            yield from (((name,), wrong) for wrong in (math.nan, math.inf, -math.inf))
        section = next((each for each in choices if "properties" in each), None)
        if section is not None and isinstance(value, Mapping):
            yield from (((name, *key), wrong) for key, wrong in _mutations(value, section, whole))


def _require_refused(case: Case, key: tuple[str, ...], wrong: Any) -> None:
    model = deepcopy(case.config.resolved()["model"])
    section = model
    for part in key[:-1]:
        section = section[part]
    if wrong is _MISSING:
        section.pop(key[-1], None)
        what = "is left out"
    else:
        section[key[-1]] = wrong
        what = f"is {wrong!r}"
    name = ".".join(("model", *key))
    if name == "model.architecture":
        return  # core checks this key itself, before it loads the plugin
    try:
        case.config_with(model=model)
    except ConfigError as error:
        keys = [problem.key for problem in error.problems]
        require(any(each.startswith(name) for each in keys), f"{name} {what}: the refusal names {listed(keys)} instead")
        return
    raise NonconformanceError(f"{name} {what}, but the configuration is accepted")


@check(
    "packaging",
    "capabilities",
    scope="architecture",
    fix="`capabilities` is a function of the settings. Declare only objectives that the model can be trained with "
    "under these settings. To add a new objective, implement the hook foundry_objectives in the plugin.",
)
def capabilities(suite: Suite) -> None:
    """The model can be built for every declared objective, and an undeclared objective is refused when the YAML is
    read.
    """
    known = offers(hook_manager(active_modules(suite.architecture))).objectives
    first = {case.example: case for case in reversed(suite.cases)}
    require(bool(first), "no example has a known objective")
    for case in first.values():
        accepted = case.capabilities.objectives
        require(isinstance(accepted, tuple) and bool(accepted), f"{case.example}: objectives {accepted!r}: not a tuple")
        for name in accepted:
            require(name in known, f"{case.example}: {name} is declared, but unknown.{did_you_mean(name, known)}")
        for name in known:
            try:
                config = case.config_with(training={"objective": name})
            except ConfigError as error:
                refused = any(problem.key == "training.objective" for problem in error.problems)
                require(refused and name not in accepted, f"{case.example} with {name}: {error}")
                continue
            require(name in accepted, f"{case.example}: {name} is not declared, but accepted")
            try:
                create_model(config, case.tokenizer)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise NonconformanceError(
                    f"{case.example}: {name} is declared, but building failed: {reason}"
                ) from error


@check(
    "packaging",
    "hooks",
    scope="architecture",
    fix="A hook is a function of the light module with a name and arguments from "
    "foundry_core/registry/hookspecs.py, marked with `@hookimpl` from foundry_core. An unmarked function is "
    "never called, and a keyword-only argument is never passed.",
)
def hooks(suite: Suite) -> None:
    """Every function that looks like a hook is one, is marked with `hookimpl`, and takes no keyword-only arguments."""
    for module in active_modules(suite.architecture):
        own = {name: item for name, item in vars(module).items() if inspect.isfunction(item)}
        for name, function in own.items():
            marked = getattr(function, "foundry_impl", None) is not None
            meant = marked or name.startswith("foundry_") or bool(get_close_matches(name, HOOKS, cutoff=0.9))
            if function.__module__ != module.__name__ or not meant:
                continue
            where = f"{module.__name__}.{name}"
            require(name in HOOKS, f"{where} is not a hook.{did_you_mean(name, HOOKS)}")
            require(marked, f"{where} is not marked with hookimpl: it is never called")
            parameters = inspect.signature(function).parameters.values()
            keyword_only = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
            require(not keyword_only, f"{where} takes {listed(keyword_only)} by keyword only: it is never passed")


@check(
    "packaging",
    "side-effects",
    scope="objective",
    fix="`__init__` should only create layers, and `forward` should only compute: no seeding, torch.set_..., "
    "torch.backends, os.environ, caches or downloads. Draw weights and dropout from torch's global generator, "
    "which core seeds.",
)
def side_effects(case: Case) -> None:
    """Building the model, a training step and evaluation do not seed torch, do not change the random state of Python or
    numpy, the default dtype, threads, environment, working folder, files or backend flags, and do not use the network.
    """
    forked(lambda: _used_twice(case))


def _used_twice(case: Case) -> bytes:
    """Run in a separate process, so that a side effect does not reach other checks."""
    context, target = build_context(case.config, case.tokenizer), case.architecture.model_class
    if isinstance(target, str):
        import_string(target)  # libraries may change settings when they are imported: not an effect of building
    before = settings()
    model = build(case.config, context)
    touched = changed(before, settings())
    require(not touched, f"building changes {listed(touched)}")
    ids = case.ids(2, min(8, case.length))
    uses: dict[str, Callable[[], object]] = {
        "building": lambda: build(case.config, context),
        "a training step": lambda: _taken(case, model.train(), ids),
        "evaluation": lambda: model.eval()(ids),
    }
    for what, use in uses.items():
        before, states = settings(), []
        with watched() as seen:
            for seed in (1, 2):
                seed_generators(seed)
                use()
                states.append(torch.random.get_rng_state())
        touched = changed(before, settings())
        require(not touched, f"{what} changes {listed(touched)}")
        require(not seen, f"{what} {listed(seen)}")
        # Dropout may draw from the generator: two seeds still lead to two different states.
        require(not torch.equal(*states), f"{what} seeds torch's generator")
    return b""


def _taken(case: Case, model: LanguageModel, ids: torch.Tensor) -> None:
    """Take what of a training step is the model's."""
    differentiated(case, model(ids, labels=ids).loss)
    if case.counts:
        model.count(ids)


@check(
    "packaging",
    "import-effects",
    scope="architecture",
    fix="Keep only imports, functions and classes at the top level of a module. Remove statements that change the "
    "state of the process (seeds, torch.set_..., torch.backends, os.environ, the working folder).",
)
def import_effects(suite: Suite) -> None:
    """Importing the light module and then the module of the model does not change random states, the default dtype,
    threads, environment, working folder, files or backend flags, and does not use the network.
    """
    imports = elsewhere(suite).imports
    if imports is None:
        raise NotLookedAtError("registered in this process, so that no other process can import it")
    for module, done in imports.items():
        require(not done, f"importing {module} {listed(done)}")
