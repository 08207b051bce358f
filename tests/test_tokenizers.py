"""The tokenizers: round trips, sizes, determinism, special tokens, and an encoder equal to the plain tokenizer."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import sentencepiece

from foundry_core.errors import PluginError, TokenizerError
from foundry_core.registry.tokenizer_type import TokenizerType
from foundry_core.run_folder import SENTENCEPIECE_MODEL
from foundry_core.tokenization import text_counts, trainers
from foundry_core.tokenization.encoding import DocumentEncoder, as_trained, separator_id
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest, tokenizer_files
from foundry_core.tokenization.training import TokenizerFactory, default_special_tokens, train_tokenizer
from tests.each import each

KINDS = ("sentencepiece", "wordpiece", "bpe", "character", "word")
SIZES: dict[str, Any] = {"sentencepiece": 360, "wordpiece": 300, "bpe": 400, "character": None, "word": 200}
EXACT = ("sentencepiece", "bpe")

TEXT = (
    "the a cat dog bird house river runs sleeps sees eats quickly slowly over under near small big red don't won't "
    "it's naïve café Größe 北京 大学 мир שלום 12 345 U.S. e-mail hello, world. (yes) <tag> [x] ## _a_ what?"
)
WORDS = TEXT.split()
NASTY = [
    *" \n\t\r\v\f\0\x1c\x1f\x7f\x85\xa0\u2028\u3000\u200b\u200d\ufeff\ufffd\u0301\u0323\u00ad\u2585_#<>[]'.,0x41éèñß",
    *"abcthe  \n\n",
    "😀",
    "👩\u200d👧",
    "北京",
    "क्षि",
    "\U0010ffff",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "<0x41>",
    "<0x",
    "the",
    " the",
    "  cat",
    "don't",
    "##a",
]


def corpus() -> list[str]:
    rng = random.Random(7)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    lines = [" ".join(rng.choices(WORDS, weights, k=rng.randint(3, 14))) for _ in range(600)]
    # Texts that are spelt like special tokens, often enough to be learned as pieces if nothing kept them from it.
    return (
        lines
        + ["a <s> the </s> cat<unk>dog [CLS] [SEP] [UNK] <0x41> </s>"] * 40
        + ["two\nlines\n\nhere    a      b\n\n\n\t\tc"] * 20
    )


def nasty_texts(count: int, length: int) -> Iterator[str]:
    for seed in range(count):
        rng = random.Random(seed)
        yield "".join(rng.choices(NASTY, k=rng.randint(0, length)))


def trained(kind: str):
    return train_tokenizer(kind, corpus, SIZES[kind], default_special_tokens(kind))


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: trained(kind) for kind in KINDS}


def encode(tokenizer, *documents: str) -> list[list[int]]:
    return [ids.tolist() for ids in DocumentEncoder(tokenizer).encode(documents)]


def plain(tokenizer, text: str) -> list[int]:
    """The ids that the whole text gets from the backend at once, special tokens taken for text."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids
    finally:
        backend.encode_special_tokens = False


# The encoder


@each("kind", KINDS)
def test_the_encoder_equals_the_plain_tokenizer_on_nasty_text(tokenizers, kind):
    documents = list(nasty_texts(400, 60))
    assert encode(tokenizers[kind], *documents) == [plain(tokenizers[kind], text) for text in documents]


@each("kind", KINDS)
def test_the_encoder_equals_the_plain_tokenizer_across_windows(tokenizers, kind, monkeypatch):
    monkeypatch.setattr(DocumentEncoder, "WINDOW", 500)
    monkeypatch.setattr(DocumentEncoder, "REMEMBERED", 300)
    document = " ".join(corpus()[:300]) + "".join(nasty_texts(60, 300))
    empty, long, short = encode(tokenizers[kind], "", document, "the cat")
    assert empty == []
    assert long == plain(tokenizers[kind], document)
    assert short == plain(tokenizers[kind], "the cat")


