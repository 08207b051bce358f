"""`foundry push`: revisions, the card and its snippets, refusals, sending and going on, studies."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from foundry_core import load_config, open_run, run
from foundry_core.cli import main
from foundry_core.errors import FoundryError
from foundry_core.publishing.hub import Publication, send
from foundry_core.publishing.revisions import revision_files, revisions_of
from foundry_core.run_folder import MANIFEST, MODELING, OPTIMIZER, TRAINER_STATE, WEIGHTS
from foundry_core.storage.manifest import file_digest, sealed
from tests.each import each
from tests.test_compare import score

pytestmark = pytest.mark.long

REPOSITORY = "anna/tiny"
NAMES = ["step-0", "step-10", "chck_100", "step-20", "main"]


@pytest.fixture(scope="module")
def trained(experiment: Any, corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of lstm, gpt2 and bert each, scored at steps 10 and 20."""
    folder = tmp_path_factory.mktemp("runs")
    for architecture in ("lstm", "gpt2", "bert"):
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
                "checkpoints": {"every_steps": 10, "keep_optimizer": "all"},
            },
        )
        run(config, quiet=True)
        score(folder / architecture)
        (folder / architecture / "chck_100").symlink_to("checkpoint-10")
    return folder


def push(source: Path, target: Path, *options: str, repository: str = REPOSITORY) -> int:
    return main(["push", str(source), repository, "--licence", "mit", "--dry-run", str(target), *options])


def again(source: Path, step: int, new: int) -> None:
    """Copy a checkpoint as that of another step, as if nothing had been learnt in between."""
    folder = source / f"checkpoint-{new}"
    shutil.copytree(source / f"checkpoint-{step}", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    (folder / MANIFEST).write_bytes(sealed({**manifest, "step": new}))


def test_each_checkpoint_becomes_a_revision_to_load(trained, corpus, tmp_path, capsys, monkeypatch):
    assert push(trained / "lstm", tmp_path / "sent") == 0
    assert "wrote 5 revisions of 1 repositories, nothing was sent" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == sorted(NAMES)
    for name, step in zip(NAMES, (0, 10, 10, 20, 20), strict=True):
        files = {path.name for path in (tmp_path / "sent" / name).iterdir()}
        assert not files & {OPTIMIZER, TRAINER_STATE, MANIFEST}
        assert {WEIGHTS, MODELING, "README.md", "config.json", "tokenizer.json"} <= files
        assert file_digest(tmp_path / "sent" / name / WEIGHTS) == file_digest(
            trained / "lstm" / f"checkpoint-{step}" / WEIGHTS
        )
        assert f'"{name}"' in (tmp_path / "sent" / name / "README.md").read_text()
    card = (tmp_path / "sent" / "step-10" / "README.md").read_text()
    download, *commands = re.findall(r"^```sh\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[0].splitlines()
    assert download == f"hf download {REPOSITORY} --revision step-10 --local-dir model"
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus.test, "TEXT.txt")
    Path("sent/step-10").rename("model")
    assert [main(command.split()[1:]) for command in commands] == [0, 0]
    assert Path("surprisal.tsv").stat().st_size > 0


def test_the_card_states_what_the_run_has_recorded(trained, tmp_path):
    assert push(trained / "lstm", tmp_path / "sent", "--language", "en") == 0
    text = (tmp_path / "sent" / "main" / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "mit",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["foundry", "lstm", "causal_lm", "babylm"],
    }
    opened = open_run(trained / "lstm")
    last = opened.evaluated[-1]
    whole = next(row for row in opened.scored if row["level"] == "suite" and row["step"] == 20)
    rows = [re.sub(r"\s+", " ", line) for line in body.splitlines() if line.startswith("|")]
    assert f"| loss on the test text | {last['loss']:.3f} | – | 20 |" in rows
    interval = f"{100 * whole['low']:.1f} to {100 * whole['high']:.1f}"
    assert f"| toy | {100 * whole['accuracy']:.1f} | {interval} | 20 |" in rows
    sidecars = [json.loads(path.read_text()) for path in (trained / "tokenizer" / "tokens").glob("*.json")]
    accounts = {sidecar["corpus_digest"]: sidecar["account"] for sidecar in sidecars}
    for title in ("training", "test"):
        digest = opened.record["corpora"][f"{title}_corpus"]["digest"]
        counts = [accounts[digest][name] for name in ("documents", "words", "bytes_text", "bytes_skipped")]
        assert any(f"| {' | '.join(f'{count:,}' for count in counts)} | `{digest[:12]}` |" in row for row in rows)
    assert f"| parameters | {opened.parameters:,} |" in rows
    assert f"| `random_seed` | {opened.seed} |" in rows
    assert f"| torch | `{opened.record['versions']['torch']}` |" in rows
    assert "`step-10`, `chck_100` | 10" in body
    assert yaml.safe_load(re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)[0]) == opened.config


@pytest.mark.long
def test_every_snippet_of_a_card_runs(trained, tmp_path):
    """In processes that begin with nothing of ours: what one snippet registers does not help another one."""
    snippets = []
    for architecture in ("lstm", "gpt2", "bert"):
        assert push(trained / architecture, tmp_path / architecture) == 0
        text = (tmp_path / architecture / "main" / "README.md").read_text()
        found = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert [REPOSITORY in code for code in found] == [True] * (2 if architecture == "lstm" else 1)
        snippets += [code.replace(REPOSITORY, str(tmp_path / architecture / "main")) for code in found]
    trusting, ours, *plain = snippets
    for program in (trusting, ours + "\n" + "\n".join(plain)):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) >= 1


