"""`foundry seen`: the rows of a step and exposure counts are those of the batches that were trained."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry_core import ExperimentConfig, load_config, run
from foundry_core.analysis.occurrences import Occurrences, occurrences, pattern_finder, word_finder
from foundry_core.analysis.seen import SeenRun
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.corpus.reader import Corpus
from foundry_core.data.batches import Batches
from foundry_core.data.order import CropOrder, GivenOrder, LaneOrder, LengthOrder, MixedOrder, SampleOrder
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.data.token_file import prepare_tokens
from foundry_core.tokenization.encoding import DocumentEncoder, text_ids
from tests.each import each
from tests.test_given import pieces
from tests.test_tokenizers import KINDS, trained

GUIDE = Path(__file__).parents[1] / "docs" / "evaluation" / "seen.md"
PATTERN = r"\b[wv]\d*3 [wv]\d*4\b"
"""Two words, so that some occurrences reach over the edge of a row."""
BACKWARDS = """
import numpy as np
from foundry_core import DataOrder, hookimpl

@hookimpl
def foundry_orders():
    return [DataOrder("backwards", "the last row first", order="backwards:order")]

def order(rows, seed, epoch):
    return np.roll(np.arange(len(rows.lengths))[::-1], epoch)
"""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "shuffled": ("lstm", {}),
    "sequential": ("lstm", {"order": "sequential"}),
    "documents": ("lstm", {"batching": "documents"}),
    "isolated": ("lstm", {"isolate_documents": True}),
    "isolated and masked": ("bert", {"isolate_documents": True}),
    "contiguous": ("lstm", {"batching": "contiguous"}),
    "crops": ("lstm", {"batching": "crops"}),
    "masked crops": ("bert", {"batching": "crops"}),
    "mixture": (
        "lstm",
        {"training_corpus": {"w": {"path": "w.txt", "share": 0.7}, "v": {"path": "v.txt", "share": 0.3}}},
    ),
    "holes": ("lstm", {"steps": [{"drop": {"matching": r"\bw\d*[13]7\b", "in_place": True}}]}),
    "holes in crops": (
        "lstm",
        {"batching": "crops", "steps": [{"drop": {"matching": r"\bw\d*[13]7\b", "in_place": True}}]},
    ),
    "order of a package": ("lstm", {"order": "backwards"}),
}

Trial = Callable[..., ExperimentConfig]


def write_texts() -> None:
    """Write two texts in which every word occurs once: a token that was trained tells where in the text it stands."""
    generator = np.random.default_rng(7)
    for letter, lines in (("w", 60), ("v", 35)):
        numbers = iter(range(10_000))
        text = [" ".join(f"{letter}{next(numbers)}" for _ in range(size)) for size in generator.integers(2, 12, lines)]
        Path(f"{letter}.txt").write_text("\n".join(text) + "\n")


@pytest.fixture
def trial(
    experiment: Callable[..., ExperimentConfig],
    distribution: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> Trial:
    """Trains an experiment of `CASES` for two and a half epochs; gives the configuration."""
    monkeypatch.chdir(tmp_path)
    write_texts()
    distribution("backwards", {"foundry.plugins": {"backwards": "backwards"}}, {"backwards.py": BACKWARDS})

    def go(case: str = "shuffled") -> ExperimentConfig:
        architecture, data = CASES[case]
        schedule = {"train_steps": None, "epochs": 2.55, "gradient_accumulation_steps": 2}
        config = experiment(
            architecture,
            tmp_path,
            data={"training_corpus": "w.txt", "documents": "line", "max_sequence_length": 10, **data},
            tokenizer={"vocab_size": 2000},
            training={"warmup_steps": 0, "checkpoints": {"every_steps": 5}, **schedule},
            plugins=["backwards"] if data.get("order") == "backwards" else [],
        )
        run(config, quiet=True)
        return config

    return go


def folder_of(config: ExperimentConfig) -> Path:
    return Path(config.training.output_dir)


def trained_batches(config: ExperimentConfig, samples: int) -> tuple[Any, list[list[dict[str, Any]]]]:
    """The tokenizer, and the samples of each batch, as the trainer takes them."""
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora), corpora)
    made: Any = Batches(data.train_rows, data.order, list, config.data.batch_size, 0, samples)  # type: ignore[arg-type]
    return tokenizer, list(made)


def last_tokens(config: ExperimentConfig, tokenizer: Any) -> set[int]:
    """The ids of the words in which an occurrence of the pattern ends; each word occurs once in the text."""
    ends = [
        after
        for line in experiment_corpora(config).train.documents()
        for before, after in zip(line.split(), line.split()[1:], strict=False)
        if re.fullmatch(PATTERN, f"{before} {after}")
    ]
    assert len(ends) > 10
    return {token for ids in text_ids(tokenizer, ends) for token in ids}


def found_in(seen: SeenRun, pattern: str = PATTERN) -> Occurrences:
    return occurrences([pattern], pattern_finder(pattern), seen.data.corpus(), seen.data.tokens, seen.data.tokenizer)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
def test_counts_are_those_of_the_batches_that_were_trained(trial: Trial, case: str) -> None:
    config = trial(case)
    seen = SeenRun(folder_of(config))
    steps = [1, 3, 4, 11, 40]
    exposures = seen.exposures(found_in(seen), steps)
    tokenizer, batches = trained_batches(config, exposures[-1].samples)
    wanted, counts = last_tokens(config, tokenizer), [0]
    for sample in (sample for batch in batches for sample in batch):
        # The first token is that of the row before, or of a frame.
        counts.append(counts[-1] + sum(token in wanted for token in sample["input_ids"][1:].tolist()))
    assert [each.counts[PATTERN] for each in exposures] == [counts[each.samples] for each in exposures]
    assert counts[-1] > counts[exposures[2].samples] > 0
    checkpoints = {each.step: each.tokens_seen for each in exposures if each.checkpoint is not None}
    whole, problems = verify_run(folder_of(config))
    assert {one.state.step: one.state.tokens_seen for one in whole} == checkpoints
    assert problems == []
    assert [one.folder.name for one in whole if one.since.startswith("not deriv")] == []


@pytest.mark.parametrize("case", ["documents", "mixture", "holes"])
def test_the_rows_of_a_step_are_those_that_were_trained(
    trial: Trial, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trial(case)
    tokenizer, batches = trained_batches(config, 200)
    assert main(["seen", str(folder_of(config)), "--step", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    samples = [sample for batch in batches[6:8] for sample in batch]
    assert [(row["position"], row["epoch"], row["row"]) for row in rows] == [
        (sample["position"], sample["epoch"], sample["row"]) for sample in samples
    ]
    for row, sample in zip(rows, samples, strict=True):
        assert (
            row["text"].replace("[...]", "").split()
            == tokenizer.decode([token for token in sample["input_ids"].tolist() if token >= 0]).split()
        )
        assert row["corpus"] == (re.search("[wv]", row["text"]).group() if case == "mixture" else None)  # type: ignore[union-attr]
    assert ("[...]" in "".join(row["text"] for row in rows)) == (case == "holes")


def test_a_step_and_a_pattern_show_the_rows_that_have_it(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folder_of(trial()))
    assert main(["seen", folder, "--step", "3", "--grep", r"\bW\d*7\b", "--ignore-case"]) == 0
    table, *blocks = capsys.readouterr().out.split("\nrow ")
    assert [line.split()[:2] for line in table.splitlines()[2:5]] == [
        *(["0", "checkpoint-0"], ["3", "none"], ["5", "checkpoint-5"])
    ]
    assert 0 < len(blocks) < 8
    assert all(re.search(r"w\d*7\b", block) for block in blocks)
    assert main(["seen", folder, "--words", "w.txt", "--tsv"]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["pattern", "checkpoint", "step", "samples", "epochs", "tokens_seen", "words_seen", "count"]
    counts = {(row[0], row[1]): int(row[-1]) for row in rows}
    line = Path("w.txt").read_text().splitlines()[0]
    assert [counts[line, name] for name in ("checkpoint-0", "checkpoint-15")] == [0, 2]
    pattern = 'a"b|\t'
    assert main(["seen", folder, "--grep", pattern, "--tsv"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""), delimiter="\t", strict=True)
    assert {row[0] for row in rows} == {pattern}
    assert main(["seen", folder, "--words", "w.txt"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 62


ORDERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: SampleOrder(53, 3),
    "sequential": lambda: SampleOrder(53, 3, shuffle=False),
    "lanes": lambda: LaneOrder(52, 4),
    "lengths": lambda: LengthOrder(np.random.default_rng(0).integers(1, 30, 1000), 3, 5),
    "crops": lambda: CropOrder(53, 420, 3),
    "mixture": lambda: MixedOrder([700, 31], [0.8, 0.2], 3),
    "given": lambda: GivenOrder(53, lambda epoch: np.roll(np.arange(53), epoch)),
}


ROWS = {"lanes": 52, "lengths": 1000, "crops": 420, "mixture": 731}


@each("name", ORDERS)
def test_times_taken_are_those_of_a_walk(name: str) -> None:
    generator = np.random.default_rng(1)
    edges = [(0, 0), (53, 106), (0, 53), (1, 52), (0, 25_000), *generator.integers(0, 3_000, (20, 2)).tolist()]
    rows = ROWS.get(name, 53)
    for first, last in map(sorted, edges):
        walked = ORDERS[name]().at(np.arange(first, last))[1]
        for starts in (np.arange(rows), np.unique(generator.integers(0, rows, 9) * [0, *[1] * 8])):
            expected, times = np.histogram(walked, [*starts, rows])[0], ORDERS[name]().times_taken(first, last, starts)
            assert (times.tolist(), times.dtype) == (expected.tolist(), np.int64), (first, last)


def test_crops_are_counted_over_the_borders_of_chunks() -> None:
    drawn, chunk = CropOrder.DRAWN_AT_ONCE, CropOrder.SORTED_AT_ONCE[0]
    for rows, starts in ((60_000, np.arange(0, 60_000, 3)), (10**12, np.array([0, 7, 10**11]))):
        order, edges = CropOrder(53, rows, 3), np.append(starts, rows)
        many = 16 * len(starts)  # sorted at once, where that is more
        each_row = order.at(np.arange(chunk + many + 7))[1]
        for border in (drawn, 3 * drawn, chunk, many):
            for first, last in (
                (0, border),
                (0, border + 1),
                (border - 1, border + 7),
                (border, border + 1),
                (5, many),
            ):
                expected = np.histogram(each_row[first:last], edges)[0]
                assert (order.times_taken(first, last, starts) == expected).all(), (rows, first, last)


def test_a_million_steps_look_up_the_rows_of_one_epoch() -> None:
    """Positions are counted; the time is in the guide."""
    asked: list[int] = []

    class Counted(SampleOrder):
        def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(positions))
            return super().at(positions)

    samples = 32 * 10**6
    assert Counted(100_003, 5).times_taken(0, samples, np.arange(100_003)).sum() == samples
    assert asked == [samples % 100_003]
    epochs: list[int] = []

    def permutation(epoch: int) -> np.ndarray:
        epochs.append(epoch)
        return np.arange(100_003)

    assert GivenOrder(100_003, permutation).times_taken(0, samples, np.zeros(1, int)) == [samples]
    assert epochs == [samples // 100_003]


def begins(encoder: DocumentEncoder, tokenizer: Any, text: str) -> None:
    """Assert that each token stands where `starts` has it: what follows there is what follows in the text."""
    (ids,), (starts,) = encoder.encode([text]), encoder.starts([text])
    assert len(ids) == len(starts)
    assert (np.diff(starts) >= 0).all()
    for at in np.linspace(0, len(ids) - 1, 60).astype(int):
        decoded = "".join(tokenizer.decode(ids[at : at + 40].tolist()).split()).removeprefix("##")
        assert "".join(text[starts[at] :].split()).startswith(decoded), (at, decoded)


@each("kind", [*KINDS, "sentencepiece_model"])
def test_tokens_begin_where_their_text_stands(kind: str, tmp_path: Path) -> None:
    if kind == "sentencepiece_model":
        from foundry_core.registry.objective import CORE_OBJECTIVES
        from foundry_core.tokenization.given import given_tokenizer

        path = pieces(tmp_path / "spm.model")
        tokenizer: Any = given_tokenizer(str(path), {"pad_token": "<pad>"}, CORE_OBJECTIVES["causal_lm"])
    else:
        tokenizer = trained(kind)
    encoder = DocumentEncoder(tokenizer)
    plain = "the cat runs over the small house quickly and sleeps under the red river".replace(" and", "")
    begins(encoder, tokenizer, plain)
    begins(encoder, tokenizer, f"{plain} " * 3_000)  # more than is encoded at once
    assert [len(each) for each in encoder.starts(["", plain, ""])] == [0, len(text_ids(tokenizer, [plain])[0]), 0]


@each("kind", ["bpe", "character", "sentencepiece"])
def test_an_occurrence_ends_in_the_token_that_completes_it(kind: str, tmp_path: Path) -> None:
    """Also inside a word, at the beginning of a text, and in a character of several tokens."""
    tokenizer, path = trained(kind), tmp_path / "text.txt"
    text = "cat the cats, caté𐍈cat"
    path.write_text(f"the dog\n{text}\n")
    corpus = Corpus.open(str(path))
    tokens = prepare_tokens(corpus, tokenizer, tmp_path / "tokens")
    start = int(tokens.documents[1])
    for pattern in ("cat", "c", "té", "s, ca"):
        found = occurrences([pattern], pattern_finder(pattern), corpus, tokens, tokenizer)
        assert len(found.places) == text.count(pattern)
        for number, place in enumerate(found.places.tolist()):
            before, after = (tokenizer.decode(tokens.tokens[start:end]) for end in (place, place + 1))
            assert before.count(pattern) <= number < after.count(pattern), (pattern, before, after)


def test_words_are_counted_where_they_stand_alone() -> None:
    words = ["cat", "cats", "don't", "ice-cream", "ice", "U.S.", "_a_", "'s", "new york", "Größe"]
    signs = [
        "cat",
        "cats",
        "Cat",
        "don't",
        "don",
        "ice-cream",
        "ice",
        "U.S.",
        "_a_",
        "a",
        "it's",
        "new",
        "york",
        "Größe",
    ]
    generator = np.random.default_rng(2)
    for _ in range(200):
        text = "".join(
            str(generator.choice(signs)) + str(generator.choice([" ", "  ", ", ", "-", "", "\n"])) for _ in range(9)
        )
        for ignore_case in (False, True):
            flags = re.IGNORECASE if ignore_case else 0
            found = Counter(number for number, _ in word_finder(words, ignore_case=ignore_case)(text))
            for number, word in enumerate(words):
                before, after = (r"(?<!\w)" if word[0].isalnum() or word[0] == "_" else ""), r"(?!\w)"
                after = after if word[-1].isalnum() or word[-1] == "_" else ""
                assert found[number] == len(re.findall(before + re.escape(word) + after, text, flags)), (word, text)


def one_line(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return code, line


def test_what_cannot_be_derived_is_one_line(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    config = trial("shuffled")
    folder = str(folder_of(config))
    Path("empty.txt").write_text("\n \n")
    wrong = (
        ([folder], 2, "give --step N"),
        ([folder, "--grep", "("], 2, "--grep '(' is not a regular expression: missing )"),
        ([folder, "--words", "none.txt"], 2, "--words none.txt: cannot be read"),
        ([folder, "--words", "empty.txt"], 2, "--words empty.txt: it does not contain a word"),
        (["nowhere", "--step", "1"], 6, "nowhere: there is no such folder"),
    )
    for arguments, expected, says in wrong:
        code, line = one_line(["seen", *arguments], capsys)
        assert (code, says in line) == (expected, True), line
    assert main(["seen", folder, "--step", "1000"]) == 0
    assert "step 1,000 is after the newest checkpoint, of step " in capsys.readouterr().err
    text = Path("w.txt").read_text()
    Path("w.txt").write_text(text + "one more line\n")
    assert main(["seen", folder, "--step", "2"]) == 0  # only counts read the corpus
    capsys.readouterr()
    code, line = one_line(["seen", folder, "--grep", "x"], capsys)
    assert (code, line.startswith("error: data.training_corpus: it has changed since ")) == (4, True)
    Path("w.txt").write_text(text)
    for path in folder_of(config).rglob("*.tokens"):
        path.unlink()
    code, line = one_line(["seen", folder, "--step", "2"], capsys)
    assert (code, f"foundry data prepare {folder}/config.yaml" in line) == (4, True)


def test_another_order_in_between_is_named(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    config = trial("shuffled")
    changed = load_config(config.resolved(), ["data.order=sequential", "training.epochs=4"])
    run(changed, resume=True, allowed_changes=["data.order", "training.epochs"], quiet=True)
    code, line = one_line(["seen", str(folder_of(config)), "--step", "2"], capsys)
    assert (code, "data.order was 'shuffled', is 'sequential'" in line) == (6, True)


def test_the_guide_names_every_option() -> None:
    options: Iterable[str] = ("--step", "--grep", "--words", "--ignore-case", "--tsv", "--json")
    text = GUIDE.read_text(encoding="utf-8")
    assert [option for option in options if option not in text] == []
