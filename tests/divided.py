"""Trainings that are divided between processes: `python tests/divided.py FOLDER` carries out those of its legs.json.

A leg is `{"config": a resolved configuration, "allow": keys; None to begin a run and not to resume, "alone": bool}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from foundry_core import (
    BaseLanguageModel,
    ExperimentConfig,
    ModelConfig,
    create_model,
    load_config,
    register_architecture,
)
from foundry_core.checkpoints.checkpoint import newest_valid
from foundry_core.checkpoints.state import TrainState, read_state
from foundry_core.data.preparation import (
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
)
from foundry_core.processes import World, joined
from foundry_core.training.choices import Choices, choose
from foundry_core.training.launcher import launch
from foundry_core.training.notifier import Notifier
from foundry_core.training.trainer import Trainer


class PatchyModelConfig(ModelConfig):
    """The section `model:` for patchy, which has nothing to set."""


class PatchyModel(BaseLanguageModel[PatchyModelConfig]):
    """A model with a parameter that rows of one kind use alone, and one that nothing uses."""

    def __init__(self, config: ExperimentConfig, context: Any):
        super().__init__(config, context)
        self.embedding, self.scores = nn.Embedding(context.vocab_size, 8), nn.Linear(8, context.vocab_size)
        self.seldom, self.never = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        vectors = self.embedding(input_ids)
        if int(input_ids[0, 1]) % 2:
            vectors = vectors + self.seldom
        return self.lm_output(vectors, self.scores, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        raise NotImplementedError


def register_patchy() -> None:
    register_architecture("patchy", config=PatchyModelConfig, examples={"tiny": {}})(PatchyModel)


def trained(config: ExperimentConfig, world: World | None = None, allow: Sequence[str] | None = None) -> TrainState:
    """Carry out a training as `run` does, with the processes there are; return its state.

    allow: Resume, with these keys of the configuration changed.
    """
    world = world or World()
    with world.in_turn("preparing the data"):
        corpora = experiment_corpora(config)
        tokenizer = experiment_tokenizer(config, corpora.train, resume=allow is not None)
        rows = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora), corpora)
    begun = None
    if allow is not None:
        begun = Choices.of(read_state(newest_valid(config.training.output_dir, to_resume=True)[0]))
    model = create_model(config, tokenizer)
    choices = choose(config, model, tokenizer, rows, trial=False, begun=begun)
    notifier = Notifier(config.chosen.plugins.manager, world)
    trainer = Trainer(config, model, tokenizer, rows, notifier, choices, world)
    if allow is None:
        trainer.begin()
    else:
        trainer.resume(allow)
    return trainer.train()


def in_processes(count: int, folder: Path, legs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Carry out legs in so many processes, started once; return for each its log and where it ended."""
    (folder / "legs.json").write_text(json.dumps(legs))
    launch([sys.executable, __file__, str(folder)], count)
    return cast("list[dict[str, Any]]", json.loads((folder / "ends.json").read_text()))


def main(folder: Path) -> None:
    register_patchy()
    ends = []
    with joined(lambda: torch.device("cpu")) as world:
        for leg in json.loads((folder / "legs.json").read_text()):
            config = load_config(leg["config"])
            with world.in_turn("a leg that one process carries out"):
                state = trained(config, None, leg["allow"]) if leg["alone"] and world.first else None
            if not leg["alone"]:
                state = trained(config, world, leg["allow"])
            if world.first:
                assert state is not None
                ends.append({"step": state.step, "ledger": state.ledger, "log": state.log})
    if world.first:
        (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
