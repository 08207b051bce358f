"""Several processes of one run: the same sums, the same bits, one line for what goes wrong, and none is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import reduce
from importlib.metadata import version
from itertools import product
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from foundry_core import BaseLanguageModel, create_model, run
from foundry_core.checkpoints import compatibility
from foundry_core.checkpoints.checkpoint import checkpoints
from foundry_core.cli import main
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.errors import DataError, FoundryError, UsageError
from foundry_core.processes import World, joined
from foundry_core.registry.hooks import hook_manager
from foundry_core.storage import files as storage
from foundry_core.storage.lock import RunLock
from foundry_core.training.division import check_division
from foundry_core.training.gradients import ExactReduction, added
from foundry_core.training.notifier import Notifier
from foundry_core.training.trainer import Trainer
from tests.faults.harness import Fault, ObservedDisk
from tests.interruption import outcome
from tests.together import Left, Together, trained

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
DROPOUT: dict[str, Any] = {"layers": 1, "embedding_size": 16, "hidden_size": 16, "intermediate_hidden_size": 32}
DROPOUT |= {"attention_heads": 2, "dropout": 0.1, "attention_dropout": 0.1}
SMALL: dict[str, Any] = {"train_steps": 5, "gradient_accumulation_steps": 4, "checkpoints": {"every_steps": 2}}


# The sum of a step


def leaves(micro_batches: int, there: int) -> list[list[torch.Tensor | None]]:
    """Return the gradients of two parameters in each micro-batch, None in some, -0.0 in many, and nowhere alike."""
    chance = torch.Generator().manual_seed(100 * micro_batches + there)
    found: list[list[torch.Tensor | None]] = []
    for number in range(there):
        values = torch.randn(7, generator=chance) * 10 ** torch.randint(-6, 6, (7,), generator=chance)
        values[torch.rand(7, generator=chance) < 0.3] = -0.0
        found.append([values, values[:3] * 3 if number % 3 == 1 else None, None])
    return found


def plain(slots: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the sum by its definition: of halves while the number is even, else one after the other."""
    half, odd = divmod(len(slots), 2)
    parts = slots if odd or not half else [plain(slots[:half]), plain(slots[half:])]
    there = [part for part in parts if part is not None]
    return reduce(torch.add, there) if there else None


def reduced(world: World, micro_batches: int, there: int) -> list[bytes | None]:
    """Return the bits of the gradients that a step of some micro-batches leaves in the parameters."""
    model: Any = nn.ParameterList([torch.zeros(7), torch.zeros(3), torch.zeros(2)])
    reduction = ExactReduction(model, world, micro_batches)
    own = micro_batches // world.size
    for _ in range(2):  # what the step before has left changes nothing
        for parameter in model:
            parameter.grad = None
        reduction.begin(there)
        for gradients in leaves(micro_batches, there)[world.rank * own : (world.rank + 1) * own]:
            with reduction.micro_batch(last=False):
                pairs = zip(model, gradients, strict=True)
                torch.autograd.backward(sum((p * g).sum() for p, g in pairs if g is not None))
        reduction.finish()
    return [bits(parameter.grad) for parameter in model]


