"""What every shipped architecture must be, and the conformance kit does not ask of it.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, FoundryError, create_model
from foundry_core.testing.kit.masking import padded

CLOSE = {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True)
class Variant:
    """An architecture with settings and an objective. right: a prediction sees tokens to its right."""

    architecture: str
    example: str
    objective: str
    right: bool = False

    @property
    def causal(self) -> bool:
        return self.objective == "causal_lm"

    @property
    def recurrent(self) -> bool:
        return self.architecture in RECURRENT

    def __str__(self) -> str:
        return f"{self.architecture}-{self.example}-{self.objective}"


RECURRENT = ("lstm", "gru", "rnn")
VARIANTS = [
    Variant("gpt2", "tiny", "causal_lm"),
    Variant("bert", "tiny", "masked_lm", right=True),
    Variant("lstm", "tiny_tied", "causal_lm"),
    *(Variant(name, "tiny", "causal_lm") for name in RECURRENT),
    *(Variant(name, "tiny", "masked_lm") for name in RECURRENT),
    *(Variant(name, "tiny_bidirectional", "masked_lm", right=True) for name in RECURRENT),
]
CAUSAL = [variant for variant in VARIANTS if variant.causal]
MASKED = [variant for variant in VARIANTS if not variant.causal]
TRANSFORMERS = [variant for variant in VARIANTS if not variant.recurrent]
Build = Callable[..., BaseLanguageModel]


def each(variants: list[Variant]) -> Any:
    return pytest.mark.parametrize("variant", variants, ids=str)


@pytest.fixture
def build(experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path: Path, one_thread: None) -> Build:
    """A model of a variant over the 32 letters, in evaluation mode."""

    def make(variant: Variant, **sections: Any) -> BaseLanguageModel:
        training = {"objective": variant.objective, **sections.pop("training", {})}
        config = experiment(variant.architecture, tmp_path, example=variant.example, training=training, **sections)
        return create_model(config, letters).eval()

    return make


def random_ids(*shape: int, seed: int = 0, vocabulary: int = 32) -> torch.Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@each(TRANSFORMERS)
def test_a_row_longer_than_the_model_was_built_for_is_one_line(build: Build, variant: Variant) -> None:
    model = build(variant)
    assert model(random_ids(1, 24)).logits.shape == (1, 24, 32)
    with pytest.raises(FoundryError, match=r"^25 tokens are more than this .* \(data\.max_sequence_length: 24\)$"):
        model(random_ids(1, 25))


# Numbers.


@each(TRANSFORMERS)
def test_gradient_checkpointing_gives_the_same_gradients(build: Build, variant: Variant) -> None:
    plain, saving, ids = build(variant).train(), build(variant).train(), random_ids(4, 12)
    saving.gradient_checkpointing_enable()
    saved: list[int] = []
    for model, counts in ((plain, saved), (saving, saved)):
        tensors: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=tensors: (kept.append(x), x)[1], lambda x: x):
            loss = model(ids, labels=ids).loss
        counts.append(len(tensors))
        loss.backward()
    assert saved[1] < saved[0] / 2
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


def test_gradient_checkpointing_is_refused_where_it_is_not_declared(build: Build) -> None:
    with pytest.raises(FoundryError, match="^lstm does not support gradient checkpointing$"):
        build(Variant("lstm", "tiny", "causal_lm")).gradient_checkpointing_enable()


@each(VARIANTS)
def test_a_deep_copy_has_the_same_bits_and_ties_and_its_own_weights(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(2, 8)
    copy = deepcopy(model)
    assert torch.equal(copy(ids).logits, model(ids).logits)
    assert copy.get_parameter_count() == model.get_parameter_count()
    before = model(ids).logits
    with torch.no_grad():
        copy.get_input_embeddings().weight.add_(1)
    assert torch.equal(model(ids).logits, before)


# State and generation.


@each(CAUSAL)
def test_two_halves_with_the_state_carried_are_the_whole(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 20)
    first = model(ids[:, :9], use_cache=True)
    second = model(ids[:, 9:], state=first.state)
    carried = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(carried, model(ids).logits, **CLOSE)
    assert not torch.allclose(model(ids[:, 9:]).logits, second.logits, atol=1e-3)


@each(CAUSAL)
def test_greedy_generation_is_the_argmax_loop_for_each_prompt_alone(build: Build, variant: Variant) -> None:
    model = build(variant)
    eos, pad = model.context.eos_token_id, model.context.pad_token_id
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # an untrained model hardly tells its tokens apart
    rows = [random_ids(length, seed=length, vocabulary=26) for length in (3, 8, 1, 5)]
    ids, mask = padded(rows, "left", pad)
    produced = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=pad)
    for row, answer in zip(rows, produced[:, ids.shape[1] :].tolist(), strict=True):
        text = row
        for token in answer:
            ended = eos in text[len(row) :]
            expected = pad if ended else int(model(text[None]).logits[0, -1].argmax())
            assert token == expected
            text = torch.cat([text, torch.tensor([token])])
    assert len({tuple(answer) for answer in produced[:, ids.shape[1] :].tolist()}) > 1


@each(MASKED)
def test_a_masked_model_refuses_to_generate_in_one_line(build: Build, variant: Variant) -> None:
    model = build(variant)
    assert not model.supports_generation
    line = rf"^[^\n]*{variant.architecture}[^\n]* does not generate: it is trained with masked_lm$"
    with pytest.raises(FoundryError, match=line):
        model.generate(random_ids(1, 4))


# Vocabulary.


@each(VARIANTS)
@pytest.mark.parametrize("size", [37, 29])
def test_a_resized_model_keeps_its_old_logits_and_its_ties(build: Build, variant: Variant, size: int) -> None:
    model, ids = build(variant), random_ids(3, 12, vocabulary=29)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * random_ids(len(parameter)))  # a bias of zeros would hide a lost one
    before, count = model(ids).logits.detach(), model.get_parameter_count()
    distinct = len({id(parameter) for parameter in model.parameters()})
    model.resize_token_embeddings(size)
    after = model(ids, labels=ids)
    kept = min(size, 32)
    torch.testing.assert_close(after.logits[..., :kept], before[..., :kept], rtol=0, atol=1e-6)
    assert after.logits.shape == (3, 12, size)
    assert torch.isfinite(after.logits).all()
    assert model.get_input_embeddings().weight.shape[0] == size
    assert model.context.vocab_size == size
    assert len({id(parameter) for parameter in model.parameters()}) == distinct
    grown = model.get_parameter_count()
    tied = variant.architecture in ("gpt2", "bert") or variant.example == "tiny_tied"
    width = count.embeddings // 32
    output_width = 0 if tied else model.output_layer.in_features
    bias = 0 if variant.architecture == "gpt2" else 1
    assert grown.embeddings == size * width
    assert grown.total - count.total == (size - 32) * (width + output_width + bias)
    after.loss.backward()
    newest = torch.full((1, 4), size - 1)
    assert torch.isfinite(model(newest, labels=newest).loss)
