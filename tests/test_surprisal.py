"""Surprisal of tokens and words: what a score is given, that none is lost, and the table."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model, run
from foundry_core.cli import main
from foundry_core.errors import CheckpointError
from foundry_core.evaluation import surprisal
from foundry_core.evaluation.score_table import tsv
from foundry_core.evaluation.sentence_scores import id_scores
from foundry_core.evaluation.surprisal import TokenScores, token_scores
from foundry_core.evaluation.words import text_words, word_beginnings, word_surprisal
from foundry_core.tokenization.encoding import text_ids
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from tests.each import each

CLOSE = 1e-4  # nats, for a text


def random_text(tokens: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(8, 32), k=tokens))


def distributions(scored: BaseLanguageModel, start: int, text: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the log-probabilities of every token after the start and after each token of the text, (T + 1, V)."""
    with torch.no_grad():
        logits = scored(torch.tensor([[start, *text]])).logits[0]
    return torch.log_softmax(logits.double(), dim=1).numpy()


@each("architecture", ["lstm", "gru", "mamba"])
def test_a_state_carried_through_a_text_is_one_reading(model, letters, monkeypatch, architecture):
    scored, text = model(architecture), random_text(100)
    begins = np.arange(scored.context.vocab_size) % 3 == 0
    chances = distributions(scored, letters.eos_token_id, text)
    monkeypatch.setattr(surprisal, "CHUNK", 7)
    read: list[int] = []
    scored.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    (found,) = token_scores(scored, letters, [text], beginnings=begins)
    assert max(read) == 7
    own = chances[np.arange(100), text]
    np.testing.assert_allclose(found.surprisal, -own, atol=CLOSE)
    np.testing.assert_allclose(found.entropy, -(np.exp(chances) * chances).sum(1)[:-1], atol=CLOSE)
    assert found.rank.tolist() == (1 + (chances[:-1] > own[:, None]).sum(1)).tolist()
    assert found.beginnings is not None
    np.testing.assert_allclose(found.beginnings, np.log(np.exp(chances[:, begins]).sum(1)), atol=CLOSE)


@each("length", [24, 25])
def test_windows_score_each_token_once_after_half_a_row(model, letters, experiment, tmp_path, length):
    scored = model("gpt2")
    if length != 24:
        config = experiment("gpt2", tmp_path, data={"max_sequence_length": length})
        scored = create_model(config, letters).eval()
    text, start = random_text(200), letters.eos_token_id
    projected: list[int] = []
    token_scores(scored, letters, [text[:5]])  # a wrapped model tries out its head once
    scored.get_submodule("model.lm_head").register_forward_hook(lambda _, given, __: projected.append(len(given[0])))
    (found,) = token_scores(scored, letters, [text])
    assert sum(projected) == 200
    stream, row = (start, *text), length - 1
    first = distributions(scored, start, text[: row - 1])[np.arange(row), text[:row]]
    np.testing.assert_allclose(found.surprisal[:row], -first, atol=CLOSE)
    for place in range(row, 200, 5):
        contexts = range(math.ceil(length / 2), row + 1)
        windows = [stream[place + 1 - context : place + 1] for context in contexts]
        given = [-distributions(scored, window[0], window[1:])[-1, text[place]] for window in windows]
        assert min(abs(np.array(given) - found.surprisal[place])) < CLOSE


@each("architecture", ["gpt2", "lstm", "bert", "transformers"])
def test_the_surprisal_of_a_sentence_is_minus_its_score(model, letters, architecture):
    texts = [random_text(size, size) for size in [*range(1, 20), 3]] + [()]
    scored = model(architecture)
    found = token_scores(scored, letters, texts)
    sums = [each.surprisal.sum() for each in found]
    np.testing.assert_allclose(sums, [-score for score in id_scores(scored, letters, texts)], atol=CLOSE)
    assert [len(each.rank) for each in found] == list(map(len, texts))


def test_a_masked_token_is_hidden_with_the_rest_of_its_group(model, letters):
    scored, text = model("bert"), random_text(9)
    groups = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3])
    for given in (None, [groups]):
        (found,) = token_scores(scored, letters, [text], groups=given)
        for place in range(9):
            hidden = [place] if given is None else [p for p in range(place, 9) if groups[p] == groups[place]]
            ids = [letters.mask_token_id if p in hidden else token for p, token in enumerate(text)]
            row = torch.tensor([[letters.cls_token_id, *ids, letters.sep_token_id]])
            with torch.no_grad():
                chances = torch.log_softmax(scored(row).logits[0, place + 1].double(), dim=0)
            assert abs(found.surprisal[place] + chances[text[place]]) < CLOSE


