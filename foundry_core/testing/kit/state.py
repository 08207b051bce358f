"""Is a model all that its state says: saved, copied, resized, counted, carried from call to call?

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from tempfile import TemporaryDirectory

import torch
from torch import nn

from foundry_core.models.base import BaseLanguageModel
from foundry_core.testing.kit.case import ODD_SIZES, Case, Suite
from foundry_core.testing.kit.check import (
    NonconformanceError,
    NotApplicableError,
    check,
    declared,
    listed,
    require,
    require_close,
    require_equal,
)
from foundry_core.testing.kit.keys import keys_file, read_keys, title
from foundry_core.testing.kit.reopened import reopened


@check(
    "state",
    "save-load",
    scope="architecture",
    mend="Something that shapes the logits is not stored: a buffer with persistent=False, a plain tensor or number "
    "that training changes. Make it a parameter, or a buffer that is stored.",
)
def save_load(suite: Suite) -> None:
    """A saved model opened in a fresh process with another seed has the same logits, bit by bit."""
    for each in reopened(suite):
        if isinstance(each.by_us, str):
            raise NonconformanceError(f"{each.case}: {each.by_us}")
        require_equal(each.by_us, each.before, f"{each.case}: logits in a fresh process")


@check(
    "state",
    "keys",
    scope="architecture",
    mend="The names of the weights are what every saved model is read by: keep them, and name modules by their place, "
    "not by a counter. Where names are to change, or the package has no list yet, run foundry check NAME --write-keys.",
)
def keys(suite: Suite) -> None:
    """The names of the weights are the same in every build, and those that the package has committed to."""
    found = {case: list(case.model().state_dict()) for case in suite.cases}
    for case, names in found.items():
        _require_same_names(list(case.model().state_dict()), names, f"{case}: built again")
    path = keys_file(suite.architecture)
    if path is None:
        raise NotApplicableError("registered in this process: a package has a list, of foundry check NAME --write-keys")
    committed = read_keys(path)
    for case, names in found.items():
        if case.example != ODD_SIZES:
            require(title(case) in committed, f"{path} has no list for {title(case)}")
            _require_same_names(names, committed[title(case)], f"{title(case)}: against {path}")


def _require_same_names(actual: list[str], expected: list[str], what: str) -> None:
    new, gone = sorted(set(actual) - set(expected)), sorted(set(expected) - set(actual))
    differences = [f"{listed(names)} {verb}" for names, verb in ((new, "came"), (gone, "went")) if names]
    require(not differences, f"{what}: {'; '.join(differences)}")


@check(
    "state",
    "resize",
    mend="In `resize_token_embeddings` make larger layers, drawn as in __init__ and with dtype and device of the old "
    "ones, copy the old rows of weights and biases into them, tie them again, and end with `set_vocabulary_size`.",
)
def resize(case: Case) -> None:
    """With more or fewer tokens the old ones keep their logits, new ones get finite ones and as many parameters as they
    would have in a new model, of its dtype; it trains on, and a new model still guesses.
    """
    for size in (case.vocabulary + 5, case.vocabulary - 3):
        model, kept = case.stirred(), min(size, case.vocabulary)
        ids = case.ids(3, case.length).clamp(max=kept - 1)
        before, rows = model(ids).logits.detach(), _table(model).detach().clone()
        model.resize_token_embeddings(size)
        what = f"resized from {case.vocabulary} to {size} tokens"
        require(len(_table(model)) == size, f"{what}: get_input_embeddings() has {len(_table(model))} rows")
        known = model.context.vocab_size
        require(known == size, f"{what}: context.vocab_size is {known}; set_vocabulary_size was not called with it")
        if size > case.vocabulary:  # with fewer, a special token of the context may be gone
            expected = case.on_meta_device(model.context).get_parameter_count()
            count = model.get_parameter_count()
            require(count == expected, f"{what}: it has {count}, one built with as many {expected}")
        require_equal(_table(model)[:kept], rows[:kept], f"{what}: the old rows of the input embeddings")
        logits = model(ids).logits
        require(logits.shape[-1] == size, f"{what}: logits for {logits.shape[-1]} tokens")
        require_close(logits[..., :kept], before[..., :kept], f"{what}: logits of old tokens", atol=1e-6)
        newest = torch.full_like(ids, size - 1)
        output = model(newest, labels=newest)
        require(bool(output.logits.isfinite().all()), f"{what}: logits are not finite")
        output.loss.backward()
        for name, parameter in model.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            require(finite, f"{what}: the gradient of {name} is not finite")
    grown = case.model().double()
    grown.resize_token_embeddings(case.vocabulary + 5)
    narrow = [name for name, parameter in grown.named_parameters() if parameter.dtype != torch.float64]
    require(not narrow, f"resized, a model of float64 has {listed(narrow)} of another dtype")
    every_id = torch.randperm(case.vocabulary + 5, generator=torch.Generator().manual_seed(0))
    ids = every_id.repeat(8 * case.length)[: 8 * case.length].view(8, case.length)
    loss, guessing = grown(ids, labels=ids).loss.item(), math.log(case.vocabulary + 5)
    require(
        abs(loss - guessing) < 0.5, f"grown by 5 tokens, the first loss is {loss:.3f}, guessing gives {guessing:.3f}"
    )


@check(
    "state",
    "parameter-count",
    mend="A tie shares the Parameter itself (`output.weight = embedding.weight`), not its values: what is counted, "
    "optimized and saved twice drifts apart. Sizes follow from the settings alone.",
)
def parameter_count(case: Case) -> None:
    """The parameters counted are the storage that trains, each once, and as many on torch's meta device."""
    model = case.model()
    count = model.get_parameter_count()
    for what, counted, trainable in (("total", count.total, False), ("trainable", count.trainable, True)):
        storages = {
            parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() // parameter.element_size()
            for parameter in model.parameters()
            if parameter.requires_grad or not trainable
        }
        stored = sum(storages.values())
        require(counted == stored, f"{what} is {counted:,}, the storage of the parameters holds {stored:,}")
    on_meta = case.on_meta_device().get_parameter_count()
    require(on_meta == count, f"on torch's meta device it has {on_meta}, elsewhere {count}")


