"""Mamba for foundry: the descriptor. `model` is imported when a model is built."""

from collections.abc import Iterator

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, Dropout, Layers, ModelConfig


def _steps_are_a_range(mamba: "MambaSection") -> Iterator[str]:
    if mamba.time_step_min > mamba.time_step_max:
        yield f"time_step_min ({mamba.time_step_min}) exceeds time_step_max ({mamba.time_step_max})"


class MambaSection(ConfigSection):
    """The section `model.mamba`."""

    RULES = (_steps_are_a_range,)

    hidden_size: int = Field(ge=1, le=2**20, description="width of the residual stream and of the token embeddings")
    num_layers: Layers = Field(description="number of blocks")
    expand: int = Field(2, ge=1, le=2**20, description="channels inside a block, as a multiple of hidden_size")
    state_size: int = Field(16, ge=1, le=2**20, description="state values per channel")
    conv_kernel: int = Field(4, ge=2, le=2**20, description="tokens in the causal convolution before the recurrence")
    time_step_rank: int | None = Field(
        None, ge=1, description="rank of the step-size projection; null for hidden_size / 16"
    )
    time_step_min: float = Field(0.001, gt=0, description="smallest initial step; small steps forget slowly")
    time_step_max: float = Field(0.1, gt=0, description="largest initial step")
    dropout: Dropout = Field(0.1, description="dropout on embeddings and after each block; 0 in the paper")
    tie_embeddings: bool = Field(True, description="use the input embeddings as output weights (Press and Wolf 2017)")


class MambaModelConfig(ModelConfig):
    """The section `model:` for mamba."""

    mamba: MambaSection = Field(description="sizes of the state-space model")


def _capabilities(config: MambaModelConfig) -> Capabilities:
    return Capabilities(
        objectives=("causal_lm",),
        generation=True,
        stateful=True,
        left_padding=True,
        gradient_checkpointing=True,
        unbounded_length=True,
        tied_embeddings=config.mamba.tie_embeddings,
    )


_SIZES = {"hidden_size": 24, "num_layers": 2, "state_size": 4, "dropout": 0.0}

mamba = Architecture(
    name="mamba",
    plugin_api_version=1,
    summary="selective state-space model, linear in the length of a text (Gu and Dao 2023)",
    config_class=MambaModelConfig,
    model_class="foundry_mamba.model:MambaLanguageModel",
    capabilities=_capabilities,
    default_tokenizer="sentencepiece",
    examples={"tiny": {"mamba": _SIZES}, "tiny_untied": {"mamba": {**_SIZES, "tie_embeddings": False}}},
    recipe={
        "data": {"batch_size": 16},
        "model": {"mamba": {"hidden_size": 128, "num_layers": 4, "state_size": 8}},
        "training": {"learning_rate": 3e-3},
    },
    base={"mamba": {"hidden_size": 768, "num_layers": 24, "state_size": 16}},
    standalone="standalone.py",
)
