"""Checkpoints: a transformers model folder with the optimizer, the position and a manifest beside it.

No pickle, for reading or writing. A checkpoint is published whole or not at all (`storage`), and loaded only when
every file matches its manifest.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from pydantic import Field, TypeAdapter, ValidationError

from foundry_core import __version__
from foundry_core.checkpoints.lineage import Lineage, Position
from foundry_core.checkpoints.optimizer_state import load_optimizer, optimizer_tensors
from foundry_core.config.experiment import ExperimentConfig, load_config
from foundry_core.data.token_file import StreamSizes
from foundry_core.errors import CheckpointError, FoundryError, UsageError, did_you_mean
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.folder import (
    installed_plugin,
    load_weights,
    model_files,
    read_description,
    release,
    stored_tensors,
    weights_file,
)
from foundry_core.registry.objective import Objective
from foundry_core.run_folder import CHECKPOINT, MANIFEST, OPTIMIZER, TRAINER_STATE, WEIGHTS, checkpoint_name
from foundry_core.storage.files import StorageError, publish_folder, remove_set_aside, set_aside
from foundry_core.storage.manifest import parse_json, read_manifest, read_plain_file
from foundry_core.tokenization.tokenizer import tokenizer_files
from foundry_core.training.optim import ScheduleState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Settings that may differ when a run goes on: where and how often it reports and saves, which changes no weight.
# Nor does an observer's module; who ships what is trained with is compared by itself.
FREE = ("logging", "plugins", "training.output_dir", "training.checkpoints", "training.num_workers", "training.device")
_SHOWN = 200  # characters of a value in a message

_Whole: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Real: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Number: TypeAlias = _Whole | _Real


@dataclass
class TrainState:
    """Where training stands. samples: rows taken from the ordered stream since the start, which is the position in the
    data. ledger: running hash over their (epoch, row), the proof that none was lost or seen twice. optimizer: what it
    remembers beside tensors. log: the reports of each logged step and evaluation. The bounds are those that one read
    from a checkpoint has to keep.
    """

    step: _Whole = 0
    samples: _Whole = 0
    tokens_seen: _Whole = 0
    words_seen: _Whole = 0
    epoch: Annotated[_Real, Field(ge=0)] = 0.0
    ledger: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    optimizer: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    stream: StreamSizes | None = None
    precision: str = ""
    schedule: ScheduleState = field(default_factory=ScheduleState)
    scaler: dict[str, _Number] = field(default_factory=dict)
    wandb_run_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    log: list[dict[str, _Number]] = field(default_factory=list)


_STORED_STATE = TypeAdapter(TrainState)


@cache
def versions() -> Mapping[str, str]:
    """Versions that a result depends on; read once, because that takes longer than saving a small model."""
    found = {"python": sys.version.split()[0], "foundry-core": __version__}
    found |= {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "sentencepiece")}
    return MappingProxyType(found)


def environment(device: torch.device) -> dict[str, str]:
    """What a bit-identical result depends on beside configuration and data."""
    return {**versions(), "threads": str(torch.get_num_threads()), "device": device.type}


def checkpoint_tokenizer(tokenizer: PreTrainedTokenizerFast, objective: Objective) -> PreTrainedTokenizerFast:
    """The tokenizer as a checkpoint carries it: its bos is the token that a document really started with in training.

    In a causal stream that is the separator. Scorers prepend bos; a `<s>` that was never trained would spoil the
    first prediction.
    """
    if objective.layout != "overlap":
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = tokenizer.eos_token if tokenizer.eos_token is not None else tokenizer.sep_token
    return tokenizer


@dataclass(frozen=True)
class CheckpointTensors:
    """weights: the model's, by their names in its file. optimizer: its state as `<kind>/<parameter name>`."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: BaseLanguageModel, optimizer: torch.optim.Optimizer) -> CheckpointTensors:
        """The living tensors: training on changes them."""
        return cls(stored_tensors(model), optimizer_tensors(model, optimizer))


