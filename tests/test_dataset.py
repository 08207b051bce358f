"""Token file, rows, order and batches: nothing lost, nothing twice, nothing stale, any position at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foundry_core.corpus.reader import ByteAccount, Corpus, DocumentUnit
from foundry_core.data.token_file import Batches, Rows, SampleOrder, permutation, prepare_tokens
from foundry_core.errors import DataError
from foundry_core.storage.manifest import sealed

TEXT = "the cat sat\nthe dog\n\na cat saw the dog sit\nunseen words\n"


def word_tokenizer(words: str = "the cat sat dog a saw sit", filler: int = 0) -> PreTrainedTokenizerFast:
    vocabulary = ["<unk>", "</s>", *words.split(), *(f"filler{number}" for number in range(filler))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def corpus_of(folder: Path, text: str = TEXT, unit: DocumentUnit = "line") -> Corpus:
    (folder / "corpus.txt").write_text(text)
    return Corpus.open(folder / "corpus.txt", unit=unit)


# The token file


def test_the_stream_is_a_separator_and_then_each_document_with_a_separator(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    corpus = corpus_of(tmp_path)
    file = prepare_tokens(corpus, tokenizer, tmp_path)
    expected, starts = [1], []
    for document in corpus.documents():
        starts.append(len(expected))
        expected += [*tokenizer(document)["input_ids"], 1]
    assert file.tokens.tolist() == expected == [1, 2, 3, 4, 1, 2, 5, 1, 6, 3, 7, 2, 5, 8, 1, 0, 0, 1]
    assert file.documents.tolist() == [*starts, len(expected)]
    assert (file.tokens.dtype, file.documents.dtype) == (np.uint16, np.int64)
    assert not file.tokens.flags.writeable


def test_the_sidecar_says_what_was_counted(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    info = prepare_tokens(corpus, word_tokenizer(), tmp_path).info
    account = ByteAccount()
    words = sum(len(document.split()) for document in corpus.documents(account))
    assert (info.tokens, info.documents, info.words, info.text_bytes) == (18, 4, words, account.bytes_text)
    assert ByteAccount(**info.account) == account
    assert (info.corpus_digest, info.separator_id) == (corpus.digest, 1)


def test_a_stream_of_many_buffers_is_whole(tmp_path: Path) -> None:
    """Documents of very different lengths, more than two buffers of 2**20 tokens, and one that fills a buffer."""
    lengths = [*np.random.default_rng(0).integers(1, 400, 6000).tolist(), 1_100_000, 1, 2]
    corpus = corpus_of(tmp_path, "".join("cat " * length + "\n" for length in lengths))
    calls: list[int] = []
    file = prepare_tokens(corpus, word_tokenizer(), tmp_path, progress=calls.append)
    assert file.documents.tolist() == np.cumsum([1, *(length + 1 for length in lengths)]).tolist()
    assert len(file.tokens) == file.info.tokens == file.documents[-1]
    assert np.flatnonzero(file.tokens == 1).tolist() == [0, *(file.documents[1:] - 1).tolist()]
    assert len(calls) > 2
    assert calls == sorted(calls)
    assert calls[-1] == corpus.bytes


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocabulary: int, dtype: type) -> None:
    tokenizer = word_tokenizer("", filler=vocabulary - 2)
    last = vocabulary - 1
    file = prepare_tokens(corpus_of(tmp_path, f"filler{last - 2}\n"), tokenizer, tmp_path)
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [1, last, 1]


def test_an_unchanged_corpus_is_not_tokenized_again(tmp_path: Path) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    calls: list[int] = []
    # Written anew and opened anew, with a tokenizer built anew: the same content.
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert calls == []
    assert again.info == first.info
    assert again.tokens.tolist() == first.tokens.tolist()
    assert len(list(tmp_path.glob("*.tokens"))) == 1


def test_whatever_shapes_the_tokens_gives_a_new_file(tmp_path: Path) -> None:
    variants: list[tuple[str, DocumentUnit, PreTrainedTokenizerFast]] = [
        (TEXT, "line", word_tokenizer()),
        (TEXT + "\n", "line", word_tokenizer()),
        (TEXT, "block", word_tokenizer()),
        (TEXT, "line", word_tokenizer("a cat sat dog the saw sit")),
        (TEXT, "line", word_tokenizer(filler=1)),
        (TEXT, "line", word_tokenizer()),
    ]
    variants[-1][2].eos_token = "sit"
    files = [prepare_tokens(corpus_of(tmp_path, text, unit), tokenizer, tmp_path) for text, unit, tokenizer in variants]
    assert len({file.info.digest for file in files}) == len(list(tmp_path.glob("*.tokens"))) == len(variants)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("suffix", ["tokens", "documents", "json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_torn_or_damaged_token_file_is_rebuilt(tmp_path: Path, suffix: str, damage: Any) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    expected = (first.tokens.tolist(), first.documents.tolist())
    (path,) = tmp_path.glob(f"*.{suffix}")
    damage(path)
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    assert (again.tokens.tolist(), again.documents.tolist()) == expected
    calls: list[int] = []
    prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert calls == []


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("words", 10**6),
        ("text_bytes", 1),
        ("dtype", "<u4"),
        ("dtype", "zzz"),
        ("tokens", 18.0),
        ("tokens", 17),
        ("documents", "4"),
        ("account", []),
    ],
)
def test_a_sidecar_is_believed_when_it_is_as_it_was_written(
    tmp_path: Path, key: str, value: Any, resealed: bool
) -> None:
    """What was sealed anew is somebody's word; of a type or a size that does not fit the files it is not taken."""
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text()) | {key: value}
    if resealed:
        del content["sha256"]
    path.write_bytes(sealed(content) if resealed else json.dumps(content, indent=1).encode() + b"\n")
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.info == first.info or (resealed and key in ("words", "text_bytes"))


