"""The experiment's configuration: one YAML, checked whole when it is read, never written to afterwards. Light.

`load_config` finds the architecture that `model.architecture` names, validates `model:` with the plugin's own class,
and reports every problem of the file at once as `file:line: key: problem`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError

from foundry_core.config.sections import (
    MOST_ROWS,
    DataConfig,
    LoggingConfig,
    SeedsConfig,
    TokenizerConfig,
    TrainingConfig,
)
from foundry_core.config.yaml_source import KeyPath, YamlSource
from foundry_core.errors import COMMAND_LINE, ConfigError, PluginError, Problem, did_you_mean
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.hooks import (
    available_objectives,
    available_optimizers,
    available_tokenizer_types,
    hook_manager,
    modules_behind,
    providers,
)
from foundry_core.registry.loading import active_modules, blamed_on, capabilities_of, get_architecture, shipped_by
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.tokenizer_type import TokenizerType, special_token_problems
from foundry_core.schema import ConfigSection, ModelConfig

if TYPE_CHECKING:
    from pluggy import PluginManager

Section = TypeVar("Section", bound=BaseModel)
Choice = TypeVar("Choice")


class ExperimentConfig(ConfigSection):
    """A whole, valid experiment. Made by `load_config`; immutable."""

    LARGEST = 2**63 - 1

    experiment_name: str = Field(
        min_length=1, pattern=r"^[^/\\\x00-\x1f]+$", description="names the run in logs and reports"
    )
    random_seed: int = Field(42, ge=0, lt=2**63, description="seeds every random stream that seeds: does not name")
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: SerializeAsAny[ModelConfig]
    training: TrainingConfig
    logging: LoggingConfig = LoggingConfig()
    seeds: SeedsConfig = SeedsConfig()
    plugins: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="modules of installed packages whose hooks are active in this run"
    )

    @cached_property
    def architecture(self) -> Architecture:
        """Descriptor of the architecture in use."""
        return get_architecture(self.model.architecture)

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the architecture can do with these settings."""
        with blamed_on(shipped_by(self.model.architecture)):
            return capabilities_of(self.architecture, self.model)

    @cached_property
    def objective(self) -> Objective:
        """Descriptor of `training.objective`."""
        return available_objectives(self._hooks())[self.training.objective]

    @cached_property
    def optimizer(self) -> Optimizer:
        """Descriptor of `training.optimizer`."""
        return available_optimizers(self._hooks())[self.training.optimizer]

    @cached_property
    def tokenizer_type(self) -> TokenizerType:
        """Descriptor of `tokenizer.tokenizer_type`."""
        return available_tokenizer_types(self._hooks())[self.tokenizer.tokenizer_type]

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens of the tokenizer, by role."""
        masked = "mask_token" in self.objective.required_tokens
        return self.tokenizer_type.tokens_by_role(self.tokenizer.special_tokens, masked)

    @cached_property
    def providers(self) -> dict[str, str]:
        """The distributions of objective, optimizer and tokenizer type, where they are not core's own."""
        return providers(self._hooks(), {**self._to_be_read, "optimizer": self.training.optimizer})

    @property
    def needed_to_read(self) -> list[str]:
        """Of `plugins`, those without which a trained model cannot be opened: whoever watched it is not among them."""
        behind = modules_behind(self._hooks(), self._to_be_read)
        return [module for module in self.plugins if module in behind]

    @property
    def _to_be_read(self) -> dict[str, str]:
        return {"objective": self.training.objective, "tokenizer type": self.tokenizer.tokenizer_type}

    def _hooks(self) -> PluginManager:
        # Not kept: a manager holds modules, which no copy of a configuration could be made with.
        return hook_manager(active_modules(self.architecture, self.plugins))

    def seed(self, stream: Literal["initialisation", "data_order", "masking", "dropout"]) -> int:
        """The seed of a named random stream."""
        value = getattr(self.seeds, stream)
        return self.random_seed if value is None else int(value)

    def __getstate__(self) -> dict[Any, Any]:
        """A copy or a pickle carries the settings alone: a descriptor may hold functions, which no pickle takes."""
        state = super().__getstate__()
        kept = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": kept}

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain data: what is stored in a checkpoint and written to config.yaml."""
        return self.model_dump(mode="json")


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
    """One pass over one file: gathers problems, then gives the configuration or raises them all."""

    def __init__(self, source: YamlSource):
        self.source = source
        self.data: dict[str, Any] = source.data
        self.problems: list[Problem] = []
        self.objectives: Mapping[str, Objective] = {}
        self.objective: Objective | None = None
        self.tokenizer_type: TokenizerType | None = None

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
        self._choices(architecture)
        # A stand-in keeps the other sections' problems coming when `model:` has its own.
        data = {**self.data, "model": model or ModelConfig.model_construct(architecture="")}
        try:
            config = ExperimentConfig.model_validate(data)
        except ValidationError as error:
            self._translate(error, ExperimentConfig, ())
            config = None
        if model is not None and capabilities is not None:
            self._cross_rules(model, capabilities)
        if self.problems or config is None:
            raise ConfigError(self.problems)
        return config

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
            self._translate(error, architecture.config_class, ("model",))
            return None

    def _capabilities(self, architecture: Architecture | None, model: ModelConfig | None) -> Capabilities | None:
        if architecture is None or model is None:
            return None
        try:
            with blamed_on(shipped_by(architecture.name)):
                return capabilities_of(architecture, model)
        except PluginError as error:
            self._add(("model", "architecture"), str(error))
            return None

    def _fill_defaults(self, architecture: Architecture | None, capabilities: Capabilities | None) -> None:
        """What a YAML leaves open and the architecture decides."""
        if architecture is None:
            return
        tokenizer = self.data.setdefault("tokenizer", {})
        if isinstance(tokenizer, dict) and tokenizer.get("tokenizer_type") is None:
            tokenizer["tokenizer_type"] = architecture.default_tokenizer
        training = self.data.get("training")
        if isinstance(training, dict) and capabilities is not None and training.get("objective") is None:
            training["objective"] = next(iter(capabilities.objectives), "causal_lm")

    def _cross_rules(self, model: ModelConfig, capabilities: Capabilities) -> None:
        """Rules between sections; those about a section with problems of its own wait until they are mended."""
        data, tokenizer, training = (
            self._sound(DataConfig, "data"),
            self._sound(TokenizerConfig, "tokenizer"),
            self._sound(TrainingConfig, "training"),
        )
        longest = capabilities.longest_sequence
        if data is not None and longest is not None and data.max_sequence_length > longest:
            self._add(("data", "max_sequence_length"), f"{model.architecture} takes at most {longest} tokens")
        if data is not None and os.path.normpath(data.test_corpus or "") == os.path.normpath(data.training_corpus):
            self._add(("data", "test_corpus"), "is the training corpus: its loss would say nothing")
        if training is None:
            return
        if data is not None and data.batch_size * training.gradient_accumulation_steps > MOST_ROWS:
            self._add(
                ("training", "gradient_accumulation_steps"),
                f"times data.batch_size must be at most {MOST_ROWS:,}: the rows of one optimizer step",
            )
        if training.gradient_checkpointing and not capabilities.gradient_checkpointing:
            self._add(("training", "gradient_checkpointing"), f"{model.architecture} does not support it")
        if training.compile and not capabilities.compile:
            self._add(("training", "compile"), f"{model.architecture} does not support it")
        if training.lr_scheduler == "plateau" and training.evaluate_every_steps is None:
            self._add(("training", "lr_scheduler"), "plateau needs training.evaluate_every_steps")
        needs_test = {
            "evaluate_every_steps": training.evaluate_every_steps is not None,
            "lr_scheduler": training.lr_scheduler == "plateau",
        }
        for key, asked in needs_test.items():
            if asked and data is not None and data.test_corpus is None:
                self._add(("training", key), "needs data.test_corpus")
        if self.objective is not None and not capabilities.accepts(self.objective):
            accepted = ", ".join(name for name, each in self.objectives.items() if capabilities.accepts(each)) or "none"
            self._add(
                ("training", "objective"),
                f"{model.architecture} with these settings cannot be trained with {self.objective.name}; "
                f"it accepts {accepted}",
            )
        if tokenizer is not None and self.objective is not None and self.tokenizer_type is not None:
            self._special_token_rules(tokenizer, self.objective, self.tokenizer_type)

    def _choices(self, architecture: Architecture | None) -> None:
        """What the file chooses by name, among core's and what active plugins offer; and the settings that go with it.

        Nothing is said of names when the plugins cannot be told.
        """
        names = self.data.get("plugins", ())
        told = isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)
        optimizer: Optimizer | None = None
        if architecture is not None and told:
            try:
                manager = hook_manager(active_modules(architecture, names))
                self.objectives, optimizers = available_objectives(manager), available_optimizers(manager)
                tokenizer_types = available_tokenizer_types(manager)
            except PluginError as error:
                self._add(("plugins",), str(error))
            else:
                self.objective = self._choice("training", "objective", self.objectives)
                self.tokenizer_type = self._choice("tokenizer", "tokenizer_type", tokenizer_types)
                optimizer = self._choice("training", "optimizer", optimizers)
        self._settings("objective", self.objective)
        self._settings("optimizer", optimizer)

    def _choice(self, section: str, key: str, offered: Mapping[str, Choice]) -> Choice | None:
        """The descriptor that a key names, or its default does; None when that is a problem, reported here or later."""
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
            self._translate(error, chosen.settings, ("training", name))

    def _sound(self, section: type[Section], name: str) -> Section | None:
        """A section by itself; None when it has problems of its own."""
        try:
            return section.model_validate(self.data.get(name, {}))
        except ValidationError:
            return None

    def _special_token_rules(self, tokenizer: TokenizerConfig, objective: Objective, kind: TokenizerType) -> None:
        changes = {str(role): token for role, token in (tokenizer.special_tokens or {}).items()}
        for role, token in changes.items():
            if token is None and role in objective.required_tokens:
                self._add(("tokenizer", "special_tokens", role), f"{objective.name} needs a {role}")
        tokens = kind.tokens_by_role(changes, "mask_token" in objective.required_tokens)
        for concerned, problem in special_token_problems(kind, tokens):
            # Two roles that clash: the one that the file names is the one to change.
            named = [role for role in changes if concerned and tokens.get(role) == tokens.get(concerned)]
            place = concerned if concerned in changes else next(iter(named), None)
            text = f"{concerned} {problem}" if concerned is not None and place != concerned else problem
            self._add(("tokenizer", "special_tokens", *((place,) if place else ())), text)

    def _add(self, key: KeyPath, message: str) -> None:
        line = self.source.line_of(key)
        from_command_line = line == 0 and bool(self.source.lines)
        path = COMMAND_LINE if from_command_line else self.source.path
        self.problems.append(Problem(path, line, ".".join(map(str, key)) or "file", message))

    def _translate(self, error: ValidationError, model: type[BaseModel], prefix: KeyPath) -> None:
        """pydantic's findings in a user's words, at the line they stand on."""
        for finding in error.errors(include_url=False):
            # Parts that pydantic adds for a wrapped value and for the key of a mapping name nothing in the file.
            place = tuple(part for part in finding["loc"] if not str(part).startswith(("function-", "[key]")))
            kind, value = finding["type"], finding.get("input")
            if prefix == () and place[:1] == ("model",):
                continue  # already reported, with its own class
            key = (*prefix, *place)
            if kind == "missing":
                message = "missing"
                if prefix == ("model",):
                    message += f": architecture '{self.data['model']['architecture']}' requires it"
            elif kind == "extra_forbidden":
                message = self._unknown_key(str(place[-1]), model, place[:-1], prefix)
            elif kind == "literal_error" and finding["loc"][-1] == "[key]":
                known = re.findall(r"'([^']+)'", finding["ctx"]["expected"])
                message = f"unknown key.{did_you_mean(str(value), known)} Known here: {', '.join(known)}."
            elif kind == "value_error":
                message = str(finding["ctx"]["error"]) if "ctx" in finding else finding["msg"]
            elif kind == "literal_error":
                expected = finding["ctx"]["expected"]
                near = did_you_mean(str(value), re.findall(r"'([^']+)'", expected))
                message = f"is {_shown(value)}, must be {expected}{'.' if near else ''}{near}"
            elif kind in ("model_type", "model_attributes_type", "dict_type"):
                message = "is empty: give it its keys" if value is None else f"must be a section, not {_shown(value)}"
            else:
                message = f"{_lower(finding['msg'])}, not {_shown(value)}"
            self._add(key, message)

    def _unknown_key(self, name: str, model: type[BaseModel], place: KeyPath, prefix: KeyPath) -> str:
        here = _fields(model, place)
        message = f"unknown key.{did_you_mean(name, here)}"
        if not did_you_mean(name, here):
            sections = (*_sections(model, ".".join(map(str, prefix))), *_sections(ExperimentConfig))
            homes = [home for home, fields in sections if name in fields]
            if homes:
                message += f" It belongs {f'under {homes[0]}' if homes[0] else 'at the top level'}."
            elif here:
                message += f" Known here: {', '.join(here)}."
        return message


def _lower(text: str) -> str:
    text = (
        text.replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("a valid tuple", "a list")
        .replace("a valid ", "a ")
        .replace("String should", "text should")
    )
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    shown = "nothing (null)" if value is None else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _fields(model: type[BaseModel], place: KeyPath) -> list[str]:
    """Keys of the section at `place` below `model`."""
    current: type[BaseModel] | None = model
    for part in place:
        field = current.model_fields.get(str(part)) if current is not None else None
        current = _section_class(field.annotation) if field is not None else None
    return list(current.model_fields) if current is not None else []


def _section_class(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _sections(
    model: type[BaseModel], prefix: str = "", within: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Every section with its dotted name and its keys; one that holds its like is entered once."""
    yield prefix, list(model.model_fields)
    for name, field in model.model_fields.items():
        section = _section_class(field.annotation)
        if section is not None and section not in (*within, model):
            yield from _sections(section, f"{prefix}.{name}".strip("."), (*within, model))