@each("kind", KINDS)
def test_two_windows_of_a_document_never_share_a_token(tokenizers, kind):
    """A cut at every place where one is allowed, each part encoded by itself."""
    document = " ".join(corpus()[:40]) + "".join(nasty_texts(40, 80))
    encoder = DocumentEncoder(tokenizers[kind])
    (whole,) = encoder.encode([document])
    encoder.lead = ""  # the parts after the first bring no space along
    cuts = [i for i in range(1, len(document)) if document[i] in " \n" and not document[i - 1].isspace()]
    assert len(cuts) > 200
    spans = itertools.pairwise([0, *cuts, len(document)])
    parts = [document[start:end] for start, end in spans]
    if kind == "sentencepiece":
        parts[0] = " " + parts[0]
    assert np.concatenate(list(encoder.encode(parts))).tolist() == whole.tolist()


@each("kind", KINDS)
def test_windows_end_between_parts_wherever_the_limit_falls(tokenizers, kind, monkeypatch):
    document = "the cat   sees \n\n\n  a\t   dog\t\tbird  \xa0   <s>    </s>   "
    for window in range(1, 40):
        monkeypatch.setattr(DocumentEncoder, "WINDOW", window)
        assert encode(tokenizers[kind], document) == [plain(tokenizers[kind], document)]


def test_the_encoder_yields_a_writable_uint32_array_per_document(tokenizers):
    documents = ["cat", "", "dog", " ", "cat"]
    arrays = list(DocumentEncoder(tokenizers["bpe"]).encode(iter(documents)))
    assert [array.dtype for array in arrays] == [np.uint32] * 5
    assert [tokenizers["bpe"].decode(array) for array in arrays] == documents
    arrays[0][:] = 0
    assert tokenizers["bpe"].decode(arrays[4]) == "cat"


def test_the_encoder_does_not_read_far_ahead(tokenizers):
    taken = 0

    def documents() -> Iterator[str]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield "the cat " * 20_000

    next(DocumentEncoder(tokenizers["word"]).encode(documents()))
    assert taken < 20


def test_a_long_document_costs_its_ids_and_a_window(tokenizers, monkeypatch):
    monkeypatch.setattr(DocumentEncoder, "WINDOW", 10_000)
    document = " ".join(random.Random(1).choices(WORDS, k=300_000))
    encoder = DocumentEncoder(tokenizers["word"])
    tracemalloc.start()
    (ids,) = encoder.encode([document])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == 300_000
    assert peak < 3 * ids.nbytes + 2e6


