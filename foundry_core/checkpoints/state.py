"""The state of training: `TrainState`, as a checkpoint stores it, and the checkpoint that it continues from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from foundry_core.data.order import StreamSizes
from foundry_core.errors import CheckpointError
from foundry_core.models.building import read_description
from foundry_core.run_folder import MANIFEST, TRAINER_STATE, checkpoint_name
from foundry_core.storage.manifest import parse_json, read_plain_file

_Whole: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Real: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Number: TypeAlias = _Whole | _Real
Plain: TypeAlias = bool | int | float | str | None


class OptimizerValues(TypedDict, total=False):
    """The state of an optimizer that is not a tensor, as `optimizer_state.optimizer_values` returns it."""

    values: dict[str, Plain]
    groups: list[dict[str, Plain]]


@dataclass
class ScheduleState:
    """State of a `plateau` schedule: factor of the rate, best test loss, evaluations in a row that were not better."""

    scale: Annotated[_Real, Field(ge=0, le=1)] = 1.0
    best: _Real | None = None
    stalled: Annotated[int, Field(strict=True, ge=0)] = 0


@dataclass
class WeightsState:
    """State that decides which weights are evaluated, saved and kept.

    losses: of all evaluations, if averaging waits for them. averaged: number of steps in the average; 0 before it
    begins. best_step: step of the best weights; None as long as none are kept.
    """

    losses: list[_Real] = field(default_factory=list)
    averaged: _Whole = 0
    best_step: _Whole | None = None


@dataclass
class TrainState:
    """The state of training. The bounds hold for states that are read from a checkpoint.

    samples: rows taken from the ordered stream since the start, which is the position in the data. ledger: running hash
    over their (epoch, row), the proof that none was lost or seen twice. log: the reports of each logged step and
    evaluation. precision, compile, kernels: what the run computes with, whatever `auto` would choose elsewhere.
    carried: how its tensors make up the carried state. tokens_by_corpus: those seen of each of several corpora.
    started_from: name, step and sha256 of the checkpoint of `training.start_from`.
    """

    step: _Whole = 0
    samples: _Whole = 0
    tokens_seen: _Whole = 0
    words_seen: _Whole = 0
    epoch: Annotated[_Real, Field(ge=0)] = 0.0
    ledger: Annotated[str, Field(strict=True, pattern="^([0-9a-f]{64})?$")] = ""
    optimizer: OptimizerValues = field(default_factory=lambda: OptimizerValues())
    data: dict[str, str] = field(default_factory=dict)
    stream: StreamSizes | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Annotated[bool, Field(strict=True)] = False
    kernels: Literal["fast", "reference"] = "fast"
    schedule: ScheduleState = field(default_factory=ScheduleState)
    weights: WeightsState = field(default_factory=WeightsState)
    started_from: dict[str, str | _Whole] | None = None
    scaler: dict[str, _Number] = field(default_factory=dict)
    wandb_run_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    carried: Any = None
    tokens_by_corpus: dict[str, _Whole] = field(default_factory=dict)
    log: list[dict[str, _Number]] = field(default_factory=list)

    @property
    def bytes_seen(self) -> int:
        """UTF-8 bytes of text seen so far, counted as the words are."""
        return self.stream.bytes_after(self.tokens_seen) if self.stream is not None else 0

    @property
    def seen(self) -> dict[str, int]:
        """How much text has been seen, by the names that reports have for it."""
        return {"tokens_seen": self.tokens_seen, "words_seen": self.words_seen, "bytes_seen": self.bytes_seen}


_STORED = TypeAdapter(TrainState)
_LATER: dict[str, Any] = {"carried": None, "tokens_by_corpus": {}, "weights": {}, "started_from": None}
"""Values of what earlier versions did not store, as it was for them."""


def read_state(folder: Path) -> TrainState:
    """Read the state that a checkpoint stores. Raises CheckpointError if it is damaged."""
    path = folder / TRAINER_STATE
    stored = parse_json(path, read_plain_file(path))
    try:
        content = {**stored["foundry"], "log": stored["log_history"]}
        if not {"compile", "kernels"} & content.keys():  # of a version that did not record them
            compiled = read_description(folder)["experiment"]["training"]["compile"]
            content |= {"compile": compiled, "kernels": "reference"}
        content = _LATER | content
        state = _STORED.validate_python(content)
        reasons = [f"{name} is missing or unknown" for name in {each.name for each in fields(state)} ^ content.keys()]
        reasons += [] if state.stream is not None else ["stream is missing"]
    except ValidationError as error:
        first = error.errors()[0]
        reasons = [f"{'.'.join(map(str, first['loc']))}: {first['msg']}"]
    except (KeyError, TypeError) as error:
        reasons = [f"{type(error).__name__}: {error}"]
    if reasons:
        raise CheckpointError(f"{path} is damaged or of another version: {min(reasons)}")
    if folder.name != checkpoint_name(state.step):
        raise CheckpointError(f"{path} belongs to step {state.step}, its folder to another one")
    return state


def unchecked_manifest(folder: Path) -> Any:
    """Return the manifest of a checkpoint without comparing any file with it; it ends with its own sha256."""
    return parse_json(folder / MANIFEST, read_plain_file(folder / MANIFEST))


def parent_entry(output_dir: Path, name: str | None) -> dict[str, str | None] | None:
    """Return what a checkpoint's manifest records about its parent: name and sha256, None without a parent.

    The sha256 distinguishes it from a checkpoint of the same name in another run; it is None if the parent was removed.
    """
    if name is None:
        return None
    try:
        return {"checkpoint": name, "sha256": str(unchecked_manifest(output_dir / name)["sha256"])}
    except (CheckpointError, KeyError, TypeError):  # it was removed while training ran, which continues
        return {"checkpoint": name, "sha256": None}
