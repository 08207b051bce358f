"""From a YAML file to an `ExperimentConfig`: every problem of the file at once, as `file:line: key: problem`. Light."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from foundry_core.config.experiment import ActivePlugins, Choices, ExperimentConfig, settled_capabilities
from foundry_core.config.migration_keys import is_second_format
from foundry_core.config.problems import findings
from foundry_core.config.rules import Chosen, cross_section_problems
from foundry_core.config.yaml_source import KeyPath, YamlSource, dotted
from foundry_core.errors import COMMAND_LINE, ConfigError, PluginError, Problem, did_you_mean, traced
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.corpus_step import CONTROL
from foundry_core.registry.data_order import DataOrder
from foundry_core.registry.discovery import EXTENSIONS, installed
from foundry_core.registry.loading import get_architecture
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.schedule import LearningRateSchedule
from foundry_core.schema import ConfigSection, ModelConfig, NotValid, NotYaml, Values, with_overrides

Found = TypeVar("Found")
Section = TypeVar("Section", bound=ConfigSection)
Chooseable: TypeAlias = Objective | Optimizer | LearningRateSchedule | DataOrder


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and check an experiment.

    Args:
        source: Path of a YAML file, or the same content as a mapping.
        overrides: Settings such as `section.key=value`, as on the command line: a key that takes text takes all that
            follows `=`, the value of any other is YAML; `null` resets a key that may be left out.

    Raises:
        ConfigError: All problems of the file, each as `file:line: key: problem`.
    """
    if isinstance(source, Mapping):
        yaml_source = YamlSource("configuration", deepcopy(dict(source)), {})
    else:
        yaml_source = YamlSource.read(source)
    yaml_source.require_sections("see foundry init")
    for override in overrides:
        yaml_source.override(override)
    return checked(yaml_source, from_file=not isinstance(source, Mapping))


def study_key(data: Any) -> str | None:
    """Return a key of a YAML that only a study has; None for an experiment."""
    return next((key for key in ("grid", "base", "match") if isinstance(data, Mapping) and key in data), None)


def checked(source: YamlSource, *, from_file: bool = True) -> ExperimentConfig:
    """Check the content of a file that has been read. Raises ConfigError as `load_config` does.

    from_file: Check as well that files exist that a step of `data.steps` names.
    """
    return _Check(source, from_file=from_file).config()


