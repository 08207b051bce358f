"""Every flipped byte, every cut, missing, exchanged or lengthened file of a checkpoint is refused by its name; going on
falls back to the newest whole checkpoint and says so; a checkpoint that was named never falls back.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_core import BaseLanguageModel, ExperimentConfig, load_config, run
from foundry_core.checkpoints.checkpoint import newest_valid
from foundry_core.cli import main
from foundry_core.errors import CheckpointError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.manifest import read_manifest
from tests.each import each

FILES = (
    "MANIFEST.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_foundry.py",
    "optimizer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
)
WHAT_TRAINING_MAKES = ("model.safetensors", "optimizer.safetensors", "trainer_state.json")


Finished = tuple[ExperimentConfig, Path]


@pytest.fixture(scope="module")
def finished(experiment: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny run with checkpoints at 0, 2 and 4: 25 kB each."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "train.txt").write_text("the cat sees a dog\na dog sees the cat\n" * 20)
    config = experiment(
        "lstm",
        folder,
        data={"training_corpus": str(folder / "train.txt"), "max_sequence_length": 8},
        tokenizer={"vocab_size": 10, "output_dir": str(folder / "tokenizer")},
        model={"rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}},
        training={"train_steps": 4, "checkpoints": {"every_steps": 2, "keep_optimizer": "all"}},
    )
    run(config, quiet=True)
    return config, folder / "run"


def copy_of(finished: Finished, folder: Path) -> Path:
    """Copy the run's folder, to be damaged."""
    return shutil.copytree(finished[1], folder / "run")


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, one_thread: None) -> Path:
    return copy_of(finished, tmp_path)


def test_the_files_of_a_checkpoint_are_those_damaged_here(copied: Path) -> None:
    assert tuple(sorted(path.name for path in (copied / "checkpoint-4").iterdir())) == FILES


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_manifest(folder)
    return str(caught.value)


def flipped(path: Path, flips: Iterator[tuple[int, int]]) -> int:
    """Flip bits of a file's bytes, one after the other, each back again; counts those that went unnoticed."""
    unnoticed = 0
    with path.open("r+b", buffering=0) as file:
        for place, bits in flips:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ bits]))
            try:
                read_manifest(path.parent)
                unnoticed += 1
            except CheckpointError as error:
                unnoticed += path.name not in str(error)
            file.seek(place)
            file.write(bytes([byte]))
    return unnoticed


@each("name", FILES)
@pytest.mark.long
def test_a_flipped_byte_is_refused_by_the_name_of_its_file(
    finished: Finished, tmp_path: Path, one_thread: None, name: str
) -> None:
    """Every byte of a small file, 500 of a larger one."""
    copied = copy_of(finished, tmp_path)
    path = copied / "checkpoint-4" / name
    size, chance = path.stat().st_size, random.Random(name)
    places = range(size) if size <= 1500 else sorted(chance.sample(range(size), 500))
    assert flipped(path, ((place, chance.randrange(1, 256)) for place in places)) == 0
    read_manifest(path.parent)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused_by_the_name_of_its_file(copied: Path, name: str) -> None:
    path = copied / "checkpoint-4" / name
    flips = ((place, 1 << bit) for place in range(path.stat().st_size) for bit in range(8))
    assert flipped(path, flips) == 0


@each("name", FILES)
def test_a_file_of_any_other_length_is_refused_by_its_name(
    finished: Finished, tmp_path: Path, one_thread: None, name: str
) -> None:
    copied = copy_of(finished, tmp_path)
    path = copied / "checkpoint-4" / name
    whole = path.read_bytes()
    for size in sorted({0, 1, 7, 8, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:size])
        assert name in refusal(path.parent)
    for more in (b"\n", b"\0", b" " * 4096, whole):
        path.write_bytes(whole + more)
        assert name in refusal(path.parent)


@each("name", FILES)
def test_a_file_that_is_gone_is_named(finished: Finished, tmp_path: Path, one_thread: None, name: str) -> None:
    copied = copy_of(finished, tmp_path)
    (copied / "checkpoint-4" / name).unlink()
    assert name in refusal(copied / "checkpoint-4")


