"""Checks that train a model: what it can learn, and what it cannot.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from foundry_core.data.collators import get_data_collator
from foundry_core.data.workers import Batch
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import IGNORED, language_loss
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import NonconformanceError, check, require
from foundry_core.testing.kit.objective import loss_of


@check(
    "objective",
    "noise-floor",
    scope="objective",
    after=("causal-leak", "reference-loss"),
    fix="The model finds its targets in its input. Usually the labels are not shifted, so that it learns to copy: "
    "use core's loss. Otherwise it looks ahead: see causal-leak.",
)
def noise_floor(case: Case) -> None:
    """In 60 steps on fresh random tokens, the loss stays above the lowest value a correct model can reach, minus 0.15
    nats.
    """
    config = case.config_with(training={"mlm_probability": 0.4})
    collate, length = get_data_collator(config, case.tokenizer), min(10, case.length)
    batches = [collate(case.features(24, length, first=24 * step)) for step in range(60)]
    losses = trained(case.model(dropout=0.0), batches, rate=5e-3)
    reached, floor = sum(losses[-20:]) / 20, knowable(case, batches)
    require(reached > floor - 0.15, f"the loss on random tokens is {reached:.3f}, the lowest possible is {floor:.3f}")


@check(
    "objective",
    "learnability",
    scope="objective",
    after=("reference-loss",),
    fix="The loss does not reach the weights, or not the ones that matter. Look for a detached tensor, labels "
    "shifted twice or in the wrong direction, a scale that suppresses the signal, or a frozen layer.",
)
def learnability(case: Case) -> None:
    """In 200 steps, the model learns a rule from one token to the next, or to a hidden neighbour, to a loss below 0.5
    ln V.
    """
    goal = 0.5 * math.log(case.vocabulary)
    lowest = math.inf
    for rate in (5e-3, 1e-3):
        rule = _next_token(case) if case.causal else _hidden_neighbour(case)
        losses = trained(case.model(dropout=0.0), rule, rate=rate, below=goal)
        lowest = min(lowest, losses[-1])
        if losses[-1] < goal:
            return
    guessing = math.log(case.vocabulary)
    raise NonconformanceError(f"the loss is {lowest:.3f} after 200 steps; guessing gives {guessing:.3f}, a rule 0")


def trained(
    model: BaseLanguageModel, batches: Iterable[Batch], *, rate: float, below: float = -math.inf
) -> list[float]:
    """Train a model and return the loss of each step, before the step; stop early when three are below `below`."""
    model.train()
    counts = model.config.capabilities.trained_by_counting
    optimizer = None if counts else torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    losses: list[float] = []
    for batch in batches:
        output = model(**batch, return_logits=False)
        if optimizer is None:
            model.count(**batch)
        else:
            optimizer.zero_grad()
            loss_of(output).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        losses.append(language_loss(output).item())
        if len(losses) >= 3 and max(losses[-3:]) < below:
            break
    return losses


def knowable(case: Case, batches: Iterable[Batch]) -> float:
    """Return the lowest loss that a correct model can reach on batches of uniform tokens, in nats per prediction.

    A causal prediction, or the prediction of a token that is replaced by a special token, is a guess among the ordinary
    tokens. If an ordinary token is shown instead, the uncertainty follows from the share of such tokens that the
    collator left unchanged. Labels that are special tokens may be certain.
    """
    batches = list(batches)
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    shown = torch.cat([batch["input_ids"].flatten() for batch in batches])
    if case.causal:
        labels = torch.cat([batch["labels"][:, 1:].flatten() for batch in batches])
    size, ordinary = len(case.ordinary), torch.isin(labels, case.ordinary)
    guess = math.log(size)
    predicted = int((labels != IGNORED).sum())
    require(predicted > 0, "the collator of the objective returned batches with nothing to predict")
    if case.causal:
        return guess * int(ordinary.sum()) / predicted
    in_sight = ordinary & torch.isin(shown, case.ordinary)
    kept = float((shown == labels)[in_sight].double().mean()) if bool(in_sight.any()) else 0.0
    entropy = sum(-p * math.log(p) for p in (kept, 1 - kept) if p > 0) + (1 - kept) * math.log(size - 1)
    return (guess * int((ordinary & ~in_sight).sum()) + entropy * int(in_sight.sum())) / predicted


def _next_token(case: Case) -> Iterator[Batch]:
    for step in range(200):
        columns = [torch.randint(0, case.vocabulary, (16,), generator=torch.Generator().manual_seed(step))]
        for _ in range(min(16, case.length) - 1):
            columns.append((5 * columns[-1] + 3) % case.vocabulary)
        ids = torch.stack(columns, dim=1)
        yield {"input_ids": ids, "labels": ids}


def _hidden_neighbour(case: Case) -> Iterator[Batch]:
    size = len(case.ordinary)
    for step in range(200):
        place = torch.randint(0, size, (32, 3), generator=torch.Generator().manual_seed(step))
        ids = case.ordinary[torch.stack([place, (5 * place + 3) % size], dim=2).flatten(1)]
        hidden = torch.arange(ids.shape[1]).expand(ids.shape) % 2 == 1
        yield {
            "input_ids": ids.masked_fill(hidden, int(case.tokenizer.mask_token_id)),
            "labels": ids.masked_fill(~hidden, IGNORED),
        }