class _Check:
    """One pass over one file: gathers problems, then returns the configuration or raises them all."""

    def __init__(self, source: YamlSource, *, from_file: bool):
        self.source, self.from_file = source, from_file
        try:
            # Before anything else looks at the names in it; the plugins' own sections are not known yet.
            self.data: dict[str, Any] = with_overrides(ExperimentConfig, source.data)
        except NotYaml as error:
            raise ConfigError([Problem(COMMAND_LINE, 0, dotted(error.place), error.problem)]) from error
        self.problems: list[Problem] = []

    def config(self) -> ExperimentConfig:
        self._refuse_old_format()
        model, capabilities, plugins = None, None, None
        objectives: Mapping[str, Objective] = {}
        objective, tokenizer_type, optimizer, schedule, order = None, None, None, None, None
        architecture = self._architecture()
        if architecture is not None:
            needed = f"missing: architecture '{architecture.name}' requires it"
            model = self._validated(architecture.config_class, self.data["model"], ("model",), missing=needed)
            if model is not None:
                capabilities = self._try(("model", "architecture"), settled_capabilities, architecture, model)
            self._fill_defaults(architecture, capabilities)
            plugins = self._plugins(architecture)
        if plugins is not None:
            objectives = plugins.offers.objectives
            others = _inactive(plugins)
            objective = self._choice("training", "objective", objectives, others)
            if not self._tokenizer_is_given():
                tokenizer_type = self._choice("tokenizer", "tokenizer_type", plugins.offers.tokenizer_types, others)
            optimizer = self._choice("training", "optimizer", plugins.offers.optimizers, others)
            schedule = self._choice("training", "lr_scheduler", plugins.offers.schedules, others)
            order = self._choice("data", "order", plugins.offers.orders, others)
        self._settings("training", "objective", objective)
        self._settings("training", "optimizer", optimizer)
        self._settings("training", "schedule", schedule)
        self._settings("data", "order", order)
        self._steps(plugins)
        # A stand-in lets the problems of the other sections be found although `model:` has its own.
        data = {**self.data, "model": model or ModelConfig.model_construct(architecture="")}
        config = self._validated(ExperimentConfig, data)
        name = architecture.name if architecture is not None else ""
        steps = plugins.offers.corpus_steps if plugins is not None else {}
        chosen = Chosen(name, capabilities, objectives, objective, tokenizer_type, steps)
        for key, message in cross_section_problems(config or Values(ExperimentConfig, data), chosen):
            self._add(key, message)
        if self.problems or config is None or architecture is None or capabilities is None or plugins is None:
            raise ConfigError(self.problems)
        # Sets the cached property, so that nothing is looked up again.
        config.__dict__["chosen"] = Choices(architecture, capabilities, plugins)
        return config

    def _refuse_old_format(self) -> None:
        model, path = self.data.get("model"), self.source.path
        if isinstance(model, dict) and "architecture" not in model and "layers" in model:
            message = f"written before model.architecture existed: convert it with: foundry migrate {path}"
            raise ConfigError([Problem(path, self.source.line_of(("model",)), "model", message)])
        if key := study_key(self.data):
            raise ConfigError([Problem(path, self.source.line_of((key,)), key, f"is of a study: foundry study {path}")])
        if is_second_format(self.data):
            message = f"has keys of an older format: convert the file with: foundry migrate {path}"
            raise ConfigError([Problem(path, 1, "file", message)])

    def _architecture(self) -> Architecture | None:
        model = self.data.get("model")
        if not isinstance(model, dict):
            problem = "missing: give it architecture and its settings" if model is None else "must be a section"
            self._add(("model",), problem)
            return None
        key, name = ("model", "architecture"), model.get("architecture")
        if not isinstance(name, str):
            self._add(key, "missing: name one, see foundry plugins list" if name is None else "must be text")
            return None
        return self._try(key, get_architecture, name)

    def _fill_defaults(self, architecture: Architecture, capabilities: Capabilities | None) -> None:
        """Set the tokenizer type and the objective, unless the YAML does, to those of the architecture."""
        tokenizer, training = self.data.setdefault("tokenizer", {}), self.data.get("training")
        if self._tokenizer_is_given():
            for key in ("tokenizer_type", "vocab_size"):
                if tokenizer.get(key) is not None:
                    self._add(
                        ("tokenizer", key),
                        "a tokenizer of tokenizer.path is not trained: remove this key, or set it to null",
                    )
                tokenizer[key] = None
        elif isinstance(tokenizer, dict):
            if tokenizer.get("tokenizer_type") is None:
                tokenizer["tokenizer_type"] = architecture.default_tokenizer
            if tokenizer.get("vocab_size") is None:
                tokenizer.pop("vocab_size", None)
        if isinstance(training, dict) and capabilities is not None and training.get("objective") is None:
            training["objective"] = next(iter(capabilities.objectives), "causal_lm")

    def _tokenizer_is_given(self) -> bool:
        tokenizer = self.data.get("tokenizer")
        return isinstance(tokenizer, dict) and tokenizer.get("path") is not None

    def _plugins(self, architecture: Architecture) -> ActivePlugins | None:
        """Activate the plugins of the run. Returns None if `plugins:` is wrong or one cannot be used."""
        names = self.data.get("plugins", ())
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return None
        return self._try(("plugins",), ActivePlugins.of, architecture, names)

    def _choice(self, section: str, key: str, offered: Mapping[str, Found], others: Sequence[str]) -> Found | None:
        """Return the descriptor that a key or its default names; None if the key is wrong.

        Args:
            section: The section of the key.
            key: The key.
            offered: The descriptors of core and of the active modules.
            others: Modules that are not active, which may offer what is missing.
        """
        try:
            name: str = getattr(getattr(Values(ExperimentConfig, self.data), section), key)
        except NotValid:
            return None
        if name not in offered:
            self._add((section, key), _unknown(key.replace("_", " "), name, offered, others))
        return offered.get(name)

    def _settings(self, section: str, key: str, chosen: Chooseable | None) -> None:
        """Replace `<section>.<key>_settings` by an instance of the settings class of the chosen plugin."""
        around = self.data.get(section)
        if not isinstance(around, dict):
            return
        name = f"{key}_settings"
        given = around.pop(name, None)
        if chosen is not None and chosen.settings is not None:
            around[name] = self._validated(chosen.settings, {} if given is None else given, (section, name))
        elif chosen is not None and given is not None:
            self._add((section, name), f"{chosen.name} has none: remove this section")

    def _steps(self, plugins: ActivePlugins | None) -> None:
        """Replace the settings of each step of `data.steps` by an instance of their class."""
        data, place = self.data.get("data"), ("data", "steps")
        steps = data.get("steps") if isinstance(data, dict) else None
        if steps is None:
            return
        read: list[dict[str, ConfigSection]] = []
        if not isinstance(steps, list | tuple):
            self._add(place, "must be a list of steps, such as [{drop: {matching: never}}]")
        elif plugins is not None:
            found = [self._step(step, (*place, number), plugins) for number, step in enumerate(steps)]
            read = [step for step in found if step is not None]
            read = read if len(read) == len(steps) else []  # rules name a step by its number
        self.data["data"] = {**self.data["data"], "steps": read}

    def _step(self, step: Any, place: KeyPath, plugins: ActivePlugins) -> dict[str, ConfigSection] | None:
        """Return a step with an instance of its settings; None if something is wrong with it."""
        if not isinstance(step, dict) or len(step) != 1:
            self._add(place, "must be one step with its settings, such as {drop: {matching: never}}")
            return None
        ((name, settings),) = step.items()
        known = plugins.offers.corpus_steps
        if name not in known:
            self._add((*place, name), _unknown("corpus step", name, known, _inactive(plugins)))
            return None
        kind = known[name]
        if settings is None:
            self._add((*place, name), "is empty: give it its settings, or {} if it needs none")
            return None
        if name == CONTROL and isinstance(settings, Mapping) and "of" in settings:
            inner = self._step(settings["of"], (*place, name, "of"), plugins)
            if inner is None:
                return None
            settings = {**settings, "of": inner}
        section = self._validated(kind.schema, settings, (*place, name))
        for key in kind.files if section is not None and self.from_file else ():
            path = getattr(section, key)
            if isinstance(path, str) and not Path(path).is_file():
                self._add((*place, name, key), f"there is no file {path}, relative to {Path.cwd()}")
        return None if section is None else {name: section}

    def _validated(
        self, section: type[Section], data: Any, place: KeyPath = (), *, missing: str = "missing"
    ) -> Section | None:
        try:
            return section.model_validate(data)
        except ValidationError as error:
            for key, message in findings(error, section, place):
                self._add(key, missing if message == "missing" else message)
            return None

    def _try(self, key: KeyPath, function: Callable[..., Found], *arguments: Any) -> Found | None:
        """Call a function of the registry. Its PluginError becomes a problem of `key`."""
        try:
            return function(*arguments)
        except PluginError as error:
            traced(error)
            self._add(key, str(error))
            return None

    def _add(self, key: KeyPath, message: str) -> None:
        self.problems.append(Problem(*self.source.place_of(key), dotted(key), message))


def _unknown(kind: str, name: str, offered: Mapping[str, Any], others: Sequence[str]) -> str:
    message = f"unknown {kind} '{name}'.{did_you_mean(name, offered)} Available: {', '.join(sorted(offered))}"
    return message + (f". Installed, but not named under plugins: {', '.join(others)}" if others else "")


def _inactive(plugins: ActivePlugins) -> list[str]:
    """Return the modules of installed packages that offer objectives, optimizers, ..., and are not active."""
    active = {module.__name__ for module in plugins.modules}
    return sorted({point.module for points in installed(EXTENSIONS).values() for point in points} - active)
