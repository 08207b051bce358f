"""Minimal pairs: what is read, and scores that depend on nothing but the sentence."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

import pytest
import torch

from foundry_core import BaseLanguageModel
from foundry_core.errors import CheckpointError, DataError
from foundry_core.evaluation import token_losses, tree_reading
from foundry_core.evaluation.minimal_pairs import Pair, read_pairs, score_pairs
from foundry_core.evaluation.sentence_scores import id_differences, id_scores, noise
from tests.each import each

GOOD, BAD = "the cat sees the dog", "the cat see the dog"
LINE = json.dumps({"sentence_good": GOOD, "sentence_bad": BAD})
ARCHITECTURES = ("gpt2", "lstm", "bert")
CLOSE = 2e-6  # nats for each token


def random_texts(count: int) -> list[tuple[int, ...]]:
    chance = random.Random(0)
    return [tuple(chance.choices(range(8, 32), k=chance.randint(1, 20))) for _ in range(count)]


@each("architecture", ARCHITECTURES)
def test_equal_sentences_have_equal_scores_in_any_order(model, letters, one_thread, architecture):
    texts = random_texts(120 if architecture == "bert" else 600)
    scored = model(architecture)
    scores = id_scores(scored, letters, texts * 2)
    assert scores[: len(texts)] == scores[len(texts) :]
    order = random.Random(1).sample(range(len(texts)), len(texts))
    assert id_scores(scored, letters, [texts[place] for place in order]) == [scores[place] for place in order]


@each("architecture", ARCHITECTURES)
def test_the_score_of_a_sentence_is_that_of_the_sentence_alone(model, letters, architecture):
    """In another batch, with other padding, it differs by less than `noise`."""
    texts = random_texts(60)
    scored = model(architecture)
    for text, score in zip(texts, id_scores(scored, letters, texts), strict=True):
        (alone,) = id_scores(scored, letters, [text])
        assert abs(score - alone) <= noise(score, len(text))


def alike_texts(count: int) -> list[tuple[int, ...]]:
    """Return texts of few letters, many of which begin alike or are the beginning of another."""
    chance = random.Random(0)
    return [tuple(chance.choices((8, 9, 9), k=chance.randint(1, 12))) for _ in range(count)]


def score_alone(scored: BaseLanguageModel, tokenizer: Any, text: tuple[int, ...]) -> float:
    """Return the score of a text by the loss of the model, which reads nothing else."""
    if scored.context.objective.causal:
        ids = torch.tensor([[tokenizer.eos_token_id, *text]])
        return -float(scored(ids, labels=ids, reduction="sum").loss)
    labels = torch.tensor([[tokenizer.cls_token_id, *text, tokenizer.sep_token_id]]).repeat(len(text), 1)
    hidden = torch.eye(*labels.shape, dtype=torch.bool).roll(1, dims=1)
    ids = labels.masked_fill(hidden, tokenizer.mask_token_id)
    return -float(scored(ids, labels=labels.masked_fill(~hidden, -100), reduction="sum").loss)


@each("architecture", (*ARCHITECTURES, "gru", "mamba", "transformers"))
@pytest.mark.long
def test_texts_that_begin_alike_score_as_each_does_alone(model, letters, one_thread, architecture):
    texts, scored = alike_texts(300), model(architecture, scale=2.0).eval()
    with torch.no_grad():
        alone = {text: score_alone(scored, letters, text) for text in set(texts)}
    for text, score in zip(texts, id_scores(scored, letters, texts), strict=True):
        assert abs(score - alone[text]) < CLOSE * len(text)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    for (good, bad), difference in zip(pairs, id_differences(scored, letters, pairs), strict=True):
        assert abs(difference - (alone[good] - alone[bad])) < CLOSE * len(good + bad)


@each("architecture", ARCHITECTURES)
def test_no_prefix_is_read_or_projected_twice(model, letters, monkeypatch, architecture):
    """Not in several batches either, nor are there more logits at a time than 128 positions have."""
    monkeypatch.setattr(tree_reading, "TOKENS_PER_BATCH", 256)
    monkeypatch.setitem(token_losses.LOGITS, "cpu", 1)
    read: list[int] = []
    projected: list[int] = []

    def count(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        read.append((*positional, named.get("input_ids"))[0].numel())

    scored, texts = model(architecture), sorted(set(alike_texts(300)))
    id_scores(scored, letters, texts[:1])  # a wrapped model tries out its head once
    scored.register_forward_pre_hook(count, with_kwargs=True)
    heads = {"gpt2": "model.lm_head", "lstm": "output_layer", "bert": "model.cls.predictions.decoder"}
    head = scored.get_submodule(heads[architecture])
    head.register_forward_hook(lambda _, inputs, __: projected.append(inputs[0].flatten(0, -2).shape[0]))
    id_scores(scored, letters, texts)
    prefixes = {text[:length] for text in texts for length in range(len(text))}
    hidden = {(place, *text[:place], *text[place + 1 :]) for text in texts for place in range(len(text))}
    assert max(projected) == 128
    assert sum(projected) == len(hidden if architecture == "bert" else prefixes)
    if architecture == "bert":
        assert sum(read) < 1.2 * sum(len(row) + 2 for row in hidden)  # with little padding
        return
    # An LSTM tries out its state with five tokens; rows of GPT-2 share what their neighbours begin with.
    most = len(prefixes) * (1 if architecture == "lstm" else 1.5) + 5
    assert len(prefixes) <= sum(read) <= most
    projected.clear()
    id_differences(scored, letters, [((8, 9, 8, 9, 8), (8, 9, 8, 9, 9)), ((8, 9), (8, 9))])
    assert sum(projected) == 1


def test_a_causal_score_is_the_loss_after_the_separator(model, letters):
    scored, texts = model("gpt2"), random_texts(5)
    for text, score in zip(texts, id_scores(scored, letters, texts), strict=True):
        ids = torch.tensor([[letters.eos_token_id, *text]])
        assert score == pytest.approx(-scored(ids, labels=ids, reduction="sum").loss.item(), rel=1e-5)


def test_a_difference_below_the_noise_is_a_tie_and_wrong(model, letters):
    pairs = [Pair("abc", "abd", "near", "x:1"), Pair("abd", "abc", "near", "x:2"), Pair("ab", "ab", "same", "x:3")]
    near, same = score_pairs(model("lstm", scale=1e-7), letters, pairs)
    assert (near.ties, near.accuracy, same.ties, same.accuracy) == (2, 0, 1, 0)
    assert (type(near.ties), type(same.ties)) == (int, int)  # True would be printed as a word
    far, same = score_pairs(model("lstm"), letters, pairs)
    assert (far.ties, far.accuracy, same.ties) == (0, 0.5, 1)


def test_scores_that_are_not_numbers_are_refused(model, letters):
    for scale in (float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="not finite"):
            score_pairs(model("lstm", scale=scale), letters, [Pair("ab", "ac", "broken", "x:1")])


def test_a_sentence_too_long_leaves_out_its_pair_alone(model, letters, capsys):
    pairs = [Pair("ab", "ac", "short", f"f:{line}") for line in range(1, 4)]
    pairs += [Pair("ab", "a" * 24, "long", f"f:{line}") for line in range(4, 9)] + [Pair("", "a", "none", "f:9")]
    short, long, none = score_pairs(model("gpt2"), letters, pairs)
    assert (short.pairs, short.left_out, short.accuracy in (0, 1)) == (3, 0, True)
    assert (long.pairs, long.left_out, long.accuracy) == (0, 5, None)
    assert (none.pairs, none.left_out) == (0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: left out: f:4: a sentence has 25 tokens, the model was trained on 24"
    assert (len(lines), "3 more pairs" in lines[-1]) == (4, True)
    with pytest.raises(DataError, match=r"none of 5 pairs can be scored: f:4: a sentence has 25"):
        score_pairs(model("gpt2"), letters, pairs[3:8])
    (long,) = score_pairs(model("lstm"), letters, pairs[3:8])
    assert (long.pairs, long.left_out) == (5, 0)


@each(
    ("content", "problem"),
    [
        (b'{"sentence_good": "caf\xe9", "sentence_bad": "b"}', r"x.jsonl:2: byte 129 \(0xe9\) is not UTF-8"),
        (b'{"sentence_good": "a\0", "sentence_bad": "b"}', "x.jsonl:2: byte 127 is NUL"),
        (rb'{"sentence_good": "a \u0000", "sentence_bad": "b"}', 'x.jsonl:2: .*"sentence_good" has a NUL'),
        (rb'{"sentence_good": "a", "sentence_bad": "\ud83d"}', 'x.jsonl:2: .*"sentence_bad" has a lone surrogate'),
        (rb'{"sentence_good": "a", "sentence_bad": "b", "UID": "\ud83d"}', 'x.jsonl:2: .*"UID" has a lone surrogate'),
        (b'{"sentence_good": "a", "sentence_good": "c", "sentence_bad": "b"}', "x.jsonl:2: .*occurs 2 times"),
        (b'{"sentence_good": "a", "sentence_bad": "b", "UID": "c", "UID": "d"}', "x.jsonl:2: .*occurs 2 times"),
        (b'{"sentence_good": "", "sentence_bad": "b"}', 'x.jsonl:2: .*"sentence_good" is empty'),
        (rb'{"sentence_good": "a", "sentence_bad": "\u00a0\n "}', 'x.jsonl:2: .*"sentence_bad" is empty'),
        (b'{"sentence_good": "a"}', 'x.jsonl:2: .*no key "sentence_bad"'),
        (b'{"sentence_good": "a", "sentence_bad": ["b"]}', 'x.jsonl:2: .*"sentence_bad" is list'),
        (b'{"sentence_good": "a", "sentence_bad": "b", "UID": ["c"]}', 'x.jsonl:2: .*"UID" is list'),
        (b'["a", "b"]', "x.jsonl:2: .*not an object"),
        (b"a sentence", "x.jsonl:2: not a minimal pair: Expecting value"),
        (b"[" * 100_000, "x.jsonl:2: not a minimal pair"),
    ],
)
def test_what_is_not_a_minimal_pair_is_refused_with_its_line(tmp_path, content, problem):
    path = tmp_path / "x.jsonl"
    first = b"\xef\xbb\xbf" + LINE.encode() + b" " * (102 - len(LINE))
    path.write_bytes(first + b"\r\n" + content + b"\n")
    with pytest.raises(DataError, match=problem) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_another_format_is_refused_with_what_is_expected(tmp_path):
    for name in ("a.json", "a.tsv", "a.txt", "a.jsonl.zip"):
        (tmp_path / name).write_text(LINE)
        with pytest.raises(DataError, match=rf"{name}: not a minimal pairs file: expected one JSON object a line"):
            read_pairs(tmp_path / name)
    with pytest.raises(DataError, match=r"no file that matches '\*.jsonl\*' to read .* only 4 other"):
        read_pairs(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty.jsonl: does not contain a minimal pair"):
        read_pairs([tmp_path / "empty.jsonl"])


def test_files_folders_and_globs_give_a_row_for_each_uid_or_file(tmp_path, monkeypatch, capsys):
    def names(*specs: str) -> list[str]:
        return [pair.paradigm for pair in read_pairs([spec.format(tmp_path) for spec in specs])]

    (tmp_path / "blimp" / "deep").mkdir(parents=True)
    with_uid = json.dumps({"UID": "agreement", "sentence_good": GOOD, "sentence_bad": BAD})
    (tmp_path / "blimp" / "a.jsonl").write_text(f"{with_uid}\n\n{LINE}\r\n" + LINE.replace("{", '{"UID": 7, '))
    (tmp_path / "blimp" / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(f"\ufeff{LINE}".encode()))
    (tmp_path / "blimp" / "notes.txt").write_text("about them " * 99)
    assert names("{}/blimp") == ["agreement", "a", "7", "b"]
    assert "notes.txt" in capsys.readouterr().err
    assert names("{}/blimp/*.jsonl", "{}/blimp/deep/b.jsonl.gz") == ["agreement", "a", "7", "b"]
    assert [pair.place for pair in read_pairs(str(tmp_path / "blimp" / "a.jsonl"))][-1] == f"{tmp_path}/blimp/a.jsonl:4"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/blimp/deep") == ["b"]
    (tmp_path / "a.jsonl").write_text(LINE.replace("}", ', "UID": null}'))
    assert names("{}/a.jsonl", "{}/blimp/a.jsonl") == [
        f"{tmp_path}/a.jsonl",
        "agreement",
        f"{tmp_path}/blimp/a.jsonl",
        "7",
    ]
    with pytest.raises(DataError, match="listed twice"):
        names("{}/a.jsonl", "{}/*.jsonl")
