"""Steps with `in_place`: holes in the token stream, and every other row as it is in the run without the step."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry_core import ExperimentConfig, create_model, get_data_collator, load_config, run
from foundry_core.cli import main
from foundry_core.data.batches import Batches
from foundry_core.data.holes import HOLE, Holes
from foundry_core.data.order import SampleOrder
from foundry_core.data.preparation import (
    ExperimentData,
    experiment_corpora,
    experiment_rows,
    experiment_tokenizer,
    experiment_tokens,
)
from foundry_core.errors import CheckpointError, ConfigError
from foundry_core.registry.architecture import Capabilities, registered_architectures
from foundry_core.registry.loading import get_architecture
from foundry_core.training.plan import RunPlan
from tests.each import each

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVES = {"lstm": "causal_lm", "gpt2": "causal_lm", "bert": "masked_lm"}
ABLATION = {"drop": {"matching": r"\bman\b", "in_place": True}}


def prepared(config: ExperimentConfig) -> tuple[Any, ExperimentData]:
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    tokens = experiment_tokens(config, tokenizer, corpora)
    return tokenizer, experiment_rows(config, tokenizer, tokens, corpora)


def batches(config: ExperimentConfig, tokenizer: Any, data: ExperimentData, epochs: int = 2) -> list[Any]:
    rows = data.train_rows
    order = SampleOrder(len(rows), config.seed("data_order"))
    collate = get_data_collator(config, tokenizer)
    return list(Batches(rows, order, collate, config.data.batch_size, 0, epochs * len(rows)))


@pytest.fixture
def ablated(experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> Callable[..., Any]:
    """`ablated(architecture, *steps, **training)`: an experiment in a folder named by the number of its steps."""

    def make(architecture: str, *steps: dict[str, Any], example: str = "tiny", **training: Any) -> ExperimentConfig:
        folder = tmp_path / f"{architecture} {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return experiment(architecture, folder, example=example, data={"steps": list(steps)}, training=training)

    return make


@each("architecture", OBJECTIVES)
def test_all_other_rows_are_the_same_at_the_same_step(architecture: str, ablated: Callable[..., Any]) -> None:
    whole, holed = ablated(architecture), ablated(architecture, ABLATION)
    tokenizer, data = prepared(whole)
    other_tokenizer, other = prepared(holed)
    assert other_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert other.train.tokens.tolist() == data.train.tokens.tolist()
    assert len(other.train_rows) == len(data.train_rows)
    same = differing = 0
    pairs = zip(batches(whole, tokenizer, data), batches(holed, other_tokenizer, other), strict=True)
    for one, two in pairs:
        for row in range(len(one["input_ids"])):
            real = two["attention_mask"][row].bool()
            if torch.equal(real, one["attention_mask"][row].bool()):
                assert all(torch.equal(one[name][row], two[name][row]) for name in one)
                same += 1
                continue
            differing += 1
            empty = one["attention_mask"][row].bool() & ~real
            assert (two["labels"][row][empty] == -100).all()
            assert (two["input_ids"][row][empty] == tokenizer.pad_token_id).all()
            # A masked model hides a share of what is left of the row; what both hide they hide alike.
            hidden = one["labels"][row] != two["labels"][row]
            compared = real & ~hidden if architecture == "bert" else real
            assert torch.equal(one["input_ids"][row][compared], two["input_ids"][row][compared])
            assert torch.equal(one["labels"][row][compared], two["labels"][row][compared])
    assert same > 20
    assert differing > 20


def test_what_is_not_dropped_is_predicted_as_before(ablated: Callable[..., Any]) -> None:
    """Each token of the documents that stay, and the separator behind each of them, is predicted once per epoch."""
    config = ablated("gpt2", ABLATION)
    tokenizer, data = prepared(config)
    model = create_model(config, tokenizer)
    predicted = 0
    for batch in batches(config, tokenizer, data, epochs=1):
        predicted += int(model.targets(batch["labels"], batch["attention_mask"])[1].sum())
    kept = [text for text, kept in experiment_corpora(config).train.stream() if kept]
    assert predicted == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in kept)
    assert len(kept) == data.train.info.documents


@each("architecture", OBJECTIVES)
def test_what_is_in_a_hole_changes_no_loss_and_no_gradient(architecture: str, ablated: Callable[..., Any]) -> None:
    config = ablated(architecture, {"keep": {"matching": "^the", "in_place": True}})
    tokenizer, data = prepared(config)
    model = create_model(config, tokenizer).eval()
    found = []
    for filling in (None, 5):
        model.zero_grad()
        total = 0.0
        for batch in batches(config, tokenizer, data, epochs=1)[:12]:
            if filling is not None:
                batch["input_ids"][batch["attention_mask"] == 0] = filling
            loss = model(**batch, reduction="sum", return_logits=False).loss
            loss.backward()
            total += loss.item()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append((total, {name: each.clone() for name, each in gradients.items()}))
    (loss, gradients), (other_loss, other_gradients) = found
    assert loss == other_loss > 0
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all()
        if "embed" not in name and "wte" not in name:  # a row of padding gets no gradient, which embeddings add up
            assert torch.equal(gradient, other_gradients[name])


def test_what_was_seen_counts_without_holes(ablated: Callable[..., Any]) -> None:
    config = ablated("lstm", ABLATION, train_steps=None, epochs=1)
    _, data = prepared(config)
    info, account = data.train.info, data.train.info.account
    kept = list(experiment_corpora(config).train.documents())
    assert info.documents == len(kept) < 400
    assert info.words == sum(len(text.split()) for text in kept)
    assert info.text_bytes == account["bytes_text"] == sum(len(text.encode()) for text in kept)
    assert account["bytes_in"] == account["bytes_text"] + account["bytes_separators"] + account["bytes_skipped"]
    assert account["steps"][0]["bytes_removed"] == account["bytes_skipped"] > 0
    rows = data.train_rows
    seen = rows.stream_tokens(np.arange(len(rows)))
    assert seen.tolist() == [int((rows.row(row)[1:] != HOLE).sum()) for row in range(len(rows))]
    assert info.holes is not None
    assert seen.sum() == rows.total_tokens == info.tokens - 1 - info.holes["tokens"]
    assert RunPlan.of(config, data).tokens_per_row == config.data.consumed_per_row
    state = run(config, quiet=True)
    assert (state.tokens_seen, state.words_seen) == (rows.total_tokens, info.words)
    record = json.loads((Path(config.training.output_dir) / "run.json").read_text())
    assert record["corpora"]["training_corpus"]["counts_of_steps"] == account["steps"]


def test_unknown_tokens_in_holes_do_not_count(ablated: Callable[..., Any]) -> None:
    config = ablated("lstm", ABLATION)
    config = load_config(config.resolved(), ["tokenizer.vocab_size=20"])
    tokenizer, data = prepared(config)
    kept = list(experiment_corpora(config).train.documents())
    ids = [each for text in kept for each in tokenizer(text, add_special_tokens=False)["input_ids"]]
    unknown = ids.count(tokenizer.unk_token_id)
    assert (data.train.info.unknown, data.train.info.unknown_share) == (unknown, unknown / len(ids))


def test_holes_of_any_stream_are_found_and_cut_out() -> None:
    rng = random.Random(0)
    for _ in range(200):
        size = rng.randint(1, 60)
        bounds = sorted(rng.sample(range(size + 1), k=2 * rng.randint(0, min(4, size // 2))))
        spans = np.array([*zip(bounds[::2], bounds[1::2], strict=True)], np.int64)
        inside = np.zeros(size, bool)
        for begin, end in spans:
            inside[begin:end] = True
        holes = Holes(spans)
        assert holes.total == inside.sum()
        start = rng.randint(0, size)
        stop = rng.randint(start, size)
        assert holes.between(start, stop) == inside[start:stop].sum()
        tokens = np.arange(start, stop)
        holes.cut_out(tokens, start)
        assert ((tokens == HOLE) == inside[start:stop]).all()
    places = np.arange(size + 1)
    assert holes.between(0 * places, places).tolist() == [0, *np.cumsum(inside).tolist()]


def test_neighbouring_documents_share_a_hole_up_to_its_separator(ablated: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("x a\nb c\nx\nx d e\nf\nx g\n")
    config = load_config(
        {
            **ablated("lstm").resolved(),
            "data": {
                "training_corpus": str(path),
                "max_sequence_length": 8,
                "steps": [{"drop": {"words": ["x"], "in_place": True}}],
            },
        }
    )
    tokenizer, data = prepared(config)
    stream = np.asarray(data.train.tokens).astype(np.int64)
    data.train.holes.cut_out(stream, 0)
    words = ["." if each == HOLE else tokenizer.convert_ids_to_tokens(int(each)) for each in stream]
    assert " ".join(words) == "</s> . . </s> b c </s> . . . . . </s> f </s> . . </s>".replace(
        "</s>", tokenizer.eos_token
    )
    assert data.train.documents.tolist() == [1, 4, 7, 9, 13, 15, 18]
    assert data.train.info.holes is not None
    assert (data.train.info.holes["number"], data.train.info.holes["tokens"]) == (3, 9)


@pytest.mark.long
def test_holes_are_found_in_a_stream_of_many_windows(ablated: Callable[..., Any], tmp_path: Path) -> None:
    """Documents longer than a window, dropped and kept, and holes that reach from one window into the next."""
    rng = random.Random(1)
    sizes = [rng.choice([1, 5, 300, 40_000]) for _ in range(300)] + [700_000, 1, 700_000, 2]
    lines = [f"{'x' if rng.random() < 0.5 else 'y'} " + "a " * size for size in sizes]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines))
    drop = {"drop": {"matching": "^x", "in_place": True}}
    content = ablated("lstm").resolved()
    content["data"] |= {"training_corpus": str(path), "steps": [drop]}
    _, data = prepared(load_config(content))
    starts = np.cumsum([1, *(size + 2 for size in sizes)])
    inside = np.zeros(starts[-1], bool)
    for line, (start, after) in zip(lines, pairwise(starts.tolist()), strict=True):
        inside[start : after - 1] = line.startswith("x")
    for number, (line, following) in enumerate(pairwise(lines), 1):
        inside[starts[number] - 1] = line.startswith("x") and following.startswith("x")
    stream = np.asarray(data.train.tokens).astype(np.int64)
    data.train.holes.cut_out(stream, 0)
    assert ((stream == HOLE) == inside).all()


def test_a_damaged_file_of_holes_is_made_again(ablated: Callable[..., Any]) -> None:
    config = ablated("lstm", ABLATION)
    _, data = prepared(config)
    (path,) = Path(str(data.train.tokens.filename)).parent.glob("*.holes")
    whole = path.read_bytes()
    path.write_bytes(whole[:-16])
    _, again = prepared(config)
    assert path.read_bytes() == whole
    assert again.train.holes.spans.tolist() == data.train.holes.spans.tolist()


def test_without_holes_nothing_is_written_about_them(ablated: Callable[..., Any]) -> None:
    _, data = prepared(ablated("lstm", {"drop": {"matching": "man"}}))
    folder = Path(str(data.train.tokens.filename)).parent
    assert list(folder.glob("*.holes")) == []
    assert all("holes" not in json.loads(each.read_text()) for each in folder.glob("*.json"))
    _, nothing_dropped = prepared(ablated("lstm", {"drop": {"matching": "zebra", "in_place": True}}))
    assert nothing_dropped.train_rows.total_tokens == nothing_dropped.train.info.tokens - 1


def test_runs_with_and_without_holes_share_a_tokenizer(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path
) -> None:
    digests = []
    for number, steps in enumerate(([{"deduplicate": {}}], [{"deduplicate": {}}, ABLATION])):
        shared = {"output_dir": str(tmp_path / "tokenizer")}
        config = experiment("lstm", tmp_path / str(number), data={"steps": steps}, tokenizer=shared)
        run(config, quiet=True)
        digests.append(prepared(config)[1].train.info.corpus_digest)
    assert len(set(digests)) == 2


def test_an_architecture_without_padding_before_text_is_refused(experiment: Callable[..., ExperimentConfig]) -> None:
    one = replace(get_architecture("gpt2"), name="right_only", capabilities=lambda section: Capabilities())
    registered_architectures()["right_only"] = one
    with pytest.raises(ConfigError, match=r"data\.steps\.0\.drop\.in_place: right_only does not take padding before"):
        experiment("right_only", Path("unused"), data={"steps": [ABLATION]})


@each(
    ("architecture", "example"),
    [(name, "tiny") for name in ("lstm", "gpt2", "bert", "mamba", "transformers")] + [("transformers", "tiny_roberta")],
)
@pytest.mark.long
def test_rows_and_steps_without_any_text_are_taken(
    architecture: str, example: str, ablated: Callable[..., Any]
) -> None:
    rare = {"keep": {"matching": "^every key", "in_place": True}}
    config = ablated(architecture, rare, example=example, train_steps=None, epochs=1, objective=None)
    _, data = prepared(config)
    empty = sum((data.train_rows.row(row)[1:-1] == HOLE).all() for row in range(len(data.train_rows)))
    assert empty > len(data.train_rows) / 2
    state = run(config, quiet=True)
    assert state.tokens_seen == data.train_rows.total_tokens < 300
    assert all(np.isfinite(entry["loss"]) for entry in state.log)


@each("architecture", ["lstm", "gpt2"])
def test_a_run_with_holes_resumes_exactly(architecture: str, ablated: Callable[..., Any]) -> None:
    settings = {"checkpoints": {"steps": [4]}, "lr_scheduler": "constant"}
    ends = []
    for stop in (None, 4):
        config = ablated(architecture, ABLATION, train_steps=8, **settings)
        if stop is not None:
            short = load_config(config.resolved(), [f"training.train_steps={stop}"])
            run(short, quiet=True)
        run(config, quiet=True, resume=stop is not None, allowed_changes=["training.train_steps"])
        ends.append((Path(config.training.output_dir) / "checkpoint-8" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_a_run_does_not_go_on_with_other_steps(ablated: Callable[..., Any], tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("man\n")
    config = ablated("lstm", {"drop": {"words": str(words), "in_place": True}}, train_steps=2)
    run(config, quiet=True)
    longer = load_config(config.resolved(), ["training.train_steps=4"])
    words.write_text("dog\n")
    with pytest.raises(CheckpointError, match="the training corpus changed since"):
        run(longer, quiet=True, resume=True, allowed_changes=["training.train_steps"])
    other = load_config({**longer.resolved(), "data": {**longer.resolved()["data"], "steps": []}})
    with pytest.raises(CheckpointError, match=r"data\.steps was"):
        run(other, quiet=True, resume=True, allowed_changes=["training.train_steps"])


# An ablation by YAML alone.

EXPERIMENT = """\
experiment_name: {name}
data:
  training_corpus: {corpus}
  max_sequence_length: 24
  batch_size: 4
  steps: [{steps}]
