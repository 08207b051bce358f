"""Features of Mamba alone: a scan that keeps few states, bounded steps, rates without decay, a state of two parts.

Shapes: B batch, T tokens, D channels, N numbers that a channel remembers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foundry_mamba.model import _SelectiveScan
from transformers import MambaConfig, MambaForCausalLM

from foundry_core import BaseLanguageModel, ExperimentConfig, FoundryError, create_model
from foundry_core.config.sections import TrainingConfig
from foundry_core.training.optimizers import parameter_groups
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
Build = Callable[..., BaseLanguageModel]
IDS = torch.randint(0, 27, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(experiment: Experiment, letters: Any, tmp_path: Path, one_thread: None) -> Build:
    def make(example: str = "tiny", **settings: Any) -> BaseLanguageModel:
        sizes = {"hidden_size": 24, "num_layers": 2, "state_size": 4, "dropout": 0.0, **settings}
        sections = {"model": {"mamba": sizes}} if settings else {"example": example}
        return create_model(experiment("mamba", tmp_path, **sections), letters)

    return make


def inputs(length: int, channels: int = 3, size: int = 4, *, fastest: float = 2.0) -> list[torch.Tensor]:
    """Step, A, x, B, C and the state before, in float64. fastest: the largest step times the largest rate."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    step = torch.rand(2, length, channels, generator=generator, dtype=torch.float64)
    rates = -fastest * torch.rand(channels, size, generator=generator, dtype=torch.float64)
    return [step, rates, draw(2, length, channels), *(draw(2, length, size) for _ in range(2)), draw(2, channels, size)]