def exchanged(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_two_files_that_changed_places_are_refused_by_name(copied: Path) -> None:
    folder = copied / "checkpoint-4"
    for number, one in enumerate(FILES):
        for other in FILES[number + 1 :]:
            exchanged(folder / one, folder / other)
            said = refusal(folder)
            assert one in said or other in said
            exchanged(folder / one, folder / other)
    read_manifest(folder)


@pytest.mark.parametrize("name", [*WHAT_TRAINING_MAKES, MANIFEST])
def test_a_file_of_another_checkpoint_is_refused_by_name(copied: Path, name: str) -> None:
    exchanged(copied / "checkpoint-2" / name, copied / "checkpoint-4" / name)
    for folder in (copied / "checkpoint-2", copied / "checkpoint-4"):
        said = refusal(folder)
        # A manifest of another checkpoint is whole: what differs from it is one of the files that it lists.
        assert any(each in said for each in (WHAT_TRAINING_MAKES if name == MANIFEST else (name,)))


def test_two_checkpoints_that_changed_names_are_both_passed_over(copied: Path) -> None:
    (copied / "checkpoint-2").rename(copied / "aside")
    (copied / "checkpoint-4").rename(copied / "checkpoint-2")
    (copied / "aside").rename(copied / "checkpoint-4")
    folder, passed_over = newest_valid(copied)
    assert folder.name == "checkpoint-0"
    assert [line.partition(":")[0] for line in passed_over] == [
        "checkpoint-4 is passed over",
        "checkpoint-2 is passed over",
    ]


def test_an_added_file_and_an_added_folder_are_named(copied: Path) -> None:
    (copied / "checkpoint-4" / "adapter.bin").write_bytes(b"")
    assert "adapter.bin is not in the manifest" in refusal(copied / "checkpoint-4")
    (copied / "checkpoint-2" / "nested").mkdir()
    assert "nested is not in the manifest" in refusal(copied / "checkpoint-2")


# What is done about it.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 4]) + path.read_bytes()[-8:])


def gone(path: Path) -> None:
    path.unlink()


def swapped(path: Path) -> None:
    exchanged(path, path.with_name(partner(path.name)))


def partner(name: str) -> str:
    return "config.json" if name != "config.json" else "tokenizer.json"


@each("name", FILES)
@each("damage", [flip, cut, gone, swapped])
def test_a_checkpoint_that_was_named_is_refused_by_every_verb(
    finished: Finished,
    tmp_path: Path,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    name: str,
) -> None:
    copied = copy_of(finished, tmp_path)
    folder = copied / "checkpoint-4"
    damage(folder / name)
    names = {name, partner(name)} if damage is swapped else {name}
    with pytest.raises(CheckpointError) as caught:
        BaseLanguageModel.from_pretrained(folder)
    assert any(each in str(caught.value) for each in names)
    for arguments in (["evaluate", folder, "--corpus", __file__], ["generate", folder], ["verify", copied]):
        assert main([str(argument) for argument in arguments]) == 6
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {folder}")
        assert any(each in line for each in names)


@each("damage", [flip, cut, gone, swapped])
@each("name", ["model.safetensors", "trainer_state.json", MANIFEST])
@pytest.mark.long
def test_resuming_falls_back_to_the_newest_whole_checkpoint(
    finished: Finished,
    tmp_path: Path,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    name: str,
) -> None:
    copied = copy_of(finished, tmp_path)
    config, whole = finished
    damage(copied / "checkpoint-4" / name)
    settings = config.resolved()
    settings["training"]["output_dir"] = str(copied)
    assert run(load_config(settings), resume=True, quiet=True).step == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint-4 is passed over: {copied}/checkpoint-4")
    for made in WHAT_TRAINING_MAKES:
        assert (copied / "checkpoint-4" / made).read_bytes() == (whole / "checkpoint-4" / made).read_bytes()


def test_without_a_whole_checkpoint_each_problem_is_printed(
    finished: Finished, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, damage in ((0, cut), (2, flip), (4, gone)):
        damage(copied / f"checkpoint-{step}" / "model.safetensors")
    settings: dict[str, Any] = finished[0].resolved()
    settings["training"]["output_dir"] = str(copied)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    for arguments in (["train", tmp_path / "x.yaml", "--resume"], ["evaluate", copied]):
        assert main([str(argument) for argument in arguments]) == 6
        (line,) = capsys.readouterr().err.splitlines()
        for step in (0, 2, 4):
            assert f"checkpoint-{step} is passed over: {copied}/checkpoint-{step}/model.safetensors" in line
