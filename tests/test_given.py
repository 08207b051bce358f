"""Tokenizers that are given, text that is tokenized already, and the perplexity per word."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from foundry_core import ExperimentConfig, create_model, load_config, run
from foundry_core.cli import main
from foundry_core.data.preparation import (
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
    tokenizer_folder,
    train_tokenizer_from_config,
)
from foundry_core.errors import ConfigError, TokenizerError, UsageError
from foundry_core.evaluation.corpus_loss import evaluate_corpus
from foundry_core.models.base import BaseLanguageModel
from foundry_core.tokenization.encoding import text_ids
from foundry_core.tokenization.given import given_tokenizer
from foundry_core.tokenization.sentencepiece_model import ODD, PLAIN, convert, differences
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
WORDS = [
    *("the", "a", "cat", "dog", "bird", "house", "river", "runs", "sleeps", "sees", "eats", "quickly", "slowly"),
    *("over", "under", "near", "small", "big", "red", "it's"),
]
OBJECTIVES = load_config(
    {
        "experiment_name": "any",
        "data": {"training_corpus": "any.txt"},
        "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
        "training": {"output_dir": "any", "train_steps": 1},
    }
).chosen.plugins.offers.objectives
DATA = Path(os.environ.get("FOUNDRY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
WIKITEXT = DATA / "train" / "wikitext2_partial"
CAUSAL, MASKED = OBJECTIVES["causal_lm"], OBJECTIVES["masked_lm"]


def lines(seed: int = 3, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(count)]


def trained(folder: Path, kind: str = "bpe", size: int = 300) -> Path:
    """A folder with a tokenizer that somebody has trained on other text."""
    save_tokenizer(train_tokenizer(kind, lambda: lines(1), size, default_special_tokens(kind)), folder)
    (folder / "foundry.json").unlink(missing_ok=True)
    return folder


def pieces(path: Path, **settings: Any) -> Path:
    """A sentencepiece model as the library's own command trains it."""
    model = io.BytesIO()
    options = {"vocab_size": 80, "minloglevel": 2, "hard_vocab_limit": False} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines(1)), model_writer=model, **options)
    path.write_bytes(model.getvalue())
    return path


def given(experiment: Experiment, folder: Path, path: Path, name: str = "run", **sections: Any) -> ExperimentConfig:
    """An experiment with a given tokenizer."""
    tokenizer = {"tokenizer_type": None, "vocab_size": None, "path": str(path), **sections.pop("tokenizer", {})}
    training = {"output_dir": str(folder / name), "train_steps": 4, **sections.pop("training", {})}
    return experiment(sections.pop("architecture", "lstm"), folder, tokenizer=tokenizer, training=training, **sections)


def prepared(config: ExperimentConfig) -> Any:
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    return tokenizer, experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))


# What may be given


def test_every_kind_of_path_trains_resumes_and_evaluates(experiment, corpus, tmp_path, capsys):
    folder = trained(tmp_path / "bpe")
    model = pieces(tmp_path / "spm.model", byte_fallback=True, vocab_size=350)
    named = {"special_tokens": {"eos_token": "</s>", "pad_token": "<pad>"}}
    for number, (path, tokenizer) in enumerate(
        [(folder, {}), (folder / "tokenizer.json", named), (model, {"special_tokens": {"pad_token": "<pad>"}})]
    ):
        data = {"test_corpus": str(corpus.test)}
        config = given(experiment, tmp_path, path, f"run{number}", tokenizer=tokenizer, data=data)
        run(config, quiet=True)
        checkpoint = tmp_path / f"run{number}" / "checkpoint-4"
        loaded, source = load_tokenizer(checkpoint), experiment_tokenizer(config, experiment_corpora(config).train)
        origin = json.loads((tokenizer_folder(config) / "foundry.json").read_text())
        assert origin["given_tokenizer"] == origin["tokenizer"] == tokenizer_digest(loaded) == tokenizer_digest(source)
        text = "the small cat, <unk> naïve </s> runs"
        assert text_ids(loaded, [text]) == text_ids(source, [text])
        longer = load_config(config.resolved(), ["training.train_steps=6"])
        assert run(longer, resume=True, quiet=True, allowed_changes=["training.train_steps"]).step == 6
        capsys.readouterr()
        assert main(["evaluate", str(checkpoint)]) == 0
        assert "perplexity per word" in capsys.readouterr().out
        assert create_model(config).context.vocab_size == len(loaded)


