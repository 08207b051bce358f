"""What to do when a run is out of memory."""

from __future__ import annotations

from foundry_core.config.experiment import ExperimentConfig


def smaller_batch(config: ExperimentConfig, stage: str) -> str:
    """Return the line that says how a run that is out of memory in a stage continues."""
    where = f"out of memory in {stage}, nothing is lost"
    size, accumulation = config.data.batch_size, config.training.gradient_accumulation_steps
    if size == 1:
        return f"{where}: give a smaller data.max_sequence_length, or training.gradient_checkpointing"
    # The largest part that leaves the step what it is: the same rows, summed in another grouping.
    fits = next(part for part in range(size // 2, 0, -1) if size % part == 0)
    changed = (f"data.batch_size={fits}", f"training.gradient_accumulation_steps={accumulation * size // fits}")
    if config.data.batching == "contiguous":
        return f"{where}: begin a new run with {' '.join(changed)}, which keeps the lanes that the text is read in"
    allowed = " ".join(f"--allow {setting.partition('=')[0]}" for setting in changed)
    return f"{where}: a batch of {fits} is expected to fit, go on with --resume {' '.join(changed)} {allowed}"