@check(
    "state",
    "ties",
    mend="`Capabilities.tied_embeddings` says whether the output weights are the input embeddings. Share the "
    "Parameter, in __init__ and again at the end of `resize_token_embeddings`; look it up through self when it is "
    "used.",
)
def ties(case: Case) -> None:
    """Output weights are the input embeddings as declared: when built, loaded, copied, moved and resized."""
    declared_tied = case.capabilities.tied_embeddings
    for what, model in _whereabouts(case):
        tied = _is_tied(model, case)
        require(
            tied == declared_tied,
            f"tied_embeddings is {declared_tied}, but {what} the output layer {'follows' if tied else 'ignores'} a "
            "change of the input embeddings",
        )


def _whereabouts(case: Case) -> Iterator[tuple[str, BaseLanguageModel]]:
    model = case.stirred()
    yield "as built", model
    with TemporaryDirectory(dir=case.folder) as folder:
        model.save_pretrained(folder)
        yield "saved", model
        yield "loaded", BaseLanguageModel.from_pretrained(folder)
    yield "copied", deepcopy(model)
    yield "moved to float64", model.to(torch.float64)
    resized = case.stirred()
    resized.resize_token_embeddings(case.vocabulary + 5)
    yield "resized", resized


@torch.no_grad()
def _is_tied(model: BaseLanguageModel, case: Case) -> bool:
    """Whether the logits of a token that is not read follow its input embedding."""
    read, unread = case.ordinary[:3][None], int(case.ordinary[5])
    before, row = model(read).logits, _table(model)[unread]
    kept = row.clone()
    row += 1
    after = model(read).logits
    row.copy_(kept)
    return bool((after != before)[..., unread].any())


def _table(model: BaseLanguageModel) -> nn.Parameter:
    """The input embeddings (V, D)."""
    return next(parameter for parameter in model.get_input_embeddings().parameters() if parameter.ndim == 2)


@check(
    "state",
    "copies",
    mend="An attribute holds what no copy takes along: a lambda, a local function, an open file, a tensor in a "
    "closure. Use methods and modules.",
)
def copies(case: Case) -> None:
    """A deep copy and a pickle have the same logits, bit by bit, and weights of their own."""
    model, ids = case.stirred(), case.ids(2, case.length)
    before = model(ids).logits.detach()
    # The pickle never leaves this line: nothing that others wrote is read.
    ways: dict[str, Callable[[], BaseLanguageModel]] = {
        "a deep copy": lambda: deepcopy(model),
        "a pickle": lambda: pickle.loads(pickle.dumps(model)),
    }
    for what, copied in ways.items():
        copy = copied()
        require_equal(copy(ids).logits, before, f"logits of {what}")
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1)
        require_equal(model(ids).logits, before, f"logits after {what} was changed")


@check(
    "state",
    "carried-state",
    needs=declared("stateful"),
    mend="Return the state under `state=`, for every layer, and start from the one that is given: recurrent states, "
    "or keys and values with the positions that follow theirs.",
)
def carried_state(case: Case) -> None:
    """Two halves of a text, the state handed from one to the other, have the logits of the whole, within 1e-5."""
    model, ids, half = case.stirred(), case.ids(3, case.length), case.length // 2
    whole = model(ids).logits
    first = model(ids[:, :half], use_cache=True)
    require(first.state is not None, "stateful is declared, but with use_cache=True no state is returned")
    second = model(ids[:, half:], state=first.state)
    require_close(first.logits, whole[:, :half], "logits of the first half", atol=1e-5)
    require_close(second.logits, whole[:, half:], "logits of the second half", atol=1e-5)
