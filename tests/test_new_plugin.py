"""`foundry new-plugin`: a package that is found, that is clean for the linters, and whose model keeps every promise.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.specifiers import SpecifierSet

from foundry_core import BaseLanguageModel, __version__, create_model, load_config
from foundry_core.cli import main
from foundry_core.cli.new_plugin import KINDS, core_versions, plugin_files
from foundry_core.registry.doctor import examine
from foundry_core.registry.loading import get_architecture, load_plugin_file
from tests.each import each

Install = Callable[..., None]
LONGEST = "abcdefghijklmnopqrst"
FILES = {
    ".github/workflows/test.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "foundry_my_arch/__init__.py",
    "foundry_my_arch/model.py",
    "foundry_my_arch/state_keys.txt",
    "foundry_my_arch/py.typed",
    "pyproject.toml",
    "tests/test_my_arch.py",
}


def new_plugin(name: str, folder: Path, kind: str = "architecture") -> Path:
    assert main(["new-plugin", name, "--dir", str(folder), "--kind", kind]) == 0
    return folder / f"foundry-{name.replace('_', '-')}"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what is said to a command that is not carried out: one line."""
    assert main(["new-plugin", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_it_writes_a_package_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = new_plugin("my_arch", tmp_path / "made" / "on the way")
    assert folder.name == "foundry-my-arch"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {folder}; next:",
        f"  pip install -e '{folder}/'",
        "  foundry check my_arch",
    ]


def test_it_writes_where_one_stands_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "mine"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["foundry-mine"]


@pytest.mark.long
def test_the_linters_have_nothing_to_say(tmp_path: Path) -> None:
    """Each package has its own settings for them."""
    for name in ("a", "my_arch_2", LONGEST):
        for kind in KINDS:
            new_plugin(name, tmp_path / kind, kind)
    for command in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@each(("name", "kind"), [(name, kind) for name in ("mine", LONGEST) for kind in KINDS])
def test_nothing_is_left_to_fill_in(name: str, kind: str) -> None:
    for path, text in plugin_files(name, kind).items():
        assert not re.search(r"\$([^{]|\{[^{])", text), path  # ${{ is the workflow's own
        assert all(len(line) <= 120 for line in text.splitlines()), path


def test_the_metadata_names_entry_point_and_core_versions() -> None:
    project = tomllib.loads(plugin_files("my_arch")["pyproject.toml"])["project"]
    assert project["name"] == "foundry-my-arch"
    assert project["entry-points"] == {"foundry.architectures": {"my_arch": "foundry_my_arch:my_arch"}}
    (requirement,) = project["dependencies"]
    bounds = SpecifierSet(requirement.removeprefix("model-foundry"))
    assert bounds.contains(__version__)
    assert not bounds.contains("99")


@pytest.mark.parametrize(
    ("version", "bounds"),
    [("0.1.0", ("0.1", "0.2")), ("0.9.3", ("0.9", "0.10")), ("1.4.2", ("1.4", "2")), ("2.0.0rc1", ("2.0", "3"))],
)
def test_a_plugin_goes_with_the_cores_of_its_own_plugin_api(version: str, bounds: tuple[str, str]) -> None:
    assert core_versions(version) == bounds


@each("kind", KINDS)
def test_the_workflow_runs_what_the_readme_says(kind: str) -> None:
    files = plugin_files("mine", kind)
    steps = yaml.safe_load(files[".github/workflows/test.yml"])["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert "pytest" in commands
    assert 'pip install -e ".[dev]"' in commands
    development = files["README.md"].partition("## Development")[2]
    for command in ("ruff check .", "mypy", "pytest", "foundry plugins doctor", "python -m build"):
        assert command in commands
        assert command in development


@each(
    ("name", "near"),
    [
        ("My-Arch", "my_arch"),
        ("my-arch", "my_arch"),
        ("mamba2.5", "mamba2_5"),
        ("_mine", "mine"),
        ("a__b", "a_b"),
        ("mine_", "mine"),
        ("2mamba", "mamba"),
        (LONGEST + "u", LONGEST),
        ("café", "caf"),
        ("../x", "x"),
        ("a\nb", "a_b"),
        ("3", None),
        ("", None),
    ],
)
def test_an_impossible_name_is_answered_with_a_possible_one(
    name: str, near: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "lower-case letters, digits and single underscores between them, a letter first, at most 20"
    expected = f"error: {name!r} cannot name an architecture: {rule}" + (f", such as '{near}'" if near else "")
    assert refused(capsys, name, "--dir", str(tmp_path)) == expected
    assert list(tmp_path.iterdir()) == []


@each("name", ["null", "true", "false", "yes", "no", "on", "off", "y", "n"])
def test_a_name_that_yaml_reads_as_something_else_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, name, "--dir", str(tmp_path)).startswith(f"error: '{name}' already means something")
    assert list(tmp_path.iterdir()) == []


@each("name", ["lambda", "int", "copy", "architecture", "model", "base", "config", "model_dump"])
def test_a_name_that_is_used_in_the_files_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, name, "--dir", str(tmp_path)).startswith(f"error: '{name}' already means something")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("some-package", {"mamba": "of_it:mamba"}, {"foundry_there": "1 / 0\n"})
    install("Foundry_RWKV")
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "mamba")
    for name, reason in {
        "gpt2": r"the architecture 'gpt2' is shipped by foundry-gpt2 [\d.]+",
        "mamba": r"the architecture 'mamba' is shipped by some-package 1\.0",
        "rwkv": "a package foundry-rwkv is installed",
        "core": "there is a module foundry_core that Python would import",
        "there": "there is a module foundry_there that Python would import",
    }.items():
        assert re.fullmatch(f"error: {reason}: choose another name", refused(capsys, name, "--dir", str(tmp_path)))


