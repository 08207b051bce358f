"""N-grams for foundry: the descriptor. `model` is imported when a model is built."""

from typing import Literal

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, ModelConfig


class NgramSection(ConfigSection):
    """The section `model.ngram`."""

    order: int = Field(ge=2, le=10, description="tokens of the longest n-gram: it predicts from order - 1 tokens")
    discounts: Literal["three", "one"] = Field(
        "three", description="of each order: for counts of 1, 2 and more (Chen and Goodman 1998), or one for all counts"
    )


class NgramModelConfig(ModelConfig):
    """The section `model:` for ngram."""

    ngram: NgramSection = Field(description="order and smoothing of the n-grams")


def _capabilities(config: NgramModelConfig) -> Capabilities:
    return Capabilities(
        objectives=("causal_lm",),
        generation=True,
        stateful=True,
        left_padding=True,
        unbounded_length=True,
        receptive_field=config.ngram.order - 1,
        compile=False,
        isolates_documents=True,
        trained_by_counting=True,
    )


ngram = Architecture(
    name="ngram",
    plugin_api_version=1,
    summary="n-grams with interpolated Kneser-Ney smoothing, trained by counting (Chen and Goodman 1998)",
    config_class=NgramModelConfig,
    model_class="foundry_ngram.model:NgramLanguageModel",
    capabilities=_capabilities,
    default_tokenizer="sentencepiece",
    examples={"tiny": {"ngram": {"order": 3}}, "tiny_bigrams": {"ngram": {"order": 2, "discounts": "one"}}},
    recipe={"data": {"batch_size": 16}, "model": {"ngram": {"order": 5}}, "training": {"epochs": 1}},
)
