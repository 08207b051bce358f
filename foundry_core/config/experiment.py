"""`ExperimentConfig`: a whole, valid experiment, never written to after it is read. Light."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from foundry_core.config.choices import Choices
from foundry_core.config.sections import DataConfig, LoggingConfig, SeedsConfig, TokenizerConfig, TrainingConfig
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.hooks import Kind
from foundry_core.registry.objective import Objective
from foundry_core.registry.optimizer import Optimizer
from foundry_core.registry.tokenizer_type import TokenizerType
from foundry_core.schema import ConfigSection, ModelConfig


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
    def chosen(self) -> Choices:
        """What the names lead to. `load_config` has found it; it is looked up again only after a copy or a pickle."""
        return Choices.of(self.model, self.plugins)

    @property
    def architecture(self) -> Architecture:
        """Descriptor of `model.architecture`."""
        return self.chosen.architecture

    @property
    def capabilities(self) -> Capabilities:
        """What the architecture can do with these settings."""
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
    def tokenizer_type(self) -> TokenizerType:
        """Descriptor of `tokenizer.tokenizer_type`."""
        return self.chosen.plugins.offers.tokenizer_types[self.tokenizer.tokenizer_type]

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens of the tokenizer, by role."""
        masked = "mask_token" in self.objective.required_tokens
        return self.tokenizer_type.tokens_by_role(self.tokenizer.special_tokens, masked)

    @property
    def providers(self) -> dict[str, str]:
        """The distributions of objective, optimizer and tokenizer type, where they are not core's own."""
        chosen: dict[Kind, str] = {**self._to_be_read, "optimizer": self.training.optimizer}
        return {kind: provider.owner for kind, provider in self.chosen.plugins.offers.providers_of(chosen).items()}

    @property
    def needed_to_read(self) -> list[str]:
        """Of `plugins`, those without which a trained model cannot be opened; observers are not among them."""
        offers = self.chosen.plugins.offers
        behind = {provider.module for provider in offers.providers_of(self._to_be_read).values()}
        return [module for module in self.plugins if module in behind]

    @property
    def _to_be_read(self) -> dict[Kind, str]:
        return {"objective": self.training.objective, "tokenizer type": self.tokenizer.tokenizer_type}

    def seed(self, stream: Literal["initialisation", "data_order", "masking", "dropout"]) -> int:
        """Return the seed of a named random stream."""
        value = getattr(self.seeds, stream)
        return self.random_seed if value is None else int(value)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave `chosen` out of pickles: a descriptor may hold functions, which cannot be pickled."""
        state = super().__getstate__()
        kept = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return {**state, "__dict__": kept}

    def resolved(self) -> dict[str, Any]:
        """Return every key with its value, as plain data: what checkpoints store and config.yaml holds."""
        return self.model_dump(mode="json")
