"""What every architecture must be, whatever it is made of: causal or not, blind to padding, pure, able to learn.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import (
    BaseLanguageModel,
    Capabilities,
    ExperimentConfig,
    FoundryError,
    create_model,
    get_data_collator,
)
from foundry_core.plugins import get_architecture

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

    @property
    def capabilities(self) -> Capabilities:
        descriptor = get_architecture(self.architecture)
        settings = {"architecture": self.architecture, **descriptor.examples[self.example]}
        return descriptor.capabilities(descriptor.config_class.model_validate(settings))

    @property
    def tied(self) -> bool:
        """Whether the output layer's weights are the embedding."""
        untied = ("tiny", "tiny_gpt_neox") if self.architecture == "transformers" else ()
        return self.example == "tiny_tied" or not (self.recurrent or self.example in untied)

    @property
    def output_bias(self) -> bool:
        return self.recurrent or self.architecture == "bert" or self.example in ("tiny_roberta", "tiny_deberta_v2")

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
    Variant("mamba", "tiny", "causal_lm"),
    *(Variant("transformers", name, "causal_lm") for name in ("tiny", "tiny_mamba", "tiny_opt", "tiny_gpt_neox")),
    *(Variant("transformers", name, "masked_lm", right=True) for name in ("tiny_roberta", "tiny_deberta_v2")),
]
CAUSAL = [variant for variant in VARIANTS if variant.causal]
MASKED = [variant for variant in VARIANTS if not variant.causal]
LIMITED = [variant for variant in VARIANTS if not variant.capabilities.any_length]
CHECKPOINTED = [variant for variant in VARIANTS if variant.capabilities.gradient_checkpointing]
CARRIED = [variant for variant in CAUSAL if variant.capabilities.carried_state]
# A masked token still counts in the distance between its neighbours, or makes a recurrent state fade.
COUNTED = ("tiny_deberta_v2", "tiny_mamba")
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


