"""A small experiment for the checks of extensions: it needs no architecture, no corpus and no installed package.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError, PluginError
from foundry_core.models.base import BaseLanguageModel
from foundry_core.models.loss import ModelOutput
from foundry_core.registry.architecture import (
    PLUGIN_API_VERSION,
    Architecture,
    BuildContext,
    Capabilities,
    registered_architectures,
)
from foundry_core.schema import ModelConfig
from foundry_core.testing.extensions.subjects import Subject
from foundry_core.tokenization.training import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "small_model_of_the_checks"
LENGTH = 24
SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


class SmallModel(BaseLanguageModel[ModelConfig]):
    """Embeddings, a feed-forward layer and a head: each token predicts the next one. Every parameter role occurs."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        self.embedding = nn.Embedding(context.vocab_size, 16)
        self.norm = nn.LayerNorm(16)
        self.inner = nn.Linear(16, 32)
        self.head = nn.Linear(32, context.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        hidden_BTD = self.inner(self.norm(self.embedding(input_ids))).relu()
        return self.lm_output(hidden_BTD, self.head, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        raise NotImplementedError


def experiment(subject: Subject, *, seed: int = 0, **sections: Mapping[str, Any]) -> ExperimentConfig:
    """Return an experiment with the small model that uses the subject, if it can be chosen in `training:` or `data:`.

    Raises:
        PluginError: The subject cannot be used in an experiment, or its settings are wrong.
    """
    training: dict[str, Any] = {"output_dir": "runs/check", "train_steps": 10, "device": "cpu", "precision": "fp32"}
    objective = "causal_lm"
    overrides = []
    if subject.kind in ("objective", "optimizer", "schedule"):
        training["lr_scheduler" if subject.kind == "schedule" else subject.kind] = subject.name
        overrides = [f"training.{subject.kind}_settings.{setting}" for setting in subject.settings]
        objective = subject.name if subject.kind == "objective" else objective
    content: dict[str, Any] = {
        "experiment_name": "check",
        "random_seed": seed,
        "data": {"training_corpus": "corpora/train.txt", "max_sequence_length": LENGTH},
        "tokenizer": {"tokenizer_type": "character"},
        "model": {"architecture": NAME},
        "training": {**training, "objective": objective},
        "plugins": [] if subject.module is None else [subject.module.__name__],
    }
    if subject.kind == "order":
        content["data"]["order"] = subject.name
        overrides = [f"data.order_settings.{setting}" for setting in subject.settings]
    if subject.kind == "step":
        given = "\n".join(f"{key}: {value}" for key, _, value in (each.partition("=") for each in subject.settings))
        settings = YamlSource.parse(given, "--settings").data if given else {}
        content["data"]["steps"] = [{subject.name: settings}]
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    with _registered(objective):
        try:
            return load_config(content, overrides)
        except ConfigError as error:
            lines = "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
            lacking = "_settings" in lines or subject.kind == "step"
            hint = ": pass values with --settings KEY=VALUE" if lacking else ""
            raise PluginError(f"the {subject.kind} '{subject.name}' cannot be used: {lines}{hint}") from error


@contextmanager
def _registered(objective: str) -> Iterator[None]:
    """Register the small model as an architecture; a configuration that has been loaded does not look it up again."""
    registered_architectures()[NAME] = Architecture(
        name=NAME,
        summary="a token predicts the next one",
        config_class=ModelConfig,
        model_class=SmallModel,
        capabilities=partial(_capabilities, objective),
        default_tokenizer="character",
        plugin_api_version=PLUGIN_API_VERSION,
    )
    try:
        yield
    finally:
        del registered_architectures()[NAME]


def _capabilities(objective: str, section: ModelConfig) -> Capabilities:
    return Capabilities(objectives=(objective,), left_padding=True)


@cache
def letters(*left_out: str) -> PreTrainedTokenizerFast:
    """Return a character tokenizer with every special token but those left out."""
    special = {role: token for role, token in SPECIAL_TOKENS.items() if role not in left_out}
    text = string.ascii_lowercase + string.digits
    return train_tokenizer("character", lambda: iter([text]), None, special)


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of tokens that are not special."""
    special = set(tokenizer.all_special_ids)
    return [number for number in range(len(tokenizer)) if number not in special]
