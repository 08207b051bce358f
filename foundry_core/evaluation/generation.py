"""Text that continues a prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerFast

from foundry_core.errors import UsageError
from foundry_core.evaluation.inference import evaluating
from foundry_core.models.base import BaseLanguageModel
from foundry_core.random_streams import kept_generators
from foundry_core.tokenization.encoding import separator_id, text_ids


def prompt_warnings(
    model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int
) -> Iterator[str]:
    """Yield a warning for each way in which `continuations` may differ from what was asked."""
    (ids,) = text_ids(tokenizer, [prompt])
    unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if unknown:
        yield f"the tokenizer does not know {unknown} of the {len(ids)} tokens of the prompt"
    room = _room(model, 1 + len(ids))
    if 0 < room < tokens:
        yield f"at most {room} tokens are added: the model was trained on {model.context.max_sequence_length}"


def _room(model: BaseLanguageModel, tokens: int) -> float:
    """Return how many tokens a text of so many may still grow by."""
    return math.inf if model.config.capabilities.unbounded_length else model.context.max_sequence_length - tokens


@contextmanager
def _nothing_warned_of() -> Iterator[None]:
    """Keep transformers from warnings that are about nothing here.

    Of texts longer than a row: where that is a bound, `_room` keeps it. Of padding without a mask: in the cached steps
    it leaves the mask out itself, and what it takes for padding is the end of a sample that is complete.
    """
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("generation.stopping_criteria", "modeling_utils")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def continuations(
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    *,
    tokens: int,
    samples: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
) -> list[str]:
    """Continue a prompt, which is taken as the start of a document. Restores the random generators.

    Args:
        temperature: 0 for greedy decoding.

    Raises:
        UsageError: The temperature is negative or not finite.
        FoundryError: The model does not generate.
    """
    if not 0 <= temperature < math.inf:
        raise UsageError(f"a temperature is a number from 0 on, not {temperature}")
    start = separator_id(tokenizer)
    device = next(model.parameters()).device
    (prompt_ids,) = text_ids(tokenizer, [prompt])
    ids = torch.tensor([[start, *prompt_ids]] * samples, device=device)
    room = _room(model, ids.shape[1])
    if room < 1:
        raise UsageError(
            f"the prompt has {ids.shape[1]} tokens; the model was trained on {model.context.max_sequence_length}"
        )
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}
    )
    with evaluating(model), kept_generators(), _nothing_warned_of():
        torch.manual_seed(seed)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=int(min(tokens, room)),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else start,
            **sampling,
        )
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in output.tolist()]
