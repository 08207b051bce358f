"""Is a plugin a good guest: found by its name, light, with a schema that says no, and without side effects?"""

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
from foundry_core.registry import hookspecs
from foundry_core.registry.discovery import Installed, installed
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.loading import active_modules, import_string, shipped_by
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import NonconformanceError, NotApplicableError, check, listed, require
from foundry_core.testing.kit.json_schema import alternatives, kinds
from foundry_core.testing.kit.processes import forked, fresh, fresh_command
from foundry_core.testing.kit.reopened import elsewhere
from foundry_core.testing.kit.surroundings import changed, settings, watched

HEAVY = ("torch", "transformers", "numpy")
LONGEST_IMPORT = 0.25
"""Seconds that importing a descriptor may take over a bare Python."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("foundry_"))


def _package(suite: Suite) -> Installed:
    point = shipped_by(suite.architecture.name)
    if point is None:
        raise NotApplicableError("registered in this process, no package ships it")
    return point


@check(
    "packaging",
    "entry-point",
    scope="architecture",
    mend='In pyproject.toml: dependencies = ["foundry-core>=0.1,<0.2"], and under '
    '[project.entry-points."foundry.architectures"] one line NAME = "package:descriptor".',
)
def entry_point(suite: Suite) -> None:
    """One distribution has the name, which is the descriptor's, and it requires foundry-core with an upper bound."""
    point = _package(suite)
    claims = installed()[point.name]
    require(len(claims) == 1, f"claimed by {listed([str(claim) for claim in claims])}")
    requirements = [Requirement(text) for text in metadata.requires(point.distribution) or ()]
    own = [each for each in requirements if canonicalize_name(each.name) == "foundry-core"]
    require(bool(own), f"{point} does not require foundry-core")
    for each in own:
        bounded = any(part.operator in ("<", "<=", "==", "~=") for part in each.specifier)
        require(bounded, f"{point} requires {each}, without an upper bound")
        require(each.specifier.contains(__version__, prereleases=True), f"{point} requires {each}, not {__version__}")


@check(
    "packaging",
    "light-import",
    scope="architecture",
    mend="The light module describes: give `model_class` as an import string, and import torch in the model's module "
    "only.",
)
def light_import(suite: Suite) -> None:
    """Importing the descriptor leaves torch, transformers and numpy out, and takes at most 250 ms over bare Python."""
    module = _package(suite).module
    program = f"import sys, {module}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    heavy = fresh(program).split()
    require(not heavy, f"importing {module} imports {listed(heavy)}")
    # Processor time, which other programs hardly change, and the best of a few pairs.
    best = math.inf
    for _ in range(3):
        best = min(best, _seconds(f"import {module}") - _seconds("pass"))
        if best <= LONGEST_IMPORT:
            return
    raise NonconformanceError(
        f"importing {module} takes {1000 * best:.0f} ms over bare Python, allowed are {1000 * LONGEST_IMPORT:.0f}"
    )


def _seconds(code: str) -> float:
    """Processor time of a fresh Python that runs a line."""
    command, environment = fresh_command(code)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it has been waited for
    return used.ru_utime + used.ru_stime


@check(
    "packaging",
    "schema",
    scope="architecture",
    mend="Make every section a ConfigSection, which forbids unknown keys and converts nothing, and every key a "
    "Field(..., description=...) of a plain type.",
)
def schema(suite: Suite) -> None:
    """Unknown keys and wrong values are refused by the key's name, every key is described, what is written reads back
    as the same, and the recipe is valid.
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
    recipe["training"] = {"objective": None, **recipe.get("training", {})}
    try:
        suite.cases[0].config_with(**recipe)
    except ConfigError as error:
        raise NonconformanceError(f"the recipe is refused: {error}") from error
    examples = {case.example: case for case in suite.cases}
    mutations: dict[tuple[tuple[str, ...], str], tuple[Case, Any]] = {}
    for case in examples.values():
        resolved = case.config.resolved()
        require(load_config(resolved) == case.config, f"{case.example}: written and read again, it differs")
        for key, wrong in _mutations(resolved["model"], exported, exported):
            mutations.setdefault((key, repr(wrong)), (case, wrong))
    for (key, _), (case, wrong) in mutations.items():
        _require_refused(case, key, wrong)


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section's class and those below it."""
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
    """Keys, each with a value that must be refused there; the wrong values follow from the JSON schema."""
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
        return  # core looks at this one itself, before it knows the plugin
    try:
        case.config_with(model=model)
    except ConfigError as error:
        keys = [problem.key for problem in error.problems]
        require(any(each.startswith(name) for each in keys), f"{name} {what}: the refusal names {listed(keys)} instead")
        return
    raise NonconformanceError(f"{name} {what}, and is accepted")


