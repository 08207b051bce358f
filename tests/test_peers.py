"""Scores beside those of minicons and lm-eval, which `make test-slow` installs: within 0.0001 nats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from foundry_core import BaseLanguageModel, ExperimentConfig, run
from foundry_core.evaluation.sentence_scores import sentence_scores
from foundry_core.evaluation.surprisal import token_scores
from foundry_core.evaluation.words import text_words, word_surprisal
from foundry_core.testing.toy_language import ToyCorpus
from foundry_core.tokenization.tokenizer_folder import load_tokenizer

pytestmark = pytest.mark.slow
CLOSE = 1e-4
DATA = Path(os.environ.get("FOUNDRY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BLIMP = DATA / "eval" / "blimp" / "data"
Trained = tuple[Path, list[str]]


def blimp() -> list[str]:
    """Return the sentences of 200 pairs, of every file of BLiMP."""
    if not BLIMP.is_dir():
        pytest.skip("needs eval/blimp in FOUNDRY_TEST_DATA or shared/data")
    files = sorted(BLIMP.rglob("*.jsonl"))
    pairs = [json.loads(line) for path in files for line in path.read_text().splitlines()[:9]][:200]
    return [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]


def toy(corpus: ToyCorpus) -> list[str]:
    """Return sentences of the toy language, with a capital and a full stop that is not a word of its own."""
    lines = corpus.test.read_text().splitlines()
    return [line[:1].upper() + line[1:].removesuffix(" .") + "." for line in lines]


def trained(experiment: Callable[..., ExperimentConfig], folder: Path, architecture: str, texts: list[str]) -> Path:
    """Train a model on the texts for 60 steps and return its checkpoint."""
    masked = architecture == "bert"
    (folder / "corpus.txt").write_text("\n".join(texts * 10))
    config = experiment(
        architecture,
        folder,
        data={"training_corpus": str(folder / "corpus.txt"), "max_sequence_length": 96},
        tokenizer={"tokenizer_type": "wordpiece" if masked else "bpe", "vocab_size": 600},
        training={"train_steps": 60, "learning_rate": 0.01, **({"objective": "masked_lm"} if masked else {})},
    )
    run(config, quiet=True)
    return folder / "run" / "checkpoint-60"


@pytest.fixture(scope="module", params=["gpt2", "lstm"])
def of_blimp(request, experiment, tmp_path_factory) -> Trained:
    """A causal checkpoint, and the sentences that it was trained on."""
    texts = blimp()
    return trained(experiment, tmp_path_factory.mktemp(request.param), request.param, texts), texts


def opened(folder: Path, auto: Any = AutoModelForCausalLM) -> tuple[Any, Any]:
    """Return model and tokenizer as other programs open them."""
    options = {"trust_remote_code": True}
    return auto.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(folder, **options)


def by_minicons(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    scorer = pytest.importorskip("minicons.scorer").IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    found = [
        scorer.sequence_score(texts[start : start + 50], reduction=lambda x: x.sum(0).item(), bos_token=True)
        for start in range(0, len(texts), 50)
    ]
    return [score for part in found for score in part]


def by_lm_eval(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    harness = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    scorer = harness.HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=20, device="cpu")
    requests = [instance("loglikelihood", {}, ("", text), place) for place, text in enumerate(texts)]
    return [score for score, _ in scorer.loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("peer", [by_minicons, by_lm_eval])
def test_other_scorers_agree_on_pairs_of_blimp(of_blimp: Trained, peer: Callable[..., list[float]]) -> None:
    folder, texts = of_blimp
    theirs = peer(*opened(folder), texts)
    ours = sentence_scores(BaseLanguageModel.from_pretrained(folder), load_tokenizer(folder), texts)
    assert len(ours) == len(theirs) == 400
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


def words_agree(folder: Path, texts: list[str]) -> int:
    """Check the surprisal of each word by both conventions of the boundary, and return the number of words."""
    scorer = pytest.importorskip("minicons.scorer")
    model, tokenizer = opened(folder)
    peer = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    ours = BaseLanguageModel.from_pretrained(folder)
    begins = np.zeros(ours.context.vocab_size, bool)
    begins[peer.bow_subword_idx] = True  # theirs are without the end of the text
    words = text_words(tokenizer, texts)
    scores = token_scores(ours, tokenizer, [each.ids for each in words], beginnings=begins)
    for boundary in ("leading", "trailing"):
        options = {"surprisal": True, "bos_token": True, "bow_correction": boundary == "trailing"}
        for start in range(0, len(texts), 50):
            part = slice(start, start + 50)
            given = peer.word_score_tokenized(texts[part], tokenize_function=str.split, **options)
            for text, found, their in zip(words[part], scores[part], given, strict=True):
                assert [word for word, _ in their] == text.text.split()
                nats = [each for _, each in their]
                np.testing.assert_allclose(word_surprisal(text, found, boundary), nats, rtol=0, atol=CLOSE)
    return sum(len(each.words) for each in words)


def test_words_of_blimp_are_scored_as_by_minicons(of_blimp: Trained) -> None:
    """Summed, after the separator; with the boundary moved."""
    assert words_agree(*of_blimp) > 2_500


@pytest.mark.parametrize("architecture", ["gpt2", "lstm"])
def test_words_of_the_toy_are_scored_as_by_minicons(architecture, experiment, corpus, tmp_path) -> None:
    texts = toy(corpus)
    assert words_agree(trained(experiment, tmp_path, architecture, texts), texts) > 200


@pytest.mark.parametrize("text", ["toy", "blimp"])
def test_masked_tokens_are_scored_as_by_minicons(text, experiment, corpus, tmp_path) -> None:
    """Both pseudo-log-likelihoods."""
    scorer = pytest.importorskip("minicons.scorer")
    texts = toy(corpus) if text == "toy" else blimp()
    folder = trained(experiment, tmp_path, "bert", texts)
    model, tokenizer = opened(folder, AutoModelForMaskedLM)
    peer = scorer.MaskedLMScorer(model, "cpu", tokenizer=tokenizer)
    ours = BaseLanguageModel.from_pretrained(folder)
    words = text_words(tokenizer, texts)
    for metric, groups in (("original", None), ("within_word_l2r", [each.groups for each in words])):
        found = token_scores(ours, tokenizer, [each.ids for each in words], groups=groups)
        for start in range(0, len(texts), 50):
            encoded = tokenizer(texts[start : start + 50], padding=True)
            given = peer.token_score(encoded, surprisal=True, PLL_metric=metric)
            for one, their in zip(found[start : start + 50], given, strict=True):
                np.testing.assert_allclose(one.surprisal, [nats for _, nats in their], rtol=0, atol=CLOSE)
