"""LSTM, GRU and plain RNN for foundry: three descriptors. `model` is imported when a model is built."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, Dropout, Layers, ModelConfig

RNNType = Literal["lstm", "gru", "rnn"]


class RNNSection(ConfigSection):
    """The section `model.rnn`."""

    rnn_type: RNNType | None = Field(None, description="same as model.architecture; may be left out")
    embedding_size: int = Field(ge=1, le=2**20, description="width of the token embeddings")
    hidden_size: int = Field(ge=1, le=2**20, description="width of the recurrent state, in each direction")
    num_layers: Layers = Field(description="number of stacked recurrent layers")
    bidirectional: bool = Field(False, description="read in both directions; only for masked_lm")
    dropout: Dropout = Field(0.1, description="dropout on embeddings, between layers and before the output")
    tie_embeddings: bool = Field(False, description="use the input embeddings as output weights (Press and Wolf 2017)")


def _one_cell(model: "RNNModelConfig") -> Iterator[str]:
    kind = model.rnn.rnn_type
    if kind not in (None, model.architecture):
        yield (
            f"rnn.rnn_type is {kind} under architecture: {model.architecture}; leave rnn_type out or make them agree"
        )


class RNNModelConfig(ModelConfig):
    """The section `model:` for lstm, gru and rnn."""

    RULES = (_one_cell,)

    rnn: RNNSection = Field(description="sizes of the recurrent network")


def _capabilities(config: RNNModelConfig) -> Capabilities:
    both = config.rnn.bidirectional
    return Capabilities(
        objectives=("masked_lm",) if both else ("causal_lm", "masked_lm"),
        generation=not both,
        stateful=not both,
        unbounded_length=True,
        left_padding=True,
        bidirectional=both,
        tied_embeddings=config.rnn.tie_embeddings,
    )


def _descriptor(name: RNNType, summary: str, learning_rate: float) -> Architecture:
    sizes: dict[str, Any] = {"embedding_size": 24, "hidden_size": 32, "num_layers": 2, "dropout": 0.0}
    return Architecture(
        name=name,
        plugin_api_version=1,
        summary=summary,
        config_class=RNNModelConfig,
        model_class="foundry_rnn.model:RNNLanguageModel",
        capabilities=_capabilities,
        default_tokenizer="sentencepiece",
        examples={
            "tiny": {"rnn": sizes},
            "tiny_tied": {"rnn": {**sizes, "tie_embeddings": True}},
            "tiny_bidirectional": {"rnn": {**sizes, "bidirectional": True}},
        },
        recipe={
            "data": {"batch_size": 16},
            "model": {"rnn": {"embedding_size": 192, "hidden_size": 256, "num_layers": 2}},
            "training": {"learning_rate": learning_rate},
        },
        base={"rnn": {"embedding_size": 650, "hidden_size": 650, "num_layers": 2}},  # Gulordava et al. 2018
    )


lstm = _descriptor("lstm", "long short-term memory, one or two directions (Hochreiter and Schmidhuber 1997)", 5e-3)
gru = _descriptor("gru", "gated recurrent unit, one or two directions (Cho et al. 2014)", 3e-3)
rnn = _descriptor("rnn", "plain tanh recurrence, one or two directions (Elman 1990)", 1e-3)
