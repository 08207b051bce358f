"""One tokenizer for every objective: the ids a text has anywhere, and what a saved one adds around a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.corpus.reader import Corpus
from foundry_core.data.preparation import experiment_corpora, experiment_tokenizer
from foundry_core.data.token_file import prepare_tokens
from foundry_core.evaluation.generation import continuations
from foundry_core.evaluation.minimal_pairs import sentence_scores
from tests.each import each

KINDS = ("sentencepiece", "wordpiece", "bpe", "character", "word")
SIZES = {"sentencepiece": 300, "wordpiece": 90, "bpe": 300, "character": 60, "word": 40}
TEXT = [
    "the cat sees a dog near the old river",
    "a dog that the cats see runs",
    "the <unk> sees </s> a [MASK] and <s> [SEP] runs <pad> to <mask> the [UNK] river [CLS]",
] * 30
LITERAL = "a <s> dog [MASK] sees </s> the <unk> cat <mask> [SEP]"
SENTENCES = [LITERAL, "the cat sees the river", "a dog runs", "<unk>", "</s>"]

Experiment = Callable[..., ExperimentConfig]


def shared(experiment: Experiment, folder: Path, kind: str, architecture: str, name: str) -> ExperimentConfig:
    """An experiment on TEXT whose tokenizer is in `folder / "tokenizer"`."""
    (folder / "train.txt").write_text("\n".join(TEXT) + "\n")
    return experiment(
        architecture,
        folder,
        data={"training_corpus": str(folder / "train.txt"), "max_sequence_length": 96},
        tokenizer={"tokenizer_type": kind, "vocab_size": SIZES[kind], "output_dir": str(folder / "tokenizer")},
        training={"output_dir": str(folder / name), "train_steps": 2},
    )


def stirred(model: BaseLanguageModel) -> BaseLanguageModel:
    """The model with weights so large that every token changes what it predicts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@each("architecture", ["lstm", "bert"])
@each("kind", KINDS)
def test_text_has_the_ids_of_training_in_scores_and_prompts(
    experiment: Experiment, kind: str, architecture: str, tmp_path: Path
) -> None:
    config = shared(experiment, tmp_path, kind, architecture, "run")
    tokenizer = experiment_tokenizer(config, experiment_corpora(config).train)
    model = stirred(create_model(config, tokenizer))
    (tmp_path / "one.txt").write_text(LITERAL + "\n")
    file = prepare_tokens(Corpus.open(tmp_path / "one.txt"), tokenizer, tmp_path / "tokens")
    trained = torch.tensor(file.tokens[:-1].astype("int64"))  # the separator, and the document
    (score,) = sentence_scores(model, tokenizer, [LITERAL])
    with torch.no_grad():
        if config.objective.causal:
            log_p = model(trained[None]).logits[0].log_softmax(-1)
            expected = log_p[:-1].gather(1, trained[1:, None]).sum()
            (text,) = continuations(model, tokenizer, LITERAL, tokens=1, temperature=0.0)
            assert text == tokenizer.decode([*trained.tolist(), int(log_p[-1].argmax())], skip_special_tokens=True)
        else:
            ends = tokenizer.cls_token_id, tokenizer.sep_token_id
            framed = torch.tensor([ends[0], *trained[1:].tolist(), ends[1]])
            hidden = framed.repeat(len(trained) - 1, 1)
            hidden.diagonal(1).fill_(tokenizer.mask_token_id)
            places = torch.arange(len(hidden))
            expected = model(hidden).logits[places, places + 1].log_softmax(-1)[places, framed[1:-1]].sum()
    assert score == pytest.approx(float(expected), rel=1e-4)
