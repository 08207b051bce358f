"""From a YAML file to an `ExperimentConfig`: every problem of the file at once, as `file:line: key: problem`. Light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from foundry_core.config.choices import ActivePlugins, Choices, settled_capabilities
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.problems import findings
from foundry_core.config.rules import Chosen, cross_section_problems
from foundry_core.config.sections import TokenizerConfig, TrainingConfig
from foundry_core.config.yaml_source import KeyPath, YamlSource
from foundry_core.errors import COMMAND_LINE, ConfigError, PluginError, Problem, did_you_mean
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.loading import get_architecture
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.schema import ModelConfig

Choice = TypeVar("Choice")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and check an experiment.

    source: path of a YAML file, or the same content as a mapping. overrides: `section.key=value`, as on the command
    line. Raises ConfigError with all problems of the file, each as `file:line: key: problem`.
    """
    if isinstance(source, Mapping):
        yaml_source = YamlSource("configuration", _copied(source), {})
    else:
        yaml_source = YamlSource.read(source)
    if not isinstance(yaml_source.data, dict):
        raise ConfigError(
            [Problem(yaml_source.path, 1, "file", "is empty or not a mapping of sections: see foundry init")]
        )
    for override in overrides:
        yaml_source.override(override)
    return _Check(yaml_source).config()


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


_SECTIONS: dict[str, type[BaseModel]] = {"tokenizer": TokenizerConfig, "training": TrainingConfig}


class _Check:
    """One pass over one file: gathers problems, then returns the configuration or raises them all."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.data: dict[str, Any] = source.data
        self.problems: list[Problem] = []

    def config(self) -> ExperimentConfig:
        if self._is_old_format():
            path = self.source.path
            line = self.source.line_of(("model",))
            message = f"written before model.architecture existed: convert it with: foundry migrate {path}"
            raise ConfigError([Problem(path, line, "model", message)])
        architecture = self._architecture()
        model = self._model(architecture) if architecture is not None else None
        capabilities = self._capabilities(architecture, model)
        self._fill_defaults(architecture, capabilities)
        plugins = self._plugins(architecture)
        objectives: Mapping[str, Objective] = {}
        objective, tokenizer_type, optimizer = None, None, None
        if plugins is not None:
            objectives = plugins.offers.objectives
            objective = self._choice("training", "objective", objectives)
            tokenizer_type = self._choice("tokenizer", "tokenizer_type", plugins.offers.tokenizer_types)
            optimizer = self._choice("training", "optimizer", plugins.offers.optimizers)
        self._settings("objective", objective)
        self._settings("optimizer", optimizer)
        config = self._sections(model)
        if architecture is not None and capabilities is not None:
            chosen = Chosen(architecture.name, capabilities, objectives, objective, tokenizer_type)
            for key, message in cross_section_problems(self.data, chosen):
                self._add(key, message)
        if self.problems or config is None:
            raise ConfigError(self.problems)
        assert architecture is not None
        assert capabilities is not None
        assert plugins is not None
        # The configuration's cached property: nobody looks these up again.
        config.__dict__["chosen"] = Choices(architecture, capabilities, plugins)
        return config

    def _sections(self, model: ModelConfig | None) -> ExperimentConfig | None:
        """Validate everything but `model:`, which its own class has validated."""
        # A stand-in keeps the other sections' problems coming when `model:` has its own.
        data = {**self.data, "model": model or ModelConfig.model_construct(architecture="")}
        try:
            return ExperimentConfig.model_validate(data)
        except ValidationError as error:
            for key, message in findings(error, ExperimentConfig):
                if key[:1] != ("model",):
                    self._add(key, message)
            return None

    def _is_old_format(self) -> bool:
        model = self.data.get("model")
        return isinstance(model, dict) and "architecture" not in model and "layers" in model

    def _architecture(self) -> Architecture | None:
        model = self.data.get("model")
        if not isinstance(model, dict):
            problem = "missing: give it architecture and its settings" if model is None else "must be a section"
            self._add(("model",), problem)
            return None
        name = model.get("architecture")
        if not isinstance(name, str):
            self._add(
                ("model", "architecture"),
                "missing: name one, see foundry plugins list" if name is None else "must be text",
            )
            return None
        try:
            return get_architecture(name)
        except PluginError as error:
            self._add(("model", "architecture"), str(error))
            return None

    def _model(self, architecture: Architecture) -> ModelConfig | None:
        try:
            return architecture.config_class.model_validate(self.data["model"])
        except ValidationError as error:
            for key, message in findings(error, architecture.config_class, ("model",), architecture=architecture.name):
                self._add(key, message)
            return None

    def _capabilities(self, architecture: Architecture | None, model: ModelConfig | None) -> Capabilities | None:
        if architecture is None or model is None:
            return None
        try:
            return settled_capabilities(architecture, model)
        except PluginError as error:
            self._add(("model", "architecture"), str(error))
            return None

    def _fill_defaults(self, architecture: Architecture | None, capabilities: Capabilities | None) -> None:
        """Set what a YAML leaves open and the architecture decides."""
        if architecture is None:
            return
        tokenizer = self.data.setdefault("tokenizer", {})
        if isinstance(tokenizer, dict) and tokenizer.get("tokenizer_type") is None:
            tokenizer["tokenizer_type"] = architecture.default_tokenizer
        training = self.data.get("training")
        if isinstance(training, dict) and capabilities is not None and training.get("objective") is None:
            training["objective"] = next(iter(capabilities.objectives), "causal_lm")

    def _plugins(self, architecture: Architecture | None) -> ActivePlugins | None:
        """Activate the plugins of the run; None where the file does not say which, or one cannot be used."""
        names = self.data.get("plugins", ())
        if architecture is None or not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            return None
        try:
            return ActivePlugins.of(architecture, names)
        except PluginError as error:
            self._add(("plugins",), str(error))
            return None

    def _choice(self, section: str, key: str, offered: Mapping[str, Choice]) -> Choice | None:
        """Return the descriptor that a key or its default names; None for a problem, reported here or later."""
        given = self.data.get(section)
        if not isinstance(given, dict):
            return None
        name = given.get(key, _SECTIONS[section].model_fields[key].default)
        if not isinstance(name, str):
            return None
        if name not in offered:
            message = f"unknown {key.replace('_', ' ')} '{name}'.{did_you_mean(name, offered)}"
            self._add((section, key), f"{message} Available: {', '.join(sorted(offered))}")
        return offered.get(name)

    def _settings(self, key: str, chosen: Objective | Optimizer | None) -> None:
        """Check `training.<key>_settings` with the class that the chosen plugin brings, and put its instance there."""
        training = self.data.get("training")
        if not isinstance(training, dict):
            return
        name = f"{key}_settings"
        given = training.pop(name, None)
        if chosen is None:
            return
        if chosen.settings is None:
            if given is not None:
                self._add(("training", name), f"{chosen.name} has none: remove this section")
            return
        try:
            training[name] = chosen.settings.model_validate({} if given is None else given)
        except ValidationError as error:
            for key_path, message in findings(error, chosen.settings, ("training", name)):
                self._add(key_path, message)

    def _add(self, key: KeyPath, message: str) -> None:
        line = self.source.line_of(key)
        from_command_line = line == 0 and bool(self.source.lines)
        path = COMMAND_LINE if from_command_line else self.source.path
        self.problems.append(Problem(path, line, ".".join(map(str, key)) or "file", message))
