"""The recipes of configs/recipes: each is valid and trains, and three follow plain loops written for their networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from foundry_core import create_model, get_data_collator, load_config, run
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.data.batches import Batches
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from tests.each import each

FOLDER = Path(__file__).parents[1] / "configs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SMALL_RNN = {"model.rnn.hidden_size": 16}
SMALL_TRANSFORMER = {
    "model.transformer.layers": 2,
    "model.transformer.embedding_size": 32,
    "model.transformer.hidden_size": 32,
    "model.transformer.intermediate_hidden_size": 64,
    "model.transformer.attention_heads": 4,
}
NO_DROPOUT = {"model.transformer.dropout": 0.0, "model.transformer.attention_dropout": 0.0}
STEPS = 200


def written(folder: Path, lines: int, seed: int = 5) -> Path:
    """Return a text of lines of nine words, each word depending on the one before it."""
    generator = np.random.default_rng(seed)
    words = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "ox", "u")]
    chosen = np.cumsum(generator.integers(0, 7, (lines, 9)), axis=1) % len(words)
    path = folder / f"text-{seed}.txt"
    path.write_text("\n".join(" ".join(words[word] for word in line) for line in chosen) + "\n")
    return path


def small(name: str, folder: Path, text: Path, **changes: Any) -> ExperimentConfig:
    """Return a recipe on a text of its own, without evaluations, as a run of some steps."""
    settings = {
        "data.training_corpus": str(text),
        "data.validation_corpus": None,
        "data.test_corpus": None,
        "tokenizer.output_dir": str(folder / "tokenizer"),
        "training.output_dir": str(folder / "run"),
        "training.epochs": None,
        "training.train_words": None,
        "training.train_steps": STEPS,
        "training.evaluate_every_steps": None,
        "training.evaluate_at": None,
        "training.restore_best": "never",
        "training.device": "cpu",
        "logging.log_every_steps": 1,
        **changes,
    }
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, value in settings.items():
        *sections, last = key.split(".")
        at = content
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return load_config(content)


def losses_of(config: ExperimentConfig) -> list[float]:
    run(config, quiet=True)
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def test_every_recipe_has_its_figure_its_source_and_its_text() -> None:
    assert len(RECIPES) >= 16
    for path in RECIPES:
        head = path.read_text(encoding="utf-8").partition("experiment_name:")[0]
        for part in ("Published: ", "The text: ", "https://", f"foundry train configs/recipes/{path.name}"):
            assert part in head, (path.name, part)


@pytest.mark.long
@each("path", RECIPES)
def test_every_recipe_takes_a_step(path: Path, tmp_path: Path) -> None:
    size = SMALL_RNN if "rnn:" in path.read_text(encoding="utf-8") else SMALL_TRANSFORMER
    changes: dict[str, Any] = {**size, "training.train_steps": 1, "training.warmup_steps": None}
    given = load_config(path)
    if size is SMALL_RNN and given.model.rnn.embedding_size is not None:  # type: ignore[attr-defined]
        changes["model.rnn.embedding_size"] = 16
    if path.stem == "awd-lstm-ptb":
        changes |= {"model.rnn.last_hidden_size": 16, "training.asgd_nonmonotonic_interval": None}
    if path.stem == "nanogpt-shakespeare-char":
        changes["training.decay_steps"] = 1
    if path.stem.startswith("babylm"):
        changes |= {"tokenizer.vocab_size": 300, "training.checkpoints.milestones.words": [], "data.batch_size": 4}
        changes |= {"training.checkpoints.names": None, "training.warmup_ratio": None}
    if given.training.lr_scheduler == "plateau":
        changes["training.lr_scheduler"] = "constant"
    (loss,) = losses_of(small(path.stem, tmp_path, written(tmp_path, 400), **changes))
    assert math.isfinite(loss)


class WordLSTM(nn.Module):
    """The network of the word LSTM, as one writes it down."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.encoder = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.decoder = nn.Linear(width, words)

    def forward(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        hidden, state = self.lstm(self.encoder(ids), state)
        return self.decoder(hidden), state


@pytest.mark.long
def test_the_word_lstm_follows_a_plain_loop(tmp_path: Path) -> None:
    """State carried, SGD, clipped at 0.25, over eighteen epochs.

    At 2 instead of the recipe's 20, which amplifies rounding in a network of this size: at 20 two plain loops whose
    embeddings differ by one part in 10 million are 8 % apart after 200 steps, at 5 4e-5, at 1 1e-7.
    """
    torch.set_num_threads(1)
    width, lanes, length = 32, 20, 35
    settings = small(
        "pytorch-word-lstm-200",
        tmp_path,
        # Each lane has 357 tokens, ten whole rows and a short one.
        written(tmp_path, 714),
        **{
            "model.rnn.embedding_size": width,
            "model.rnn.hidden_size": width,
            "model.rnn.dropout": 0.0,
            "training.learning_rate": 2.0,
            "training.lr_scheduler": "constant",
        },
    )
    corpora = experiment_corpora(settings)
    tokenizer = experiment_tokenizer(settings, corpora.train)
    stream = torch.from_numpy(np.array(experiment_tokens(settings, tokenizer, corpora)[0].tokens, dtype=np.int64))
    words, targets = stream[:-1].view(lanes, -1), stream[1:].view(lanes, -1)
    assert words.shape[1] == 357

    theirs: Any = create_model(settings, tokenizer)
    model = WordLSTM(len(tokenizer), width)
    model.encoder.load_state_dict(theirs.embedding.state_dict())
    model.lstm.load_state_dict(theirs.recurrent.state_dict())
    model.decoder.load_state_dict(theirs.output_layer.state_dict())
    losses: list[float] = []
    while len(losses) < STEPS:
        state = None
        for at in range(0, words.shape[1], length):
            state = None if state is None else tuple(each.detach() for each in state)
            logits, state = model(words[:, at : at + length], state)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, at : at + length].flatten())
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(2.0 * parameter.grad)
            losses.append(loss.item())
    assert losses[STEPS - 1] < 0.95 * losses[0]
    assert losses_of(settings) == pytest.approx(losses[:STEPS], rel=1e-4)