def test_a_given_tokenizer_is_never_trained_and_shared(experiment, tmp_path, capsys):
    path, shared = trained(tmp_path / "bpe"), {"output_dir": str(tmp_path / "shared")}
    (tmp_path / "other.txt").write_text("quite another text\n" * 30)
    first, _ = prepared(given(experiment, tmp_path, path, tokenizer=shared))
    stored = {each.name: each.read_bytes() for each in (tmp_path / "shared").iterdir() if each.is_file()}
    data = {"training_corpus": str(tmp_path / "other.txt")}
    second, rows = prepared(given(experiment, tmp_path, path, "other", tokenizer=shared, data=data))
    assert first.get_vocab() == second.get_vocab() == load_tokenizer(path).get_vocab()
    assert stored == {each.name: each.read_bytes() for each in (tmp_path / "shared").iterdir() if each.is_file()}
    assert rows.train.info.tokenizer_digest == tokenizer_digest(load_tokenizer(path))
    with pytest.raises(UsageError, match="given tokenizers are not trained"):
        train_tokenizer_from_config(given(experiment, tmp_path, path))
    with pytest.raises(TokenizerError, match="from other inputs .it was given, not trained"):
        prepared(experiment("lstm", tmp_path, tokenizer=shared))


def test_a_given_tokenizer_that_changes_is_refused_on_resume(experiment, tmp_path):
    path = trained(tmp_path / "bpe")
    config = given(experiment, tmp_path, path)
    run(config, quiet=True)
    moved = path.rename(tmp_path / "moved")
    longer = given(experiment, tmp_path, moved, training={"train_steps": 6})
    with pytest.raises(TokenizerError, match="does not exist"):
        run(config, resume=True, quiet=True)
    model = json.loads((moved / "tokenizer.json").read_text())
    model["model"]["merges"].pop()
    for content in (model, None):
        before = (moved / "tokenizer.json").read_text()
        if content is not None:
            (moved / "tokenizer.json").write_text(json.dumps(content))
            with pytest.raises(TokenizerError, match="tokenizer.path names another one.*put them back"):
                run(longer, resume=True, quiet=True)
            (moved / "tokenizer.json").write_text(before)
    changed = given(experiment, tmp_path, moved, tokenizer={"special_tokens": {"mask_token": "<hide>"}})
    with pytest.raises(TokenizerError, match="tokenizer.path names another one"):
        run(changed, resume=True, quiet=True)
    assert run(longer, resume=True, quiet=True, allowed_changes=["training.train_steps"]).step == 6


def test_nothing_in_the_folder_is_run_and_no_role_is_lost(tmp_path):
    path = trained(tmp_path / "bpe")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    roles = {role: {"__type": "AddedToken", "content": name} for role, name in settings.items() if "_token" in role}
    settings |= {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}, "tokenizer_class": "evil.Tokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"} | roles))
    tokenizer = given_tokenizer(str(path), {}, MASKED)
    assert tokenizer.special_tokens_map == default_special_tokens("bpe")
    assert not (tmp_path / "run").exists()
    assert tokenizer.padding_side == "right"


