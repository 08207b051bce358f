"""`foundry push`: revisions, the card and its snippets, refusals, sending and going on, studies.

FOUNDRY_TEST_TRANSFORMERS names further Pythons, `:` between them, with transformers of other versions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from foundry_core import load_config, open_run, run
from foundry_core.cli import main
from foundry_core.run_folder import MANIFEST, MODELING, OPTIMIZER, TRAINER_STATE, WEIGHTS
from foundry_core.storage.manifest import file_digest
from tests.each import each
from tests.hub_server import Hub, served
from tests.test_compare import score

pytestmark = pytest.mark.long

REPOSITORY = "anna/tiny"
NAMES = ["step-0", "step-10", "chck_100", "step-20", "main"]
ALONE = ("lstm", "gpt2", "bert")
"""Architectures whose models open without foundry."""

# Runs the snippets of each card as one program. minicons is not everywhere.
SNIPPETS = """
import importlib.util, json, sys
for name in sys.argv[2:]:
    sys.modules[name] = None  # importing it is an error
for snippets in json.loads(sys.argv[1]):
    found = {}
    for code in snippets:
        if "minicons" not in code or importlib.util.find_spec("minicons"):
            exec(code, found)
print("all ran")
"""


@pytest.fixture(scope="module")
def trained(experiment: Any, corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each architecture, scored at steps 10 and 20."""
    folder = tmp_path_factory.mktemp("runs")
    for architecture in (*ALONE, "ngram"):
        config = experiment(
            architecture,
            folder,
            experiment_name=f"tiny {architecture}",
            data={"test_corpus": str(corpus.test)},
            tokenizer={"output_dir": str(folder / "tokenizer")},
            training={
                "output_dir": str(folder / architecture),
                "train_steps": 20,
                "objective": "masked_lm" if architecture == "bert" else "causal_lm",
                "evaluate_at": {"every_steps": 10},
                "checkpoints": {"every_steps": 10, "keep_optimizer": "all"},
            },
        )
        run(config, quiet=True)
        score(folder / architecture)
        (folder / architecture / "chck_100").symlink_to("checkpoint-10")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, for this process and those that it starts."""
    with served() as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        for name, value in {**environment, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writes"}.items():
            monkeypatch.setenv(name, value)
        # The client has read the environment when it was imported.
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def push(source: Path, target: Path | None, *options: str, repository: str = REPOSITORY) -> int:
    """Run the command: into a folder or, without one, to the hub."""
    dry_run = [] if target is None else ["--dry-run", str(target)]
    return main(["push", str(source), repository, "--licence", "mit", *dry_run, *options])


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def snippets(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def started(cards: Sequence[Sequence[str]], *without: str, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a process with the snippets of some cards; `without` are packages that it must not import."""
    command = [python, "-c", SNIPPETS, json.dumps(cards), *without]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def check_ends_well(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.endswith("all ran\n")


# What would be sent.


def test_each_checkpoint_becomes_a_revision_without_optimizer(trained, tmp_path, capsys):
    assert push(trained / "lstm", tmp_path / "sent") == 0
    assert "wrote 5 revisions of 1 repository, nothing was sent" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == sorted(NAMES)
    assert main(["export", str(trained / "lstm"), str(tmp_path / "exported"), "--standalone"]) == 0
    for name, step in zip(NAMES, (0, 10, 10, 20, 20), strict=True):
        found = files(tmp_path / "sent" / name)
        assert f'"{name}"' in found.pop("README.md").decode()
        weights = {WEIGHTS: (trained / "lstm" / f"checkpoint-{step}" / WEIGHTS).read_bytes()}
        assert found == files(tmp_path / "exported") | weights
    assert "import foundry" not in found[MODELING].decode()


def test_the_card_states_what_the_run_has_recorded(trained, tmp_path):
    options = ["--language", "en", "--dataset", "anna/toys", "--author", "Ny, Anna", "--author", "Li, Bo"]
    assert push(trained / "lstm", tmp_path / "sent", *options) == 0
    text = card(tmp_path / "sent" / "main")
    _, metadata, body = text.split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts.pop("model-index")[0]["name"] == "tiny"
    assert facts == {
        "license": "mit",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundry", "lstm", "causal_lm", "babylm"],
        "datasets": ["anna/toys"],
    }
    opened = open_run(trained / "lstm")
    last = opened.evaluated[-1]
    whole = next(row for row in opened.scored if row["level"] == "suite" and row["step"] == 20)
    read: Any = ModelCard(text).data  # as huggingface_hub reads it
    results = {(each.dataset_name, each.metric_type): each.metric_value for each in reversed(read.eval_results)}
    (name,) = opened.record["corpora"]["test_corpus"]["names"]
    assert results[f"test text: {name}", "loss"] == round(last["loss"], 5)
    assert results["toy", "accuracy"] == round(100 * whole["accuracy"], 2)
    rows = [re.sub(r"\s+", " ", line) for line in body.splitlines() if line.startswith("|")]
    assert f"| loss, test text | {last['loss']:.3f} | – | – | 20 |" in rows
    interval = f"{100 * whole['low']:.1f} to {100 * whole['high']:.1f}"
    assert f"| toy | {100 * whole['accuracy']:.1f} | {interval} | {whole['items']} | 20 |" in rows
    sidecars = [json.loads(path.read_text()) for path in (trained / "tokenizer" / "tokens").glob("*.json")]
    accounts = {sidecar["corpus_digest"]: sidecar["account"] for sidecar in sidecars}
    for title in ("training", "test"):
        digest = opened.record["corpora"][f"{title}_corpus"]["digest"]
        counts = [accounts[digest][name] for name in ("documents", "words", "bytes_text", "bytes_skipped")]
        assert any(f"| {' | '.join(f'{count:,}' for count in counts)} | `{digest[:12]}` |" in row for row in rows)
    for unit, value in opened.record["plan"]["budget"].items():
        assert any(row.startswith(f"| {unit} | {round(value, 3):,} |") for row in rows)
    assert f"| parameters | {opened.parameters:,} |" in rows
    assert f"| `random_seed` | {opened.seed} |" in rows
    assert f"| torch | `{opened.record['versions']['torch']}` |" in rows
    losses = {row["step"]: f"{row['loss']:.3f}" for row in opened.evaluated if row["corpus"] == "test"}
    (curve,) = (row for row in rows if row.startswith("| `step-10`, `chck_100` | 10 |"))
    assert f" | {losses[10]} | " in curve
    assert "author = {Ny, Anna and Li, Bo}" in body
    assert yaml.safe_load(snippets(body, "yaml")[0]) == opened.config


def test_the_card_says_when_main_is_not_the_end_of_the_run(trained, tmp_path):
    """Whose scores and words are then not those of its weights."""
    assert push(trained / "lstm", tmp_path / "whole") == 0
    assert push(trained / "lstm", tmp_path / "earlier", "--leave-out", "step-20") == 0
    (words,) = (row["words_seen"] for row in open_run(trained / "lstm").saved if row["step"] == 10)
    whole, earlier = (card(tmp_path / name / "main") for name in ("whole", "earlier"))
    line = f"**`main` is the model after 10 steps of training, {words:,} words.**"
    assert (line in whole, line in earlier) == (False, True)
    assert ("model-index" in whole, "model-index" in earlier) == (True, False)


def check_goes_on(sent: Path, trained: Path, goal: Path, step: int, last: int) -> None:
    """Check that training from a revision ends with the weights of the run."""
    there = json.loads((sent / MANIFEST).read_text())
    assert {OPTIMIZER, TRAINER_STATE, "README.md"} <= set(there["files"])
    shutil.copytree(sent, goal / f"checkpoint-{step}")
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    settings["training"]["output_dir"] = str(goal)
    run(load_config(settings), resume=True, quiet=True)
    weights = [folder / f"checkpoint-{last}" / WEIGHTS for folder in (goal, trained)]
    assert file_digest(weights[0]) == file_digest(weights[1])


def test_training_goes_on_from_a_revision_with_optimizer(trained, tmp_path):
    for architecture in ("lstm", "bert"):
        sent = tmp_path / "sent" / architecture
        assert push(trained / architecture, sent, "--with-optimizer") == 0
        check_goes_on(sent / "step-10", trained / architecture, tmp_path / architecture, 10, 20)


def test_weights_have_the_names_of_an_exported_folder(experiment, tmp_path):
    """transformers 4 calls the output layer of a GPT-NeoX otherwise than 5, whose names a checkpoint has."""
    training = {"train_steps": 2, "checkpoints": {"every_steps": 1, "keep_optimizer": "all"}}
    run(experiment("transformers", tmp_path, example="tiny_gpt_neox", training=training), quiet=True)
    assert push(tmp_path / "run", tmp_path / "sent", "--with-optimizer") == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    found = files(tmp_path / "sent" / "main")
    assert found[WEIGHTS] != (tmp_path / "run" / "checkpoint-2" / WEIGHTS).read_bytes()
    assert {name: found[name] for name in found.keys() - {OPTIMIZER, TRAINER_STATE, MANIFEST, "README.md"}} == files(
        tmp_path / "exported"
    )
    check_goes_on(tmp_path / "sent" / "step-1", tmp_path / "run", tmp_path / "goal", 1, 2)


def test_revisions_of_the_same_weights_are_refused(experiment, tmp_path, capsys):
    training = {"output_dir": str(tmp_path / "run"), "train_steps": 3, "learning_rate": 1e-60}
    milestones = {"milestones": {"words": [100, 200]}, "names": "babylm"}
    run(experiment("lstm", tmp_path, training={**training, "checkpoints": milestones}), quiet=True)
    assert push(tmp_path / "run", tmp_path / "sent") == 6
    (line,) = capsys.readouterr().err.splitlines()
    steps = sorted(int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*"))
    names = [f"step-{step}" for step in steps]
    assert f"the same weights, so that a learning curve over them would be wrong: {', '.join(names[:-1])} and" in line
    advice = line.partition("such as by ")[2].split()
    assert advice == [word for name in names[:-1] for word in ("--leave-out", name)]
    assert not (tmp_path / "sent").exists()
    assert push(tmp_path / "run", tmp_path / "sent", *advice) == 0
    assert {names[-1], "main"} <= {path.name for path in (tmp_path / "sent").iterdir()}


def test_of_two_names_of_one_checkpoint_the_last_is_published(trained, tmp_path, capsys):
    shutil.copytree(trained / "lstm", tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "chck_90").symlink_to("checkpoint-10")
    assert push(tmp_path / "run", tmp_path / "sent") == 0
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == sorted(NAMES)
    line = "warning: chck_90 is not published: it is the same model as chck_100, checkpoint-10\n"
    assert line in capsys.readouterr().err


def test_a_study_becomes_repositories_and_a_collection(trained, tmp_path):
    assert push(trained, tmp_path / "sent", "--private", repository="anna/sizes") == 0
    names = ["sizes-bert", "sizes-gpt2", "sizes-lstm", "sizes-ngram"]
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["collection.json", *names]
    collection = json.loads((tmp_path / "sent" / "collection.json").read_text())
    assert [item["item_id"] for item in collection["items"]] == [f"anna/{name}" for name in names]
    assert (collection["title"], collection["private"]) == ("sizes", True)
    text = card(tmp_path / "sent" / "sizes-bert" / "main")
    assert "pipeline_tag: fill-mask" in text
    for name in names:
        architecture = name.partition("-")[2]
        loss = open_run(trained / architecture).evaluated[-1]["loss"]
        label = f"**{architecture}**" if architecture == "bert" else architecture
        assert re.search(rf"\| {re.escape(label)} \| .*huggingface.co/anna/{name}\) \|.* {loss:.3f} \|", text)
        assert any(f"loss on the test text {loss:.3f}" in item["note"] for item in collection["items"])


@each(
    "name, left",
    [("lstm/step-10", {"gpt2"}), ("step-10", set()), ("chck_90", {"gpt2"}), ("gpt2/chck_100", {"lstm"})],
)
def test_a_study_leaves_a_revision_out_where_it_is(name, left, trained, tmp_path):
    for architecture in ("lstm", "gpt2"):
        shutil.copytree(trained / architecture, tmp_path / "runs" / architecture, symlinks=True)
    (tmp_path / "runs" / "lstm" / "chck_100").rename(tmp_path / "runs" / "lstm" / "chck_90")
    assert push(tmp_path / "runs", tmp_path / "sent", "--leave-out", name, repository="anna/x") == 0
    there = {path.parent.name.removeprefix("x-") for path in (tmp_path / "sent").glob("*/step-10")}
    assert there == left
    names = {path.name for path in (tmp_path / "sent" / "x-gpt2").iterdir()}
    assert ("chck_100" in names) == ("gpt2" in left)


def test_equal_weights_in_a_study_are_left_out_of_one_run(experiment, trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(trained / "lstm", runs / "a", symlinks=True)
    training = {"output_dir": str(runs / "b"), "train_steps": 10, "learning_rate": 1e-60}
    run(experiment("lstm", tmp_path, training={**training, "checkpoints": {"every_steps": 5}}), quiet=True)
    capsys.readouterr()
    assert push(runs, tmp_path / "sent", repository="anna/x") == 6
    (line,) = capsys.readouterr().err.splitlines()
    advice = line.partition("such as by ")[2].split()
    assert advice == ["--leave-out", "b/step-0", "--leave-out", "b/step-5"]
    assert push(runs, tmp_path / "sent", *advice, repository="anna/x") == 0
    assert {path.parent.name for path in (tmp_path / "sent").glob("*/step-0")} == {"x-a"}
    assert push(runs, tmp_path / "new", "--leave-out", "a/step-1", repository="anna/x") == 2
    assert "--leave-out a/step-1: this is not a revision of a run here. Did you mean" in capsys.readouterr().err


# Sending, and loading what was sent.


def test_every_snippet_of_a_card_runs(trained, hub, tmp_path, corpus, monkeypatch, capsys):
    """In processes that begin with nothing of ours: what one snippet registers does not help another one."""
    of_cards = {}
    for architecture in (*ALONE, "ngram"):
        name = f"anna/{architecture}"
        assert push(trained / architecture, None, repository=name) == 0
        of_cards[architecture] = snippets(hub.repositories[name]["step-10"]["README.md"].decode())
        assert all(name in code or "minicons" in code for code in of_cards[architecture])
    assert [len(codes) for codes in of_cards.values()] == [3, 3, 2, 2]
    trusting, registering = of_cards["ngram"]
    assert "trust_remote_code" not in registering
    processes = [
        started([of_cards[architecture] for architecture in ALONE], "foundry_core", "foundry_rnn"),
        started([[trusting]]),
        started([[registering]]),
    ]
    (commands,) = snippets(hub.repositories["anna/lstm"]["step-10"]["README.md"].decode(), "sh")
    download, *ours = [command.split() for command in commands.splitlines()]
    monkeypatch.chdir(tmp_path)
    assert download[0] == "hf"
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import app; app()"]
    subprocess.run([*hf, *download[1:]], capture_output=True, check=True, timeout=300)
    shutil.copy(corpus.test, "TEXT.txt")
    assert [main(command[1:]) for command in ours] == [0, 0]
    assert Path("surprisal.tsv").stat().st_size > 0
    for process in processes:
        check_ends_well(process)


@pytest.mark.slow
def test_snippets_run_with_other_versions(trained, hub):
    others = os.environ.get("FOUNDRY_TEST_TRANSFORMERS")
    if not others:
        pytest.skip("FOUNDRY_TEST_TRANSFORMERS names no further Pythons")
    of_cards = []
    for architecture in ALONE:
        assert push(trained / architecture, None, repository=f"anna/{architecture}") == 0
        of_cards.append(snippets(hub.repositories[f"anna/{architecture}"]["step-10"]["README.md"].decode()))
    for python in others.split(":"):
        check_ends_well(started(of_cards, "foundry_core", "foundry_rnn", python=python))


def test_sending_goes_on_where_it_was_interrupted(trained, hub, tmp_path, capsys):
    assert push(trained / "lstm", tmp_path / "sent") == 0
    hub.failures.append((f"POST /api/models/{REPOSITORY}/commit/chck_100", 500, "the disk is full"))
    assert push(trained / "lstm", None) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {REPOSITORY}, revision chck_100: the Hugging Face hub fails with 500: the disk is full; nothing is "
        "lost: run the same command again, later"
    )
    branches = hub.repositories[REPOSITORY]
    assert set(branches["main"]) == {".gitattributes"}
    assert push(trained / "lstm", None) == 0
    assert capsys.readouterr().out.endswith(f"{REPOSITORY}: sent 3 revisions, 2 were there\n")
    assert [name for _, name, _ in hub.commits] == NAMES
    for name in NAMES:
        assert branches[name] == {".gitattributes": branches["main"][".gitattributes"]} | files(
            tmp_path / "sent" / name
        )
    assert push(trained / "lstm", None) == 0
    assert len(hub.commits) == len(NAMES)
    branches["step-20"][WEIGHTS] = branches["step-10"][WEIGHTS]
    assert push(trained / "lstm", None) == 0
    assert hub.commits[len(NAMES) :] == [(REPOSITORY, "step-20", 1)]


def test_a_new_branch_takes_no_optimizer_over_from_main(trained, hub):
    assert push(trained / "lstm", None, "--with-optimizer", "--leave-out", "step-10") == 0
    assert OPTIMIZER in hub.repositories[REPOSITORY]["main"]
    assert push(trained / "lstm", None) == 0
    assert not {OPTIMIZER, TRAINER_STATE, MANIFEST} & set(hub.repositories[REPOSITORY]["step-10"])


def test_a_state_is_removed_once_its_manifest_is_out_of_date(trained, hub):
    """The card of main lists one revision more, the files of step-20 are the same."""
    assert push(trained / "lstm", None, "--with-optimizer", "--leave-out", "step-0") == 0
    assert push(trained / "lstm", None) == 0
    assert not {OPTIMIZER, TRAINER_STATE, MANIFEST} & set(hub.repositories[REPOSITORY]["main"])
    assert {OPTIMIZER, TRAINER_STATE, MANIFEST} <= set(hub.repositories[REPOSITORY]["step-20"])


def test_a_collection_is_completed_once(trained, hub, tmp_path, capsys):
    for name in ("lstm", "ngram"):
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / "study" / name).symlink_to(trained / name)
    hub.failures.append(("POST /api/collections/anna/sizes-0/items", 503, "too many"))
    assert push(tmp_path / "study", None, repository="anna/sizes") == 1
    assert "the collection sizes: the Hugging Face hub fails with 503: too many" in capsys.readouterr().err
    for _ in range(2):
        assert push(tmp_path / "study", None, repository="anna/sizes") == 0
        ((slug, collection),) = hub.collections.items()
        names = ["anna/sizes-lstm", "anna/sizes-ngram"]
        assert [item["id"] for item in collection["items"]] == names
        assert capsys.readouterr().out.endswith(f"collection: {hub.endpoint}/collections/{slug}\n")
    assert len(hub.commits) == len(NAMES) * len(names)


# Refusals.


@each(
    ("arguments", "says"),
    [
        (["anna/x", "--licence", "apache2"], "no such identifier. Did you mean 'apache-2.0'?"),
        (["x", "--licence", "mit"], "give NAMESPACE/NAME"),
        (["anna/x--y", "--licence", "mit"], "anna/x--y is not the name of a repository"),
        (["anna/x", "--licence", "mit", "--dataset", "toys"], "toys is not the name of a data set"),
        (["anna/x", "--licence", "mit", "--language", "English"], "--language English: give the code"),
        (["anna/x", "--licence", "mit", "--dry-run", "{runs}"], "is not an empty folder"),
        (["anna/x", "--licence", "mit", "--dry-run", "{runs}/new", "--leave-out", "step-1"], "Did you mean 'step-10'?"),
        (["anna/x", "--licence", "mit"], "nobody is logged in to the Hugging Face hub: run `hf auth login`"),
    ],
)
def test_push_says_in_a_line_what_it_does_not_take(arguments, says, trained, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    given = [argument.format(runs=trained) for argument in arguments]
    assert main(["push", str(trained / "lstm"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@each(
    "arguments",
    [
        ["export", "{checkpoint}", "{checkpoint}/alone"],
        ["push", "{checkpoint}/..", "anna/x", "--licence", "mit", "--dry-run", "{checkpoint}/look/here"],
        ["surprisal", "{checkpoint}", "{text}", "--output", "{checkpoint}/bits.tsv"],
        ["init", "lstm", "--output", "{checkpoint}/lstm.yaml"],
    ],
)
def test_no_command_writes_into_a_checkpoint(arguments, trained, corpus, capsys):
    """It would count as damaged from then on."""
    checkpoint = trained / "lstm" / "checkpoint-20"
    before = files(checkpoint)
    assert main([each.format(checkpoint=checkpoint, text=corpus.test) for each in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"would be in the checkpoint {checkpoint}, which nothing is added to" in line
    assert files(checkpoint) == before


def test_what_the_hub_refuses_is_a_line_with_the_way_out(trained, hub, capsys, monkeypatch):
    def refusal(token: str = "hf_writes", repository: str = REPOSITORY) -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        assert push(trained / "lstm", None, repository=repository) in (1, 2)
        lines: list[str] = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    login = "run `hf auth login` with a token that may write there"
    assert f"does not accept your token: {login}" in refusal("hf_wrong")
    assert f"the token of anna on the Hugging Face hub may only read: {login}" in refusal("hf_reads")
    assert re.search(rf'bob/tiny: .* the namespace "bob".*, or {login}', refusal(repository="bob/tiny"))
    hub.failures.append(("POST /api/validate-yaml", 400, "a card needs flowers"))
    assert "revision step-0: the Hugging Face hub refuses: Invalid metadata in README.md" in refusal()
    hub.failures.append(("GET /api/models/.*/refs", 404, "Repository not found"))
    assert "the Hugging Face hub refuses: Repository not found: name a namespace that is yours" in refusal()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal().endswith("Connection refused; nothing is lost: run the same command again, later")
    assert hub.commits == []
