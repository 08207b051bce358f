"""`ExperimentConfig`: a whole, valid experiment, with the plugins that its names lead to. Light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from foundry_core.config.sections import DataConfig, LoggingConfig, Seed, SeedsConfig, TokenizerConfig, TrainingConfig
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.corpus_step import flat_steps
from foundry_core.registry.data_order import DataOrder
from foundry_core.registry.hooks import Kind, Offers, hook_manager, offers, owner_of
from foundry_core.registry.loading import active_modules, blamed_on, capabilities_of, get_architecture, shipped_by
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.schedule import LearningRateSchedule
from foundry_core.registry.tokenizer_type import GIVEN_TOKENIZER, TokenizerType
from foundry_core.schema import ConfigSection, ModelConfig

if TYPE_CHECKING:
    import pluggy


@dataclass(frozen=True)
class ActivePlugins:
    """The plugins whose hooks are active in a run: the architecture's module and those in `plugins:`."""

    modules: tuple[ModuleType, ...]
    manager: pluggy.PluginManager
    offers: Offers

    @classmethod
    def of(cls, architecture: Architecture, names: Sequence[str]) -> ActivePlugins:
        """Import the modules, register their hooks and ask for their offers, each once. May raise PluginError."""
        modules = tuple(active_modules(architecture, names))
        manager = hook_manager(modules)
        return cls(modules, manager, offers(manager))


@dataclass(frozen=True)
class Choices:
    """The descriptors and plugins that the names in a configuration refer to."""

    architecture: Architecture
    capabilities: Capabilities
    plugins: ActivePlugins

    def __deepcopy__(self, memo: Any) -> Choices:
        """Return this object itself: modules cannot be copied."""
        return self


def settled_capabilities(architecture: Architecture, model: ModelConfig) -> Capabilities:
    """Return the capabilities of an architecture with these settings. Raises PluginError that names the package."""
    with blamed_on(shipped_by(architecture.name)):
        return capabilities_of(architecture, model)


class ExperimentConfig(ConfigSection):
    """A whole, valid experiment. Made by `load_config`; immutable."""

    LARGEST = 2**63 - 1

    experiment_name: str = Field(
        min_length=1, pattern=r"^[^/\\\x00-\x1f]+$", description="name of the run in logs and reports"
    )
    random_seed: Seed = Field(42, description="seed of every random stream that seeds leaves open")
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
    def chosen(self) -> Choices:
        """Descriptors and plugins. `load_config` sets it; only a pickled configuration looks it up again."""
        architecture = get_architecture(self.model.architecture)
        capabilities = settled_capabilities(architecture, self.model)
        return Choices(architecture, capabilities, ActivePlugins.of(architecture, self.plugins))

    @property
    def architecture(self) -> Architecture:
        """Descriptor of `model.architecture`."""
        return self.chosen.architecture

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the architecture with these settings."""
        return self.chosen.capabilities

    @property
    def objective(self) -> Objective:
        """Descriptor of `training.objective`."""
        return self.chosen.plugins.offers.objectives[self.training.objective]

    @property
    def optimizer(self) -> Optimizer:
        """Descriptor of `training.optimizer`."""
        return self.chosen.plugins.offers.optimizers[self.training.optimizer]

    @property
    def data_order(self) -> DataOrder:
        """Descriptor of `data.order`."""
        return self.chosen.plugins.offers.orders[self.data.order]

    @property
    def schedule(self) -> LearningRateSchedule:
        """Descriptor of `training.lr_scheduler`."""
        return self.chosen.plugins.offers.schedules[self.training.lr_scheduler]

    @property
    def tokenizer_type(self) -> TokenizerType:
        """Descriptor of `tokenizer.tokenizer_type`, or GIVEN_TOKENIZER with `tokenizer.path`."""
        if self.tokenizer.tokenizer_type is None:
            return GIVEN_TOKENIZER
        return self.chosen.plugins.offers.tokenizer_types[self.tokenizer.tokenizer_type]

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens of the tokenizer, by role; of a given one, those that the YAML adds or changes."""
        return self.tokenizer_type.tokens_by_role(self.tokenizer.special_tokens)

    @property
    def providers(self) -> dict[str, str]:
        """The distributions of what the names in the file lead to, by kind, where they are not core's own."""
        only_training: dict[Kind, str] = {"optimizer": self.training.optimizer, "schedule": self.training.lr_scheduler}
        chosen = {**self._to_be_read, **only_training, "order": self.data.order}
        found: dict[str, str] = {
            kind: provider.owner for kind, provider in self.chosen.plugins.offers.providers_of(chosen).items()
        }
        owners = {self.step_owner(name, settings) for name, settings in flat_steps(self.data.steps)} - {None}
        return found | ({"corpus step": " and ".join(sorted(map(str, owners)))} if owners else {})

    def step_owner(self, name: str, settings: ConfigSection) -> str | None:
        """Return the distribution behind a step of `data.steps`, or behind its function; None for core alone."""
        provider = self.chosen.plugins.offers.providers_of({"corpus step": name}).get("corpus step")
        if provider is not None:
            return provider.owner
        # Of core's steps some take a function of a package.
        package = str(getattr(settings, "function", None) or "").partition(":")[0].partition(".")[0]
        modules = (each for each in self.chosen.plugins.modules if each.__name__.partition(".")[0] == package)
        return next(map(owner_of, modules), None)

    @property
    def needed_to_read(self) -> list[str]:
        """The modules in `plugins` without which a trained model cannot be opened: not those that only observe."""
        behind = {each.module for each in self.chosen.plugins.offers.providers_of(self._to_be_read).values()}
        return [module for module in self.plugins if module in behind]

    @property
    def _to_be_read(self) -> dict[Kind, str]:
        read: dict[Kind, str] = {"objective": self.training.objective}
        if self.tokenizer.tokenizer_type is not None:
            read["tokenizer type"] = self.tokenizer.tokenizer_type
        return read

    def seed(self, stream: Literal["initialisation", "data_order", "masking", "dropout"]) -> int:
        """Return the seed of a named random stream."""
        value = getattr(self.seeds, stream)
        return self.random_seed if value is None else int(value)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave `chosen` out of pickles: a descriptor may contain functions, which cannot be pickled."""
        state = super().__getstate__()
        kept = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": kept}

    def resolved(self) -> dict[str, Any]:
        """Return every key with its value, as plain data: the content of config.yaml and of checkpoints."""
        return self.model_dump(mode="json")
