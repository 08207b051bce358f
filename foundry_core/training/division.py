"""Which numbers of processes can divide the micro-batches of a step. Light."""

from __future__ import annotations

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.errors import UsageError


def check_division(config: ExperimentConfig, processes: int) -> None:
    """Check that a number of processes can divide the micro-batches of a step.

    Raises:
        UsageError: It cannot; names the numbers that can.
    """
    if processes == 1:
        return
    training = config.training
    if config.capabilities.trained_by_counting:
        raise UsageError(
            f"{config.model.architecture} is trained by counting, which one process does: {processes} cannot"
        )
    micro_batches = training.gradient_accumulation_steps
    fitting = [each for each in range(2, micro_batches + 1) if _divides(each, micro_batches, training.reduction)]
    if processes not in fitting:
        which, how = f"1, {', '.join(map(str, fitting))}" if fitting else "only 1", training.reduction
        raise UsageError(
            f"{processes} processes cannot divide the micro-batches of a step: with "
            f"training.gradient_accumulation_steps {micro_batches} and training.reduction {how} there can "
            f"be {which}. A smaller data.batch_size and more steps of accumulation take the same rows in a step"
        )


def _divides(processes: int, micro_batches: int, reduction: str) -> bool:
    """Check that each process gets as many micro-batches, and in an exact sum a subtree of it."""
    subtrees = reduction != "exact" or processes == micro_batches or processes & (processes - 1) == 0
    return micro_batches % processes == 0 and subtrees