def begun(settings: ExperimentConfig, build: Callable[[Any], nn.Module]) -> tuple[nn.Module, Iterable[Any]]:
    """Return a model of transformers with the weights that the run begins with, and the batches of the run.

    build: makes the model, given the tokenizer.
    """
    torch.set_num_threads(1)
    corpora = experiment_corpora(settings)
    tokenizer = experiment_tokenizer(settings, corpora.train)
    data = experiment_rows(settings, tokenizer, experiment_tokens(settings, tokenizer, corpora), corpora)
    samples = STEPS * settings.data.batch_size
    collate = get_data_collator(settings, tokenizer, samples)
    model, ours = build(tokenizer), create_model(settings, tokenizer)
    model.load_state_dict(ours.get_submodule("model").state_dict())
    return model, Batches(data.train_rows, data.order, collate, settings.data.batch_size, 0, samples)


def trained(
    model: nn.Module, batches: Iterable[Any], optimizer: torch.optim.Optimizer, rates: Iterator[float]
) -> list[float]:
    """Return the losses of a plain loop of a model of transformers, which computes its own loss."""
    losses: list[float] = []
    for batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = next(rates) if group is optimizer.param_groups[0] else optimizer.param_groups[0]["lr"]
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def nanogpt_rates() -> Iterator[float]:
    for iteration in range(STEPS):
        if iteration < 100:
            yield 1e-3 * (iteration + 1) / 101
        else:
            yield 1e-4 + 0.5 * (1 + math.cos(math.pi * (iteration - 100) / 1900)) * (1e-3 - 1e-4)


def small_gpt2(tokenizer: Any) -> nn.Module:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_positions": 66, "n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4}
    settings = GPT2Config(vocab_size=len(tokenizer), activation_function="gelu", **sizes, **dropout)
    model: nn.Module = GPT2LMHeadModel(settings)
    return model


@pytest.mark.long
def test_nanogpt_follows_a_plain_loop_of_transformers(tmp_path: Path) -> None:
    settings = small("nanogpt-shakespeare-char", tmp_path, written(tmp_path, 400), **SMALL_TRANSFORMER)
    model, batches = begun(settings, small_gpt2)
    # The recipe has no biases.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(".bias"))
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in free if each.dim() >= 2], "weight_decay": 0.1},
        {"params": [each for each in free if each.dim() < 2], "weight_decay": 0.0},
    ]
    losses = trained(model, batches, torch.optim.AdamW(groups, betas=(0.9, 0.99)), nanogpt_rates())
    assert losses[-1] < 0.7 * losses[0]
    assert losses_of(settings) == pytest.approx(losses, rel=1e-4)


def linear_rates(peak: float, warm_up: int) -> Iterator[float]:
    for step in range(1, STEPS + 1):
        yield peak * min(step / warm_up, (STEPS - step + 1) / (STEPS - warm_up))


def small_bert(tokenizer: Any) -> nn.Module:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    settings = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=34,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    model: nn.Module = BertForMaskedLM(settings)
    return model


@pytest.mark.long
def test_bert_follows_a_plain_loop_of_transformers(tmp_path: Path) -> None:
    """Of the same masks: the collator is that of the run."""
    changes: dict[str, Any] = {
        **SMALL_TRANSFORMER,
        **NO_DROPOUT,
        "tokenizer.vocab_size": 120,
        "data.max_sequence_length": 34,
        "data.batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.checkpoints.milestones.words": [],
        "training.checkpoints.names": None,
    }
    settings = small("babylm-strict-small-bert", tmp_path, written(tmp_path, 400), **changes)
    model, batches = begun(settings, small_bert)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = [each for each in model.parameters() if each.dim() == 2 and "embeddings" not in names[id(each)]]
    others = [each for each in model.parameters() if not any(each is matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    losses = trained(model, batches, torch.optim.AdamW(groups), linear_rates(1e-3, STEPS // 20))
    assert losses[-1] < 0.9 * losses[0]
    assert losses_of(settings) == pytest.approx(losses, rel=1e-4)