def test_a_missing_special_token_is_refused_with_a_way_out(experiment, tmp_path, capsys):
    path = trained(tmp_path / "bpe") / "tokenizer.json"
    with pytest.raises(TokenizerError) as causal:
        given_tokenizer(str(path), {}, CAUSAL)
    assert 'special_tokens: {eos_token: "</s>", pad_token: "<pad>"}' in str(causal.value)
    with pytest.raises(TokenizerError, match="no mask_token, needed for masked_lm, no cls_token") as masked:
        given_tokenizer(str(path), {"eos_token": "</s>"}, MASKED)
    roles = dict(re.findall(r'(\w+_token): "([^"]+)"', str(masked.value)))
    assert set(roles) == {"mask_token", "cls_token", "sep_token", "pad_token"}
    size = len(load_tokenizer(path.parent))
    tokenizer = given_tokenizer(str(path), {"eos_token": "</s>", **roles}, MASKED)
    assert tokenizer.mask_token_id == load_tokenizer(path.parent).mask_token_id
    added = [name for name in roles.values() if name not in load_tokenizer(path.parent).get_vocab()]
    assert len(tokenizer) == size + len(added)
    special = {"eos_token": "</s>", "pad_token": "<fill>"}
    prepared(given(experiment, tmp_path, path, tokenizer={"special_tokens": special}))
    assert f"'<fill>' added to the {size} tokens of {path}: {size + 1} now" in capsys.readouterr().err
    every = {"special_tokens": {"eos_token": "</s>", **roles}}
    run(given(experiment, tmp_path, path, "bert", architecture="bert", tokenizer=every), quiet=True)
    saved = AutoTokenizer.from_pretrained(tmp_path / "bert" / "checkpoint-4")
    tokens = saved.convert_ids_to_tokens(saved("the cat")["input_ids"])
    assert (tokens[0], tokens[-1]) == (roles["cls_token"], roles["sep_token"])
    word = trained(tmp_path / "word", "word", 60)
    for changes, problem in {
        ("pad_token", "</s>"): "equals the eos_token",
        ("mask_token", "the"): "'the' is a word of its text",
        ("unk_token", "a b"): "must not contain",
    }.items():
        with pytest.raises(TokenizerError, match=problem):
            given_tokenizer(str(word if changes[1] == "the" else path.parent), dict([changes]), CAUSAL)


def test_what_loses_text_or_draws_is_refused(tmp_path):
    def saved(model: Any, **parts: Any) -> str:
        backend = Tokenizer(model)
        for name, part in parts.items():
            setattr(backend, name, part)
        backend.save(str(tmp_path / "tokenizer.json"))
        return str(tmp_path / "tokenizer.json")

    roles = {"eos_token": "</s>", "pad_token": "<pad>"}
    letters = {letter: number for number, letter in enumerate("abcdef")}
    spaces = {"pre_tokenizer": pre_tokenizers.WhitespaceSplit()}
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    level = {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}
    for path, problem in [
        (lambda: saved(models.BPE(letters, []), **spaces), "drops text that it does not know"),
        (lambda: saved(models.BPE(letters, []), **level), "lacks some of the 256 bytes"),
        (lambda: saved(models.WordLevel(letters, unk_token="<unk>"), **spaces), "no unk_token in its vocabulary"),
        (lambda: saved(models.BPE(alphabet, [], dropout=0.1), **level), "at random"),
        (lambda: saved(models.BPE(alphabet, []), normalizer=normalizers.Replace("a", "b" * 9000)), "times as long"),
    ]:
        with pytest.raises(TokenizerError, match=problem):
            given_tokenizer(path(), roles, CAUSAL)
    assert given_tokenizer(saved(models.BPE(alphabet, []), **level), roles, CAUSAL).unk_token is None
    words = {"<unk>": 0, "a": 1}
    known = given_tokenizer(saved(models.WordLevel(words, unk_token="<unk>"), **spaces), roles, CAUSAL)
    assert (known.unk_token, text_ids(known, ["a z a"])) == ("<unk>", [[1, 0, 1]])
    model = models.BPE(alphabet, [], unk_token="<unk>")
    assert given_tokenizer(saved(model, **level), roles, CAUSAL).unk_token is None
    saved(models.WordLevel(words, unk_token="<unk>"), **spaces)
    with pytest.raises(TokenizerError, match="no other token can be its unk_token"):
        given_tokenizer(str(tmp_path / "tokenizer.json"), roles | {"unk_token": "a"}, CAUSAL)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be used"):
        given_tokenizer(str(tmp_path / "tokenizer.json"), roles, CAUSAL)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").touch()
    with pytest.raises(TokenizerError, match=r"name its sentencepiece model itself, .*spiece\.model"):
        given_tokenizer(str(tmp_path), roles, CAUSAL)