def test_the_encoder_does_not_change_the_tokenizer(tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    before = tokenizer.backend_tokenizer.to_str()
    encode(tokenizer, "the <s> cat")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.bos_token_id in tokenizer("the <s> cat")["input_ids"]


@pytest.mark.parametrize("earlier", [{"padding": True}, {"truncation": True, "max_length": 1}])
def test_padding_and_truncation_do_not_reach_the_encoder(earlier):
    tokenizer = trained("bpe")
    expected = encode(tokenizer, "quizzical zebras", "a")
    tokenizer(["quizzical zebras", "a"], **earlier)
    assert encode(tokenizer, "quizzical zebras", "a") == expected


def test_a_foreign_tokenizer_is_always_given_whole_documents():
    """Its pre-tokenizer keeps two words together, so that a cut at a space would change the ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a b": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    assert encode(PreTrainedTokenizerFast(tokenizer_object=backend), "a b|a b") == [[1, 1]]


@each("kind", KINDS)
def test_a_token_added_later_is_found_though_it_holds_a_space(kind):
    tokenizer = trained(kind)
    tokenizer.add_tokens(["big cat"])
    (ids,) = encode(tokenizer, "the big cat sees")
    assert tokenizer.convert_tokens_to_ids("big cat") in ids
    assert ids == plain(tokenizer, "the big cat sees")


# Text that looks like a special token


@each("kind", KINDS)
def test_text_spelt_like_a_special_token_stays_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    special = {tokenizer.convert_tokens_to_ids(name) for name in tokenizer.special_tokens_map.values()}
    special.discard(tokenizer.unk_token_id)
    for name in tokenizer.special_tokens_map.values():
        for text in (name, f"the {name} cat", f"the{name}{name}cat", f"\t{name}"):
            assert special.isdisjoint(encode(tokenizer, text)[0]), text


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece", "bpe"])
def test_a_word_spelt_like_a_special_token_is_not_learned_as_one(kind):
    documents = ["the EOS cat EOSEOS sees"] * 300
    size = {"sentencepiece": 271, "wordpiece": 60, "bpe": 275}[kind]
    tokenizer = train_tokenizer(kind, lambda: documents, size, {"eos_token": "EOS", "unk_token": "<unk>"})
    (ids,) = encode(tokenizer, "the EOS cat EOSEOS sees")
    assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("kind", EXACT)
def test_text_spelt_like_the_unknown_token_is_not_unknown(tokenizers, kind):
    (ids,) = encode(tokenizers[kind], "a <unk> b<unk>")
    assert tokenizers[kind].unk_token_id not in ids
    assert tokenizers[kind].decode(ids) == "a <unk> b<unk>"


def test_unknown_text_spelt_like_a_byte_piece_stays_text():
    """Only "<0x41>" as a whole would be in this vocabulary: no piece of the corpus has a "<" or a digit."""
    special = default_special_tokens("sentencepiece")
    tokenizer = train_tokenizer("sentencepiece", lambda: ["мир дом кот лес мир дом кот"] * 50, 273, special)
    for text in ("<0x41>", "мир<0x41>", "<unk>", "<s>", "<0x<0x41>>"):
        (ids,) = encode(tokenizer, text)
        assert len(ids) >= len(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_literal_unknown_word_is_the_unknown_token_of_word(tokenizers):
    assert encode(tokenizers["word"], "the <unk> cat")[0][1] == tokenizers["word"].unk_token_id


@pytest.mark.parametrize("kind", ["character", "word", "bpe"])
def test_a_special_token_that_is_also_an_ordinary_one_is_refused(kind):
    special = default_special_tokens(kind) | {"pad_token": "e"}
    if kind == "word":
        tokenizer = train_tokenizer(kind, lambda: ["e f e f"], None, special)
        assert encode(tokenizer, "e f")[0][0] == tokenizer.unk_token_id
        return
    with pytest.raises(TokenizerError, match="'e' is also an ordinary token"):
        train_tokenizer(kind, corpus, None if kind == "character" else 400, special)


# What each type does with text


@each("kind", EXACT)
@each(
    "text",
    [
        "",
        " ",
        "  ",
        "\n",
        " \n",
        "\n ",
        "x",
        " x",
        "  x",
        "x  ",
        "a  b",
        "\ta\t",
        "\r\n",
        "é",
        "e\u0301",
        "😀👩\u200d👧",
        "\0",
        "北京 ",
    ],
)
def test_text_comes_back_exactly(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    assert tokenizer.decode(encode(tokenizer, text)[0]) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", EXACT)
def test_random_nasty_text_comes_back_exactly(tokenizers, kind):
    texts = list(nasty_texts(400, 40))
    assert [tokenizers[kind].decode(ids) for ids in encode(tokenizers[kind], *texts)] == texts


def test_the_block_character_of_sentencepiece_becomes_a_space(tokenizers):
    assert tokenizers["sentencepiece"].decode(encode(tokenizers["sentencepiece"], "a▁b")[0]) == "a b"


def test_character_has_one_token_per_character_and_newline(tokenizers):
    text = "two\nlines  北京."
    (ids,) = encode(tokenizers["character"], text)
    assert len(ids) == len(text)
    assert tokenizers["character"].decode(ids) == text


def test_character_makes_an_unseen_character_unknown(tokenizers):
    (ids,) = encode(tokenizers["character"], "aŽb")
    assert ids[1] == tokenizers["character"].unk_token_id
    assert tokenizers["character"].unk_token_id not in (ids[0], ids[2])


def test_character_keeps_the_most_frequent_then_the_lowest():
    special = default_special_tokens("character")
    tokenizer = train_tokenizer("character", lambda: ["zzz yyy", "cba"], 5 + 3, special)
    assert set(tokenizer.get_vocab()) - set(special.values()) == {"z", "y", " "}
    tokenizer = train_tokenizer("character", lambda: ["zzzyyy", "cba"], 5 + 3, special)
    assert set(tokenizer.get_vocab()) - set(special.values()) == {"z", "y", "a"}


def test_word_splits_where_python_splits():
    text = "a\x1cb\x1fc\u2028d\xa0e\u200bf\x85g\u3000h\ti,j"
    tokenizer = train_tokenizer("word", lambda: [text], None, default_special_tokens("word"))
    (ids,) = encode(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(ids) == text.split()


def test_word_keeps_the_most_frequent_then_the_lowest():
    special = default_special_tokens("word")
    tokenizer = train_tokenizer("word", lambda: ["dog dog zebra ant", "bee"], 5 + 2, special)
    assert set(tokenizer.get_vocab()) - set(special.values()) == {"dog", "ant"}


def test_word_ends_every_line_of_a_document_with_a_separator(tokenizers):
    tokenizer = tokenizers["word"]
    eos, the = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("the")
    assert encode(tokenizer, "the\nthe \n\nthe the\n") == [[the, eos, the, eos, eos, the, the, eos]]
    assert tokenizer("the\nthe")["input_ids"] == [the, eos, the]


def test_word_decodes_with_spaces(tokenizers):
    assert tokenizers["word"].decode(encode(tokenizers["word"], "the\tcat  sees")[0]) == "the cat sees"


def test_wordpiece_keeps_case_and_accents():
    tokenizer = train_tokenizer("wordpiece", lambda: ["Größe café NAÏVE"] * 9, 80, default_special_tokens("wordpiece"))
    assert tokenizer.decode(encode(tokenizer, "Größe café NAÏVE")[0]) == "Größe café NAÏVE"
    assert tokenizer.unk_token_id in encode(tokenizer, "naive")[0]


def unknown_share(tokenizer, *documents: str) -> float:
    ids = [token for document in encode(tokenizer, *documents) for token in document]
    return ids.count(tokenizer.unk_token_id) / len(ids)


@pytest.mark.long
def test_the_alphabet_of_wordpiece_follows_the_vocabulary():
    """3,000 Chinese characters of about the frequencies that they have in text, and words of two Latin letters."""
    rng = random.Random(2)
    weights = [1 / (rank + 10) for rank in range(3000)]
    chinese = [chr(0x4E00 + rank) for rank in range(3000)]
    documents = ["".join(rng.choices(chinese, weights, k=20)) + " to be or no" for _ in range(2000)] + chinese
    special = default_special_tokens("wordpiece")
    counts, shares = Counter("".join(documents)), {}
    for size in (1100, 2000, 4000):
        tokenizer = train_tokenizer("wordpiece", partial(iter, documents), size, special)
        assert len(tokenizer) <= size
        known = tokenizer.get_vocab().keys() & set(chinese)
        shares[size] = unknown_share(tokenizer, *documents)
        lost = max((counts[character] for character in chinese if character not in known), default=0)
        assert lost <= min(counts[character] for character in known)
    assert shares[1100] > shares[2000] > shares[4000] == 0
    assert shares[2000] < 0.1
    with pytest.raises(TokenizerError, match="too small"):
        train_tokenizer("wordpiece", partial(iter, documents), 900, special)


@pytest.mark.long
def test_rare_characters_leave_wordpiece_half_of_its_vocabulary():
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(800)]
    rare = [chr(0x4E00 + rank) for rank in range(1500)]
    special = default_special_tokens("wordpiece")
    tokenizer = train_tokenizer("wordpiece", lambda: [" ".join(words)] * 3 + rare, 2400, special)
    assert len(tokenizer) == 2400
    assert sum(character in tokenizer.get_vocab() for character in rare) == pytest.approx(1165, abs=5)


@pytest.mark.long
def test_a_word_of_any_length_is_known_to_wordpiece(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    for word in ("cat" * 33, "cat" * 34, "dog" * 1000, "a" * 100_000, "北" * 300):
        assert unknown_share(tokenizer, f"the {word} sees") == 0
        (ids,) = encode(tokenizer, word)
        assert "".join(tokenizer.decode(ids).split()) == word


def test_bpe_needs_no_unknown_token():
    special = {"eos_token": "<|end|>"}
    tokenizer = train_tokenizer("bpe", corpus, 300, special)
    assert tokenizer.decode(encode(tokenizer, "\U0010ffff न")[0]) == "\U0010ffff न"


def test_sentencepiece_starts_a_document_like_any_word(tokenizers):
    first, later = encode(tokenizers["sentencepiece"], "the", "cat the")
    assert later[-len(first) :] == first


def test_sentencepiece_keeps_the_model_it_was_converted_from(tmp_path, tokenizers):
    tokenizer = tokenizers["sentencepiece"]
    save_tokenizer(tokenizer, tmp_path / "one")
    save_tokenizer(load_tokenizer(tmp_path / "one"), tmp_path / "two")
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "two" / SENTENCEPIECE_MODEL))
    text = "the cat runs quickly naïve 北京 ž"
    assert encode(tokenizer, text)[0] == original.encode(" " + text)


@pytest.mark.parametrize("broken", ["\u2585", "y" * 9000])
def test_sentencepiece_drops_no_line_for_what_it_holds(broken):
    """The library drops a whole line for each of these, and with it the only source of the letters q and j."""
    special = default_special_tokens("sentencepiece")
    documents = [f"qqq jjj {broken} qqq jjj"] * 20 + ["aaa bbb"] * 20
    tokenizer = train_tokenizer("sentencepiece", lambda: documents, 271, special)
    assert {"q", "j"} <= set(tokenizer.get_vocab())


def test_a_document_without_white_space_trains_every_type():
    document = "abcdefghij" * 5000
    for kind in KINDS:
        special = default_special_tokens(kind)
        tokenizer = train_tokenizer(kind, lambda: [document, "a b c d"], None if SIZES[kind] is None else 272, special)
        assert encode(tokenizer, "abc")[0]


# Sizes


@each("kind", [kind for kind in KINDS if kind != "character"])
def test_the_vocabulary_size_includes_the_special_tokens(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer.get_vocab().values()
    assert sorted(ids) == list(range(len(tokenizer)))
    assert len(tokenizer) <= SIZES[kind]
    if kind in EXACT:
        assert len(tokenizer) == SIZES[kind]


@each("kind", KINDS)
def test_the_smallest_size_that_an_error_names_is_the_smallest(kind):
    special = default_special_tokens(kind)
    for size in (1, 5):
        with pytest.raises(TokenizerError, match=r"too small.*the smallest that works is") as caught:
            train_tokenizer(kind, corpus, size, special)
    smallest = int(str(caught.value).rsplit(" ", 1)[1])
    assert len(train_tokenizer(kind, corpus, smallest, special)) == smallest
    with pytest.raises(TokenizerError, match=f"smallest that works is {smallest}$"):
        train_tokenizer(kind, corpus, smallest - 1, special)


def test_the_largest_size_that_an_error_names_is_the_largest():
    special = default_special_tokens("sentencepiece")
    with pytest.raises(TokenizerError, match=r"too large.*the largest that works is") as caught:
        train_tokenizer("sentencepiece", corpus, 50_000, special)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    assert len(train_tokenizer("sentencepiece", corpus, largest, special)) == largest
    with pytest.raises(TokenizerError, match=f"largest that works is {largest}$"):
        train_tokenizer("sentencepiece", corpus, largest + 1, special)


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece", "bpe"])
def test_subword_types_need_a_size(kind):
    with pytest.raises(TokenizerError, match="needs a vocab_size"):
        train_tokenizer(kind, corpus, None, default_special_tokens(kind))


# Special tokens


def test_the_defaults_name_the_usual_special_tokens():
    for kind in ("sentencepiece", "bpe", "character", "word"):
        assert default_special_tokens(kind) == {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "cls_token": "<s>",
            "sep_token": "</s>",
        }
    assert set(default_special_tokens("wordpiece").values()) == {
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[UNK]",
        "[PAD]",
    }


@each("kind", KINDS)
def test_a_saved_tokenizer_adds_what_its_model_was_trained_with(tokenizers, kind, tmp_path):
    plain = tokenizers[kind]
    (inner,) = encode(plain, "the cat")
    for framed in (False, True):
        save_tokenizer(as_trained(plain, framed=framed), tmp_path)
        saved = load_tokenizer(tmp_path)
        around = [saved.cls_token_id, *inner, saved.sep_token_id] if framed else inner
        assert saved("the cat") == {"input_ids": around, "attention_mask": [1] * len(around)}
        assert saved("the", "cat", return_token_type_ids=True)["token_type_ids"][-1] == 1
        assert encode(saved, "the cat") == [inner]
        assert tokenizer_digest(saved) == tokenizer_digest(plain)
        # The names that other tools ask for: what opens a document in training, and what ends it.
        assert saved.bos_token_id == (saved.cls_token_id if framed else separator_id(plain))
        assert saved.eos_token_id == separator_id(plain)
    assert plain("the cat") == {"input_ids": inner, "attention_mask": [1] * len(inner)}
    assert (plain.bos_token, plain.eos_token) == (None, None) if kind == "wordpiece" else ("<s>", "</s>")


def test_a_document_ends_with_eos_or_else_with_sep(tokenizers):
    assert separator_id(tokenizers["bpe"]) == tokenizers["bpe"].eos_token_id
    assert separator_id(tokenizers["wordpiece"]) == tokenizers["wordpiece"].sep_token_id
    tokenizer = trained("wordpiece")
    tokenizer.sep_token = None
    with pytest.raises(TokenizerError, match="neither an eos_token nor a sep_token"):
        separator_id(tokenizer)


@each(
    ("kind", "special", "message"),
    [
        ("bpe", {"unk_token": "<unk>"}, "needs an eos_token or a sep_token"),
        ("bpe", {"eos_token": "<e>", "pad_token": "<e>"}, "the end of a text would never be learned"),
        ("wordpiece", {"sep_token": "<e>", "unk_token": "[UNK]", "pad_token": "<e>"}, "would never be learned"),
        ("bpe", {"eos_token": "<e>", "mask_token": "<e>"}, "mask_token '<e>' has a second role"),
        ("word", {"eos_token": "<e>"}, "a word tokenizer needs an unk_token"),
        ("character", {"eos_token": "<e>"}, "a character tokenizer needs an unk_token"),
        ("wordpiece", {"eos_token": "<e>"}, "a wordpiece tokenizer needs an unk_token"),
        ("wordpiece", {"eos_token": "<e>", "unk_token": "UNK"}, "spelt like a word"),
        ("sentencepiece", {"eos_token": "<e>", "unk_token": "?"}, "one character"),
        ("bpe", {"eos_token": "end of text"}, "white space"),
        ("bpe", {"eos_token": ""}, "must not be empty"),
        ("bpe", {"eos_tokn": "<e>"}, "Did you mean 'eos_token'"),
        ("wordpeice", {"eos_token": "<e>"}, "Did you mean 'wordpiece'"),
    ],
)
def test_unusable_special_tokens_are_refused_in_one_line(kind, special, message):
    with pytest.raises(TokenizerError, match=message) as caught:
        train_tokenizer(kind, corpus, 400, special)
    assert "\n" not in str(caught.value)


@each("kind", KINDS)
def test_a_corpus_without_text_is_refused(kind):
    with pytest.raises(TokenizerError, match="contains no text"):
        train_tokenizer(kind, lambda: ["", "  \n"], 300, default_special_tokens(kind))


# Training on counts


def random_words(count: int) -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choices("abcdefgh", k=7)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece", "bpe", "word"])
@pytest.mark.long
def test_frequent_words_get_the_tokens_whichever_comes_first(kind):
    words = random_words(200)
    special = default_special_tokens(kind)
    for frequent, rare in ((words[:10], words[10:]), (words[-10:], words[:-10])):
        documents = [" " + " ".join(words)] * 2 + [" " + " ".join(frequent)] * 100
        size = {"sentencepiece": 285, "wordpiece": 80, "bpe": 330, "word": 15}[kind]
        tokenizer = train_tokenizer(kind, partial(iter, documents), size, special)
        lead = "" if kind == "sentencepiece" else " "
        known = [word for word in words if len(encode(tokenizer, lead + word)[0]) == 1]
        if kind == "word":
            known = [word for word in words if word in tokenizer.get_vocab()]
        assert set(frequent) <= set(known)
        assert len(set(rare) & set(known)) <= 5


def test_counts_stay_bounded_and_keep_what_is_frequent(monkeypatch):
    monkeypatch.setattr(text_counts, "COUNTED", 3000)
    monkeypatch.setattr(text_counts, "BATCH", 1)
    rare = iter(f"{number:05}" for number in range(5000))
    texts = (" ".join(["often"] * 3 + [next(rare) for _ in range(20)]) for _ in range(200))
    counts = text_counts.count(texts, str.split, lambda word: (word,))
    assert counts["often"] == 600
    assert 3000 / 2 / (5 + text_counts.ENTRY) - 2 < len(counts) < 3000 / (5 + text_counts.ENTRY)
    assert min(counts) < "01000" < "03000" < max(counts)  # a sample of all of them, not the first or last ones


def test_the_most_frequent_are_chosen_exactly_up_to_the_room():
    counts = {"rare": 1, "often": 9, "some": 3, "sums": 3}
    entry = text_counts.ENTRY
    assert text_counts.most_frequent(counts, 17 + 4 * entry) == counts
    assert list(text_counts.most_frequent(counts, 13 + 3 * entry)) == ["often", "some", "sums"]
    assert len(text_counts.most_frequent(counts, 12 + 3 * entry)) == 2
    assert list(text_counts.most_frequent(counts, 5 + entry)) == ["often"]


_BOUNDED = """
import random, sys
from foundry_core.tokenization import text_counts
from foundry_core.tokenization import trainers
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from foundry_core.tokenization.tokenizer_folder import tokenizer_digest
text_counts.COUNTED, trainers.MOST, text_counts.BATCH = 20000, 10000, 1000
rng = random.Random(3)
documents = [" ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(20)) + " the cat" for _ in range(300)]
for kind in ("sentencepiece", "wordpiece", "bpe", "word"):
    special = default_special_tokens(kind)
    tokenizer = train_tokenizer(kind, lambda: documents, 300, special)
    assert " the cat" in tokenizer.decode(tokenizer("a the cat")["input_ids"]), kind
    print(tokenizer_digest(tokenizer))
"""


@pytest.mark.long
def test_beyond_the_bounds_another_process_trains_the_same(monkeypatch, capsys):
    for module, name in ((text_counts, "COUNTED"), (text_counts, "BATCH"), (trainers, "MOST")):
        monkeypatch.setattr(module, name, getattr(module, name))  # puts back what the program changes
    exec(_BOUNDED, {})
    here = capsys.readouterr().out
    command = [sys.executable, "-c", _BOUNDED]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == here
    assert len(here.split()) == 4


def test_the_seeds_are_repeated_strings_with_their_frequencies():
    lines = text_counts.seeds({" the": 5, " then": 2, "xy": 1}, 16, 200)
    seeds = dict(line.rstrip("\n").split("\t") for line in lines)
    assert seeds == {"▁the": "7", "the": "7", "he": "7", "▁then": "2", "then": "2", "hen": "2", "en": "2"}


def test_the_sentencepiece_model_does_not_name_temporary_files(tokenizers):
    model = tokenizer_files(tokenizers["sentencepiece"])[SENTENCEPIECE_MODEL]
    assert b".tsv" not in model
    assert len(sentencepiece.SentencePieceProcessor(model_proto=model)) == SIZES["sentencepiece"] - 4


# Folders, determinism, identity

_FRESH_PROCESS = """
import json, sys
from transformers import AutoTokenizer
texts = json.load(sys.stdin)
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(json.dumps([tokenizer(text)["input_ids"] for text in texts]))
"""


@pytest.mark.long
def test_auto_tokenizer_gives_identical_ids_in_another_process(tmp_path):
    texts = [*corpus()[:20], *nasty_texts(20, 40), "<s> the </s> [MASK]"]
    ids = {}
    for kind in KINDS:
        tokenizer = as_trained(trained(kind), framed=kind == "wordpiece")
        save_tokenizer(tokenizer, tmp_path / kind)
        settings = json.loads((tmp_path / kind / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        # The model's own type must not make transformers rebuild the tokenizer as that model's usual one.
        model = {"model_type": "bert" if kind == "wordpiece" else "gpt2", "vocab_size": len(tokenizer)}
        (tmp_path / kind / "config.json").write_text(json.dumps(model))
        ids[kind] = [tokenizer(text)["input_ids"] for text in texts]
    command = [sys.executable, "-c", _FRESH_PROCESS, *(str(tmp_path / kind) for kind in KINDS)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    assert dict(zip(KINDS, map(json.loads, done.stdout.splitlines()), strict=True)) == ids


_TRAIN_AND_SAVE = """
import json, sys
from pathlib import Path
from foundry_core.tokenization.tokenizer_folder import save_tokenizer
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
documents = json.load(sys.stdin)
for kind, size in json.loads(sys.argv[2]).items():
    special = default_special_tokens(kind)
    save_tokenizer(train_tokenizer(kind, lambda: documents, size, special), Path(sys.argv[1]) / kind)
"""


@pytest.mark.long
def test_another_process_writes_the_same_tokenizer_folder(tmp_path, tokenizers):
    for kind, tokenizer in tokenizers.items():
        save_tokenizer(tokenizer, tmp_path / "here" / kind)
    command = [sys.executable, "-c", _TRAIN_AND_SAVE, str(tmp_path / "there"), json.dumps(SIZES)]
    subprocess.run(command, input=json.dumps(corpus()), capture_output=True, text=True, check=True)
    here, there = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "here", tmp_path / "there")
    )
    assert len(here) == 2 * len(KINDS) + 1
    assert here == there


def test_training_writes_nothing_to_the_terminal(capfd):
    for kind in KINDS:
        trained(kind)
    assert capfd.readouterr() == ("", "")


@each("kind", KINDS)
def test_the_digest_survives_saving_loading_and_use(tmp_path, tokenizers, kind):
    tokenizer = tokenizers[kind]
    digest = tokenizer_digest(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    loaded(["the cat", "a"], padding=True, truncation=True, max_length=3)
    save_tokenizer(loaded, tmp_path / "b")
    assert tokenizer_digest(loaded) == tokenizer_digest(load_tokenizer(tmp_path / "b")) == digest
    assert encode(loaded, *corpus()[:50]) == encode(tokenizer, *corpus()[:50])


def test_the_digest_changes_with_vocabulary_and_special_tokens(tokenizers):
    special = default_special_tokens("bpe")
    digests = {tokenizer_digest(tokenizers["bpe"])}
    digests.add(tokenizer_digest(train_tokenizer("bpe", corpus, 399, special)))
    digests.add(tokenizer_digest(train_tokenizer("bpe", corpus, 400, special | {"sep_token": "<s>"})))
    assert len(digests) == 3


def test_a_folder_without_a_readable_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"contains no tokenizer\.json"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@each("kind", KINDS)
def test_the_factory_trains_on_files_and_saves(tmp_path, kind):
    file = tmp_path / "train.txt"
    lines = [line for line in corpus() if "\n" not in line]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = getattr(TokenizerFactory, f"train_{kind}")
    tokenizer = train([file], tmp_path / "out", SIZES[kind])
    expected = train_tokenizer(kind, lambda: lines, SIZES[kind], default_special_tokens(kind))
    assert tokenizer_digest(tokenizer) == tokenizer_digest(expected)
    assert tokenizer_digest(load_tokenizer(tmp_path / "out")) == tokenizer_digest(expected)


def test_the_factory_takes_one_path_no_folder_and_special_tokens(tmp_path):
    (tmp_path / "train.txt").write_text("one two\nthree\n\nfour\n", encoding="utf-8")
    special = {"eos_token": "<e>", "unk_token": "<u>"}
    tokenizer = TokenizerFactory.train_word(str(tmp_path / "train.txt"), special_tokens=special, unit="file")
    assert set(tokenizer.get_vocab()) == {"one", "two", "three", "four", "<e>", "<u>"}
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


@pytest.mark.long
def test_importing_the_module_does_not_import_torch():
    code = "import sys, foundry_core.tokenization.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LIMITED = """
import resource, sys
from pathlib import Path
from foundry_core import load_config
from foundry_core.errors import FoundryError
from foundry_core.tokenization.tokenizer_folder import tokenizer_files
from foundry_core.tokenization.training import train_tokenizer
def documents(): return ["the cat sat on the mat " * 3, *(f"word{number} cat{number}" for number in range(600))]
roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for kind, limit in (("sentencepiece", 1024), ("word", 1024), ("word", 8)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        tokenizer_files(train_tokenizer(kind, documents, 400, roles))
    except FoundryError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(error.exit_code, error)
"""


@pytest.mark.long
def test_a_refused_temporary_file_is_one_line_with_its_place() -> None:
    """The files of seeds, of the library in Rust, and of the one in Python."""
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    line = r"8 cannot write /\S+: (File too large|.+\(os error \d+\)); make room there, .+"
    assert [bool(re.fullmatch(line, each)) for each in ended.stdout.splitlines()] == [True] * 3, ended.stdout


def test_a_tokenizer_type_of_a_plugin_needs_a_trainer() -> None:
    """Core's own have none to name."""
    kind = TokenizerType("mine", "of a test")
    with pytest.raises(PluginError, match="^the tokenizer type mine has no trainer: give it an import string$"):
        train_tokenizer(kind, lambda: ["a text"], 99, kind.tokens_by_role())
