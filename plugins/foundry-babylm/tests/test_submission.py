"""What is collected from the predictions of the official pipeline, and what is refused."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from foundry_babylm.sizes import AOA, FAST, FULL, GLUE

from foundry_core.cli import main
from tests.each import each

LAST = "chck_2M"
COLUMNS = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time")
PAIRS = ("blimp_fast/Adjunct_Island", "blimp_fast/wh_island", "supplement_fast/hypernym")
WORD = ("Subtlex_log10", "length", "context_length", "prev_length")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path, seed: int = 0) -> None:
    """Write what the checkpoints are scored on, in the layout of evaluation_data/fast_eval."""
    draw = random.Random(seed)
    for place, size in {**dict.fromkeys(PAIRS[:2], 200), PAIRS[2]: 50}.items():
        rows = [{"sentence_good": f"good {at}.", "sentence_bad": "bad"} for at in range(size)]
        lines(folder / f"{place}.jsonl", rows)
    lines(folder / "ewok_fast" / "social-relations.jsonl", [{"Target1": "good"}] * 100)
    regular = [row for at, size in enumerate(FAST["entity_tracking"].sizes.values()) for row in [{"numops": at}] * size]
    lines(folder / "entity_tracking_fast" / "regular.jsonl", [row | {"options": ["good", "bad"]} for row in regular])
    for name, size in (("wug_adj_nominalization", 200), ("wug_past_tense", 50)):
        lines(
            folder / name / f"{name}.jsonl",
            [{"ratio": round(draw.random(), 1), "sentences": "good\tbad"} for _ in range(size)],
        )
    (folder / "reading").mkdir()
    with (folder / "reading" / "reading_data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("item", "word", *WORD, *COLUMNS))
        for at in range(1726):
            known = [draw.gauss(0, 1) for _ in WORD]
            times = [20 + 3 * surprisal(0, at) + known[0] + draw.gauss(0, 1) for _ in COLUMNS]
            table.writerow(("", "cat", *known, *times[:-1], "" if at % 7 == 0 else times[-1]))


def surprisal(checkpoint: int, at: int) -> float:
    return random.Random(f"{checkpoint} {at}").random() * 10


def predictions(sizes: Mapping[str, int], checkpoint: int) -> dict[str, Any]:
    """Return predictions of which every second one is right."""
    found: dict[str, Any] = {}
    for part, size in sizes.items():
        numbered = any(place.endswith(f"/{part}") for place in PAIRS)
        right = [f" good {at}." if numbered else " good" for at in range(size)]
        rows = [{"id": f"{part}_{at}", "pred": right[at] if at % 2 else " bad"} for at in range(size)]
        if part.startswith("wug_") and size < 1_000:
            rows = [row | {"prob": surprisal(checkpoint, at) / 10} for at, row in enumerate(rows)]
        if part == "reading":
            previous = [float("nan") if at % 5 == 0 else surprisal(checkpoint, at - 1) for at in range(size)]
            rows = [{"id": at, "pred": surprisal(checkpoint, at), "prev_pred": previous[at]} for at in range(size)]
        if part in GLUE:
            rows = [row | {"pred": at % 2} for at, row in enumerate(rows)]
        found[part] = {"predictions": rows}
    return found


def write_results(folder: Path, data: Path, checkpoints: Iterable[str]) -> None:
    """Write what the pipeline writes for a model, in its layout."""
    names = list(checkpoints)
    for place, sizes in FULL.values():
        write(folder / "main" / "zero_shot" / "causal" / place, predictions(sizes, 0))
    for task, size in GLUE.items():
        write(folder / "main" / "finetune" / task / "predictions.json", predictions({task: size}, 0))
    steps = [name for name in names for _ in range(AOA)]
    rows = [{"step": name, "target_word": "cat", "surprisal": round(at / 7, 3)} for at, name in enumerate(steps)]
    write(folder / "main" / "zero_shot" / "causal" / "AoA_word" / "surprisal.json", {"results": rows})
    for number, name in enumerate(names):
        for fast in FAST.values():
            parts = {path.stem: fast.size or 0 for path in (data / fast.data).glob("*.jsonl")}
            write(folder / name / "zero_shot" / "causal" / fast.place, predictions(fast.sizes or parts, number))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pipeline, with `results/lstm` and `fast_eval`."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_data(folder / "fast_eval")
    write_results(folder / "results" / "lstm", folder / "fast_eval", ["chck_1M", "chck_2M"])
    return folder


def collect(folder: Path, *more: str) -> int:
    options = ("--track", "strict-small", "--last", LAST, "-o", str(folder / "submission.json"), *more)
    data = () if "--no-fast" in more else ("--fast-data", str(folder / "fast_eval"))
    options = tuple(option for option in options if option != "--no-fast")
    return main(["babylm", "collect", str(folder / "results" / "lstm"), *options, *data])


def test_a_submission_has_all_predictions_and_fast_scores(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(model) == 0
    written = json.loads((model / "submission.json").read_text())
    (model / "submission.json").unlink()
    main_folder = model / "results" / "lstm" / "main"
    assert written.keys() == {*FULL, "aoa", "glue", "fast_eval_results"}
    assert written["blimp"] == json.loads((main_folder / "zero_shot" / "causal" / FULL["blimp"][0]).read_text())
    assert {task: len(part["predictions"]) for task, part in written["glue"].items()} == GLUE
    assert len(written["aoa"]["results"]) == 2 * AOA
    scores = written["fast_eval_results"]
    assert all(len(scores[task]) == 2 for task in FAST)
    assert scores["blimp"][0] == {"Adjunct_Island": 0.5, "wh_island": 0.5}
    assert scores["blimp_supplement"][1] == {"hypernym": 0.5}
    assert scores["ewok"][0] == {"social-relations": 0.5}
    assert scores["entity_tracking"][0]["regular_1_ops"] == 303 / 607
    assert -0.3 < scores["wug_adj"][0]["wug_adj"] < 0.3
    # The times were made from the surprisals of the first checkpoint, with noise of a 75th of their variance.
    assert scores["reading"][0]["rt"] == pytest.approx(75 / 76, abs=0.01)
    assert scores["reading"][0]["spr"] == pytest.approx(75 / 76, abs=0.01)
    assert abs(scores["reading"][1]["rt"]) < 0.01
    capsys.readouterr()
    assert collect(model, "--no-fast") == 0
    (model / "submission.json").unlink()
    assert "no scores of the checkpoints, which the challenge asks for" in capsys.readouterr().out


def edited(place: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return what changes the content of a file of results."""

    def do(results: Path) -> None:
        content = json.loads((results / place).read_text())
        write(results / place, change(content) or content)

    return do