@each("kind", ["sentencepiece", "wordpiece", "bpe", "character", "word"])
def test_a_changed_tokenizer_of_core_encodes_as_its_file_does(tmp_path, kind):
    path = trained(tmp_path / "changed", kind, {"character": 60, "word": 60}.get(kind, 300))
    for lowercase in (False, True):
        state = json.loads((path / "tokenizer.json").read_text())
        if lowercase:
            former = [state["normalizer"]] if state["normalizer"] else []
            state["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *former]}
            (path / "tokenizer.json").write_text(json.dumps(state))
        tokenizer = given_tokenizer(str(path), {}, CAUSAL)
        texts = ["The CAT sees", "the  cat\nRuns", *lines(4, 20)]
        whole = Tokenizer.from_file(str(path / "tokenizer.json"))
        assert text_ids(tokenizer, texts) == [whole.encode(text, add_special_tokens=False).ids for text in texts]
        assert "foundry_tokenizer_type" in tokenizer.init_kwargs or lowercase


# A sentencepiece model


NASTY = [*PLAIN, *ODD, "\n", "the\n\ncat  ", " ", "▁the▁▁cat▁", "<s></s>", "it's <unk>it's", "ﬁ́ the ½́ cat"]


@each(
    "settings",
    [
        {"model_type": kind, "normalization_rule_name": rule, "byte_fallback": fallback, **more}
        for kind in ("unigram", "bpe")
        for rule, more in (("nmt_nfkc", {}), ("identity", {"add_dummy_prefix": False}), ("nfkc_cf", {}))
        for fallback in (False, True)
    ]
    + [{"user_defined_symbols": ["<tag>", "it's"]}, {"remove_extra_whitespaces": False, "vocab_size": 60}],
)
def test_a_sentencepiece_model_encodes_as_the_library_does(tmp_path, settings):
    settings = {"vocab_size": 350} | settings if settings.get("byte_fallback") else settings
    path = pieces(tmp_path / "spm.model", **settings)
    tokenizer = given_tokenizer(str(path), {"pad_token": "<pad>", "mask_token": "<mask>"}, CAUSAL)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rng = random.Random(5)
    texts = [*lines(9), *NASTY, *("".join(rng.choices(NASTY + WORDS, k=6)) for _ in range(50))]
    assert text_ids(tokenizer, texts) == library.encode(texts)
    # The conversion, for transformers, is exact too, but for marks on characters that are normalized away.
    content = path.read_bytes()
    backend, _ = convert(content)
    assert differences(content, backend, [*lines(9), *PLAIN]) == []
    save_tokenizer(tokenizer, tmp_path / "saved")
    opened = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [opened.encode(text) for text in lines(9)] == library.encode(lines(9))
    assert text_ids(load_tokenizer(tmp_path / "saved"), texts) == library.encode(texts)


def test_identity_models_convert_exactly_on_odd_text(tmp_path):
    for kind in ("unigram", "bpe"):
        content = pieces(tmp_path / "m", model_type=kind, normalization_rule_name="identity").read_bytes()
        assert differences(content, convert(content)[0], ODD) == []


def test_what_cannot_be_converted_exactly_is_refused(experiment, tmp_path, monkeypatch):
    special = {"pad_token": "<pad>"}
    refused: dict[str, dict[str, Any]] = {
        "neither a unigram nor a bpe model": {"model_type": "char"},
        "treat_whitespace_as_suffix": {"treat_whitespace_as_suffix": True},
        "user-defined symbols": {"model_type": "bpe", "user_defined_symbols": ["<tag>"]},
    }
    for problem, settings in refused.items():
        path = pieces(tmp_path / "spm.model", **settings)
        with pytest.raises(TokenizerError, match=problem):
            given_tokenizer(str(path), special, CAUSAL)
    for content in (b"", b"not a model", path.read_bytes()[:-7]):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match="cannot be used"):
            given_tokenizer(str(path), special, CAUSAL)
    config = given(experiment, tmp_path, pieces(path), tokenizer={"special_tokens": special})
    monkeypatch.setattr("foundry_core.tokenization.given.PLAIN", ("ﬁ́",))
    with pytest.raises(TokenizerError, match="cannot be converted exactly: transformers would encode"):
        prepared(config)