def test_a_sidecar_without_a_seal_is_built_anew(tmp_path: Path) -> None:
    first = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    calls: list[int] = []
    again = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path, progress=calls.append)
    assert (again.info, len(calls)) == (first.info, 1)


def test_a_corpus_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"the cat\n" * 500_000 + b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        prepare_tokens(Corpus.open(tmp_path / "a.txt"), word_tokenizer(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory"):
        prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path / "file")


def test_two_processes_that_prepare_the_same_both_end_well(tmp_path: Path) -> None:
    corpus_of(tmp_path, TEXT * 20_000)
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys; from pathlib import Path; from transformers import AutoTokenizer\n"
        "from foundry_core.corpus.reader import Corpus; from foundry_core.data.token_file import prepare_tokens\n"
        "folder = Path(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(folder / 'tokenizer')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "file = prepare_tokens(Corpus.open(folder / 'corpus.txt'), tokenizer, folder / 'out')\n"
        "print(file.info.tokens_sha256, int(file.tokens.astype('int64').sum()), flush=True)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1] != ""
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".documents", ".json", ".tokens"]


# Rows


@pytest.mark.parametrize("length", [2, 3, 5, 8, 17, 18, 19, 100])
@pytest.mark.parametrize("size", [2, 3, 5, 17, 18, 33])
def test_overlapping_rows_predict_every_token_but_the_first_exactly_once(size: int, length: int) -> None:
    stream = np.arange(size, dtype=np.uint16)
    rows = Rows(stream, "overlap", length)
    predicted: Counter[int] = Counter()
    for index in range(len(rows)):
        row = rows.row(index)
        assert 2 <= len(row) <= length
        assert row.dtype == np.int64
        assert np.diff(row).tolist() == [1] * (len(row) - 1)
        assert rows.stream_tokens(index) == len(row) - 1
        predicted.update(row[1:].tolist())
    assert predicted == Counter(range(1, size))
    assert rows.total_tokens == size - 1


@pytest.mark.parametrize("length", [3, 4, 5, 18, 19, 100])
@pytest.mark.parametrize("size", [2, 3, 5, 17, 18, 33])
def test_framed_rows_hold_every_token_once_between_start_and_end(size: int, length: int) -> None:
    stream = np.arange(size, dtype=np.uint32)
    rows = Rows(stream, "framed", length, start_id=1000, end_id=1001)
    content: list[int] = []
    for index in range(len(rows)):
        row = rows.row(index)
        assert 3 <= len(row) <= length
        assert len(row) == length or index == len(rows) - 1
        assert (row[0], row[-1], row.dtype) == (1000, 1001, np.int64)
        assert rows.stream_tokens(index) == len(row) - 2
        content += row[1:-1].tolist()
    assert content == list(range(1, size))
    assert rows.total_tokens == size - 1


