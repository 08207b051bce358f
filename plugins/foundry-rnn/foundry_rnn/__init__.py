"""LSTM, GRU and plain RNN for foundry: three descriptors. `model` is imported when a model is built."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, Dropout, Layers, ModelConfig

RNNType = Literal["lstm", "gru", "rnn"]


def _drawn_from_a_range(rnn: "RNNSection") -> Iterator[str]:
    if rnn.recurrent_init == "uniform" and rnn.init_range is None:
        yield "recurrent_init: uniform needs init_range"


def _one_hot_vectors_have_no_weights(rnn: "RNNSection") -> Iterator[str]:
    if rnn.embedding_size is None and rnn.tie_embeddings:
        yield "tie_embeddings needs an embedding_size: one-hot vectors have no weights to share"


def _another_layer_is_below_the_last(rnn: "RNNSection") -> Iterator[str]:
    if rnn.last_hidden_size is not None and rnn.num_layers < 2:
        yield "last_hidden_size needs num_layers of at least 2: the size of a single layer is hidden_size"


def _forget_bias_is_a_bias(rnn: "RNNSection") -> Iterator[str]:
    if rnn.forget_bias is not None and not rnn.bias:
        yield "forget_bias needs bias: true"


class RNNSection(ConfigSection):
    """The section `model.rnn`."""

    RULES = (
        _drawn_from_a_range,
        _one_hot_vectors_have_no_weights,
        _another_layer_is_below_the_last,
        _forget_bias_is_a_bias,
    )

    rnn_type: RNNType | None = Field(None, description="same as model.architecture; may be left out")
    embedding_size: int | None = Field(
        ge=1, le=2**20, description="width of the token embeddings; null: the first layer reads one-hot vectors"
    )
    hidden_size: int = Field(ge=1, le=2**20, description="width of the recurrent state, in each direction")
    num_layers: Layers = Field(description="number of stacked recurrent layers")
    last_hidden_size: int | None = Field(
        None, ge=1, le=2**20, description="width of the state of the last layer, such as embedding_size; null: the same"
    )
    bidirectional: bool = Field(False, description="read in both directions; only for masked_lm")
    bias: bool = Field(True, description="biases in the recurrent layers and the output layer")
    nonlinearity: Literal["tanh", "relu"] = Field("tanh", description="of a plain rnn")
    dropout: Dropout = Field(0.1, description="dropout on embeddings, between layers and before the output")
    input_dropout: Dropout | None = Field(None, description="dropout on embeddings; null: dropout")
    hidden_dropout: Dropout | None = Field(None, description="dropout between layers; null: dropout")
    output_dropout: Dropout | None = Field(None, description="dropout before the output layer; null: dropout")
    embedding_dropout: Dropout | None = Field(
        None, description="share of the vocabulary whose embeddings are dropped in a step, whole words; null: none"
    )
    weight_drop: Dropout | None = Field(
        None, description="share of the recurrent weights dropped in a step (DropConnect); null: none"
    )
    locked_dropout: bool = Field(False, description="one mask for all time steps of a row: input, hidden and output")
    tie_embeddings: bool = Field(False, description="use the input embeddings as output weights (Press and Wolf 2017)")
    init_range: float | None = Field(
        None, gt=0, le=100, description="draw embeddings and output weights from uniform(-r, r); null: from a normal"
    )
    recurrent_init: Literal["orthogonal", "torch", "uniform"] = Field(
        "orthogonal",
        description="recurrent layers: orthogonal (Glorot for their input), torch's default, or uniform: everything "
        "with weights or biases from uniform(-init_range, init_range)",
    )
    forget_bias: float | None = Field(
        None,
        ge=-100,
        le=100,
        description="where the input biases of an LSTM's forget gates start; null: at 1 if orthogonal, else as drawn",
    )
    activation_regularization: float = Field(
        0.0, ge=0, description="AR: weight of the mean square of the last layer's dropped states"
    )
    temporal_regularization: float = Field(
        0.0, ge=0, description="TAR: weight of the mean square of its states' changes"
    )

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of dropout on embeddings, between layers and before the output."""
        given = (self.input_dropout, self.hidden_dropout, self.output_dropout)
        first, between, last = (self.dropout if each is None else each for each in given)
        return first, between, last

    @property
    def layer_by_layer(self) -> bool:
        """Whether torch's own stack of layers lacks something that is asked for."""
        return bool(self.locked_dropout or self.weight_drop or self.last_hidden_size or self.embedding_size is None)


