"""Mutants whose YAML does not decide what they are: keys that do nothing, weights and surroundings of other causes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from pydantic import Field, create_model
from torch import nn

from foundry_core import BuildContext, ExperimentConfig, ModelConfig
from foundry_core.schema import Activation

from .bases import AttentionModel, BidirectionalModel, RecurrentModel, SmallModelConfig, SmallSection
from .mutants import Mutants
from .packages import LIGHT, MODEL, RIGHT, Package

SETTINGS, WEIGHTS = Mutants(), Mutants()
"""Mutants of the checks `settings` and `initial-weights`."""


# Keys.


def with_key(key: str, annotation: Any, default: Any) -> type[ModelConfig]:
    """A schema with one key more, which no base reads."""
    extra: Any = {key: (annotation, Field(default, description="read by nobody"))}
    section = create_model("SmallSection", __base__=SmallSection, **extra)
    whole: Any = {"small": (section, Field(section(), description="sizes"))}
    return create_model("SmallModelConfig", __base__=SmallModelConfig, **whole)


def with_small(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    """A configuration with other settings than its YAML has."""
    model: Any = config.model
    small = model.small.model_copy(update=changes)
    return config.model_copy(update={"model": model.model_copy(update={"small": small})})


@SETTINGS.plant("a dropout that nobody reads", caught_by="settings")
class DropoutNotRead(AttentionModel):
    config_class = with_key("attention_dropout", float, 0.0)


@SETTINGS.plant("an activation that nobody reads", caught_by="settings")
class ActivationNotRead(RecurrentModel):
    config_class = with_key("activation", Activation, "gelu")


@SETTINGS.plant("an activation of any name that nobody reads", caught_by="settings")
class ActivationOfAnyName(AttentionModel):
    config_class = with_key("activation", str, "gelu")


@SETTINGS.plant("a switch that nobody reads", caught_by="settings")
class SwitchNotRead(BidirectionalModel):
    config_class = with_key("bias", bool, True)


@SETTINGS.plant("an optional width that nobody reads", caught_by="settings")
class OptionalWidthNotRead(AttentionModel):
    config_class = with_key("inner_width", int | None, None)


@SETTINGS.plant("a list that nobody reads", caught_by="settings")
class ListNotRead(RecurrentModel):
    config_class = with_key("widths", list[int], [16, 16])


@SETTINGS.plant("a width that is always the same", caught_by="settings")
class WidthIgnored(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(with_small(config, width=16), context)


@SETTINGS.plant("two layers at most", caught_by="settings")
class TwoLayersAtMost(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(with_small(config, num_layers=min(2, config.model.small.num_layers)), context)  # type: ignore[attr-defined]


@SETTINGS.plant("two layers at least", caught_by="settings")
class TwoLayersAtLeast(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(with_small(config, num_layers=max(2, config.model.small.num_layers)), context)  # type: ignore[attr-defined]


class RecordedSection(SmallSection):
    RECORDED = frozenset({"num_layers"})


class RecordedConfig(SmallModelConfig):
    small: RecordedSection = Field(RecordedSection(), description="sizes")


@SETTINGS.plant("a key that is said to be recorded only, and counts", caught_by="settings")
class RecordedKeyCounts(AttentionModel):
    config_class = RecordedConfig


# Weights.


@WEIGHTS.plant("layers that are copies of one", caught_by="initial-weights")
class CopiedLayers(AttentionModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.layers = nn.ModuleList(deepcopy(self.layers[0]) for _ in range(self.depth))


@WEIGHTS.plant("an output layer that starts as a copy of the embedding", caught_by="initial-weights")
class OutputThatIsACopy(RecurrentModel):
    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.output_layer.weight = nn.Parameter(self.embedding.weight.detach().clone())


# Packages: what shows in another process.


def _packages() -> Iterator[Package]:
    def plant(defect: str, caught_by: str, **changes: Any) -> Package:
        return RIGHT.but(defect=defect, caught_by=caught_by, **changes)

    in_order = """        self.read = nn.Linear(width, 2 * width)
        self.write = nn.Linear(width, width)
"""
    from_a_set = """        for name in {"read", "write"}:
            setattr(self, name, nn.Linear(width, 2 * width if name == "read" else width))
"""
    # For one pair in nine the order in a set depends on which was put in first, and no check can know that of a model.
    names = ("write", "speak", "say", "tell", "hand_on", "put_out", "give", "spread", "send")
    second = next(name for name in names if tuple({"read", name}) == tuple({name, "read"}))
    drawn_in_a_set = f"""        for layer in map(self.get_submodule, {{"read", "{second}"}}):
            nn.init.xavier_uniform_(layer.weight)
"""
    assert in_order in MODEL
    made = MODEL.replace(in_order, from_a_set)
    yield plant("layers made in the order of a set", "initial-weights", model=made)
    drawn = MODEL.replace(in_order, in_order + drawn_in_a_set).replace("self.write", f"self.{second}")
    yield plant("weights drawn in the order of a set", "initial-weights", model=drawn, committed=drawn)
    for statement in (
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.mkldnn.enabled = False",
        "torch.manual_seed(0)",
        "__import__('os').chdir('/usr')",
    ):
        yield plant(f"{statement} at import", "import-effects", model=f"{MODEL}\n{statement}\n")
    for statement in (
        "__import__('os').environ['TOKENIZERS_PARALLELISM'] = 'false'",
        "__import__('random').seed(0)",
        "__import__('os').chdir('/')",
        "__import__('pathlib').Path(__file__).with_suffix('.log').write_text('imported')",
    ):
        yield plant(f"{statement} in the light module", "import-effects", light=f"{LIGHT}\n{statement}\n")


PACKAGES = list(_packages())