@each(
    ("kind", "name", "reason"),
    [
        ("optimizer", "adamw", "there is an optimizer 'adamw'"),
        ("tokenizer", "bpe", "there is a tokenizer 'bpe'"),
        ("objective", "causal_lm", "there is an objective 'causal_lm'"),
        ("command", "train", "there is a command 'train'"),
        ("observer", "gpt2", "a package foundry-gpt2 is installed"),
        ("optimizer", "Lion", "'Lion' cannot name an optimizer"),
    ],
)
def test_a_name_that_its_kind_has_already_is_refused(
    kind: str, name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, name, "--kind", kind, "--dir", str(tmp_path)).startswith(f"error: {reason}")


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_what_is_there_is_not_overwritten(there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "foundry-mine"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("kept")
    else:
        target.symlink_to(tmp_path / "nowhere")
    line = f"error: {target} exists and is not overwritten: choose another --dir, or remove it"
    assert refused(capsys, "mine", "--dir", str(tmp_path)) == line
    assert not (tmp_path / "nowhere").exists()
    assert target.is_symlink() or not target.is_dir() or list(target.iterdir()) == []


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new-plugin", "mine", "--dir", str(tmp_path / "file")]) == 8
    assert len(capsys.readouterr().err.splitlines()) == 1


# What was written, installed.


@pytest.fixture
def mine(install: Install, tmp_path: Path) -> Path:
    """The package `foundry-mine`, installed from its sources."""
    folder = new_plugin("mine", tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["foundry.architectures"]
    install("foundry-mine", points, {}, project["version"], requires=project["dependencies"], sources=folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "architecture"])
def test_each_kind_passes_its_checks_and_its_own_tests(
    kind: str, distribution: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new_plugin("mine", tmp_path, kind)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    headers = [f"Requires-Dist: {each}" for each in project["dependencies"]]
    distribution(project["name"], project["entry-points"], version=project["version"], headers=headers, sources=folder)
    assert main(["check", "mine"]) == 0, capsys.readouterr().out
    assert " 0 failed, 0 expected, " in capsys.readouterr().out
    assert [(each.state, each.problem) for each in examine(deep=True) if each.point.name == "mine"] == [("fine", None)]
    test = load_plugin_file(folder / "tests" / "test_mine.py")
    assert test.test_conformance
    own = [value for name, value in vars(test).items() if name.startswith("test_") and name != "test_conformance"]
    assert own
    for function in own:
        fixtures = {"tmp_path": tmp_path, "capsys": capsys}
        function(**{name: fixtures[name] for name in inspect.signature(function).parameters})


Build = Callable[..., BaseLanguageModel]


@pytest.fixture
def build(mine: Path, letters: Any, one_thread: None) -> Build:
    """Its model over 32 letters, in evaluation mode."""

    def make(seed: int = 42, **settings: Any) -> BaseLanguageModel:
        config = load_config(
            {
                "experiment_name": "trial",
                "random_seed": seed,
                "data": {"training_corpus": "corpora/train.txt"},
                "model": {
                    "architecture": "mine",
                    "mine": {**get_architecture("mine").examples["tiny"]["mine"], **settings},
                },
                "training": {"output_dir": "runs/trial", "train_steps": 1},
            }
        )
        return create_model(config, letters).eval()

    return make


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.long
def test_it_is_found_and_whole_and_its_descriptor_is_light(mine: Path) -> None:
    assert [(each.state, each.problem) for each in examine() if each.point.name == "mine"] == [("fine", None)]
    program = "import sys, foundry_mine; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(root)!r}); {program}"], cwd=mine, check=True
    )


def test_every_setting_says_what_it_means(mine: Path) -> None:
    section: Any = get_architecture("mine").config_class.model_fields["mine"].annotation
    assert all(field.description for field in section.model_fields.values())


