"""Core's own architectures, beyond what the conformance kit asks of every one, and how core refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, Capabilities, ExperimentConfig, FoundryError, create_model
from foundry_core.registry.loading import get_architecture

NAMES = ("gpt2", "bert", "lstm", "gru", "rnn", "mamba", "transformers")


@dataclass(frozen=True)
class Variant:
    """An architecture with the settings of one of its examples, and an objective."""

    architecture: str
    example: str
    objective: str

    @classmethod
    def all(cls) -> list[Variant]:
        return [
            cls(name, example, objective)
            for name in NAMES
            for example in get_architecture(name).examples
            for objective in cls(name, example, "").capabilities.objectives
        ]

    @property
    def capabilities(self) -> Capabilities:
        descriptor = get_architecture(self.architecture)
        settings = {"architecture": self.architecture, **descriptor.examples[self.example]}
        return descriptor.capabilities(descriptor.config_class.model_validate(settings))

    def __str__(self) -> str:
        return f"{self.architecture}-{self.example}-{self.objective}"


VARIANTS = Variant.all()
# A masked token still counts in the distance between its neighbours, or makes a recurrent state fade.
COUNTED = ("tiny_deberta_v2", "tiny_mamba")
Build = Callable[[Variant], BaseLanguageModel]


def each(variants: list[Variant]) -> Any:
    assert variants
    return pytest.mark.parametrize("variant", variants, ids=str)


@pytest.fixture
def build(experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path, one_thread: None) -> Build:
    """A model of a variant over the 32 letters, in evaluation mode."""

    def make(variant: Variant) -> BaseLanguageModel:
        training = {"objective": variant.objective}
        config = experiment(variant.architecture, tmp_path, example=variant.example, training=training)
        return create_model(config, letters).eval()

    return make


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(0))


@each([variant for variant in VARIANTS if variant.example not in COUNTED])
def test_a_masked_inner_token_is_as_good_as_absent(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 10)
    mask = torch.ones_like(ids)
    mask[:, 4] = 0
    kept = mask[0] == 1
    with_it, without = model(ids, attention_mask=mask).logits[:, kept], model(ids[:, kept]).logits
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-5)


@each([variant for variant in VARIANTS if not variant.capabilities.unbounded_length])
def test_a_row_longer_than_the_model_was_built_for_is_one_line(build: Build, variant: Variant) -> None:
    model = build(variant)
    assert model(random_ids(1, 24)).logits.shape == (1, 24, 32)
    with pytest.raises(FoundryError, match=r"^25 tokens are more than this .* \(data\.max_sequence_length: 24\)$"):
        model(random_ids(1, 25))


@each([variant for variant in VARIANTS if variant.objective == "masked_lm"])
def test_a_masked_model_says_why_it_does_not_generate(build: Build, variant: Variant) -> None:
    line = rf"^[^\n]*{variant.architecture}[^\n]* does not generate: it is trained with masked_lm$"
    with pytest.raises(FoundryError, match=line):
        build(variant).generate(random_ids(1, 4))


def test_undeclared_gradient_checkpointing_is_refused(build: Build) -> None:
    with pytest.raises(FoundryError, match="^lstm does not support gradient checkpointing$"):
        build(Variant("lstm", "tiny", "causal_lm")).gradient_checkpointing_enable()