def test_a_masked_model_reads_long_texts_in_windows(model, letters):
    """Those of 24 tokens begin at 0, 11, ..., and the last is a whole one; a token is far from both of its ends."""
    scored, text = model("bert"), random_text(60)
    (found,) = token_scores(scored, letters, [text])
    begins = [38, 33, 22, 11, 0]  # of two that are as far, the later one
    for place in range(60):
        begin = max(begins, key=lambda b: min(place - b + 99 * (b == 0), b + 21 - place + 99 * (b == 38)))
        row = [letters.cls_token_id, *text[begin : begin + 22], letters.sep_token_id]
        row[place - begin + 1] = letters.mask_token_id
        with torch.no_grad():
            chances = torch.log_softmax(scored(torch.tensor([row])).logits[0, place - begin + 1].double(), dim=0)
        assert abs(found.surprisal[place] + chances[text[place]]) < CLOSE, place


def test_scores_that_are_not_numbers_are_refused(model, letters):
    with pytest.raises(CheckpointError, match="not finite"):
        token_scores(model("lstm", scale=float("nan")), letters, [random_text(5)])


# Words.

TEXT = "The keys  to the\ncabinet, naïve déjà-vu: 日本 \u00a0end. \n\nThe man sees it. "


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    texts = ["the keys to the cabinet are here", "the man sees the dog that sings", TEXT.replace("\n", " ")] * 3
    sizes = {"bpe": 300, "sentencepiece": 300, "wordpiece": 120, "word": 40, "character": 60}
    return {
        kind: train_tokenizer(kind, lambda: iter(texts), size, default_special_tokens(kind))
        for kind, size in sizes.items()
    }


def test_tokens_are_those_of_training_and_belong_to_words(tokenizers):
    for kind, tokenizer in tokenizers.items():
        (found,) = text_words(tokenizer, [TEXT])
        assert found.ids == tuple(text_ids(tokenizer, [TEXT])[0]), kind
        words = [TEXT[start:end] for start, end in found.words]
        assert words == TEXT.split()
        assert [words[number] for number in (0, 3, 4, 9)] == ["The", "the", "cabinet,", "The"]
        assert found.sentences.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]
        inside = found.word_of[found.word_of >= 0]
        assert set(inside.tolist()) == set(range(13)), kind
        assert (np.diff(inside) >= 0).all(), kind
        assert (np.diff(found.groups) >= 0).all()
        for (start, end), word in zip(found.tokens, found.word_of, strict=True):
            piece, (first, last) = TEXT[start:end], found.words[word]
            if word < 0:
                assert (kind, piece) == ("word", "\n")
            elif piece.strip():
                assert first <= start + len(piece) - len(piece.lstrip()) < last, (kind, piece)
        if kind == "wordpiece":  # a comma is cut off first
            comma = found.tokens.tolist().index([TEXT.index(","), TEXT.index(",") + 1])
            assert found.word_of[comma] == found.word_of[comma - 1]
            assert found.groups[comma] == found.groups[comma - 1] + 1
    blank, empty = text_words(tokenizers["bpe"], [" \n", ""])
    assert (len(blank.words), len(empty.words), len(empty.ids)) == (0, 0, 0)


def test_the_tokenizer_decides_which_tokens_begin_a_word(tokenizers):
    def beginning(kind: str) -> set[str]:
        mask = word_beginnings(tokenizers[kind], 400)
        assert mask is not None
        assert not mask[len(tokenizers[kind]) :].any()
        return set(tokenizers[kind].convert_ids_to_tokens(np.flatnonzero(mask).tolist()))

    assert word_beginnings(tokenizers["word"], 40) is None
    assert {"Ġ", "Ċ", "Ġthe", tokenizers["bpe"].eos_token} <= beginning("bpe")
    assert not {"e", "The", tokenizers["bpe"].pad_token} & beginning("bpe")
    assert {"▁", "\n", "▁the"} <= beginning("sentencepiece")
    assert "e" not in beginning("sentencepiece")
    assert {" ", tokenizers["character"].eos_token} <= beginning("character")
    assert not any(name.startswith("##") for name in beginning("wordpiece"))