def test_a_model_file_that_changes_is_another_tokenizer(tmp_path):
    path = pieces(tmp_path / "spm.model")
    tokenizer = given_tokenizer(str(path), {"pad_token": "<pad>"}, CAUSAL)
    save_tokenizer(tokenizer, tmp_path / "saved")
    other = pieces(tmp_path / "other.model", model_type="bpe").read_bytes()
    (tmp_path / "saved" / "sentencepiece.model").write_bytes(other)
    assert tokenizer_digest(load_tokenizer(tmp_path / "saved")) != tokenizer_digest(tokenizer)
    (tmp_path / "saved" / "sentencepiece.model").unlink()
    with pytest.raises(TokenizerError, match=r"has no sentencepiece\.model"):
        text_ids(load_tokenizer(tmp_path / "saved"), ["a"])


# Text that is tokenized already


def counted_by_pytorch_examples(path: Path) -> int:
    """The length of the corpus of pytorch/examples, word_language_model/data.py."""
    tokens = 0
    with path.open(encoding="utf8") as file:
        for line in file:
            tokens += len([*line.split(), "<eos>"])
    return tokens


def word_stream(experiment: Experiment, folder: Path, path: Path, **data: Any) -> Any:
    tokenizer = {"tokenizer_type": "word", "vocab_size": 60_000, "pretokenized": True}
    config = experiment("lstm", folder, data={"training_corpus": str(path), **data}, tokenizer=tokenizer)
    found, rows = prepared(config)
    return found, rows.train


TEXT = " \n = Robert <unk> = \n \n\n <unk> N years , a @-@ b <unk> \n the </s> end\n\n"


