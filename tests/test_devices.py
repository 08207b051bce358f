"""Devices that this machine does not have: which one is chosen, and what is computed for it without computing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast

from foundry_core import ExperimentConfig
from foundry_core.devices import Precision, choose_device, in_float64
from foundry_core.errors import UsageError
from foundry_core.models.base import create_model
from foundry_core.training.choices import precision_of
from foundry_core.training.losses import summed_losses
from tests.each import each

MPS = torch.device("mps")


@each(
    ("present", "asked", "chosen"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "mps"),
        (("cuda", "mps"), "auto", "cuda"),
        (("mps",), "mps", "mps"),
        (("mps",), "cpu", "cpu"),
        ((), "mps", "x.device: torch does not find MPS, the GPU of a Mac; use auto or cpu"),
        (("mps",), "cuda", "x.device: torch does not find a GPU; use auto or cpu"),
    ],
)
def test_a_device_is_the_one_asked_for_or_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], asked: str, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    try:
        found = choose_device(asked, "x.device").type
    except UsageError as error:
        found = str(error)
    assert found == chosen


def test_mps_computes_in_half_precision_where_macos_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Precision("fp16", MPS).autocast().fast_dtype == torch.float16
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    with pytest.raises(UsageError, match="MPS computes in bf16 from macOS 14 on; use fp16 or fp32"):
        Precision("bf16", MPS)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 14)
    assert Precision("bf16", MPS).autocast().fast_dtype == torch.bfloat16
    assert precision_of(MPS, ("bf16",), lambda: 2.0)[0] == "fp32"


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on a device, as MPS does."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                assert tensor.dtype != torch.float64, function
        return result


def test_sums_are_in_float64_on_a_device_without_it() -> None:
    with FakeTensorMode(), WithoutFloat64("mps"):
        assert in_float64(torch.empty((), device=MPS)).dtype == torch.float64
    assert in_float64(torch.tensor(0.1)).dtype == torch.float64


@each("architecture", ["gpt2", "bert", "lstm", "mamba"])
def test_a_pass_needs_no_float64(
    experiment: Callable[..., ExperimentConfig], letters: PreTrainedTokenizerFast, tmp_path: Path, architecture: str
) -> None:
    model = create_model(experiment(architecture, tmp_path), letters).train()
    model.kernels = "reference"  # the others are for the CPU
    ids = torch.arange(16).reshape(2, 8)
    with WithoutFloat64("cpu"):
        optimised, _ = summed_losses(model, model, {"input_ids": ids, "labels": ids}, None)
        torch.autograd.backward(optimised)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(AssertionError), WithoutFloat64("cpu"):
        in_float64(optimised)
