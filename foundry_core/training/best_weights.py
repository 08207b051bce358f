"""The weights of the best evaluation so far, kept so that training can go back to them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from foundry_core.checkpoints.kept_weights import Weights, copied, kept_entries, living_weights, load_kept, put_back
from foundry_core.checkpoints.state import WeightsState
from foundry_core.config.sections import TrainingConfig
from foundry_core.training.schedule import Verdict

_BEST = "best"


class BestWeights:
    """A copy of the weights of the best evaluation, under `training.restore_best`; nothing without it.

    Each checkpoint contains it beside the optimizer's state, so that a resumed run goes back to the same weights.

    Args:
        config: The training section.
        model: The model, on its device.
        state: Of which step the copy is; changed in place.
    """

    def __init__(self, config: TrainingConfig, model: nn.Module, state: WeightsState):
        self._when = config.restore_best
        self._weights, self._state = living_weights(model), state
        self._best: Weights = {}

    def load(self, file: Path, state: WeightsState) -> None:
        """Continue from a checkpoint. Raises CheckpointError if the optimizer's file lacks the best weights."""
        self._state = state
        if self._when == "never":
            state.best_step = None
        elif state.best_step is not None:
            self._best = load_kept(file, _BEST, self._weights)

    def observe(self, verdict: Verdict, step: int) -> None:
        """Copy the weights if they are the best so far; go back to the best if the learning rate was lowered."""
        if self._when == "never":
            return
        if verdict == "improved":
            self._best, self._state.best_step = copied(self._weights), step
        elif verdict == "lowered" and self._when == "when_lowered" and self._best:
            put_back(self._best, self._weights)

    def restore(self, step: int) -> bool:
        """Go back to the best weights at the end; return whether these are not those of the present step."""
        if not self._best or self._state.best_step == step:
            return False
        put_back(self._best, self._weights)
        return True

    def kept(self) -> Weights:
        """Return the best weights as a checkpoint stores them."""
        return kept_entries(_BEST, self._best)