def test_two_checkpoints_of_the_same_weights_are_refused(trained, tmp_path, capsys):
    copied = shutil.copytree(trained / "lstm", tmp_path / "copied", symlinks=True)
    again(copied, 10, 15)
    assert push(copied, tmp_path / "sent") == 6
    assert re.search(r"step-10 and step-15 have the same weights .*--leave-out step-10", capsys.readouterr().err)
    assert not (tmp_path / "sent").exists()
    assert push(copied, tmp_path / "sent", "--leave-out", "chck_100") == 0
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["main", "step-0", "step-15", "step-20"]


@pytest.mark.long
def test_training_goes_on_from_a_revision_with_optimizer(trained, tmp_path):
    assert push(trained / "lstm", tmp_path / "sent", "--with-optimizer") == 0
    there = json.loads((tmp_path / "sent" / "step-10" / MANIFEST).read_text())
    assert {OPTIMIZER, TRAINER_STATE, "README.md"} <= set(there["files"])
    goal = tmp_path / "goes-on"
    shutil.copytree(tmp_path / "sent" / "step-10", goal / "checkpoint-10")
    settings = yaml.safe_load((trained / "lstm" / "config.yaml").read_text())
    settings["training"]["output_dir"] = str(goal)
    run(load_config(settings), resume=True, quiet=True)
    assert file_digest(goal / "checkpoint-20" / WEIGHTS) == file_digest(trained / "lstm" / "checkpoint-20" / WEIGHTS)


def test_a_study_becomes_repositories_and_a_collection(trained, tmp_path):
    assert push(trained, tmp_path / "sent", "--private", repository="anna/sizes") == 0
    names = ["sizes-bert", "sizes-gpt2", "sizes-lstm"]
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["collection.json", *names]
    collection = json.loads((tmp_path / "sent" / "collection.json").read_text())
    assert [item["item_id"] for item in collection["items"]] == [f"anna/{name}" for name in names]
    assert (collection["title"], collection["private"]) == ("sizes", True)
    assert "pipeline_tag: fill-mask" in (tmp_path / "sent" / "sizes-bert" / "main" / "README.md").read_text()


class Hub:
    """Stands in for the hub: branches of files; each call has to fit the signature of `HfApi`."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.commits: list[str] = []
        self.fails_after = 99

    def __getattr__(self, name: str) -> Any:
        def called(*arguments: Any, **keywords: Any) -> Any:
            given = inspect.signature(getattr(HfApi, name)).bind(self, *arguments, **keywords).arguments
            return getattr(self, f"_{name}")(given)

        return called

    def _create_repo(self, given: Any) -> None:
        pass

    def _list_repo_refs(self, given: Any) -> Any:
        return SimpleNamespace(branches=[SimpleNamespace(name=name) for name in self.branches])

    def _create_branch(self, given: Any) -> None:
        self.branches[given["branch"]] = dict(self.branches["main"])

    def _list_repo_tree(self, given: Any) -> Any:
        for path, content in self.branches[given["revision"]].items():
            lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if path == WEIGHTS else None
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            yield SimpleNamespace(path=path, size=len(content), lfs=lfs, blob_id=blob)

    def _create_commit(self, given: Any) -> None:
        if len(self.commits) == self.fails_after:
            raise OSError("the line is dead")
        self.commits.append(given["revision"])
        for added in given["operations"]:
            with added.as_file() as file:
                self.branches[given["revision"]][added.path_in_repo] = file.read()


def test_sending_goes_on_where_it_was_interrupted(trained):
    revisions = revisions_of([trained / "lstm" / f"checkpoint-{step}" for step in (0, 10, 20)])
    files = {name: revision_files(each, "the card") for each in revisions for name in each.names}
    hub, publication = Hub(), Publication(REPOSITORY, files)
    hub.fails_after = 2
    with pytest.raises(FoundryError, match="anna/tiny, revision chck_100: .*the line is dead; run the command again"):
        send(hub, publication, lambda name: None)
    hub.fails_after = 99
    assert send(hub, publication, lambda name: None) == ["chck_100", "step-20", "main"]
    for name, own in files.items():
        whole = {file: each if isinstance(each, bytes) else each.read_bytes() for file, each in own.items()}
        assert hub.branches[name] == whole
    assert send(hub, publication, lambda name: None) == []
    files["step-10"] = revision_files(revisions[1], "another card")
    assert send(hub, publication, lambda name: None) == ["step-10"]
    hub.branches["step-20"][WEIGHTS] = hub.branches["step-10"][WEIGHTS]
    assert send(hub, publication, lambda name: None) == ["step-20"]


@each(
    ("arguments", "says"),
    [
        (["{runs}/lstm", "anna/x", "--licence", "apache2"], "no such identifier. Did you mean 'apache-2.0'?"),
        (["{runs}/lstm", "x", "--licence", "mit"], "give NAMESPACE/NAME"),
        (["{runs}/lstm", "anna/x--y", "--licence", "mit"], "anna/x--y is not the name of a repository"),
        (["{runs}/lstm", "anna/x", "--licence", "mit", "--dry-run", "{runs}"], "is not an empty folder"),
        (["{runs}/lstm", "anna/x", "--licence", "mit", "--leave-out", "step-1"], "Did you mean 'step-10'?"),
        (["{runs}/lstm", "anna/x", "--licence", "mit"], "nobody is logged in"),
    ],
)
def test_push_says_in_a_line_what_it_does_not_take(arguments, says, trained, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["push", *(argument.format(runs=trained) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