tokenizer: {{tokenizer_type: word, vocab_size: 120}}
model: {{architecture: lstm, rnn: {{embedding_size: 8, hidden_size: 8, num_layers: 1}}}}
training: {{output_dir: {folder}/{name}, epochs: 1, device: cpu}}
"""


@pytest.mark.long
def test_an_ablation_with_its_control_needs_yaml_alone(
    corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(corpus.train).read_text()
    many = sum("man" in line.split() for line in text.splitlines())
    drop = "matching: '\\bman\\b'"
    steps = {
        "base": "",
        "ablation": f"drop: {{{drop}}}",
        "control": f"control: {{of: {{drop: {{{drop}}}}}, as_many: lines, seed: 1}}",
        "holes": f"drop: {{{drop}, in_place: true}}",
        "control_holes": f"control: {{of: {{drop: {{{drop}}}}}, as_many: lines, seed: 1, in_place: true}}",
    }
    paths = {name: tmp_path / f"{name}.yaml" for name in steps}
    for name, path in paths.items():
        path.write_text(EXPERIMENT.format(name=name, corpus=corpus.train, steps=steps[name], folder=tmp_path))
    accounts = {}
    for name, path in paths.items():
        assert main(["train", str(path)]) == 0
        _, data = prepared(load_config(path))
        accounts[name] = account = data.train.info.account
        assert account["bytes_in"] == len(text.encode())
        total = account["bytes_text"] + account["bytes_separators"] + account["bytes_skipped"]
        assert account["bytes_in"] == total
        assert data.train.info.documents == len(text.splitlines()) - (0 if name == "base" else many)
    for name, moved in {"holes": "ablation", "control_holes": "control"}.items():
        assert accounts[name] | {"skipped": 0, "steps": 0} == accounts[moved] | {"skipped": 0, "steps": 0}
    capsys.readouterr()

    def compared(name: str) -> dict[str, Any]:
        assert main(["data", "diff", str(paths["base"]), str(paths[name]), "--json", "--examples", "5"]) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    for name in ("ablation", "holes", "control", "control_holes"):
        found = compared(name)
        assert found["only"][0]["documents"] == many
        assert found["only"][1] == found["changed"][0] == {"documents": 0, "words": 0, "bytes": 0}
        assert found["same"]["documents"] == len(text.splitlines()) - many
        assert len(found["examples"]["first"]) == 5
        assert all(("man" in line.split()) == ("control" not in name) for line in found["examples"]["first"])
    assert main(["data", "diff", str(paths["base"]), str(paths["holes"])]) == 0
    assert f"only in {paths['base']}" in capsys.readouterr().out
    assert main(["data", "prepare", str(paths["holes"])]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"tokens in holes +[1-9]", printed)
    (row,) = [line for line in printed.splitlines() if line.startswith("1 drop {in_place: true, matching: \\bman\\b}")]
    assert row.split()[-4:-2] == [f"-{many}", "0"]
