"""Checks of a model in use: recomputing, compilation, other devices, parts of a batch, opening by transformers.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load, save
from torch import distributed, nn
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.cost import plain_rows, saved_bytes
from foundry_core.models.loss import language_loss
from foundry_core.random_streams import seed_generators
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import (
    NonconformanceError,
    check,
    declared,
    listed,
    named_gradients,
    not_looked_at,
    require,
    require_close,
    require_equal,
    require_same_gradients,
    unless_counting,
)
from foundry_core.testing.kit.masking import padded
from foundry_core.testing.kit.processes import forked, within_this_machine
from foundry_core.testing.kit.reopened import reopened


@check(
    "integration",
    "gradient-checkpointing",
    needs=declared("gradient_checkpointing"),
    fix="Override `gradient_checkpointing_enable`. After it has been called, wrap each block in "
    "torch.utils.checkpoint.checkpoint(..., use_reentrant=False) in training. Leave preserve_rng_state on, so "
    "that dropout is the same when a block is recomputed.",
)
def gradient_checkpointing(case: Case) -> None:
    """With recomputed activations, the gradients of a padded batch under dropout are the same, within 1e-5, and less
    memory is used.
    """
    ids, mask = _padded(case)
    kept, gradients = [], []
    for recomputing in (False, True):
        model = case.model(dropout=0.2).train()
        if recomputing:
            model.gradient_checkpointing_enable()
        kept.append(saved_bytes(model, plain_rows(model, 4, case.length)))
        seed_generators(1)
        model(ids, attention_mask=mask, labels=case.labels(ids, mask)).loss.backward()
        gradients.append(named_gradients(model))
    require_same_gradients(gradients[1], gradients[0], "with activations recomputed")
    require(kept[1] < kept[0], f"{kept[1]:,} bytes of activations are stored, without recomputing {kept[0]:,}")


def _padded(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of unequal length, padded on a declared side, and their mask."""
    rows = [case.ids(length, seed=length) for length in (case.length - 1, case.length // 2, 3)]
    # Left if declared: a causal model never sees padding on the right.
    side = min(case.capabilities.padding_sides)
    return padded(rows, side, int(case.ordinary[0]))


@check(
    "integration",
    "meta-device",
    fix="Hold tensors as parameters or buffers (persistent=False if they are computed); others stay behind when the "
    "model moves to a GPU. Create tensors that depend on the input on the device of the input. In `__init__`, "
    "do not read the values of tensors with `.item()`, `.tolist()`, `float()` or `if`: they have none on "
    "torch's meta device, where core builds models that it only counts or compares. Compute with Python "
    "numbers.",
)
def meta_device(case: Case) -> None:
    """The model can be built on torch's meta device, and when a model that has been used moves to another device, all
    of its tensors move.
    """
    try:
        case.on_meta_device()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise NonconformanceError(f"building on torch's meta device failed: {reason}") from error
    model = case.model()
    model(case.ids(2, case.length))
    model.to("meta")
    tensors = [*model.named_parameters(), *model.named_buffers(), *_plain_tensors(model)]
    behind = [name for name, tensor in tensors if tensor.device.type != "meta"]
    require(not behind, f"{listed(behind)} stays on the CPU")
    try:
        output = model(case.ids(2, min(6, case.length)).to("meta"))  # short: torch runs a recurrence in Python here
    except RuntimeError as error:
        # There are no values on this device, and a model may need some. It must not use tensors of another device.
        require("device" not in str(error) or "meta tensors" in str(error), f"on another device: {error}")
        not_looked_at(f"{case}: a call on another device, which needs values that torch's meta device lacks")
        return
    require(output.logits.device.type == "meta", "after moving the model to another device, its logits are on the CPU")
    return


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors that modules hold as ordinary attributes, including those in lists and dictionaries."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors_in(value, f"{prefix}.{name}".lstrip("."))


def _tensors_in(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors_in(item, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _tensors_in(item, f"{name}[{place}]")


@check(
    "integration",
    "compile",
    scope="architecture",
    after=("train-mode",),
    needs=declared("compile"),
    fix="Do not use the values of tensors in Python's control flow, and do not store anything in attributes between "
    "calls. Or declare compile=False, so that training.compile is refused when the YAML is read.",
)
def compiled(suite: Suite) -> None:
    """Compiled, the model gives the same loss and gradients for a padded batch, within 1e-4, without dropout."""
    # One model of each objective and direction, with one layer: capturing and differentiating the graph takes seconds,
    # and the code generation of the default backend minutes. What a model that sees only to its left computes does not
    # depend on the objective: one whose objective and direction others have is left out.
    kinds = {(case.objective.name, case.sees_right): case for case in suite.cases if case.capabilities.compile}
    for kind in list(kinds):
        if {*kind} <= {part for other in kinds.keys() - {kind} for part in other}:
            del kinds[kind]
    for case in (each.with_one_layer() for each in kinds.values()):
        (ids, mask), losses, gradients = _padded(case), [], []
        torch._dynamo.reset()
        # Asking the mask whether a batch is padded breaks the graph, which torch would report.
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        for compiling in (False, True):
            model = case.stirred(dropout=0.0).train()
            forward = torch.compile(model, backend="aot_eager_default_partitioner") if compiling else model
            labels = case.labels(ids, mask)
            with _without_extras():
                output = forward(ids, attention_mask=mask, labels=labels, reduction="sum", return_logits=False)
            losses.append(output.loss)
            losses[-1].backward()
            gradients.append(named_gradients(model))
        require_close(losses[1], losses[0], f"{case}: compiled loss", atol=1e-4, rtol=1e-4)
        require_same_gradients(gradients[1], gradients[0], f"{case}: compiled", relative=1e-4)


@contextmanager
def _without_extras() -> Iterator[None]:
    """Leave out what torch does for other backends: a third of the time.

    Removing common subexpressions imports the compiler, and the latency of guards is measured with a cold cache. The
    garbage collector would visit everything that tracing allocates.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with (
            torch._functorch.config.patch(cse=False),
            patch.object(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0, create=True),
        ):
            yield
    finally:
        if collecting:
            gc.enable()


@check(
    "integration",
    "data-parallel",
    scope="objective",
    needs=unless_counting(),
    after=("rows-independent", "gradient-reach", "reference-loss"),
    fix="Every parameter must take part in every forward pass, and nothing but the loss may be summed over a batch.",
)
def data_parallel(case: Case) -> None:
    """Two processes with half of the rows each compute the same gradients as one process with all of them, within 1e-5,
    without dropout.
    """
    batch = case.ids(6, case.length)
    model = case.stirred(dropout=0.0).train()
    _summed_loss(model, batch, batch).backward()
    unused = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    require(not unused, f"{listed(unused)} does not affect the loss: other processes would wait for its gradient")
    with TemporaryDirectory(dir=case.folder) as folder:
        answers = forked(*(lambda rank=rank: _trained_in_parallel(case, batch, rank, folder) for rank in (0, 1)))
    for rank, answer in enumerate(answers):
        require_same_gradients(load(answer), named_gradients(model), f"in process {rank} of 2")


def _summed_loss(model: nn.Module, rows: torch.Tensor, batch: torch.Tensor) -> Any:
    """Return the loss of some rows, without auxiliary terms, divided by the size of the whole batch."""
    return language_loss(model(rows, labels=rows, reduction="sum", return_logits=False)) / batch.numel()


def _trained_in_parallel(case: Case, batch: torch.Tensor, rank: int, folder: str) -> bytes:
    within_this_machine()
    store = FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    model = case.stirred(dropout=0.0).train()
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # an unused parameter is noticed when the next pass begins
        model.zero_grad()
        # The gradients of the processes are averaged, hence the factor.
        (2 * _summed_loss(parallel, batch[rank::2], batch)).backward()
    gradients: bytes = save(named_gradients(model))
    return gradients


@check(
    "integration",
    "hugging-face",
    scope="architecture",
    after=("save-load",),
    fix="End the module of the model with `register_auto_classes(NAME)`; for a wrapped transformers model, pass "
    "`**context.special_ids` to its configuration. Build from the configuration alone: config.json is all there "
    "is when the folder is opened. A `forward` that names `inputs_embeds` reads these vectors in place of the ids.",
)
def hugging_face(suite: Suite) -> None:
    """The saved folder opens with transformers' auto class in a fresh process and returns the same logits, and its
    configuration names the special tokens of the tokenizer. `AutoModel` returns hidden states of the width that the
    configuration names, and input embeddings in place of ids give the same logits, if `forward` takes them.
    """
    for each in reopened(suite):
        if isinstance(each.by_transformers, str):
            raise NonconformanceError(f"{each.case}: {each.by_transformers}")
        require_equal(each.by_transformers, each.before, f"{each.case}: logits by {each.case.objective.auto_class}")
        model = each.case.model()
        outer = model.to_transformers()
        for config in (outer.config, getattr(outer, "generation_config", None)):
            for role, number in model.context.special_ids.items() if config is not None else ():
                found, where = getattr(config, role, None), type(config).__name__
                require(found == number, f"{each.case}: {role} is {found} in {where}, {number} in the tokenizer")
        if model.is_adapted:
            _require_vectors(each.case, model, outer)


def _require_vectors(case: Case, model: BaseLanguageModel, outer: Any) -> None:
    """Require the vectors of an adapted model, its hidden states and those it takes, to be what others expect."""
    ids, mask = _padded(case)
    found: list[torch.Tensor] = []
    model(ids, attention_mask=mask, read=lambda hidden_BTD, head: found.append(hidden_BTD))
    require(bool(found), f"{case}: the keyword `read` is not passed on to `self.lm_output`")
    if found[0].is_floating_point():
        shape, width = tuple(found[0].shape), outer.config.hidden_size
        require(shape == (*ids.shape, width), f"{case}: hidden states have shape {shape}, hidden_size is {width}")
    if "inputs_embeds" in inspect.signature(model.forward).parameters:
        given = {"inputs_embeds": model.get_input_embeddings()(ids)}
        by_ids, by_vectors = (outer(**each, attention_mask=mask).logits for each in ({"input_ids": ids}, given))
        real = mask.bool()
        require_close(by_vectors[real], by_ids[real], f"{case}: logits by inputs_embeds", atol=1e-5)


@check(
    "integration",
    "output",
    fix="End `forward` with `return self.lm_output(hidden, head, labels, ...)` and pass on its keywords; it drops "
    "what is missing.",
)
def output(case: Case) -> None:
    """Attribute, key and tuple access to the output agree, and what is missing is missing in all three."""
    model, ids = case.model(), case.ids(2, case.length)
    calls: list[tuple[dict[str, Any], set[str], set[str]]] = [
        ({}, {"logits"}, {"loss"}),
        ({"labels": ids}, {"loss", "logits"}, set()),
        ({"labels": ids, "return_logits": False}, {"loss"}, {"logits"}),
    ]
    for given, present, absent in calls:
        found = model(ids, **given)
        what = f"called with {listed(list(given)) or 'ids alone'}"
        for name in present:
            require(name in found and getattr(found, name, None) is not None, f"{what}: {name} is missing")
        for name in absent:
            require(name not in found, f"{what}: {name} is present, as {found.get(name)!r}")
            require(getattr(found, name, 0) is None, f"{what}: .{name} is not None")
        keys = list(found.keys())
        require(len(found.to_tuple()) == len(keys), f"{what}: {len(found.to_tuple())} values, {len(keys)} keys")
        for place, key in enumerate(keys):
            same = found[key] is getattr(found, key) is found[place] and found[key] is not None
            require(same, f"{what}: .{key}, [{key!r}] and [{place}] are not the same")
