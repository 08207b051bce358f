"""Training by counting: the same rows in the same steps with the same checkpoints, without gradients."""

from __future__ import annotations

import numpy as np
import torch

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.workers import Batch
from foundry_core.errors import warn
from foundry_core.evaluation.inference import to_device
from foundry_core.models.loss import language_loss
from foundry_core.training.trainer import Trainer

_LOGGED_PER_DOUBLING = 8


def trainer_of(config: ExperimentConfig) -> type[Trainer]:
    """Return the trainer of an architecture: one for gradients, or one that counts."""
    return CountingTrainer if config.capabilities.trained_by_counting else Trainer


class CountingTrainer(Trainer):
    """Trains a model that declares `trained_by_counting`.

    Each row is counted in the first epoch and in none after it: the same text again would double all counts and add no
    evidence. So a model of ten epochs is that of one; other architectures read the text ten times to learn as much.

    The loss of a step is that of its rows before any of them is counted. To predict from counts that have just changed
    takes time that grows with their number: fewer steps are reported, the further apart the more have been taken.
    """

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": []}], lr=0.0)

    def _begin(self) -> None:
        if self.plan.total_samples > self.data.order.size:
            epochs = f"{self.plan.budget['epochs']:.4g} epochs"
            warn(f"{self.model.model_type} is trained by counting: of {epochs}, it counts the first and no other")
        super()._begin()

    def _is_logged(self, step: int) -> bool:
        turn, rest = divmod(step, self.config.logging.log_every_steps)
        apart = max(turn // _LOGGED_PER_DOUBLING, 1).bit_length() - 1
        return step == self.plan.total_steps or (rest == 0 and turn % 2**apart == 0)

    def take_step(self, micro_batches: list[Batch]) -> tuple[dict[str, float], float, float]:
        """Count the rows of a step and advance the state. Return its loss, if it is logged, and zeros."""
        logged, first, loss, predicted = self._is_logged(self.state.step + 1), self.state.samples, 0.0, 0
        counted: list[Batch] = []
        with torch.no_grad():
            for number, batch in enumerate(micro_batches):
                given, rows = to_device(batch, self.device), len(batch["input_ids"])
                carried = self.lanes.into(batch, number, self.state.samples)
                if carried is not None:
                    given = carried[0].given(given, carried[1])
                    # A model that gets `read` computes its state and nothing else.
                    carried[0].advance(self.model(**given, read=lambda *_: None).state)
                if logged:
                    output = self.model(**given, reduction="sum", return_logits=False)
                    loss, predicted = loss + float(language_loss(output)), predicted + int(output.count)
                epochs, _ = self.data.order.at(np.arange(first, first + rows))
                counted.append(_rows_of(given, torch.from_numpy(epochs == 0)))
                first += rows
            for given in counted:
                if len(given["input_ids"]):
                    self.model.count(**given)
        self._advance(first - self.state.samples)
        return ({"loss": loss / max(predicted, 1)} if logged else {}), 0.0, 0.0


def _rows_of(batch: Batch, chosen_B: torch.Tensor) -> Batch:
    """Return the chosen rows of a batch; one in which all are chosen itself."""
    if bool(chosen_B.all()):
        return batch
    return {name: each[chosen_B.to(each.device)] for name, each in batch.items() if isinstance(each, torch.Tensor)}