def test_the_boundary_moves_and_words_sum_to_their_tokens(tokenizers):
    (words,) = text_words(tokenizers["bpe"], ["an ox"])
    tokens = len(words.ids)
    bits = TokenScores(np.full(tokens, 2.0), np.ones(tokens), np.ones(tokens, int), np.arange(-9.0, tokens - 8))
    first = int((words.word_of == 0).sum())
    leading = word_surprisal(words, bits, "leading")
    trailing = word_surprisal(words, bits, "trailing")
    assert leading.tolist() == [2.0 * first, 2.0 * (tokens - first)]
    # The first word gets the boundary before the second, which loses it and gets that at the end.
    before_second, at_end = 9.0 - first, 9.0 - tokens
    assert trailing.tolist() == [leading[0] + before_second, leading[1] - before_second + at_end]
    chance = np.random.default_rng(0)
    for kind, tokenizer in tokenizers.items():
        (words,) = text_words(tokenizer, [TEXT])
        tokens, mask = len(words.ids), word_beginnings(tokenizer, 400)
        begun = None if mask is None else -chance.random(tokens + 1)
        found = TokenScores(chance.random(tokens), chance.random(tokens), np.ones(tokens, np.int64), begun)
        total = found.surprisal[words.word_of >= 0].sum()
        assert word_surprisal(words, found, "leading").sum() == pytest.approx(total)
        end = 0.0 if begun is None else -begun[-1]
        assert word_surprisal(words, found, "trailing").sum() == pytest.approx(total + end), kind


# The table.


@pytest.fixture(scope="module")
def lstm_run(experiment: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lstm")
    tokenizer = {"tokenizer_type": "bpe", "vocab_size": 300}
    config = experiment("lstm", folder, tokenizer=tokenizer, training={"checkpoints": {"every_steps": 5}})
    run(config, quiet=True)
    return folder / "run"


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))


def written(capsys: Any, *arguments: Any) -> list[dict[str, str]]:
    assert main(["surprisal", *map(str, arguments)]) == 0
    return table(capsys.readouterr().out)


def test_the_table_has_a_row_for_each_word_with_its_place(lstm_run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text('the keys to\n\nthe "cabinet\tare" here\n')
    rows = written(capsys, lstm_run, tmp_path / "a.txt")
    names = "document sentence word start end text surprisal entropy rank in_vocabulary"
    assert list(rows[0]) == names.split()
    assert [row["text"] for row in rows] == ["the", "keys", "to", "the", '"cabinet', 'are"', "here"]
    assert [row["document"] for row in rows] == list("1113333")
    assert [row["word"] for row in rows] == list("1231234")
    assert [(row["start"], row["end"]) for row in rows[3:5]] == [("0", "3"), ("4", "12")]
    assert {row["in_vocabulary"] for row in rows} == {"TRUE"}
    tokens = written(capsys, lstm_run, tmp_path / "a.txt", "--by", "token")
    assert "".join(row["text"] for row in tokens) == 'the keys tothe "cabinet\tare" here'
    numbers = [int(row["token"]) for row in tokens if row["document"] == "1"]
    assert numbers == [*range(1, len(numbers) + 1)]
    leading = written(capsys, lstm_run, tmp_path / "a.txt", "--boundary", "leading")
    assert [row["entropy"] for row in leading] == [row["entropy"] for row in rows]
    total = sum(float(row["surprisal"]) for row in tokens)
    assert sum(float(row["surprisal"]) for row in leading) == pytest.approx(total, abs=1e-4)
    assert sum(float(row["surprisal"]) for row in rows) > total
    assert rows[0]["surprisal"] != leading[0]["surprisal"]


def test_all_checkpoints_have_step_and_words_seen(lstm_run, tmp_path, capsys):
    (tmp_path / "a.tsv").write_text('item\tsentence\n1\t"the ""keys"" to"\n2\tthe\n')
    for name in ("all.tsv", "all.parquet"):
        options = ["--column", "sentence", "--all", "-o", str(tmp_path / name)]
        assert main(["surprisal", str(lstm_run), str(tmp_path / "a.tsv"), *options]) == 0
        assert main(["surprisal", str(lstm_run), str(tmp_path / "a.tsv"), *options]) == 2
        assert "exists and is not overwritten" in capsys.readouterr().err
    rows = table((tmp_path / "all.tsv").read_text())
    assert [row["text"] for row in rows[:4]] == ["the", '"keys"', "to", "the"]
    assert [row["step"] for row in rows[::4]] == ["0", "5", "10"]
    seen = [int(row["words_seen"]) for row in rows[::4]]
    assert [seen[0], *sorted(set(seen))] == [0, *seen]
    arrow = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "all.parquet").to_pydict()
    assert [f"{bits:.6f}" for bits in arrow["surprisal"]] == [row["surprisal"] for row in rows]
    newest = written(capsys, lstm_run, tmp_path / "a.tsv", "--column", "sentence")
    assert [row["surprisal"] for row in newest] == [row["surprisal"] for row in rows[-4:]]