ZERO = "main/zero_shot/causal"
FAULTS: dict[str, Callable[[Path], Any]] = {
    "blimp_filtered/predictions.json: is missing": lambda results: (results / ZERO / FULL["blimp"][0]).unlink(),
    "comps/comps/predictions.json: wugs has 13,895 predictions, not 13,896": edited(
        f"{ZERO}/comps/comps/predictions.json", lambda found: found["wugs"]["predictions"].pop() and None
    ),
    "supplement_filtered/predictions.json: hypernym is missing": edited(
        f"{ZERO}/blimp/supplement_filtered/predictions.json", lambda found: found.pop("hypernym") and None
    ),
    "reading/predictions.json: reading has 1 that are empty or NaN": edited(
        f"{ZERO}/reading/predictions.json",
        lambda found: found["reading"]["predictions"][3].update(pred=float("nan")),
    ),
    "finetune/wsc/predictions.json: cannot be read": lambda results: (
        results / "main" / "finetune" / "wsc" / "predictions.json"
    ).write_text('{"wsc": '),
    "surprisal.json: chck_2M has 0 surprisals, not 8,005": edited(
        f"{ZERO}/AoA_word/surprisal.json", lambda found: {"results": found["results"][:AOA]}
    ),
    "surprisal.json: all surprisals of chck_1M are NaN: its tokenizer has no bos token": edited(
        f"{ZERO}/AoA_word/surprisal.json",
        lambda found: {"results": [row | {"surprisal": float("nan")} for row in found["results"]]},
    ),
    "chck_2M/zero_shot/causal/reading/predictions.json: the results of chck_1M: the pipeline ignores a revision": (
        lambda results: shutil.copy(
            results / "chck_1M/zero_shot/causal/reading/predictions.json",
            results / "chck_2M/zero_shot/causal/reading/predictions.json",
        )
    ),
    "chck_1M/zero_shot/causal/ewok/ewok_fast/predictions.json: social-relations has 99 predictions, not 100": edited(
        "chck_1M/zero_shot/causal/ewok/ewok_fast/predictions.json",
        lambda found: found["social-relations"]["predictions"].pop() and None,
    ),
}


def test_nothing_is_written_while_a_file_is_missing_or_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "pipeline")
    results = tmp_path / "pipeline" / "results" / "lstm"
    surprisals = results / ZERO / "AoA_word" / "surprisal.json"
    kept = surprisals.read_bytes()
    alone, *others = sorted(FAULTS, key=lambda problem: "all surprisals" not in problem)
    for problems in others, [alone]:
        capsys.readouterr()
        for problem in problems:
            FAULTS[problem](results)
        assert collect(tmp_path / "pipeline") == 1
        *found, end = capsys.readouterr().err.splitlines()
        assert end.endswith("submission.json is not written")
        assert not (tmp_path / "pipeline" / "submission.json").exists()
        assert [problem for problem in problems if sum(problem in line for line in found) != 1] == []
        surprisals.write_bytes(kept)
    assert len(found) == len(FAULTS) - 1


@each(
    "arguments,problem",
    [
        (["--last", "chck_3"], "--last chck_3: the track strict-small has no such checkpoint. Did you mean 'chck_3M'?"),
        (["--backend", "mlm"], "zero_shot/mlm: there is no such folder with results; "),
        (["--fast-data", "nothere"], "--fast-data nothere: it is not evaluation_data/fast_eval of the pipeline"),
        ([], "results/lstm/main/zero_shot: there is no such folder"),
    ],
)
def test_what_cannot_be_collected_is_one_line(
    arguments: list[str], problem: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = model / "results" / "lstm" if arguments else tmp_path / "results" / "lstm"
    options = ["--track", "strict-small", "-o", str(tmp_path / "submission.json")]
    assert main(["babylm", "collect", str(results), *options, *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
