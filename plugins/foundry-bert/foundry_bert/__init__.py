"""BERT for foundry: the descriptor. `model` is imported when a model is built."""

from typing import ClassVar, Literal

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, LearnedPositionsConfig, ModelConfig


class BertSection(ConfigSection):
    """The section `model.bert`."""

    RECORDED: ClassVar[frozenset[str]] = frozenset({"pooler_type"})

    type_vocab_size: int = Field(2, ge=1, le=2**20, description="number of segments that token_type_ids can name")
    pooler_type: Literal["first", "mean"] = Field(
        "first",
        description="sentence_representation() returns the hidden state of the first token, or the mean over tokens; "
        "not used by masked_lm; stored in config.json, where transformers' own pooler ignores it",
    )


class BertModelConfig(ModelConfig):
    """The section `model:` for bert."""

    transformer: LearnedPositionsConfig = Field(description="sizes of the transformer")
    bert: BertSection = Field(BertSection(), description="settings that only BERT has")


bert = Architecture(
    name="bert",
    plugin_api_version=1,
    summary="bidirectional transformer for masked language modelling (Devlin et al. 2019)",
    config_class=BertModelConfig,
    model_class="foundry_bert.model:BertLanguageModel",
    capabilities=lambda config: Capabilities(
        objectives=("masked_lm",),
        generation=False,
        left_padding=True,
        gradient_checkpointing=True,
        longest_sequence=config.transformer.max_positions,
        bidirectional=True,
        tied_embeddings=True,
        isolates_documents=True,
    ),
    default_tokenizer="wordpiece",
    examples={
        "tiny": {
            "transformer": {
                "layers": 2,
                "embedding_size": 32,
                "hidden_size": 32,
                "intermediate_hidden_size": 64,
                "attention_heads": 2,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            }
        }
    },
    recipe={
        "data": {"max_sequence_length": 64, "batch_size": 64},
        "model": {
            "transformer": {
                "layers": 2,
                "embedding_size": 128,
                "hidden_size": 128,
                "intermediate_hidden_size": 512,
                "attention_heads": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            }
        },
        # Masks 0.3 instead of Devlin et al.'s 0.15 of the tokens: the model learns more from each step.
        "training": {"learning_rate": 2e-3, "mlm_probability": 0.3},
    },
    base={
        "transformer": {
            "layers": 12,
            "embedding_size": 768,
            "hidden_size": 768,
            "intermediate_hidden_size": 3072,
            "attention_heads": 12,
            "activation_function": "gelu",
        }
    },
)