def test_a_table_is_read_back_as_it_was():
    rows = [["a\tb", 'c "d"', "e\nf", "g\rh", "\\t", ""], ["x", "'y", "# z", "NA", "\u00a0", "é"]]
    written = tsv(rows)
    assert list(csv.reader(io.StringIO(written, newline=""), delimiter="\t", strict=True)) == rows
    assert tsv([[None, True, False, -1e-9, 2, 1 / 3]]) == "\tTRUE\tFALSE\t0.000000\t2\t0.333333\n"


def test_stdin_is_read_in_documents_of_any_unit(lstm_run, capsys, monkeypatch):
    def rows(*options: str) -> list[dict[str, str]]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the keys\nto the\r\n\nman\n")))
        return written(capsys, lstm_run, "-", *options)

    places = {
        unit: [(row["document"], row["sentence"], row["word"]) for row in rows("--documents", unit)]
        for unit in ("line", "block", "file")
    }
    assert ["".join(place) for place in places["line"]] == ["111", "112", "211", "212", "411"]
    assert ["".join(place) for place in places["block"]] == ["111", "112", "121", "122", "211"]
    assert ["".join(place) for place in places["file"]] == ["111", "112", "121", "122", "131"]
    assert rows() == rows("--documents", "line")


def test_unknown_words_are_flagged(experiment, tmp_path, capsys):
    run(experiment("bert", tmp_path, training={"objective": "masked_lm"}), quiet=True)
    (tmp_path / "a.txt").write_text("the zebra sees the man\n")
    assert main(["surprisal", str(tmp_path / "run"), str(tmp_path / "a.txt"), "--pll", "within_word_l2r"]) == 0
    output = capsys.readouterr()
    assert [row["in_vocabulary"] for row in table(output.out)] == ["TRUE", "FALSE", "TRUE", "TRUE", "TRUE"]
    assert "1 of 5 words are not in the vocabulary" in output.err
    assert main(["surprisal", str(tmp_path / "run"), str(tmp_path / "a.txt"), "--boundary", "trailing"]) == 2
    assert "--boundary trailing is for causal models" in capsys.readouterr().err


@each(
    ("content", "options", "problem"),
    [
        (b"the\n", ["--by", "token", "--boundary", "leading"], "--boundary is about words"),
        (b"a\nx\n", ["--column", "a", "--documents", "line"], "with --column each row is a document"),
        (b"the\n", ["--pll", "original"], "--pll is for masked models"),
        (b"the\n", ["-o", "table.xlsx"], "ends with .tsv or .parquet"),
        (b"the \xff keys\n", [], "a.txt: byte 4 (0xff) is not UTF-8"),
        (b" \n\t\n", [], "only white space, no text"),
        (b"a\tb\n1\n", ["--column", "b"], "a.txt:2: a row of 1 columns, and the header has 2"),
        (
            b"a\tsentence\n1\tx\n",
            ["--column", "sentense"],
            "a.txt:1: no column 'sentense'; its columns are 'a', 'sentence'.",
        ),
        (b'a\tb\n1\t"the "keys"\n', ["--column", "b"], "a.txt:2: not a row of a TSV"),
        (b"a\ta\n1\t2\n", ["--column", "a"], "a.txt:1: more than one column 'a'"),
        (b"a\tb\n1\tth\xff\n", ["--column", "b"], "a.txt:2: byte 8 (0xff) is not UTF-8"),
    ],
)
def test_bad_input_is_one_line(lstm_run, tmp_path, capsys, monkeypatch, content, options, problem):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes(content)
    assert main(["surprisal", str(lstm_run), "a.txt", *options]) > 0
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert problem in output.err


def test_a_text_that_is_not_there_is_one_line(lstm_run, tmp_path, capsys):
    for arguments in (["none.txt"], ["none.tsv"], ["none.tsv", "--column", "a"], [str(tmp_path), "--all"]):
        assert main(["surprisal", str(lstm_run), *arguments]) > 0
        assert capsys.readouterr().err.count("\n") == 1