@pytest.mark.parametrize("layout", ["overlap", "framed"])
def test_stream_tokens_of_many_rows_at_once_add_up(layout: Any) -> None:
    rows = Rows(np.arange(1000), layout, 7, start_id=0, end_id=1)
    counts = rows.stream_tokens(np.arange(len(rows)))
    assert counts.tolist() == [rows.stream_tokens(index) for index in range(len(rows))]
    assert counts.sum() == rows.total_tokens


def test_a_row_outside_is_an_error() -> None:
    rows = Rows(np.arange(10), "overlap", 4)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows.row(index)


@pytest.mark.parametrize(("layout", "length"), [("overlap", 1), ("overlap", 0), ("framed", 2)])
def test_a_length_without_room_for_a_token_is_refused(layout: Any, length: int) -> None:
    with pytest.raises(DataError, match="too small"):
        Rows(np.arange(10), layout, length, start_id=0, end_id=1)


@pytest.mark.parametrize("layout", ["overlap", "framed"])
def test_a_stream_without_a_row_is_refused(layout: Any) -> None:
    with pytest.raises(DataError, match="too few"):
        Rows(np.arange(1), layout, 10, start_id=0, end_id=1)


def test_changing_a_row_does_not_change_the_stream() -> None:
    stream = np.arange(10, dtype=np.int64)
    Rows(stream, "overlap", 4).row(0)[:] = 99
    assert stream.tolist() == list(range(10))


# The order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4097])
@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_an_order_visits_every_row_once(size: int, epoch: int) -> None:
    rows = permutation(size, 42, epoch)(np.arange(size))
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(size))


def test_an_order_does_not_depend_on_how_it_is_asked_for() -> None:
    order = permutation(4097, 1, 2)
    whole = order(np.arange(4097))
    assert [int(order(np.array([position]))[0]) for position in range(0, 4097, 41)] == whole[::41].tolist()
    assert order(np.arange(12).reshape(3, 4)).tolist() == whole[:12].reshape(3, 4).tolist()
    assert order(np.arange(0)).tolist() == []


def test_the_order_of_a_seed_never_changes() -> None:
    """Old checkpoints resume only if the order is what it was; a change here must be a decision."""
    assert permutation(10, 42, 0)(np.arange(10)).tolist() == [6, 4, 8, 5, 2, 3, 0, 1, 7, 9]


def test_every_order_of_a_few_rows_occurs_equally_often() -> None:
    orders = Counter(tuple(permutation(4, seed, 0)(np.arange(4)).tolist()) for seed in range(4800))
    assert len(orders) == 24
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 60  # chi square, 23 degrees: p about 4e-5