def _one_cell(model: "RNNModelConfig") -> Iterator[str]:
    kind = model.rnn.rnn_type
    if kind not in (None, model.architecture):
        yield (
            f"rnn.rnn_type is {kind} under architecture: {model.architecture}; leave rnn_type out or make them agree"
        )


def _cells_have_what_is_set(model: "RNNModelConfig") -> Iterator[str]:
    if model.rnn.nonlinearity != "tanh" and model.architecture != "rnn":
        yield f"rnn.nonlinearity is of architecture: rnn; the gates of {model.architecture} are not a choice"
    if model.rnn.forget_bias is not None and model.architecture != "lstm":
        yield f"rnn.forget_bias is of architecture: lstm; {model.architecture} has no forget gate"


class RNNModelConfig(ModelConfig):
    """The section `model:` for lstm, gru and rnn."""

    RULES = (_one_cell, _cells_have_what_is_set)

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
        isolates_documents=True,
        # torch.compile leaves torch's own stack of layers alone, and would unroll one layer over all tokens.
        compile=not config.rnn.layer_by_layer,
    )


def _examples(name: RNNType) -> Mapping[str, Mapping[str, Any]]:
    """Return examples in which each key has an effect: the simple ones, and the published training of each kind."""
    sizes: dict[str, Any] = {"embedding_size": 24, "hidden_size": 32, "num_layers": 2, "dropout": 0.0}
    # Karpathy, Johnson and Li 2015. With weights from a small range, ReLU forgets within a few tokens.
    one_hot: dict[str, Any] = {"embedding_size": None, "hidden_size": 24, "num_layers": 1, "init_range": 0.1}
    one_hot |= {"input_dropout": 0.0, "output_dropout": 0.2, "bias": name != "gru"}
    one_hot |= {"nonlinearity": "relu"} if name == "rnn" else {"recurrent_init": "uniform"}
    one_hot |= {"forget_bias": 1.0} if name == "lstm" else {}
    # Merity, Keskar and Socher 2018.
    awd = {**sizes, "last_hidden_size": 24, "tie_embeddings": True, "init_range": 0.1, "recurrent_init": "torch"}
    awd |= {"input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2, "embedding_dropout": 0.1}
    awd |= {"weight_drop": 0.3, "locked_dropout": True}
    awd |= {"activation_regularization": 2.0, "temporal_regularization": 1.0}
    return {
        "tiny": {"rnn": sizes},
        "tiny_tied": {"rnn": {**sizes, "tie_embeddings": True}},
        "tiny_bidirectional": {"rnn": {**sizes, "bidirectional": True}},
        "tiny_one_hot": {"rnn": one_hot},
        "tiny_awd": {"rnn": awd},
    }


def _descriptor(name: RNNType, summary: str, learning_rate: float) -> Architecture:
    return Architecture(
        name=name,
        plugin_api_version=1,
        summary=summary,
        config_class=RNNModelConfig,
        model_class="foundry_rnn.model:RNNLanguageModel",
        capabilities=_capabilities,
        default_tokenizer="sentencepiece",
        examples=_examples(name),
        recipe={
            "data": {"batch_size": 16},
            "model": {"rnn": {"embedding_size": 192, "hidden_size": 256, "num_layers": 2}},
            "training": {"learning_rate": learning_rate},
        },
        base={"rnn": {"embedding_size": 650, "hidden_size": 650, "num_layers": 2}},  # Gulordava et al. 2018
        standalone="standalone.py",
    )


lstm = _descriptor("lstm", "long short-term memory, one or two directions (Hochreiter and Schmidhuber 1997)", 5e-3)
gru = _descriptor("gru", "gated recurrent unit, one or two directions (Cho et al. 2014)", 3e-3)
rnn = _descriptor("rnn", "plain recurrence, one or two directions (Elman 1990)", 1e-3)
