"""The architecture `averages`: its descriptor, with the names of an earlier version. Light."""

from pydantic import Field

from foundry_core import Architecture, Capabilities, ConfigSection, Migration, ModelConfig


class AveragesSection(ConfigSection):
    """The section `model.averages`."""

    hidden_size: int = Field(ge=1, description="width of the embeddings")


class AveragesModelConfig(ModelConfig):
    """The section `model:` of averages."""

    averages: AveragesSection = Field(description="sizes")


averages = Architecture(
    name="averages",
    summary="combines each token with the mean of those before it",
    config_class=AveragesModelConfig,
    model_class="foundry_example.averages_model:AveragesLanguageModel",
    capabilities=lambda config: Capabilities(left_padding=True, unbounded_length=True),
    examples={"tiny": {"averages": {"hidden_size": 16}}},
    plugin_api_version=1,
    # Before 0.1 the key was `width`, and the embeddings were called `table`.
    migrations={
        "0.1": Migration(keys={"averages.width": "averages.hidden_size"}, weights={r"^table\.": "embedding."}),
    },
)
