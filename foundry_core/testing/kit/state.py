"""Checks of a model's state: saving, copying, resizing, counting parameters, carrying a state between calls.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from foundry_core.models.base import BaseLanguageModel
from foundry_core.testing.kit.case import ODD_SIZES, Case, Suite
from foundry_core.testing.kit.check import (
    NonconformanceError,
    NotLookedAtError,
    check,
    declared,
    listed,
    not_looked_at,
    require,
    require_close,
    require_equal,
    unless_counting,
)
from foundry_core.testing.kit.keys import committed, fixed_sums, keys_file, title
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.objective import of_the_yaml
from foundry_core.testing.kit.reopened import reopened
from foundry_core.training.optimizers import parameter_groups


@check(
    "state",
    "save-load",
    scope="architecture",
    fix="Something that affects the logits is not saved: a buffer with persistent=False, or a plain tensor or "
    "number that training changes. Make it a parameter or a persistent buffer.",
)
def save_load(suite: Suite) -> None:
    """A saved model that is opened in a fresh process with another seed returns the same logits, bit for bit."""
    for each in reopened(suite):
        if isinstance(each.by_us, str):
            raise NonconformanceError(f"{each.case}: {each.by_us}")
        require_equal(each.by_us, each.before, f"{each.case}: logits in a fresh process")


@check(
    "state",
    "keys",
    scope="architecture",
    fix="Saved models are read by the names of their weights: keep the names, and name modules by their position, "
    "not by a counter. If a new version of the package computes something else with the same weights, saved models "
    "change their scores: keep the old computation, or raise the version and say so. To change names or computation on "
    "purpose, or to create the list, run foundry check NAME --write-keys; `migrations` of the descriptor let saved "
    "models follow new names.",
)
def keys(suite: Suite) -> None:
    """The names of the weights are the same in every build and match the list that the package ships, and weights that
    are fixed by their names give the logits that the list promises, within 1e-6 of the largest sum.
    """
    found = {case: list(case.model().state_dict()) for case in suite.cases}
    again = {case: case.model() for case in suite.cases}
    for case, names in found.items():
        _require_same_names(list(again[case].state_dict()), names, f"{case}: built again")
    path = keys_file(suite.architecture)
    if path is None:
        raise NotLookedAtError("registered in this process: a package has a list, of foundry check NAME --write-keys")
    promised = committed(path)
    for case, names in found.items():
        if case.example != ODD_SIZES:
            require(title(case) in promised, f"{path} has no list for {title(case)}")
            _require_same_names(names, promised[title(case)].names, f"{title(case)}: against {path}")
            _require_same_sums(case, again[case], promised[title(case)].sums, path)


def _require_same_sums(case: Case, model: BaseLanguageModel, promised: list[float], path: Path) -> None:
    sums = fixed_sums(case, model)
    if not sums:
        not_looked_at(f"{case}: logits with fixed weights, which are not finite")
        return
    require(len(promised) == len(sums), f"{path} has no sums of logits for {title(case)}")
    scale = max(map(abs, promised))
    off = max(abs(one - other) for one, other in zip(sums, promised, strict=True)) / scale
    what = f"{title(case)}: with the same names, logits differ from those that {path} promises by {off:.2g}"
    require(off <= 1e-6, f"{what} of the largest sum")
    return


def _require_same_names(actual: list[str], expected: list[str], what: str) -> None:
    new, gone = sorted(set(actual) - set(expected)), sorted(set(expected) - set(actual))
    differences = [f"{listed(names)} {verb}" for names, verb in ((new, "added"), (gone, "missing")) if names]
    require(not differences, f"{what}: {'; '.join(differences)}")


@check(
    "state",
    "resize",
    after=("initial-loss",),
    needs=unless_counting("a new token takes its share of the chance of all that were not counted"),
    fix="In `resize_token_embeddings`, create layers of the new size, initialised as in __init__ and with the dtype "
    "and device of the old ones. Copy the old rows of weights and biases into them, tie them again, and end "
    "with `set_vocabulary_size`.",
)
def resize(case: Case) -> None:
    """After adding or removing tokens, the remaining tokens keep their logits, and new tokens get finite logits and as
    many parameters as in a new model, of the same dtype; the model can still be trained, and a new model that is
    resized still starts at the loss of guessing.
    """
    for size in (case.vocabulary + 5, case.vocabulary - 3):
        model, kept = case.stirred(), min(size, case.vocabulary)
        ids = case.ids(3, case.length).clamp(max=kept - 1)
        stated = f"the input embeddings have {len(_table(model))} rows, there are {case.vocabulary} tokens"
        require(len(_table(model)) == case.vocabulary, f"{stated}{of_the_yaml(case, len(_table(model)))}")
        before, rows = model(ids).logits.detach(), _table(model).detach().clone()
        twins = _twins(model)
        model.resize_token_embeddings(size)
        what = f"resized from {case.vocabulary} to {size} tokens"
        parted = [" and ".join(names) for names in twins if names not in _twins(model)]
        require(not parted, f"{what}: {listed(parted)} were one module and are two: resize it under both names")
        require(len(_table(model)) == size, f"{what}: get_input_embeddings() has {len(_table(model))} rows")
        known = model.context.vocab_size
        require(known == size, f"{what}: context.vocab_size is {known}; call set_vocabulary_size({size})")
        if size > case.vocabulary:  # with fewer, a special token of the context may be gone
            expected = case.on_meta_device(model.context).get_parameter_count()
            count = model.get_parameter_count()
            require(count == expected, f"{what}: it has {count}, a model built with {size} tokens has {expected}")
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
    require(not narrow, f"after resizing, a float64 model has {listed(narrow)} of another dtype")
    every_id = torch.randperm(case.vocabulary + 5, generator=torch.Generator().manual_seed(0))
    ids = every_id.repeat(8 * case.length)[: 8 * case.length].view(8, case.length)
    loss, guessing = grown(ids, labels=ids).loss.item(), math.log(case.vocabulary + 5)
    figures = f"the first loss is {loss:.3f}, guessing gives {guessing:.3f}"
    require(abs(loss - guessing) < 0.5, f"after resizing to 5 more tokens, {figures}")


def _twins(model: nn.Module) -> list[tuple[str, str]]:
    """Return the pairs of names under which a module is registered twice."""
    first: dict[nn.Module, str] = {}
    named = model.named_modules(remove_duplicate=False)
    return [(first[each], name) for name, each in named if first.setdefault(each, name) != name]


@check(
    "state",
    "parameter-count",
    after=("ties",),
    fix="Tie weights by sharing the Parameter (`output.weight = embedding.weight`), not by copying its values: a "
    "copy is counted, optimized and saved separately. Derive sizes from the settings alone.",
)
def parameter_count(case: Case) -> None:
    """The parameter counts equal the numbers of stored values, each counted once, and are the same on torch's meta
    device.
    """
    model = case.model()
    count = model.get_parameter_count()
    for what, counted, trainable in (("total", count.total, False), ("trainable", count.trainable, True)):
        storages = {
            parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() // parameter.element_size()
            for parameter in model.parameters()
            if parameter.requires_grad or not trainable
        }
        stored = sum(storages.values())
        require(counted == stored, f"{what} is {counted:,}, but the parameters store {stored:,} numbers")
    on_meta = case.on_meta_device().get_parameter_count()
    require(on_meta == count, f"the count is {on_meta} on torch's meta device, elsewhere {count}")


@check(
    "state",
    "parameter-roles",
    fix="A parameter that the model creates itself does not show what it is for. Name it: `def parameter_roles(self): "
    'return {**super().parameter_roles(), "positions": "embedding"}`. A stack of weights is a `matrix`, rates and '
    "mixes are `other`.",
)
def parameter_roles(case: Case) -> None:
    """Every parameter of several dimensions has a role, which decides whether it decays and what an optimizer does with
    it: that of its layer, or one that `parameter_roles` names.
    """
    model = case.model()
    roles = model.parameter_roles()
    parameter_groups(model, case.config.training)  # refuses unknown roles and names
    unnamed = [f"{name} {tuple(each.shape)}" for name, each in model.named_parameters() if name not in roles]
    require(not unnamed, f"the role of {listed(unnamed)} is not known")


@check(
    "state",
    "ties",
    fix="`Capabilities.tied_embeddings` declares whether the output weights are the input embeddings. Share the "
    "Parameter in __init__ and again at the end of `resize_token_embeddings`, and access it through self when "
    "it is used.",
)
def ties(case: Case) -> None:
    """The output weights are the input embeddings if and only if this is declared: as built, saved, loaded, copied,
    moved and resized.
    """
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
    """Check whether the logits of a token that is not read change with its input embedding."""
    read, unread = case.ordinary[:3][None], int(case.ordinary[5])
    before, row = model(read).logits, _table(model)[unread]
    kept = row.clone()
    row += 1
    after = model(read).logits
    row.copy_(kept)
    return bool((after != before)[..., unread].any())


def _table(model: BaseLanguageModel) -> nn.Parameter:
    """Return the input embeddings (V, D)."""
    return next(parameter for parameter in model.get_input_embeddings().parameters() if parameter.ndim == 2)


@check(
    "state",
    "copies",
    fix="An attribute cannot be copied: a lambda, a local function, an open file, or a tensor in a closure. Use "
    "methods and modules instead.",
)
def copies(case: Case) -> None:
    """A deep copy and an unpickled copy return the same logits, bit for bit, and share no weights with the model."""
    model, ids = case.stirred(), case.ids(2, case.length)
    before = model(ids).logits.detach()
    # The pickle is made in memory and read at once: nothing that others wrote is unpickled.
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
        if case.counts:
            copy.count(ids)
        require_equal(model(ids).logits, before, f"logits after {what} was changed")


@check(
    "state",
    "carried-state",
    needs=declared("stateful"),
    after=("causal-leak",),
    realistic=True,
    fix="Return the state of every layer as `state=`, and start from the state that is passed in: recurrent states, "
    "or keys and values together with the positions that follow theirs. Make new tensors instead of changing those of "
    "the state, and read the last T columns of a mask that is wider than the tokens.",
)
def carried_state(case: Case) -> None:
    """Reading a text in two halves, with the state passed from one to the other, gives the same logits as reading it
    whole, within 1e-5, whether the mask covers the second half or both. The state stays as it is, and can be used
    again.
    """
    model, ids, half = case.stirred(), case.ids(3, case.length), case.length // 2
    whole, rest = model(ids).logits, ids[:, half:]
    first = model(ids[:, :half], use_cache=True)
    require(first.state is not None, "stateful is declared, but with use_cache=True no state is returned")
    before = [tensor.detach().clone() for tensor in tensors_in(first.state)]
    second = model(rest, state=first.state)
    require_close(first.logits, whole[:, :half], "logits of the first half", atol=1e-5)
    require_close(second.logits, whole[:, half:], "logits of the second half", atol=1e-5)
    after = tensors_in(first.state)
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    require(same, "a call changes the state that it is given")
    require_equal(model(rest, state=first.state).logits, second.logits, "logits with a state that is used again")
    for name, columns in (("the second half", rest.shape[1]), ("both halves", case.length)):
        mask = torch.ones(3, columns, dtype=torch.long)
        masked = model(rest, attention_mask=mask, state=first.state).logits
        require_close(masked, second.logits, f"logits of the second half with a mask of {name}", atol=1e-5)
    if "left" in case.capabilities.padding_sides:
        _require_carried_after_padding(case, model)


def _require_carried_after_padding(case: Case, model: BaseLanguageModel) -> None:
    """Check a state after rows padded on the left, with a mask that covers both parts."""
    rows = [case.ids(length, seed=length) for length in (case.length - 1, case.length // 2 + 2)]
    ids, mask = padded(rows, "left", int(case.ordinary[0]))
    half = case.length // 2 + 1
    first = model(ids[:, :half], attention_mask=mask[:, :half], use_cache=True)
    second = model(ids[:, half:], attention_mask=mask, state=first.state)
    for row, expected in zip(second.logits, (model(each[None]).logits[0] for each in rows), strict=True):
        count = case.length - half
        what = f"logits of the last {count} tokens, after a state of a row padded on the left"
        require_close(row, expected[-count:], what, atol=1e-5)


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return the tensors inside a state, in a fixed order, including those in attributes."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: list[object] = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_in(part)]
