"""Which numbers of processes can divide the micro-batches of a step. Light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import UsageError

if TYPE_CHECKING:
    from foundry_core.models.base import BaseLanguageModel


def check_division(config: ExperimentConfig, processes: int) -> None:
    """Check that a number of processes can divide the micro-batches of a step.

    Raises:
        UsageError: It cannot; names the numbers that can.
    """
    training, numbers = config.training, fitting(config)
    if processes in numbers:
        return
    if config.capabilities.trained_by_counting:
        raise UsageError(
            f"{config.model.architecture} is trained by counting, which one process does: {processes} cannot"
        )
    micro_batches, how = training.gradient_accumulation_steps, training.reduction
    which = ", ".join(map(str, numbers)) if len(numbers) > 1 else "only 1"
    raise UsageError(
        f"{processes} processes cannot divide the micro-batches of a step: with training.gradient_accumulation_steps "
        f"{micro_batches} and training.reduction {how} there can be {which}. A smaller data.batch_size and more steps "
        "of accumulation take the same rows in a step"
    )


def consecutive(own: int) -> int:
    """Return how many of a process's micro-batches an exact sum adds one after the other, before its tree begins.

    Args:
        own: The micro-batches of a whole step that the process has.
    """
    twos = own & -own  # the largest power of two that divides it
    return own // twos if own != twos else min(own, 2)


def fitting(config: ExperimentConfig) -> list[int]:
    """Return the numbers of processes that can divide a step."""
    training = config.training
    if config.capabilities.trained_by_counting:
        return [1]
    most = training.gradient_accumulation_steps
    return [each for each in range(1, most + 1) if _divides(each, most, training.reduction)]


def described(config: ExperimentConfig, processes: int) -> dict[str, Any]:
    """Return how a number of processes divides a step, by the names of these facts in `foundry plan`."""
    rows = config.data.batch_size * config.training.gradient_accumulation_steps
    numbers = {"processes": processes, "rows_of_a_process_in_a_step": rows // processes}
    return {**numbers, "processes_that_fit": fitting(config)}


def memory_held(config: ExperimentConfig, processes: int, model: BaseLanguageModel, state: int) -> int:
    """Return how many bytes a process holds of weights, what the optimizer remembers, gradients and their sums.

    Args:
        model: The model, before its reduction has it.
        state: The bytes of the weights and of what the optimizer remembers, of the whole model.
    """
    gradients, how = model.get_memory_footprint().gradients, config.training.reduction
    own = config.training.gradient_accumulation_steps // processes
    if how == "exact":
        sums = (own // consecutive(own)).bit_length() - 1
        # What the processes exchange, and what they receive.
        return state + gradients * (1 + sums + (2 if processes > 1 else 0))
    if how == "fast" or processes == 1:  # buckets as large as the gradient
        return state + gradients * (1 + (processes > 1))
    # What is put together at a time, with its gradient: one block, and what is in no block.
    blocks = [sum(each.nbytes for each in block.parameters()) for block in model.blocks_to_shard()]
    together = model.get_memory_footprint().parameters - sum(blocks) + max(blocks, default=0)
    return -(-(state + gradients) // processes) + 2 * together


def _divides(processes: int, micro_batches: int, reduction: str) -> bool:
    """Check that each process gets as many micro-batches, and in an exact sum a subtree of it."""
    subtrees = reduction != "exact" or processes == micro_batches or processes & (processes - 1) == 0
    return micro_batches % processes == 0 and subtrees