def by_definition(
    step: torch.Tensor, A: torch.Tensor, x: torch.Tensor, B: torch.Tensor, C: torch.Tensor, h: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence one token, one channel and one number at a time, as the paper writes it."""
    outputs = torch.zeros_like(x)
    for t in range(x.shape[1]):
        moved = torch.zeros_like(h)
        for d in range(x.shape[2]):
            for n in range(A.shape[1]):
                decay = torch.exp(step[:, t, d] * A[d, n])
                moved[:, d, n] = decay * h[:, d, n] + step[:, t, d] * B[:, t, n] * x[:, t, d]
                outputs[:, t, d] += C[:, t, n] * moved[:, d, n]
        h = moved
    return outputs, h


@pytest.mark.long
def test_the_descriptor_is_light() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'foundry_mamba.model'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, foundry_mamba; assert not {heavy}"], check=True, timeout=60)


# The scan.


@each("length", [1, 15, 16, 17, 37])
@each("fastest", [2.0, 5000.0])
def test_the_scan_is_the_recurrence_of_the_paper(length: int, fastest: float) -> None:
    """Also where a channel forgets everything within a token, and on both sides of the ends of a chunk."""
    given = inputs(length, fastest=fastest)
    for ours, theirs in zip(_SelectiveScan.apply(*given), by_definition(*given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_gradients_of_the_scan_are_those_of_its_values() -> None:
    given = [each.requires_grad_() for each in inputs(19, channels=2, size=3)]
    assert torch.autograd.gradcheck(_SelectiveScan.apply, given)


def test_the_scan_keeps_one_state_per_chunk_for_backward() -> None:
    def kept(size: int) -> int:
        given = [each.requires_grad_() for each in inputs(64, channels=2, size=size)]
        numbers = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            _SelectiveScan.apply(*given)
        return numbers

    batch, length, channels, chunks = 2, 64, 2, 64 // 16
    each_number_more = batch * channels * chunks + channels + 2 * batch * length  # states, A, B and C
    assert kept(9) - kept(8) == each_number_more


# The model.


def test_it_computes_what_the_mamba_of_transformers_computes(build: Build) -> None:
    ours = build().eval()
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
    theirs = MambaForCausalLM(MambaConfig(vocab_size=32, pad_token_id=None, **sizes)).eval()
    names = {
        "blocks": "backbone.layers",
        "norm.weight": "norm.weight",
        "conv": "mixer.conv1d",
        "step_proj": "mixer.dt_proj",
        "log_decay": "mixer.A_log",
        "skip": "mixer.D",
        **{name: f"mixer.{name}" for name in ("in_proj", "x_proj", "out_proj")},
    }
    state = theirs.state_dict()
    for name, value in ours.named_parameters():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        if name.startswith("blocks."):
            part, _, kind = rest.partition(".")
            inner = names["norm.weight"] if part == "norm" else ".".join(filter(None, (names[part], kind)))
            target = f"{names['blocks']}.{block}.{inner}"
        else:
            target = {"embedding.weight": "backbone.embeddings.weight", "norm.weight": "backbone.norm_f.weight"}[name]
        state[target].copy_(value.detach().view(state[target].shape))
    assert ours.get_parameter_count().total == sum(parameter.numel() for parameter in theirs.parameters())
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-5)


def test_steps_start_between_their_bounds_and_rates_at_1_to_n(build: Build) -> None:
    model = build(time_step_min=0.01, time_step_max=0.5, hidden_size=48)
    for block in model.blocks:
        steps = F.softplus(block.step_proj.bias)
        assert 0.0099 < steps.min() < 0.02
        assert 0.3 < steps.max() < 0.501
        assert (steps < 0.5**0.5 * 0.1).float().mean().item() == pytest.approx(0.5, abs=0.15)  # even logarithms
        torch.testing.assert_close(block.log_decay.exp().view(-1, 4), torch.arange(1.0, 5.0).expand(96, 4))
        assert block.skip.eq(1).all()


def test_bounds_of_the_steps_that_are_crossed_are_refused(build: Build) -> None:
    line = r"^configuration:\d+: model\.mamba: time_step_min \(0\.2\) exceeds time_step_max \(0\.1\)$"
    with pytest.raises(FoundryError, match=line):
        build(time_step_min=0.2)


def test_weight_decay_leaves_the_rates_of_decay_alone(build: Build) -> None:
    model = build()
    training = TrainingConfig.model_validate({"output_dir": "x", "train_steps": 1})
    decays = {name: group["weight_decay"] > 0 for group in parameter_groups(model, training) for name in group["names"]}
    for name, _ in model.named_parameters():
        matrix = any(part in name for part in ("in_proj", "x_proj", "step_proj.weight", "out_proj", "conv.weight"))
        assert decays[name] == matrix, name


def test_the_settings_reach_the_layers(build: Build) -> None:
    model = build(num_layers=3, expand=3, conv_kernel=2, time_step_rank=5, dropout=0.3, tie_embeddings=False)
    assert (len(model.blocks), model.dropout.p) == (3, 0.3)
    block = model.blocks[0]
    assert (block.in_proj.out_features, block.conv.kernel_size, block.step_proj.in_features) == (2 * 72, (2,), 5)
    assert model.output_layer.weight is not model.embedding.weight
    tied = build()
    assert tied.output_layer.weight is tied.embedding.weight


def test_an_untied_output_layer_is_resized_with_the_embedding(build: Build) -> None:
    model = build("tiny_untied").eval()
    before = model(IDS).logits
    model.resize_token_embeddings(40)
    assert torch.equal(model(IDS).logits[..., :32], before)
    assert model(torch.full((1, 2), 39)).logits.shape == (1, 2, 40)


# The state.


def test_the_state_is_that_after_the_last_real_token(build: Build) -> None:
    model = build().eval()
    mask = torch.ones_like(IDS)
    mask[0, 4] = 0
    mask[1, 2:] = 0  # fewer real tokens than the convolution looks back at
    mask[2, :3] = 0
    together = model(IDS, attention_mask=mask).state
    for row in range(3):
        alone = model(IDS[row : row + 1, mask[row] == 1]).state
        for ours, theirs in zip(together, alone, strict=True):
            for part, whole in zip(ours, theirs, strict=True):
                torch.testing.assert_close(part[row : row + 1], whole, rtol=0, atol=1e-6)


def test_token_by_token_equals_the_whole_beyond_training_rows(build: Build) -> None:
    model = build().eval()
    ids = torch.randint(0, 27, (2, 70), generator=torch.Generator().manual_seed(1))
    assert ids.shape[1] > model.context.max_sequence_length
    state, logits = None, []
    for t in range(70):
        output = model(ids[:, t : t + 1], state=state)
        state = output.state
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids).logits, rtol=0, atol=1e-5)


def test_a_padded_second_half_goes_on_from_the_state(build: Build) -> None:
    """The mask may cover what the state has read, as that of transformers' `generate` does."""
    model = build().eval()
    mask = torch.ones_like(IDS)
    mask[1, 8:] = 0
    state = model(IDS[:, :5]).state
    half = model(IDS[:, 5:], attention_mask=mask, state=state).logits
    whole = model(IDS, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(half[mask[:, 5:] == 1], whole[mask[:, 5:] == 1], rtol=0, atol=1e-5)


def test_a_row_without_a_real_token_is_no_trouble(build: Build) -> None:
    model, mask = build().eval(), torch.ones_like(IDS)
    mask[1] = 0
    output = model(IDS, attention_mask=mask, labels=IDS.masked_fill(mask == 0, -100))
    assert torch.isfinite(output.logits).all()
    torch.testing.assert_close(output.logits[[0, 2]], model(IDS[[0, 2]]).logits, rtol=0, atol=1e-6)


def test_what_is_remembered_is_never_of_half_precision(build: Build) -> None:
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IDS, labels=IDS)
    output.loss.backward()
    assert all(memory.dtype == torch.float32 for _, memory in output.state)
    assert output.loss.item() == pytest.approx(build().eval()(IDS, labels=IDS).loss.item(), rel=0.03)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_state_is_followed_by_any_mask_of_the_text(build: Build) -> None:
    """The mask covers the new tokens, or those before too; one row is all padding before, another one after."""
    model, ids, mask = build().eval(), IDS.repeat(2, 1), torch.ones(6, 10, dtype=torch.long)
    mask[1, 2:4] = mask[2, 7:] = mask[3, :8] = mask[4, 6:] = mask[5, :6] = 0
    whole, first = model(ids, attention_mask=mask), model(ids[:, :6], attention_mask=mask[:, :6])
    for given in (mask[:, 6:], mask):
        half, real = model(ids[:, 6:], attention_mask=given, state=first.state), mask[:, 6:] == 1
        torch.testing.assert_close(half.logits[real], whole.logits[:, 6:][real], rtol=0, atol=1e-5)
        for ours, theirs in zip(half.state, whole.state, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