def test_pretokenized_lines_are_their_words_and_an_end(experiment, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    expected = []
    for line in TEXT.splitlines():
        expected += [*("<unk>" if word == "</s>" else word for word in line.split()), "</s>"]
    for number, data in enumerate([{"blank_lines": "keep"}, {"documents": "file"}]):
        tokenizer, tokens = word_stream(experiment, tmp_path / str(number), path, **data)
        assert tokenizer.convert_ids_to_tokens(np.asarray(tokens.tokens)[1:].tolist()) == expected
        assert tokens.info.tokens - 1 == counted_by_pytorch_examples(path) == tokens.info.words + tokens.info.line_ends
        assert tokens.info.unknown == expected.count("<unk>")
    _, dropped = word_stream(experiment, tmp_path / "drop", path)
    blank = sum(not line.strip() for line in TEXT.splitlines())
    assert dropped.info.tokens == tokens.info.tokens - blank
    assert dropped.info.account["bytes_in"] == tokens.info.account["bytes_in"] == len(TEXT)
    words = {word for line in TEXT.splitlines() for word in line.split()} - {"</s>"}
    assert words <= tokenizer.get_vocab().keys()


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs train/wikitext2_partial in FOUNDRY_TEST_DATA or shared/data")
def test_wikitext_has_the_tokens_that_papers_count(experiment, tmp_path):
    """217,646 is the published length of the validation text of WikiText-2, 245,569 that of the test text."""
    for name, published in (("valid.txt", 217_646), ("test.txt", 245_569)):
        _, kept = word_stream(experiment, tmp_path / name, WIKITEXT / name, blank_lines="keep")
        assert kept.info.tokens - 1 == counted_by_pytorch_examples(WIKITEXT / name) == published
    tokenizer = load_tokenizer(tmp_path / "test.txt" / "run" / "tokenizer")
    types = set((WIKITEXT / "test.txt").read_text(encoding="utf8").split())
    assert types <= tokenizer.get_vocab().keys()
    assert len(tokenizer) == len(types | set(default_special_tokens("word").values()))


def test_kept_blank_lines_are_another_corpus_and_no_overlap(experiment, corpus, tmp_path):
    (tmp_path / "train.txt").write_text("a b\n\nc d\n")
    (tmp_path / "test.txt").write_text("\n\ne f\n\n")
    data = {"training_corpus": str(tmp_path / "train.txt"), "test_corpus": str(tmp_path / "test.txt")}
    dropped = experiment_corpora(experiment("lstm", tmp_path, data=data))
    kept = experiment_corpora(experiment("lstm", tmp_path, data=data | {"blank_lines": "keep"}))
    assert kept.test is not None
    assert kept.overlap is not None
    assert list(kept.test.documents()) == ["", "", "e f", ""]
    assert kept.train.digest != dropped.train.digest
    assert (kept.overlap.shared, kept.overlap.documents) == (0, 1)


def test_a_vocabulary_that_is_full_is_named(experiment, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(lines()))
    data = {"training_corpus": str(tmp_path / "text.txt")}
    tokenizer = {"tokenizer_type": "word", "vocab_size": 12, "pretokenized": True}
    prepared(experiment("lstm", tmp_path, data=data, tokenizer=tokenizer))
    assert "tokenizer.vocab_size: 12 leaves no room for further words" in capsys.readouterr().err


def test_a_text_that_is_mostly_unknown_is_a_warning_with_its_key(experiment, tmp_path, capsys):
    words, texts = trained(tmp_path / "words", "word", 60), {"lower": lines(), "upper": map(str.upper, lines())}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(text))
    lower, upper = ({"training_corpus": str(tmp_path / f"{name}.txt")} for name in texts)

    def warnings(config: ExperimentConfig) -> list[str]:
        capsys.readouterr()
        prepared(config)
        return [line for line in capsys.readouterr().err.splitlines() if "unknown" in line]

    assert warnings(given(experiment, tmp_path, words, data=lower)) == []
    shouted = given(experiment, tmp_path, words, "shouted", data=upper)
    for _ in range(2):  # also where the token file is there
        (line,) = warnings(shouted)
        assert re.search(r"data\.training_corpus: 100% of its tokens are unknown.*tokenizer\.path, .*lower-case", line)
    own = {"tokenizer_type": "word", "vocab_size": 60}
    both = lower | {"test_corpus": upper["training_corpus"]}
    (line,) = warnings(experiment("lstm", tmp_path / "own", data=both, tokenizer=own))
    assert re.search(r"data\.test_corpus: 100% .* others than those of data\.training_corpus", line)
    few = experiment("lstm", tmp_path / "few", data=lower, tokenizer=own | {"vocab_size": 10})
    (line,) = warnings(few)
    assert re.search(r"data\.training_corpus: .* raise tokenizer\.vocab_size", line)


# Perplexity per word