@pytest.mark.parametrize("size", [1000, 10_000, 65_536, 99_991])
def test_an_order_has_no_visible_structure(size: int) -> None:
    rows = permutation(size, 7, 3)(np.arange(size))
    noise = 4 / size**0.5
    assert abs(np.corrcoef(np.arange(size), rows)[0, 1]) < max(0.05, noise)
    for lag in (1, 2, int(size**0.5), int(size**0.5) + 1):
        assert abs(np.corrcoef(rows[lag:], rows[:-lag])[0, 1]) < max(0.05, noise)
    # In a random order two neighbours stay neighbours twice in an epoch, whatever the size.
    assert (np.abs(np.diff(rows)) == 1).sum() <= 12
    # A tenth of the positions sees about a tenth of every tenth of the corpus.
    seen = np.histogram(rows[: size // 10], bins=10, range=(0, size))[0]
    assert np.abs(seen - size / 100).max() < 5 * (size / 100) ** 0.5


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    orders = [permutation(10_000, seed, epoch)(np.arange(10_000)) for seed in (0, 1, 2**40) for epoch in (0, 1, 2)]
    for first in range(len(orders)):
        for second in range(first):
            assert (orders[first] == orders[second]).sum() < 10
            assert abs(np.corrcoef(orders[first], orders[second])[0, 1]) < 0.05


def test_a_far_position_costs_no_time_and_no_memory() -> None:
    order = SampleOrder(10**9, 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    _, rows = order.at(np.array([10**8, 10**8 + 1, 7 * 10**9]))
    assert time.perf_counter() - started < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000
    assert rows.max() < 10**9
    assert np.unique(permutation(10**9, 5, 0)(np.arange(10**8, 10**8 + 10**5))).size == 10**5


def test_positions_outside_an_order_are_an_error() -> None:
    for position in (-1, 10):
        with pytest.raises(IndexError):
            permutation(10, 0, 0)(np.array([position]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_of_the_sample_order_is_every_row_once(shuffle: bool) -> None:
    order = SampleOrder(13, 3, shuffle)
    epochs, rows = order.at(np.arange(13 * 5))
    assert epochs.tolist() == np.repeat(np.arange(5), 13).tolist()
    for epoch in range(5):
        inside = rows[epochs == epoch].tolist()
        expected = permutation(13, 3, epoch)(np.arange(13)).tolist() if shuffle else list(range(13))
        assert inside == expected
        assert sorted(inside) == list(range(13))


# Batches


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "input_ids": [sample["input_ids"].tolist() for sample in samples],
        "where": [[sample["epoch"], sample["row"]] for sample in samples],
    }


def batches(start: int, stop: int, num_workers: int = 0, batch_size: int = 4) -> Batches:
    rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 9)
    return Batches(rows, SampleOrder(len(rows), 11), collate, batch_size, start, stop, num_workers)


def test_batches_are_the_rows_at_their_positions() -> None:
    made = list(batches(120, 131))
    rows = Rows(np.arange(1000, dtype=np.uint16), "overlap", 9)
    epochs, indices = SampleOrder(len(rows), 11).at(np.arange(120, 131))
    assert [len(batch["where"]) for batch in made] == [4, 4, 3]
    wheres = [where for batch in made for where in batch["where"]]
    assert wheres == np.stack([epochs, indices], axis=1).tolist()
    ids = [row for batch in made for row in batch["input_ids"]]
    assert ids == [rows.row(index).tolist() for index in indices.tolist()]
    assert set(epochs.tolist()) == {0, 1}


def test_where_a_run_is_cut_and_how_it_is_batched_does_not_change_the_samples() -> None:
    def samples(*parts: Batches) -> list[list[int]]:
        return [where for part in parts for batch in part for where in batch["where"]]

    whole = samples(batches(0, 900))
    assert samples(batches(0, 37), batches(37, 500, batch_size=7), batches(500, 900, 2, batch_size=1)) == whole
    assert samples(batches(0, 900, batch_size=900)) == whole


def test_a_batch_after_100_million_samples_costs_what_the_first_one_does() -> None:
    """Rows read and positions computed are counted; benchmarks/seeking.py measures the time."""
    read, asked = list[int](), list[int]()

    class CountedRows(Rows):
        def row(self, index: int) -> np.ndarray:
            read.append(index)
            return super().row(index)

    class CountedOrder(SampleOrder):
        def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(positions))
            return super().at(positions)

    rows = CountedRows(np.broadcast_to(np.uint16(7), (30_000_000 * 8 + 1,)), "overlap", 9)
    order = CountedOrder(len(rows), 11)
    costs = []
    for start in (0, 10**8):
        batch = next(iter(Batches(rows, order, collate, 4, start, start + 10**9)))
        assert batch["where"] == np.stack(SampleOrder(len(rows), 11).at(np.arange(start, start + 4)), axis=1).tolist()
        costs.append((len(read), sum(asked)))
        read.clear()
        asked.clear()
    assert costs[0] == costs[1] == (4, 4 * Batches.GROUP)


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, foundry_core.data.token_file; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_sidecar_is_json_that_names_its_inputs(tmp_path: Path) -> None:
    info = prepare_tokens(corpus_of(tmp_path), word_tokenizer(), tmp_path).info
    (path,) = tmp_path.glob("*.json")
    assert path.stem == info.digest[:16]
    assert json.loads(path.read_text())["corpus_digest"] == info.corpus_digest