def padded(rows: list[torch.Tensor], side: str, content: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length with some token as padding, and their mask; two columns more than the longest needs."""
    width = max(map(len, rows)) + 2
    ids = torch.full((len(rows), width), content)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


# What a prediction sees.


@each([variant for variant in VARIANTS if not variant.right])
def test_logits_before_a_changed_token_keep_their_bits_and_all_from_it_on_differ(
    build: Build, variant: Variant
) -> None:
    model, before = build(variant), random_ids(3, 12)
    after = before.clone()
    after[:, 5] = (after[:, 5] + 7) % 32
    old, new = model(before).logits, model(after).logits
    assert torch.equal(old[:, :5], new[:, :5])
    assert (old != new)[:, 5:].any(dim=-1).all()


@each([variant for variant in VARIANTS if variant.right])
def test_a_model_of_both_directions_sees_a_changed_token_from_both_sides(build: Build, variant: Variant) -> None:
    model, before = build(variant), random_ids(3, 12)
    after = before.clone()
    after[:, 5] = (after[:, 5] + 7) % 32
    assert (model(before).logits != model(after).logits).any(dim=-1).all()


@each(VARIANTS)
def test_padding_changes_no_real_logit_and_no_loss(build: Build, variant: Variant) -> None:
    model = build(variant)
    rows = [random_ids(length, seed=length) for length in (5, 12, 1, 9)]
    alone = [model(row[None]).logits[0] for row in rows]
    labelled = [model(row[None], labels=row[None], reduction="sum") for row in rows]
    loss, count = sum(out.loss for out in labelled), sum(int(out.count) for out in labelled)
    for side in model.config.capabilities.padding_sides:
        for content in (3, model.context.pad_token_id):
            ids, mask = padded(rows, side, content)
            labels = ids.masked_fill(mask == 0, -100)
            out = model(ids, attention_mask=mask, labels=labels, reduction="sum")
            for index, expected in enumerate(alone):
                torch.testing.assert_close(out.logits[index][mask[index] == 1], expected, **CLOSE)
            assert int(out.count) == count
            torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=0)


@each(VARIANTS)
def test_nothing_sees_what_a_masked_inner_token_is(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 10)
    mask = torch.ones_like(ids)
    mask[:, 4] = 0
    kept = mask[0] == 1
    one, other = (model(ids.masked_fill(mask == 0, token), attention_mask=mask).logits[:, kept] for token in (3, 30))
    torch.testing.assert_close(one, other, **CLOSE)


@each([variant for variant in VARIANTS if variant.example not in COUNTED])
def test_a_masked_inner_token_is_as_good_as_absent(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 10)
    mask = torch.ones_like(ids)
    mask[:, 4] = 0
    kept = mask[0] == 1
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, kept], model(ids[:, kept]).logits, **CLOSE)


@each(VARIANTS)
def test_a_row_does_not_depend_on_the_other_rows(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(5, 12)
    together = model(ids).logits
    torch.testing.assert_close(model(ids.flip(0)).logits.flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(ids[2:3]).logits, together[2:3], rtol=0, atol=1e-6)


@each(LIMITED)
def test_a_row_longer_than_the_model_was_built_for_is_one_line(build: Build, variant: Variant) -> None:
    model = build(variant)
    assert model(random_ids(1, 24)).logits.shape == (1, 24, 32)
    with pytest.raises(FoundryError, match=r"^25 tokens are more than this .* \(data\.max_sequence_length: 24\)$"):
        model(random_ids(1, 25))


# Numbers.


@each(VARIANTS)
def test_evaluation_draws_no_chance_and_changes_nothing(build: Build, variant: Variant) -> None:
    sections = get_architecture(variant.architecture).examples[variant.example]
    (section,) = sections
    chances = [key for key in build(variant).config.resolved()["model"][section] if "dropout" in key]
    settings = {**sections[section], **dict.fromkeys(chances, 0.5)}
    model, ids = build(variant, model={section: settings}), random_ids(3, 12)
    given, state, chance = ids.clone(), deepcopy(model.state_dict()), torch.random.get_rng_state()
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(ids, given)
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()
    assert torch.equal(model(ids).logits, model(ids).logits) == (not chances)


@each(VARIANTS)
def test_the_first_loss_is_that_of_guessing(build: Build, variant: Variant) -> None:
    for seed in range(5):
        model, ids = build(variant, random_seed=seed), random_ids(8, 16, seed=seed)
        assert abs(model(ids, labels=ids).loss.item() - math.log(32)) < 0.5


@each(VARIANTS)
def test_every_parameter_gets_a_gradient(build: Build, variant: Variant) -> None:
    model, ids = build(variant).train(), random_ids(8, 24)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@each(CHECKPOINTED)
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


@each(CARRIED)
def test_two_halves_with_the_state_carried_are_the_whole(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 20)
    first = model(ids[:, :9], use_cache=True)
    second = model(ids[:, 9:], state=first.state)
    carried = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(carried, model(ids).logits, **CLOSE)
    assert not torch.allclose(model(ids[:, 9:]).logits, second.logits, atol=1e-3)


@each(CAUSAL)
def test_no_state_is_carried_between_calls_that_do_not_ask_for_it(build: Build, variant: Variant) -> None:
    model, ids = build(variant), random_ids(3, 10)
    first = model(ids).logits
    model(random_ids(3, 10, seed=1))
    assert torch.equal(model(ids).logits, first)


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


# Learning.


def trained_losses(model: BaseLanguageModel, batches: Any, *, below: float = -math.inf) -> list[float]:
    """Losses of a short training; it stops early once three in a row are under `below`."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    losses: list[float] = []
    for batch in batches:
        loss = model(**batch, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if max(losses[-3:]) < below and len(losses) >= 3:
            break
    return losses


@each(VARIANTS)
def test_on_noise_no_architecture_goes_under_what_can_be_known(build: Build, letters: Any, variant: Variant) -> None:
    """Fresh uniform tokens through the objective's own collator.

    A causal model can only guess: ln V. A hidden token that is shown as a mask is a guess too; of those shown as an
    ordinary token (one in five) half are what they show, up to chance, and a model may learn that. A loss that is not
    shifted, a collator that does not hide, or a mask that looks ahead go far under it.
    """
    model = build(variant, training={"mlm_probability": 0.4})
    collate = get_data_collator(model.config, letters)
    ordinary = torch.tensor([i for i in range(32) if i not in letters.all_special_ids])
    size = len(ordinary)

    def batches() -> Any:
        for step in range(120):
            rows = ordinary[random_ids(16, 16, seed=step, vocabulary=size)]
            yield collate([{"input_ids": row.numpy(), "epoch": 0, "row": 16 * step + i} for i, row in enumerate(rows)])

    floor = math.log(size)
    if not variant.causal:
        right, wrong = 0.5 + 0.5 / size, 0.5 / size
        shown = -right * math.log(right) - (size - 1) * wrong * math.log(wrong)
        floor = 0.8 * floor + 0.2 * shown
    losses = trained_losses(model, batches())
    assert floor - 0.15 < sum(losses[-20:]) / 20 < math.log(32) + 0.3


@each(CAUSAL)
def test_a_causal_model_learns_a_rule_from_one_token_to_the_next(build: Build, variant: Variant) -> None:
    def batches() -> Any:
        for step in range(200):
            columns = [random_ids(16, seed=step)]
            for _ in range(15):
                columns.append((5 * columns[-1] + 3) % 32)
            ids = torch.stack(columns, dim=1)
            yield {"input_ids": ids, "labels": ids}

    goal = 0.5 * math.log(32)
    assert trained_losses(build(variant), batches(), below=goal)[-1] < goal


@each(MASKED)
def test_a_masked_model_learns_that_a_neighbour_decides(build: Build, variant: Variant) -> None:
    model = build(variant)
    mask_id = model.context.mask_token_id

    def batches() -> Any:
        for step in range(200):
            known = random_ids(32, 3, seed=step, vocabulary=27)
            ids = torch.stack([known, (5 * known + 3) % 27], dim=2).flatten(1)
            hidden = torch.zeros_like(ids, dtype=torch.bool)
            hidden[:, 1::2] = True
            yield {"input_ids": ids.masked_fill(hidden, mask_id), "labels": ids.masked_fill(~hidden, -100)}

    goal = 0.5 * math.log(32)
    assert trained_losses(model, batches(), below=goal)[-1] < goal


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
    width = count.embeddings // 32
    output_width = 0 if variant.tied else model.output_layer.in_features if variant.recurrent else width
    assert grown.embeddings == size * width
    assert grown.total - count.total == (size - 32) * (width + output_width + variant.output_bias)
    after.loss.backward()
    newest = torch.full((1, 4), size - 1)
    assert torch.isfinite(model(newest, labels=newest).loss)