@each(
    "kind, objective", [("word", "causal_lm"), ("bpe", "causal_lm"), ("wordpiece", "causal_lm"), ("bpe", "masked_lm")]
)
def test_perplexity_per_word_divides_by_words_and_line_ends(experiment, corpus, tmp_path, kind, objective):
    sizes = {"word": 120, "bpe": 300, "wordpiece": 120}
    architecture = "bert" if objective == "masked_lm" else "gpt2"
    (tmp_path / "test.txt").write_text("\n".join(corpus.test.read_text().splitlines()[:7]))
    config = experiment(
        architecture,
        tmp_path,
        data={"test_corpus": str(tmp_path / "test.txt"), "documents": "file"},
        tokenizer={"tokenizer_type": kind, "vocab_size": sizes[kind]},
        training={"train_steps": 1},
    )
    run(config, quiet=True)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    found = evaluate_corpus(
        BaseLanguageModel.from_pretrained(checkpoint), load_tokenizer(checkpoint), tmp_path / "test.txt"
    )
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["perplexity_per_word"] == pytest.approx(found.perplexity_per_word)
    if objective == "masked_lm":
        assert found.perplexity_per_word is None
        return
    words = len((tmp_path / "test.txt").read_text().split())
    ends = 1 if kind == "wordpiece" else 7  # wordpiece does not encode the newlines inside a document
    expected = math.exp(found.loss * found.tokens / (words + ends))
    assert found.perplexity_per_word == pytest.approx(expected)
    assert kind != "word" or found.perplexity_per_word == pytest.approx(found.perplexity)


def test_unknown_words_count_only_in_pretokenized_text(experiment, tmp_path):
    (tmp_path / "test.txt").write_text("the <unk> xyzzy .\nthe\n")
    for pretokenized in (False, True):
        tokenizer = {"pretokenized": pretokenized}
        data = {"test_corpus": str(tmp_path / "test.txt")}
        folder = tmp_path / str(pretokenized)
        run(experiment("lstm", folder, tokenizer=tokenizer, data=data, training={"train_steps": 1}), quiet=True)
        report = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        assert report["bits_per_byte"] is None
        assert (report["perplexity_per_word"] is None) == (not pretokenized)
        if pretokenized:
            assert report["perplexity_per_word"] == pytest.approx(report["perplexity"])


# The keys


BASE = """
experiment_name: any
data: {training_corpus: train.txt}
model: {architecture: lstm, rnn: {embedding_size: 8, hidden_size: 8, num_layers: 1}}
training: {output_dir: run, train_steps: 4}
"""


@each(
    "section, key, problem",
    [
        ("tokenizer: {path: tok, vocab_size: 8000}", "tokenizer.vocab_size", "is not trained: remove this key"),
        ("tokenizer: {path: tok, tokenizer_type: bpe}", "tokenizer.tokenizer_type", "is not trained: remove this key"),
        (
            "tokenizer: {tokenizer_type: bpe, pretokenized: true}",
            "tokenizer.pretokenized",
            "needs tokenizer_type: word",
        ),
        (
            "data: {training_corpus: train.txt, documents: file, blank_lines: keep}",
            "data.blank_lines",
            "documents: line",
        ),
    ],
)
def test_keys_that_contradict_are_refused_in_place(tmp_path, section, key, problem):
    path = tmp_path / "x.yaml"
    text = BASE if section.startswith("tokenizer") else BASE.replace("data: {training_corpus: train.txt}\n", "")
    path.write_text(text + section)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    line = text.count("\n") + 1
    assert re.fullmatch(rf".*x\.yaml:{line}: {key}: .*{problem}.*", str(refused.value))


def test_the_resolved_configuration_loads_again(tmp_path):
    config = load_config({**yaml.safe_load(BASE), "tokenizer": {"path": str(tmp_path)}})
    assert load_config(config.resolved()).resolved() == config.resolved()
    assert (config.tokenizer.tokenizer_type, config.tokenizer.vocab_size) == (None, None)
    assert config.providers == {}


def test_the_examples_of_the_documentation_are_valid():
    text = (Path(__file__).parents[1] / "docs" / "training" / "given.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        sections = yaml.safe_load(example)
        load_config({**yaml.safe_load(BASE), **sections})
