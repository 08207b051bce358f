"""Checks of text generation: it follows the logits, and is refused if the model does not support it.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from foundry_core.errors import FoundryError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.testing.kit.case import Case
from foundry_core.testing.kit.check import NonconformanceError, check, declared, every, require, require_close
from foundry_core.testing.kit.masking import padded

_NEW_TOKENS = 6


def generates(case: Case) -> str | None:
    return None if case.capabilities.generation and case.causal else f"does not generate with {case.objective.name}"


def does_not_generate(case: Case) -> str | None:
    return None if generates(case) else "every example generates"


def _decided(case: Case) -> BaseLanguageModel:
    """Return a model with large weights: with small ones it would choose the same token whatever it reads."""
    model = case.stirred()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def _prompts(case: Case) -> list[tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Return prompts of unequal length: in one batch padded on the left if that is declared, otherwise one by one."""
    longest = case.length - _NEW_TOKENS - 1
    rows = [case.ids(length, seed=length) for length in (longest, 1, longest // 2, 3)]
    if case.capabilities.left_padding:
        return [(rows, *padded(rows, "left", int(case.tokenizer.pad_token_id)))]
    return [([row], row[None], torch.ones_like(row[None])) for row in rows]


def _generated(model: BaseLanguageModel, ids: torch.Tensor, mask: torch.Tensor, **settings: Any) -> Any:
    pad = model.context.pad_token_id
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )


@check(
    "generation",
    "greedy",
    after=("left-padding",),
    needs=generates,
    fix="Prompts are padded on the left: count positions over real tokens only, and pass `attention_mask` to every "
    "layer that mixes tokens. The logits of the last position must be those of the next token.",
)
def greedy(case: Case) -> None:
    """Greedy generation from prompts of different lengths gives the same tokens as appending the most likely token to
    each prompt separately.
    """
    model = _decided(case)
    eos, pad = model.context.eos_token_id, model.context.pad_token_id
    for rows, ids, mask in _prompts(case):
        produced = _generated(model, ids, mask, use_cache=False).sequences[:, ids.shape[1] :].tolist()
        for row, answer in zip(rows, produced, strict=True):
            text = row
            for token in answer:
                ended = eos in text[len(row) :]
                expected = pad if ended else int(model(text[None]).logits[0, -1].argmax())
                place = len(text) - len(row) + 1
                require(
                    token == expected,
                    f"after a prompt of {len(row)} tokens, new token {place} is {token}, the most likely {expected}",
                )
                text = torch.cat([text, torch.tensor([token])])


@check(
    "generation",
    "step-by-step",
    after=("carried-state", "left-padding"),
    needs=every(generates, declared("stateful")),
    fix="A call with a state reads the next positions of the same text: continue counting positions from the state, "
    "also after padding, and count nothing twice.",
)
def step_by_step(case: Case) -> None:
    """Reading token by token with a carried state gives the same logits as reading the whole text, within 1e-4."""
    model = case.stirred()
    ids = case.ids(3, case.length)
    whole, state = model(ids).logits, None
    for place in range(case.length):
        output = model(ids[:, place : place + 1], state=state, use_cache=True)
        state = output.state
        require(state is not None, "stateful is declared, but with use_cache=True no state is returned")
        require_close(output.logits[:, 0], whole[:, place], f"logits of step {place + 1}", atol=1e-4)
    for rows, prompts, mask in _prompts(case):
        produced = _generated(model, prompts, mask, use_cache=True)
        for index, row in enumerate(rows):
            answer = produced.sequences[index, prompts.shape[1] :]
            again = model(torch.cat([row, answer])[None]).logits[0, len(row) - 1 :]
            for step, logits in enumerate(produced.logits):
                what = f"logits of new token {step + 1} after a prompt of {len(row)} tokens, padded on the left"
                require_close(logits[index].to(again.dtype), again[step], what, atol=1e-4)
                if answer[step] == model.context.eos_token_id:
                    break  # the rest is padding


@check(
    "generation",
    "refusal",
    needs=does_not_generate,
    fix="Inherit `generate` from BaseLanguageModel, and declare `generation` in `capabilities` only for settings "
    "under which the model can generate.",
)
def refusal(case: Case) -> None:
    """If a model cannot generate, `generate` raises a one-line error and `supports_generation` is False."""
    model = case.model()
    require(not model.supports_generation, "supports_generation is true for a model that does not generate")
    try:
        model.generate(case.ids(1, 4), max_new_tokens=2)
    except FoundryError as error:
        require("\n" not in str(error), f"the refusal has more than one line: {error}")
        require(model.model_type in str(error), f"the refusal does not name the architecture: {error}")
        return
    except Exception as error:
        raise NonconformanceError(
            f"generate raised {type(error).__name__} instead of a FoundryError: {error}"
        ) from error
    raise NonconformanceError("generate returned a result for a model that does not generate")
