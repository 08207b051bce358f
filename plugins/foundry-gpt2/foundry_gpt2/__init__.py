"""GPT-2 for foundry: the descriptor. `model` is imported when a model is built."""

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, LearnedPositionsConfig, ModelConfig


class GPT2Section(ConfigSection):
    """The section `model.gpt2`."""

    tie_embeddings: bool = Field(True, description="use the input embeddings as output weights; nanoGPT and GPT-2 do")
    bias: bool = Field(
        True, description="biases in linear layers and norms; false: they stay 0, as nanoGPT's bias=False"
    )


class GPT2ModelConfig(ModelConfig):
    """The section `model:` for gpt2."""

    transformer: LearnedPositionsConfig = Field(description="sizes of the transformer")
    gpt2: GPT2Section = Field(GPT2Section(), description="settings that only GPT-2 has")


_TINY = {
    "layers": 2,
    "embedding_size": 32,
    "hidden_size": 32,
    "intermediate_hidden_size": 64,
    "attention_heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


gpt2 = Architecture(
    name="gpt2",
    plugin_api_version=1,
    summary="causal transformer with learned positions (Radford et al. 2019)",
    config_class=GPT2ModelConfig,
    model_class="foundry_gpt2.model:GPT2LanguageModel",
    capabilities=lambda config: Capabilities(
        objectives=("causal_lm",),
        generation=True,
        stateful=True,
        left_padding=True,
        gradient_checkpointing=True,
        longest_sequence=config.transformer.max_positions,
        tied_embeddings=config.gpt2.tie_embeddings,
        isolates_documents=True,
    ),
    default_tokenizer="sentencepiece",
    examples={
        "tiny": {"transformer": _TINY},
        "tiny_untied": {"transformer": _TINY, "gpt2": {"tie_embeddings": False, "bias": False}},
    },
    recipe={
        "data": {"batch_size": 16},
        "model": {
            "transformer": {
                "layers": 4,
                "embedding_size": 192,
                "hidden_size": 192,
                "intermediate_hidden_size": 768,
                "attention_heads": 6,
                "activation_function": "gelu_new",
            }
        },
        "training": {"learning_rate": 1e-3},
    },
    base={
        "transformer": {
            "layers": 12,
            "embedding_size": 768,
            "hidden_size": 768,
            "intermediate_hidden_size": 3072,
            "attention_heads": 12,
            "activation_function": "gelu_new",
        }
    },
)