@check(
    "packaging",
    "capabilities",
    scope="architecture",
    mend="`capabilities` is a function of the settings. Declare only what the model can be trained with under them; a "
    "further objective is offered by the hook foundry_objectives of the plugin.",
)
def capabilities(suite: Suite) -> None:
    """Every declared objective builds a model, and an undeclared one is refused when the YAML is read."""
    known = offers(hook_manager(active_modules(suite.architecture))).objectives
    first = {case.example: case for case in reversed(suite.cases)}
    require(bool(first), "no example has an objective that is known here")
    for case in first.values():
        accepted = case.capabilities.objectives
        require(isinstance(accepted, tuple) and bool(accepted), f"{case.example}: objectives is {accepted!r}, no tuple")
        for name in accepted:
            require(name in known, f"{case.example}: {name} is declared, but not offered.{did_you_mean(name, known)}")
        for name in known:
            try:
                config = case.config_with(training={"objective": name})
            except ConfigError as error:
                refused = any(problem.key == "training.objective" for problem in error.problems)
                require(refused and name not in accepted, f"{case.example} with {name}: {error}")
                continue
            require(name in accepted, f"{case.example}: {name} is not declared, and is accepted")
            try:
                create_model(config, case.tokenizer)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise NonconformanceError(f"{case.example}: {name} is declared, but not built: {reason}") from error


@check(
    "packaging",
    "hooks",
    scope="architecture",
    mend="A hook is a function of the light module with a name and arguments of foundry_core/registry/hookspecs.py, "
    "marked with `@hookimpl` from foundry_core. What is not marked is never called; a keyword-only argument is never "
    "given.",
)
def hooks(suite: Suite) -> None:
    """No function that looks like a hook is unknown or unmarked, and none takes keyword-only arguments."""
    for module in active_modules(suite.architecture):
        own = {name: item for name, item in vars(module).items() if inspect.isfunction(item)}
        for name, function in own.items():
            marked = getattr(function, "foundry_impl", None) is not None
            meant = marked or name.startswith("foundry_") or bool(get_close_matches(name, HOOKS, cutoff=0.9))
            if function.__module__ != module.__name__ or not meant:
                continue
            where = f"{module.__name__}.{name}"
            require(name in HOOKS, f"{where} is no hook.{did_you_mean(name, HOOKS)}")
            require(marked, f"{where} is not marked with hookimpl: it is never called")
            parameters = inspect.signature(function).parameters.values()
            keyword_only = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
            require(not keyword_only, f"{where} takes {listed(keyword_only)} by keyword only: it is never given")


@check(
    "packaging",
    "side-effects",
    scope="objective",
    mend="Building makes layers and `forward` computes, nothing else: no seed, no torch.set_..., no torch.backends, no "
    "os.environ, no cache, no download. Weights and dropout come from torch's own generator, which core seeds.",
)
def side_effects(case: Case) -> None:
    """Building, a training step and evaluation leave random state, default dtype, threads, environment, folder, files
    and backend flags, and ask nothing of the network.
    """
    forked(lambda: _used_twice(case))


def _used_twice(case: Case) -> bytes:
    """In a process of its own, where a side effect reaches no other check."""
    context, target = build_context(case.config, case.tokenizer), case.architecture.model_class
    if isinstance(target, str):
        import_string(target)  # what the libraries below set when they are imported is not the model's doing
    before = settings()
    model = build(case.config, context)
    touched = changed(before, settings())
    require(not touched, f"building changes {listed(touched)}")
    ids = case.ids(2, min(8, case.length))
    uses: dict[str, Callable[[], object]] = {
        "building": lambda: build(case.config, context),
        "a training step": lambda: model.train()(ids, labels=ids).loss.backward(),
        "evaluation": lambda: model.eval()(ids),
    }
    for what, use in uses.items():
        before, states = settings(), []
        with watched() as seen:
            for seed in (1, 2):
                torch.manual_seed(seed)
                use()
                states.append(torch.random.get_rng_state())
        touched = changed(before, settings())
        require(not touched, f"{what} changes {listed(touched)}")
        require(not seen, f"{what} {listed(seen)}")
        # Dropout may draw from the generator: after two seeds it is in two states all the same.
        require(not torch.equal(*states), f"{what} seeds torch's generator")
    return b""


@check(
    "packaging",
    "import-effects",
    scope="architecture",
    mend="At the top of a module stand imports, functions and classes. What the whole process has (seeds, "
    "torch.set_..., torch.backends, os.environ, the working folder) belongs to whoever runs it: remove the line.",
)
def import_effects(suite: Suite) -> None:
    """Importing the light module, then the model's, leaves random state, default dtype, threads, environment, folder,
    files and backend flags, and asks nothing of the network.
    """
    imports = elsewhere(suite).imports
    if imports is None:
        raise NotApplicableError("registered in this process, no other can import it")
    for module, done in imports.items():
        require(not done, f"importing {module} {listed(done)}")
