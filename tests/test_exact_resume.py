"""Interrupted equals uninterrupted, for every architecture and objective, wherever the process dies.

A forked child trains and dies at a given forward pass; the parent goes on from what is left. The judge is the run that
was left alone: weights, optimizer, state and reports, bit for bit.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from foundry_core import BaseLanguageModel, load_config, run
from tests.each import each
from tests.interruption import die, killed, outcome

pytestmark = pytest.mark.long

RNN = {"embedding_size": 8, "hidden_size": 8, "num_layers": 2, "dropout": 0.2}
AWD = {
    **RNN,
    "embedding_dropout": 0.1,
    "weight_drop": 0.3,
    "locked_dropout": True,
    "last_hidden_size": 6,
    "activation_regularization": 2.0,
    "temporal_regularization": 1.0,
}
TRANSFORMER = {
    "layers": 1,
    "embedding_size": 8,
    "hidden_size": 8,
    "intermediate_hidden_size": 16,
    "attention_heads": 2,
    "dropout": 0.2,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "attention_dropout": 0.2,
}
KINDS = {
    "gpt2": ("gpt2", "causal_lm", {"transformer": TRANSFORMER}),
    "bert": ("bert", "masked_lm", {"transformer": TRANSFORMER}),
    "lstm-causal": ("lstm", "causal_lm", {"rnn": RNN}),
    "lstm-awd": ("lstm", "causal_lm", {"rnn": AWD}),
    "lstm-masked": ("lstm", "masked_lm", {"rnn": RNN}),
    "lstm-both-ways": ("lstm", "masked_lm", {"rnn": {**RNN, "bidirectional": True}}),
    "gru-causal": ("gru", "causal_lm", {"rnn": RNN}),
    "gru-masked": ("gru", "masked_lm", {"rnn": RNN}),
    "rnn-causal": ("rnn", "causal_lm", {"rnn": RNN}),
    "rnn-masked": ("rnn", "masked_lm", {"rnn": RNN}),
    "mamba": ("mamba", "causal_lm", {"mamba": {"hidden_size": 8, "num_layers": 1, "state_size": 2, "dropout": 0.2}}),
    "llama": ("transformers", "causal_lm", {"transformers": LLAMA}),
}
DOCUMENTS = {"batching": "documents"}
MIXTURE = {"one": {"path": "train.txt", "share": 0.4}, "other": {"path": "other.txt", "share": 0.6}}
# The keys of `data:`, and the budget that comes to 48 rows.
BATCHINGS = {
    "lstm-contiguous": ("lstm-causal", {"batching": "contiguous"}, {"epochs": 2}),
    "mamba-contiguous": ("mamba", {"batching": "contiguous"}, {"epochs": 2}),
    "gpt2-documents": ("gpt2", DOCUMENTS, {"epochs": 0.8}),
    "bert-documents": ("bert", DOCUMENTS, {"epochs": 0.8}),
    "gpt2-crops": ("gpt2", {"batching": "crops"}, {"epochs": 2}),
    "bert-isolated": ("bert", {"isolate_documents": True}, {"epochs": 1.6}),
    "lstm-sequential": ("lstm-causal", {"order": "sequential"}, {"epochs": 2}),
    "lstm-mixture": ("lstm-causal", {"training_corpus": MIXTURE}, {"epochs": 1}),
}
# 24 rows, 4 in a batch, 2 batches in a step: 3 steps in an epoch. The forward pass before which the process dies:
STOPS = {
    "after step 1": 3,
    "inside an accumulation window": 4,
    "in the middle of an epoch": 5,
    "at the end of an epoch": 7,
    "in epoch 2": 10,
}


@pytest.fixture(scope="module", params=[*KINDS, *BATCHINGS])
def kind(request):
    base, data, budget = BATCHINGS.get(request.param, (request.param, {}, {"epochs": 2}))
    return request.param, *KINDS[base], data, budget


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("exact")
    words = [f"w{number % 7}" for number in range(300)]
    sentences = [" ".join(words[start : start + 5]) for start in range(0, 300, 5)]
    (folder / "train.txt").write_text("\n".join(sentences) + "\n")
    (folder / "other.txt").write_text("\n".join(" ".join(line.split()[::-1]) for line in sentences) + "\n")
    return folder


def config_of(folder, kind, name, workers):
    called, architecture, objective, model, data, budget = kind
    corpora = {
        key: {**each, "path": str(folder / each["path"])} for key, each in data.get("training_corpus", {}).items()
    }
    masking = {"mlm_probability": [0.5, 0.1], "masking": "whole_word"} if architecture == "bert" else {}
    return load_config(
        {
            "experiment_name": "exact",
            "data": {
                "max_sequence_length": 17,  # 360 tokens after the first separator, 15 of them in a row
                "batch_size": 4,
                **data,
                "training_corpus": corpora or str(folder / "train.txt"),
            },
            "tokenizer": {
                "tokenizer_type": "word",
                "vocab_size": 30,
                "output_dir": str(folder / f"tokenizer-{len(corpora)}"),
            },
            "model": {"architecture": architecture, **model},
            "training": {
                "output_dir": str(folder / called / name),
                "objective": objective,
                **budget,
                "gradient_accumulation_steps": 2,
                "learning_rate": 0.01,
                "num_workers": workers,
                "device": "cpu",
                "checkpoints": {"every_steps": 1},
                **masking,
            },
            "logging": {"log_every_steps": 1},
        }
    )


def left_behind(config):
    """Return a copy of what a run has left on the disk when it dies before each of STOPS, by the name of the stop.

    One child goes through all of them and dies at the last: nothing that a process has in memory gets into a copy.
    """
    output = Path(config.training.output_dir)
    copies = {stop: output.with_name(f"{output.name}, {stop}") for stop in STOPS}
    at = {STOPS[stop]: copy for stop, copy in copies.items()}

    def training():
        passes = 0

        def count(module, inputs):
            nonlocal passes
            if not isinstance(module, BaseLanguageModel):
                return
            passes += 1
            if passes in at:
                shutil.copytree(output, at[passes])
            if passes == max(at):
                die()

        register_module_forward_pre_hook(count)
        run(config, quiet=True)

    killed(training)
    return copies


@pytest.fixture(scope="module")
def alone(folder, kind):
    """Return what the run that nothing happens to comes to; the same twice, or nothing here would mean anything."""
    configs = [config_of(folder, kind, f"alone-{number}", 0) for number in (1, 2)]
    for config in configs:
        assert run(config, quiet=True).step == 6
    first, second = map(outcome, configs)
    assert first == second
    assert first["state"]["foundry"]["samples"] == 48
    return first


@each("workers", [0, 2])
def test_a_run_killed_anywhere_and_resumed_equals_one_left_alone(folder, kind, alone, workers):
    config = config_of(folder, kind, f"killed-{workers}", workers)
    for stop, copy in left_behind(config).items():
        shutil.rmtree(config.training.output_dir)
        copy.rename(config.training.output_dir)
        assert run(config, resume=True, quiet=True).step == 6
        assert outcome(config) == alone, stop