def test_a_prediction_sees_every_token_before_it_and_none_after(build: Build) -> None:
    model, before = build(), random_ids(3, 12)
    after = before.clone()
    after[:, 5] = (after[:, 5] + 7) % 32
    old, new = model(before).logits, model(after).logits
    assert torch.equal(old[:, :5], new[:, :5])
    assert (old != new)[:, 5:].any(dim=-1).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_a_masked_token_are_invisible(build: Build, side: str) -> None:
    model, row = build(), random_ids(1, 9)
    alone = model(row, labels=row)
    for content in (0, 3):
        ids = torch.full((1, 14), content)
        place = slice(0, 9) if side == "right" else slice(5, 14)
        ids[:, place] = row
        mask = torch.zeros_like(ids)
        mask[:, place] = 1
        padded = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
        torch.testing.assert_close(padded.logits[:, place], alone.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(padded.loss, alone.loss, rtol=1e-5, atol=0)
    mask = torch.ones_like(row)
    mask[:, 4] = 0
    kept = mask[0] == 1
    torch.testing.assert_close(
        model(row, attention_mask=mask).logits[:, kept], model(row[:, kept]).logits, rtol=0, atol=1e-5
    )


def test_two_halves_with_the_state_carried_are_the_whole(build: Build) -> None:
    model, ids = build(), random_ids(3, 20)
    first = model(ids[:, :9])
    second = model(ids[:, 9:], state=first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), model(ids).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(model(ids[:, 9:]).logits, second.logits, atol=1e-3)
    whole_mask = torch.ones_like(ids)
    assert torch.equal(model(ids[:, 9:], attention_mask=whole_mask, state=first.state).logits, second.logits)
    assert "state" not in model(ids, use_cache=False)


def test_greedy_generation_is_the_argmax_loop(build: Build) -> None:
    model = build()
    eos, pad = model.context.eos_token_id, model.context.pad_token_id
    assert pad is not None
    rows = [random_ids(length, seed=length) % 26 for length in (3, 6)]
    ids, mask = torch.full((2, 6), pad), torch.zeros(2, 6, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, 6 - len(row) :], mask[index, 6 - len(row) :] = row, 1
    produced = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=pad)
    for row, answer in zip(rows, produced[:, 6:].tolist(), strict=True):
        text = row
        for token in answer:
            assert token == (pad if eos in text[len(row) :] else int(model(text[None]).logits[0, -1].argmax()))
            text = torch.cat([text, torch.tensor([token])])


@pytest.mark.parametrize("size", [37, 29])
def test_a_resized_model_keeps_logits_and_learns_new_ones(build: Build, size: int) -> None:
    model, ids = build(), random_ids(3, 12) % 29
    before, parameters = model(ids).logits.detach(), len(list(model.parameters()))
    model.resize_token_embeddings(size)
    after = model(ids, labels=ids)
    torch.testing.assert_close(after.logits[..., : min(size, 32)], before[..., : min(size, 32)], rtol=0, atol=1e-6)
    assert after.logits.shape == (3, 12, size)
    assert (model.context.vocab_size, len(list(model.parameters()))) == (size, parameters)
    after.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_the_first_loss_is_that_of_guessing(build: Build) -> None:
    ids = random_ids(8, 16)
    for seed in range(5):
        for sizes in ({}, {"hidden_size": 256, "layers": 4}, {"hidden_size": 7, "layers": 1}):
            assert abs(build(seed, **sizes)(ids, labels=ids).loss.item() - math.log(32)) < 0.5


def test_other_numbers_mean_the_same(build: Build) -> None:
    model, ids = build(), random_ids(2, 64)
    exact = deepcopy(model).double()(ids).logits
    assert (exact - model(ids).logits).norm() / exact.norm() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (exact - model(ids).logits).norm() / exact.norm() < 0.03


def losses(model: BaseLanguageModel, batches: Iterator[torch.Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3, weight_decay=0.0)
    found = []
    for ids in batches:
        loss = model(ids, labels=ids, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.long
def test_it_learns_a_rule_and_on_noise_nothing(build: Build) -> None:
    def rule() -> Iterator[torch.Tensor]:
        for step in range(200):
            columns = [random_ids(16, seed=step)]
            for _ in range(15):
                columns.append((5 * columns[-1] + 3) % 32)
            yield torch.stack(columns, dim=1)

    assert losses(build(), rule())[-1] < 0.5 * math.log(32)
    noise = losses(build(), (random_ids(16, 16, seed=step) for step in range(120)))
    assert math.log(32) - 0.15 < sum(noise[-20:]) / 20 < math.log(32) + 0.3


def test_a_saved_folder_opens_again_with_equal_logits(build: Build, tmp_path: Path) -> None:
    model, ids = build(), random_ids(2, 8)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(BaseLanguageModel.from_pretrained(tmp_path / "saved")(ids).logits, model(ids).logits)
