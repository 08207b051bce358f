"""Descriptors of learning-rate schedules: core's own, and those of the hook `foundry_schedules`. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry_core.registry.checks import check_import_string, check_name

if TYPE_CHECKING:
    from foundry_core.schema import ConfigSection


@dataclass(frozen=True)
class LearningRateSchedule:
    """A schedule of the learning rate. Raises PluginError for an invalid name or function.

    Attributes:
        name: The value of `training.lr_scheduler`.
        function: Import string of a function `f(step, total, training)` that returns the factor by which the peak,
            `training.learning_rate`, is multiplied in that step: a finite number of at least 0. Core warms up; steps
            are counted from 1 after the warm-up, and `total` is their number. `training` is the section of the
            configuration. The factor must depend on nothing else, so that a resumed run is bit-exact. None: core's own.
        settings: Schema of `training.schedule_settings`; the function finds an instance there. None: it takes none.
    """

    name: str
    summary: str
    function: str | None = None
    settings: type[ConfigSection] | None = None

    def __post_init__(self) -> None:
        check_name("schedule", self.name)
        if self.function is not None:
            check_import_string(f"the schedule '{self.name}': its function", self.function)


CORE_SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        LearningRateSchedule("constant", "the peak to the end"),
        LearningRateSchedule("cosine", "down to the floor along half a cosine (Loshchilov and Hutter 2017)"),
        LearningRateSchedule("inverse_sqrt", "falls with the root of the step (Vaswani et al. 2017)"),
        LearningRateSchedule("linear", "down to the floor along a line"),
        LearningRateSchedule("plateau", "lower whenever evaluations stop improving"),
        LearningRateSchedule("step", "lower in each epoch after the first few (Zaremba et al. 2014)"),
        LearningRateSchedule("wsd", "stable, then down to the floor along a line (Hu et al. 2024)"),
    )
}

FALLING = ("linear", "cosine", "wsd")
"""Core's schedules with a decay of a given length."""