class TensorBuffers:
    """Room on the CPU for a consistent copy of a checkpoint's tensors, allocated once and used for every save."""

    def __init__(self) -> None:
        self._room: dict[str, torch.Tensor] = {}

    def copy(self, tensors: CheckpointTensors) -> CheckpointTensors:
        """A copy that training on does not change, valid until the next one."""
        copied = CheckpointTensors(
            {name: self._filled(f"weights/{name}", tensor) for name, tensor in tensors.weights.items()},
            {name: self._filled(f"optimizer/{name}", tensor) for name, tensor in tensors.optimizer.items()},
        )
        if any(tensor.is_cuda for tensor in tensors.weights.values()):
            torch.cuda.synchronize()
        return copied

    def _filled(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        room = self._room.get(key)
        if room is None or room.shape != tensor.shape:
            # Pinned memory is what a GPU copies into without waiting.
            room = self._room[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return room.copy_(tensor, non_blocking=True)


def fixed_files(model: BaseLanguageModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """The files that are the same in every checkpoint of a run: what describes the model, and the tokenizer."""
    return model_files(model) | tokenizer_files(checkpoint_tokenizer(tokenizer, model.context.objective))


def save_checkpoint(
    output_dir: Path,
    fixed: Mapping[str, bytes],
    tensors: CheckpointTensors,
    state: TrainState,
    *,
    facts: Mapping[str, Any],
) -> Path:
    """Publish `checkpoint-<step>`; returns its folder once it is safely on the disk.

    fixed: of `fixed_files`. tensors: of `CheckpointTensors.of`, or a copy of them. facts: what the manifest says beside
    the step and the files: parent, ephemeral, environment; order (seed, rows in a step) becomes a part of its lineage.
    """
    target = output_dir / checkpoint_name(state.step)
    said = {key: value for key, value in facts.items() if key != "order"}
    lineage = Lineage.of(
        output_dir,
        facts["parent"],
        position(state),
        order=facts["order"],
        data={"data": state.data, "stream": asdict(state)["stream"]},
    )
    with publish_folder(target, {"step": state.step, **said, **lineage.facts()}) as sink:
        for name, content in fixed.items():
            sink.write(name, content)
        sink.write(WEIGHTS, weights_file(tensors.weights))
        sink.write(OPTIMIZER, weights_file(tensors.optimizer))
        facts_of_trainer = {
            "global_step": state.step,
            "epoch": state.epoch,
            "num_input_tokens_seen": state.tokens_seen,
            "log_history": state.log,
            "foundry": {key: value for key, value in asdict(state).items() if key != "log"},
        }
        sink.write(TRAINER_STATE, (json.dumps(facts_of_trainer, indent=1) + "\n").encode())
    return target


def position(state: TrainState) -> Position:
    """Where a state stands in its data."""
    return Position(state.step, state.samples, state.tokens_seen, state.ledger)


def environment_changes(folder: Path, device: torch.device) -> list[str]:
    """A phrase for each thing of `environment` that is not what it was when a checkpoint was saved."""
    before = read_manifest(folder).get("environment")
    if not isinstance(before, Mapping):
        raise CheckpointError(f"{folder / MANIFEST} does not say in which environment it was saved")
    return [
        f"{name} was {before.get(name)}, is {now}"
        for name, now in environment(device).items()
        if before.get(name) != now
    ]


def is_ephemeral(folder: Path) -> bool:
    """Whether a checkpoint was saved for crash safety only; one whose manifest cannot be read is not taken for one."""
    try:
        return parse_json(folder / MANIFEST, read_plain_file(folder / MANIFEST))["ephemeral"] is True
    except (CheckpointError, KeyError, TypeError):
        return False


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest step first; nothing is read."""
    return sorted(
        (p for p in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.match(p.name) and p.is_dir()), key=_step
    )


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def check_whole(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every file of which is as it was published, under the name it was published."""
    manifest = read_manifest(folder)
    if folder.name != f"checkpoint-{manifest.get('step')!r}":
        raise CheckpointError(f"{folder} is not what its name says: its manifest says step {manifest.get('step')!r}")
    return manifest


def newest_valid(output_dir: str | Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose every file matches its manifest, and a line for each newer one passed over.

    Raises CheckpointError when there is none.
    """
    passed_over = []
    for folder in reversed(checkpoints(output_dir)):
        try:
            check_whole(folder)
        except CheckpointError as error:
            passed_over.append(f"{folder.name} is passed over: {error}")
            continue
        return folder, passed_over
    reasons = "".join(f"; {line}" for line in passed_over)
    raise CheckpointError(f"nothing to resume in {output_dir}: it holds no valid checkpoint{reasons}")


def load_checkpoint(
    folder: Path,
    model: BaseLanguageModel,
    optimizer: torch.optim.Optimizer,
    *,
    config: ExperimentConfig,
    fresh: TrainState,
    allowed: Iterable[str] = (),
) -> TrainState:
    """Put a checkpoint into the model and the optimizer that will train on; returns the position.

    fresh: the state that a new run would begin with, for its data and its precision. Raises CheckpointError when the
    configuration, the data or the precision differ from those it was trained with, listing what differs; `allowed`
    names keys that may.
    """
    allowed = tuple(allowed)
    check_whole(folder)
    _check_allowed(allowed, config.resolved())
    description = read_description(folder)
    differences = changed_settings(description["experiment"], config.resolved())
    plugin = installed_plugin(config.model.architecture)
    if description.get("plugin") != plugin:
        differences["plugin"] = f"plugin was {release(description.get('plugin'))}, is {release(plugin)}"
    for kind, provider in config.providers.items():
        before = description.get("providers", {}).get(kind, provider)
        if before != provider:
            differences[f"plugin.{kind}"] = f"the plugin of the {kind} was {before}, is {provider}"
    barred = [line for key, line in differences.items() if not covered(key, (*FREE, *allowed))]
    if barred:
        raise CheckpointError(
            f"{folder} was trained with other settings: {'; '.join(barred)}. Put them back, or allow a key by name: "
            "--allow KEY"
        )
    state = read_state(folder)
    if state.precision != fresh.precision and not covered("training.precision", allowed):
        raise CheckpointError(
            f"{folder} was trained in {state.precision}, here training.precision comes to {fresh.precision}: set it, "
            "or allow it: --allow training.precision"
        )
    changed = sorted(key for key in {*state.data, *fresh.data} if state.data.get(key) != fresh.data.get(key))
    if changed and not covered("data", allowed):
        raise CheckpointError(
            f"{folder} was trained on other data: {' and '.join(changed)} changed since. Put it back, or allow it: "
            "--allow data"
        )
    state.data, state.stream, state.precision = fresh.data, fresh.stream, fresh.precision
    load_weights(model, folder / WEIGHTS)
    # What one optimizer remembers means nothing to another: it begins anew where the change was allowed.
    if "training.optimizer" not in differences:
        load_optimizer(folder / OPTIMIZER, state.optimizer, model, optimizer, begun=state.step > 0)
    return state


def read_state(folder: Path) -> TrainState:
    """The position that a checkpoint stores. Raises CheckpointError when it is not one."""
    path = folder / TRAINER_STATE
    stored = parse_json(path, read_plain_file(path))
    try:
        content = {**stored["foundry"], "log": stored["log_history"]}
        differing = {each.name for each in fields(TrainState)} ^ content.keys()
        state = _STORED_STATE.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CheckpointError(f"{path} is damaged or of another version: {reason}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or of another version: {type(error).__name__}: {error}") from error
    if differing or state.stream is None:
        reason = f"{min(differing)} is missing or unknown" if differing else "stream is missing"
        raise CheckpointError(f"{path} is damaged or of another version: {reason}")
    if folder.name != checkpoint_name(state.step):
        raise CheckpointError(f"{path} says step {state.step}, its folder another one")
    return state


def _check_allowed(allowed: Iterable[str], settings: Mapping[str, Any]) -> None:
    """A misspelt key would allow nothing, and the refusal that follows would not say why."""
    known = ["plugin", *_names(settings)]
    for name in allowed:
        if name not in known:
            raise UsageError(f"--allow {name}: there is no such key or section.{did_you_mean(name, known)}")


def _names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key and section with its dotted name."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def covered(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is among names of keys and sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose values differ; a key that was added after `old` was written has its default there."""
    found = config_differences(old, new)
    if found:
        with suppress(FoundryError):  # settings that this version refuses are compared as they are
            found = config_differences(load_config(old).resolved(), new)
    return found


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Keys whose values differ, each with a phrase that says how."""
    found: dict[str, str] = {}
    for key in sorted({*old, *new}):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= config_differences(before, after, f"{name}.")
        elif before != after:
            found[name] = f"{name} was {_shown(before)}, is {_shown(after)}"
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def retire(
    output_dir: Path, keep: int | None, newest: Path, *, ephemeral: Collection[Path], damaged: Collection[Path]
) -> list[str]:
    """Remove what retention lets go of the checkpoints older than `newest`: the ephemeral ones, and those older than
    the last `keep` permanent ones (step 0 stays).

    newest: known to be whole, because it has just been published or loaded. damaged: those that were passed over; they
    do not count among the last. Returns a line for each folder that could not be removed.
    """
    older = [path for path in checkpoints(output_dir) if _step(path) < _step(newest)]
    permanent = [path for path in (*older, newest) if path not in ephemeral and _step(path) > 0]
    last = [path for path in permanent if path not in damaged][-keep:] if keep is not None else permanent
    victims = [path for path in older if path in ephemeral]
    victims += permanent[: permanent.index(last[0])] if last else []
    problems = []
    for victim in victims:
        try:
            set_aside(victim)
        except StorageError as error:
            problems.append(str(error))
    return problems + remove_set_aside(output_dir)
