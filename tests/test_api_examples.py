"""The documented Python API, one example after the other: what users type works, and says what it says it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import foundry_core
from foundry_core import (
    BaseLanguageModel,
    BuildContext,
    CausalLMDataCollator,
    ConfigSection,
    ExperimentConfig,
    FoundryError,
    MaskedLMDataCollator,
    ModelConfig,
    ModelOutput,
    TokenizerFactory,
    create_model,
    create_model_from_config,
    get_data_collator,
    load_config,
    register_architecture,
    train_tokenizer_from_config,
)
from foundry_core.errors import ConfigError, PluginError
from foundry_core.testing.toy_language import ToyCorpus
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
AVAILABLE = "Available: bert, gpt2, gru, lstm, mamba, ngram, rnn, transformers."


@pytest.fixture
def yaml_path(experiment: Experiment, tmp_path: Path) -> Path:
    """An experiment as users have it: a file."""
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment("gpt2", tmp_path).resolved()))
    return path


def sentences(corpus: ToyCorpus, tokenizer: PreTrainedTokenizerFast, count: int) -> list[list[int]]:
    lines = corpus.train.read_text(encoding="utf-8").split("\n")
    return [tokenizer(line)["input_ids"][:20] for line in lines[:count]]


def batches_of(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerFast, corpus: ToyCorpus
) -> torch.utils.data.DataLoader[Any]:
    rows: Any = [{"input_ids": row} for row in sentences(corpus, tokenizer, 32)]
    return torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=get_data_collator(config, tokenizer))


# Models.


def test_everything_public_is_there() -> None:
    for name in foundry_core.__all__:
        assert getattr(foundry_core, name) is not None
    with pytest.raises(AttributeError, match="^module 'foundry_core' has no attribute 'create_modle'$"):
        foundry_core.create_modle  # noqa: B018


def test_a_model_from_a_yaml_in_the_plain_loop(yaml_path: Path, corpus: ToyCorpus) -> None:
    config = load_config(str(yaml_path))
    tokenizer = train_tokenizer_from_config(config)
    model = create_model(config, tokenizer)
    assert isinstance(model, BaseLanguageModel)
    assert model.model_type == "gpt2"
    assert model.supports_generation
    for batch in batches_of(config, tokenizer, corpus):
        outputs = model(**batch)
        outputs.loss.backward()
        assert outputs.loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["bert", "lstm", "gru", "rnn"])
def test_the_plain_loop_works_for_every_architecture(
    name: str, experiment: Experiment, letters: PreTrainedTokenizerFast, corpus: ToyCorpus, tmp_path: Path
) -> None:
    config = experiment(name, tmp_path, training={"learning_rate": 0.01})
    model = create_model(config, letters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        for batch in batches_of(config, letters, corpus):
            outputs = model(**batch)
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(outputs.loss.item())
    assert sum(losses[-8:]) < sum(losses[:8])


def test_without_a_tokenizer_the_vocabulary_is_as_configured(yaml_path: Path) -> None:
    config = load_config(yaml_path)
    assert create_model_from_config is create_model
    model = create_model_from_config(config)
    assert len(model.get_input_embeddings().get_parameter("weight")) == config.tokenizer.vocab_size == 120


def test_saving_and_finding_the_architecture_again(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    ids = torch.arange(8)[None]
    for name in ("gpt2", "bert", "lstm", "gru", "rnn", "mamba", "transformers"):
        model = create_model(experiment(name, tmp_path), letters).eval()
        model.save_pretrained(tmp_path / name)
        back = BaseLanguageModel.from_pretrained(tmp_path / name)
        assert back.model_type == name
        assert torch.equal(back(ids).logits, model(ids).logits)
        assert type(type(model).from_pretrained(str(tmp_path / name))) is type(model)
    with pytest.raises(FoundryError, match=r"a bert \(BertLanguageModel\), not a "):
        type(create_model(experiment("gpt2", tmp_path))).from_pretrained(tmp_path / "bert")


@pytest.mark.parametrize(
    ("name", "example"), [("gpt2", "tiny"), ("bert", "tiny"), ("lstm", "tiny"), ("lstm", "tiny_tied")]
)
def test_parameters_are_counted_once_and_memory_follows(
    name: str, example: str, experiment: Experiment, letters: Any, tmp_path: Path
) -> None:
    model = create_model(experiment(name, tmp_path, example=example), letters)
    named = dict(model.named_parameters(remove_duplicate=False))
    storages = {parameter.data_ptr(): parameter.numel() for parameter in named.values()}
    tied = (name, example) != ("lstm", "tiny")
    assert (len(storages) < len(named)) == tied
    count, memory = model.get_parameter_count(), model.get_memory_footprint()
    assert count.total == count.trainable == sum(storages.values())
    assert count.embeddings == model.get_input_embeddings().get_parameter("weight").numel()
    assert memory.parameters == memory.gradients == 4 * count.total
    assert memory.optimizer == 8 * count.total
    assert memory.buffers == sum(buffer.nbytes for buffer in model.buffers())
    assert memory.total == memory.parameters + memory.buffers + memory.gradients + memory.optimizer
    model.get_input_embeddings().weight.requires_grad = False
    assert model.get_parameter_count().trainable == count.total - count.embeddings
    assert model.get_memory_footprint().optimizer == 8 * (count.total - count.embeddings)


@each("name", ["gpt2", "lstm", "gru", "rnn", "mamba", "ngram", "transformers"])
def test_generating(name: str, experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    model = create_model(experiment(name, tmp_path), letters)
    ids = torch.arange(4)[None]
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5, do_sample=False
    )
    assert output.shape == (1, 9)
    assert torch.equal(output[:, :4], ids)


def test_resizing_the_vocabulary(experiment: Experiment, letters: Any, tmp_path: Path) -> None:
    for name in ("gpt2", "bert", "lstm"):
        model = create_model(experiment(name, tmp_path), letters)
        model.resize_token_embeddings(35)
        assert len(model.get_input_embeddings().get_parameter("weight")) == 35
        model.save_pretrained(tmp_path / name)
        back = BaseLanguageModel.from_pretrained(tmp_path / name)
        assert back(torch.tensor([[34, 0]])).logits.shape == (1, 2, 35)


BOTH = ("causal_lm", "masked_lm")
TABLE = [
    ("gpt2", "tiny", ("causal_lm",), "sentencepiece"),
    ("bert", "tiny", ("masked_lm",), "wordpiece"),
    *((name, "tiny", BOTH, "sentencepiece") for name in ("lstm", "gru", "rnn")),
    *((name, "tiny_bidirectional", ("masked_lm",), "sentencepiece") for name in ("lstm", "gru", "rnn")),
    ("mamba", "tiny", ("causal_lm",), "sentencepiece"),
    ("ngram", "tiny", ("causal_lm",), "sentencepiece"),
    ("transformers", "tiny", ("causal_lm",), "sentencepiece"),
    ("transformers", "tiny_roberta", ("masked_lm",), "sentencepiece"),
]


@each(("name", "example", "objectives", "tokenizer_type"), TABLE)
def test_the_table_of_architectures(
    name: str,
    example: str,
    objectives: tuple[str, ...],
    tokenizer_type: str,
    experiment: Experiment,
    letters: Any,
    tmp_path: Path,
) -> None:
    left_open = experiment(name, tmp_path, example=example, tokenizer={"tokenizer_type": None})
    assert left_open.tokenizer.tokenizer_type == tokenizer_type
    assert left_open.training.objective == objectives[0]
    for objective in BOTH:
        asked = {"training": {"objective": objective}, "example": example}
        if objective in objectives:
            model = create_model(experiment(name, tmp_path, **asked), letters)
            assert model.model_type == name
            assert model.supports_generation == (objective == "causal_lm")
        else:
            with pytest.raises(ConfigError, match=rf"cannot be trained with {objective}; it accepts {objectives[0]}$"):
                experiment(name, tmp_path, **asked)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_another_embedding_size_than_hidden_size_is_refused(name: str, experiment: Experiment, tmp_path: Path) -> None:
    sizes = {"layers": 1, "embedding_size": 16, "hidden_size": 32, "intermediate_hidden_size": 32, "attention_heads": 2}
    line = r"^configuration:\d+: model\.transformer: embedding_size \(16\) must equal hidden_size \(32\): [^\n]*$"
    with pytest.raises(ConfigError, match=line):
        experiment(name, tmp_path, model={"transformer": sizes})


def test_a_cell_type_contradicting_the_architecture_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    sizes = {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}
    section = {"rnn": {**sizes, "rnn_type": "lstm"}}
    model: Any = experiment("lstm", tmp_path, model=section).model
    assert model.rnn.rnn_type == "lstm"
    with pytest.raises(ConfigError, match="rnn.rnn_type is gru under architecture: lstm; leave rnn_type out"):
        experiment("lstm", tmp_path, model={"rnn": {**sizes, "rnn_type": "gru"}})


# Registering.


class WindowSection(ConfigSection):
    width: int = Field(16, ge=1, description="width of the embeddings")


class WindowConfig(ModelConfig):
    window: WindowSection = Field(WindowSection(), description="sizes of the window model")


class WindowModel(BaseLanguageModel[WindowConfig]):
    """Predicts a token from the two before it: a real model of few lines."""

    def __init__(self, config: ExperimentConfig, context: BuildContext):
        super().__init__(config, context)
        width = self.settings.window.width
        self.embedding = nn.Embedding(context.vocab_size, width)
        self.mix = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, context.vocab_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        here = self.embedding(input_ids)
        before = nn.functional.pad(here, (0, 0, 1, 0))[:, :-1]
        hidden = torch.tanh(self.mix(torch.cat([before, here], dim=-1)))
        return self.lm_output(hidden, self.head, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        raise FoundryError("the window model keeps its vocabulary")


def test_a_class_of_ones_own_trains_generates_saves_and_loads(
    experiment: Experiment, letters: Any, corpus: ToyCorpus, tmp_path: Path
) -> None:
    assert register_architecture("window", config=WindowConfig)(WindowModel) is WindowModel
    config = load_config(
        {
            "experiment_name": "mine",
            "data": {"training_corpus": str(corpus.train), "max_sequence_length": 24},
            "model": {"architecture": "window", "window": {"width": 12}},
            "training": {"output_dir": str(tmp_path / "run"), "train_steps": 5},
        }
    )
    model = create_model(config, letters)
    assert (model.model_type, model.supports_generation, config.training.objective) == ("window", True, "causal_lm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for batch in batches_of(config, letters, corpus):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    model.save_pretrained(tmp_path / "window")
    back = BaseLanguageModel.from_pretrained(tmp_path / "window")
    ids = torch.arange(6)[None]
    assert isinstance(back, WindowModel)
    assert torch.equal(back(ids).logits, model(ids).logits)
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert text.shape == (1, 9)


def test_a_second_registration_names_the_owner_of_the_name() -> None:
    @register_architecture("my_arch", config=WindowConfig)
    class MyArchModel(WindowModel): ...

    with pytest.raises(PluginError, match=r"^the architecture 'my_arch' is registered already, by .*MyArchModel$"):
        register_architecture("my_arch", config=WindowConfig)(WindowModel)
    with pytest.raises(PluginError, match="^cannot register 'other': Linear is not a BaseLanguageModel$"):
        register_architecture("other", config=WindowConfig)(nn.Linear)
    with pytest.raises(PluginError, match="'other'.*not a subclass of ModelConfig"):
        register_architecture("other", config=WindowSection)(WindowModel)  # type: ignore[arg-type]


def test_an_unknown_name_gets_the_near_miss_and_the_whole_list(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment("lstm", tmp_path, model={"architecture": "lstn"})
    place, _, message = str(caught.value).partition(": model.architecture: ")
    assert place.startswith("configuration:")
    assert message == (f"Unknown architecture: 'lstn'. Did you mean 'lstm'? {AVAILABLE}")


# Collators.


def test_collators_with_the_documented_keywords(
    letters: PreTrainedTokenizerFast, experiment: Experiment, tmp_path: Path
) -> None:
    causal = CausalLMDataCollator(tokenizer=letters, pad_to_multiple_of=8, mlm=False)
    masked = MaskedLMDataCollator(tokenizer=letters, mlm_probability=0.15, pad_to_multiple_of=8, mlm=True)
    rows = [letters(text) for text in ("abc", "defghijkl")]
    assert causal(rows)["input_ids"].shape == masked(rows)["input_ids"].shape == (2, 16)
    assert isinstance(get_data_collator(experiment("gpt2", tmp_path), letters), CausalLMDataCollator)
    assert isinstance(get_data_collator(experiment("bert", tmp_path), letters), MaskedLMDataCollator)


# Tokenizers.


def test_training_wordpiece_with_the_documented_arguments(corpus: ToyCorpus, tmp_path: Path) -> None:
    tokenizer = TokenizerFactory.train_wordpiece(
        input_files=[str(corpus.train)],
        output_dir=str(tmp_path / "tokenizer" / "bert"),
        vocab_size=300,
        special_tokens={
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
        },
    )
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer" / "bert")
    line = corpus.train.read_text(encoding="utf-8").split("\n")[0]
    assert loaded(line)["input_ids"] == tokenizer(line)["input_ids"]
    assert loaded.convert_tokens_to_ids("[MASK]") == loaded.mask_token_id is not None
    assert len(loaded) <= 300


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "character", "word"])
def test_training_the_other_kinds(kind: str, corpus: ToyCorpus, tmp_path: Path) -> None:
    sizes = {"sentencepiece": 300, "bpe": 320, "character": None, "word": 100}
    train = getattr(TokenizerFactory, f"train_{kind}")
    tokenizer = train(input_files=[str(corpus.train)], output_dir=tmp_path / kind, vocab_size=sizes[kind])
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    loaded = AutoTokenizer.from_pretrained(tmp_path / kind)
    line = corpus.test.read_text(encoding="utf-8").split("\n")[0]
    assert loaded(line)["input_ids"] == tokenizer(line)["input_ids"]
    assert set(tokenizer.all_special_tokens) == {"<s>", "</s>", "<unk>", "<pad>", "<mask>"}


def test_a_tokenizer_from_a_yaml_path_is_trained_once_and_reused(yaml_path: Path, corpus: ToyCorpus) -> None:
    tokenizer = train_tokenizer_from_config(str(yaml_path))
    folder = yaml_path.parent / "run" / "tokenizer"
    written = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    again = train_tokenizer_from_config(yaml_path)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == written
    assert again.get_vocab() == tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert set(corpus.train.read_text(encoding="utf-8").split()) <= set(tokenizer.get_vocab())