def bits(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.contiguous().numpy().tobytes()


def fits(micro_batches: int, processes: int) -> bool:
    return processes == 1 or (
        micro_batches % processes == 0 and (processes == micro_batches or processes & (processes - 1) == 0)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_the_sum_of_a_step_is_the_same_tree_everywhere(size: int) -> None:
    cases = [(n, there) for n, k in product(range(1, 17), range(16)) if fits(n, size) and (there := n - k) > 0]
    expected = [
        [bits(plain([*column, *[None] * (n - there)])) for column in zip(*leaves(n, there), strict=True)]
        for n, there in cases
    ]

    def life(tell: Any) -> None:
        with joined(lambda: CPU) as world:
            found = [reduced(world, *case) for case in cases]
            tell(("wrong", [case for case, a, b in zip(cases, found, expected, strict=True) if a != b]))

    if size == 1:
        assert [reduced(World(), *case) for case in cases] == expected
        return
    together = Together(size, life)
    told = [child.hears() for child in together.children]
    assert told == [("wrong", [])] * size
    assert together.wait() == [Left(0, [])] * size
    assert (size, size) in cases


def test_the_tree_is_that_of_its_definition() -> None:
    for count in range(1, 30):
        parts = [part for part, *_ in leaves(count, count) if part is not None]
        assert bits(added(parts)) == bits(plain([*parts]))


@pytest.mark.parametrize(
    ("micro_batches", "reduction", "fitting"),
    [
        (1, "exact", []),
        (3, "exact", [3]),
        (4, "fast", [2, 4]),
        (12, "exact", [2, 4, 12]),
        (12, "fast", [2, 3, 4, 6, 12]),
    ],
)
def test_a_number_of_processes_that_does_not_fit_is_refused(
    experiment: Any, tmp_path: Any, micro_batches: int, reduction: str, fitting: list[int]
) -> None:
    settings = {"gradient_accumulation_steps": micro_batches, "reduction": reduction}
    config = experiment("gpt2", tmp_path, training=settings)
    for processes in range(1, 14):
        if processes in [1, *fitting]:
            check_division(config, processes)
        else:
            named = ", ".join(map(str, [1, *fitting])) if fitting else "only 1"
            with pytest.raises(UsageError, match=f"there can be {named}. "):
                check_division(config, processes)


# Runs


@pytest.mark.long
def test_a_run_on_two_processes_has_the_bits_of_one(
    experiment: Any, tmp_path: Any, one_thread: None, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = experiment("gpt2", tmp_path / "alone", model={"transformer": DROPOUT}, training=SMALL)
    run(alone, quiet=True)
    shared = experiment("gpt2", tmp_path / "shared", model={"transformer": DROPOUT}, training=SMALL)
    file = tmp_path / "shared.yaml"
    file.write_text(yaml.safe_dump(shared.resolved(), sort_keys=False))
    command = [sys.executable, "-m", "foundry_core.cli", "train", str(file), "--quiet", "--processes", "2"]
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("trained 5 steps") == 1
    assert outcome(shared) == outcome(alone)
    # Refused before anything is started.
    assert main(["train", str(file), "training.gradient_accumulation_steps=3", "--processes", "2"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: 2 processes cannot divide the micro-batches of a step: with training.gradient_accum")
    assert "there can be 1, 3" in line


def test_saving_in_the_background_on_two_has_the_bits_of_one(experiment: Any, tmp_path: Any) -> None:
    """On a CPU no run saves so by itself: each process makes its trainer here."""
    training = SMALL | {"checkpoints": {"every_steps": 1, "keep_optimizer": "all"}}

    def files(processes: int, background: bool) -> dict[str, bytes]:
        name = f"{processes}-{background}"
        config = experiment("gpt2", tmp_path / name, model={"transformer": DROPOUT}, training=training)

        def life(tell: Any) -> None:
            with joined(lambda: CPU) as world:
                with world.in_turn("preparing the data"):
                    corpora = experiment_corpora(config)
                    tokenizer = experiment_tokenizer(config, corpora.train)
                    rows = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
                notifier, model = Notifier(hook_manager([]), world), create_model(config, tokenizer)
                Trainer(config, model, tokenizer, rows, notifier, world=world, background=background).train()

        assert Together(processes, life).wait() == [Left(0, [])] * processes
        saved = [folder for folder in checkpoints(config.training.output_dir) if folder.name != "checkpoint-0"]
        names = ("model.safetensors", "optimizer.safetensors", "trainer_state.json")
        return {f"{folder.name}/{name}": (folder / name).read_bytes() for folder in saved for name in names}

    alone = files(1, False)
    assert len(alone) == 3 * SMALL["train_steps"]
    assert files(2, True) == files(2, False) == alone


def failing_at(passes: int, error: FoundryError) -> None:
    """Let a forward pass of training fail, counted from 1."""
    done = 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal done
        done += isinstance(module, BaseLanguageModel) and module.training
        if done == passes:
            raise error

    register_module_forward_pre_hook(count)


def other_version(name: str) -> str:
    return "0.1" if name == "transformers" else version(name)


FAILURES: dict[str, tuple[tuple[int, ...], int, str]] = {
    "fails in a step": ((1,), 4, "no such row"),
    "runs out of disk": ((0,), 8, "cannot write {run}/"),
    "lacks its corpus": ((1,), 4, "{gone}"),
    "lacks its device": ((0, 1), 2, "training.device: "),
    "finds the run in use": ((0,), 8, "{run} is in use by pid"),
    "has another version": ((1,), 2, "the processes of this run differ in the version of transformers: "),
    "has numbers that are not finite": ((0, 1), 7, "stopped before the update of step 2: loss nan"),
    "fails as the others do": ((0, 1), 4, "no such row"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_goes_wrong_in_a_process_is_one_line_and_ends_all(
    experiment: Any, tmp_path: Any, corpus: Any, what: str
) -> None:
    ranks, code, begins = FAILURES[what]
    gone = tmp_path / "gone.txt"
    gone.write_bytes(corpus.train.read_bytes())
    config = experiment("gpt2", tmp_path, training=SMALL)
    own = config
    if what == "lacks its corpus":
        own = experiment("gpt2", tmp_path, training=SMALL, data={"training_corpus": str(gone)})
        gone.unlink()
    if what == "lacks its device":
        config = own = experiment("gpt2", tmp_path, training={**SMALL, "device": "mps"})
    if what == "has numbers that are not finite":
        config = own = experiment("gpt2", tmp_path, training={**SMALL, "learning_rate": 1e30, "max_grad_norm": None})

    def ordinary(tell: Any) -> None:
        run(config, quiet=True)

    def failing(tell: Any) -> None:
        if "fails" in what:
            failing_at(3, DataError("no such row"))
        if what == "runs out of disk":
            storage.disk = ObservedDisk(tell, Fault(60, "ENOSPC", lasting=True))
        if what == "has another version":
            compatibility.versions.cache_clear()
            compatibility.metadata.version = other_version  # type: ignore[attr-defined]  # in this child alone
        run(own, quiet=True)

    with RunLock(config.training.output_dir) if "in use" in what else nullcontext():
        begun = time.monotonic()
        ended = Together(2, [failing if rank in ranks else ordinary for rank in range(2)]).wait()
    assert time.monotonic() - begun < 30
    assert [each.code for each in ended] == [code, code]
    (line,) = ended[0].lines + ended[1].lines
    assert line.startswith(begins.format(run=config.training.output_dir, gone=gone))


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_at_one_step(
    experiment: Any, tmp_path: Any, one_thread: None, rank: int
) -> None:
    settings = {**SMALL, "train_steps": 24, "checkpoints": {"every_steps": 24}}
    config = experiment("lstm", tmp_path / "stopped", training=settings, logging={"log_every_steps": 1})
    together = trained(config, 2)
    while together.children[0].hears() != ("step", 3):
        pass
    for _ in range(2):  # a scheduler and what started the processes
        together.children[rank].signal(signal.SIGTERM)
    ended = together.wait()
    assert [each.code for each in ended] == [75, 75]
    (line,) = ended[0].lines + ended[1].lines
    newest = checkpoints(config.training.output_dir)[-1].name
    assert line.startswith("stopped by SIGTERM after step ")
    assert line.endswith(f" of 24: go on from {newest} with --resume")
    run(config, resume=True, quiet=True)
    alone = experiment("lstm", tmp_path / "alone", training=settings, logging={"log_every_steps": 1})
    run(alone, quiet=True)
    assert outcome(config) == outcome(alone)
