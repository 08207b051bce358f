"""One tokenizer for every objective: the ids a text has anywhere, and what a saved one adds around a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model, load_config, run
from foundry_core.checkpoints.verification import verify_run
from foundry_core.corpus.reader import Corpus
from foundry_core.data.preparation import experiment_corpora, experiment_tokenizer
from foundry_core.data.token_file import prepare_tokens
from foundry_core.errors import UsageError
from foundry_core.evaluation.generation import continuations
from foundry_core.evaluation.sentence_scores import sentence_scores
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest
from tests.each import each

KINDS = ("sentencepiece", "wordpiece", "bpe", "character", "word")
SIZES = {"sentencepiece": 300, "wordpiece": 90, "bpe": 300, "character": 60, "word": 40}
TEXT = [
    "the cat sees a dog near the old river",
    "a dog that the cats see runs",
    "the <unk> sees </s> a [MASK] and <s> [SEP] runs <pad> to <mask> the [UNK] river [CLS]",
] * 30
LITERAL = "a <s> dog [MASK] sees </s> the <unk> cat <mask> [SEP]"
SENTENCES = ["the cat sees the river", "a dog near the cats runs", "runs", "the naïve dog"]

Experiment = Callable[..., ExperimentConfig]


def shared(experiment: Experiment, folder: Path, kind: str, architecture: str, name: str) -> ExperimentConfig:
    """An experiment on TEXT whose tokenizer is in `folder / "tokenizer"`."""
    (folder / "train.txt").write_text("\n".join(TEXT) + "\n")
    return experiment(
        architecture,
        folder,
        data={"training_corpus": str(folder / "train.txt"), "max_sequence_length": 96},
        tokenizer={"tokenizer_type": kind, "vocab_size": SIZES[kind], "output_dir": str(folder / "tokenizer")},
        training={"output_dir": str(folder / name), "train_steps": 4, "learning_rate": 0.03, "warmup_steps": 0},
    )


def opened(folder: Path, auto: Any) -> tuple[Any, Any]:
    """The newest checkpoint of a run, opened by transformers: its model and its tokenizer."""
    return auto.from_pretrained(folder / "checkpoint-4"), AutoTokenizer.from_pretrained(folder / "checkpoint-4")


def log_probability(model: Any, ids: list[int]) -> float:
    """The log-probability of all ids but the first."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(log_p[:-1].gather(1, torch.tensor(ids)[1:, None]).sum())


def minicons(model: Any, tokenizer: Any, text: str) -> float:
    """The score of minicons 0.3, `IncrementalLMScorer.sequence_score(text, sum, bos_token=True)`."""
    return log_probability(model, tokenizer([tokenizer.bos_token + text], padding=True)["input_ids"][0])


def lm_eval(model: Any, tokenizer: Any, text: str) -> float:
    """The score of lm-eval 0.4, `HFLM.loglikelihood(("", text))`, and of its rolling form."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return log_probability(model, [prefix, *tokenizer.encode(text)])


def masked_minicons(model: Any, tokenizer: Any, text: str) -> float:
    """The score of minicons 0.3, `MaskedLMScorer.sequence_score(text, sum)`."""
    (ids,) = tokenizer([text])["input_ids"]
    ends = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    places = [place for place, number in enumerate(ids) if number not in ends]
    hidden = torch.tensor([ids] * len(places))
    hidden[torch.arange(len(places)), places] = tokenizer.mask_token_id
    with torch.no_grad():
        log_p = model(hidden).logits.double().log_softmax(-1)
    return float(sum(log_p[row, place, ids[place]] for row, place in enumerate(places)))


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
            with pytest.raises(UsageError, match="not nan"):
                continuations(model, tokenizer, LITERAL, tokens=1, temperature=float("nan"))
        else:
            ends = tokenizer.cls_token_id, tokenizer.sep_token_id
            framed = torch.tensor([ends[0], *trained[1:].tolist(), ends[1]])
            hidden = framed.repeat(len(trained) - 1, 1)
            hidden.diagonal(1).fill_(tokenizer.mask_token_id)
            places = torch.arange(len(hidden))
            expected = model(hidden).logits[places, places + 1].log_softmax(-1)[places, framed[1:-1]].sum()
    assert score == pytest.approx(float(expected), rel=1e-4)


def test_every_objective_sees_the_same_text_at_every_step(experiment: Experiment, tmp_path: Path) -> None:
    """The sizes of a row are the same for all, as the rows are, their order, and what is counted."""
    ledgers = {}
    for architecture in ("gpt2", "lstm", "bert"):
        config = shared(experiment, tmp_path, "word", architecture, architecture)
        config = load_config(config.resolved(), ["data.max_sequence_length=17", "training.checkpoints.every_steps=1"])
        run(config, quiet=True)
        whole, _ = verify_run(config.training.output_dir)
        counted = [(one.state.samples, one.state.tokens_seen, one.state.words_seen, one.state.epoch) for one in whole]
        ledgers[architecture] = [one.state.ledger for one in whole], [one.text_seen for one in whole], counted
    assert len({*ledgers["gpt2"][0], *ledgers["gpt2"][1]}) == 10
    assert ledgers["gpt2"] == ledgers["lstm"] == ledgers["bert"]
    assert [tokens for _, tokens, *_ in ledgers["gpt2"][2]] == [0, 60, 120, 180, 240]


@pytest.mark.long
@each("kind", KINDS)
def test_our_scores_are_those_of_minicons_and_lm_eval(
    experiment: Experiment, kind: str, tmp_path: Path, one_thread: None
) -> None:
    """A causal and a masked model share a tokenizer without any setting, and no scorer adds what was not trained."""
    for architecture in ("bert", "gpt2"):
        run(shared(experiment, tmp_path, kind, architecture, architecture), quiet=True)
    alone = tmp_path / "alone"
    alone.mkdir()
    run(shared(experiment, alone, kind, "gpt2", "gpt2"), quiet=True)
    for folder, auto, scorers in (
        (tmp_path / "gpt2", AutoModelForCausalLM, (minicons, lm_eval)),
        (alone / "gpt2", AutoModelForCausalLM, (minicons, lm_eval)),
        (tmp_path / "bert", AutoModelForMaskedLM, (masked_minicons,)),
    ):
        model, tokenizer = opened(folder, auto)
        own = load_tokenizer(folder / "checkpoint-4")
        assert tokenizer_digest(own) == tokenizer_digest(load_tokenizer(tmp_path / "tokenizer"))
        ours = sentence_scores(BaseLanguageModel.from_pretrained(folder / "checkpoint-4"), own, SENTENCES)
        for scorer in scorers:
            theirs = [scorer(model, tokenizer, text) for text in SENTENCES]
            assert theirs == pytest.approx(ours, rel=1e-5), (folder.name, scorer.__name__)
        inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        assert model(**inputs).logits.isfinite().all()
        if auto is AutoModelForCausalLM:
            assert (
                model.generate(**tokenizer("the cat", return_tensors="pt"), max_new_tokens=2, do_sample=False).ndim == 2
            )
            written = pipeline("text-generation", model=model, tokenizer=tokenizer)
            assert written("the cat", max_new_tokens=2)[0]["generated_text"].startswith("the cat")
        else:
            filled = pipeline("fill-mask", model=model, tokenizer=tokenizer)
            assert filled(f"the {tokenizer.mask_token} sees a dog", top_k=1)[0]["score"] > 0
