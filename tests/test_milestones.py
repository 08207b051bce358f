"""Milestones: where they are, what they are called, and that they stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core import ExperimentConfig, load_config
from foundry_core.checkpoints.checkpoint import checkpoint_step, checkpoints
from foundry_core.checkpoints.verification import verify_run
from foundry_core.cli import main
from foundry_core.data.order import StreamSizes
from foundry_core.run_folder import milestone_name, milestone_words
from foundry_core.storage import files as storage
from foundry_core.storage.files import Disk
from foundry_core.training.run import run
from tests.interruption import die, killed

WORDS = [100, 200, 400]


@pytest.fixture
def named(experiment: Callable[..., ExperimentConfig], tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """A run of 12 steps with three named milestones."""

    def make(name: str = "named", **checkpoints: Any) -> ExperimentConfig:
        schedule = {"milestones": {"words": WORDS}, "names": "babylm", **checkpoints}
        return experiment("lstm", tmp_path / name, training={"train_steps": 12, "checkpoints": schedule})

    return make


def links(folder: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in sorted(folder.glob("chck_*")) if path.is_symlink()}


def test_a_name_is_what_babylm_writes_and_reads_back() -> None:
    names = {10**6: "chck_1M", 10**8: "chck_100M", 2 * 10**9: "chck_2000M", 1_500_000: "chck_1500K", 300: "chck_300"}
    assert {words: milestone_name(words) for words in names} == names
    assert {milestone_words(name): name for name in names.values()} == names
    assert [milestone_words(name) for name in ("chck_", "chck_1G", "chck_1M.old", "checkpoint-1")] == [None] * 4


def test_each_name_leads_to_the_last_step_within_its_words(named: Callable[..., ExperimentConfig]) -> None:
    config = named(every_steps=1)
    run(config, quiet=True)
    folder = Path(config.training.output_dir)
    whole, problems = verify_run(folder)
    assert problems == []
    seen = {one.folder.name: one.state.words_seen for one in whole}
    expected = {f"chck_{amount}": max(seen, key=lambda name: (seen[name] <= amount) * seen[name]) for amount in WORDS}
    assert links(folder) == expected


def test_a_name_opens_as_a_checkpoint(
    named: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = named()
    run(config, quiet=True)
    folder = Path(config.training.output_dir)
    (folder / "text.txt").write_text("the man is old .\n")
    printed = []
    for name in ("chck_200", links(folder)["chck_200"]):
        assert main(["evaluate", str(folder / name), "--corpus", str(folder / "text.txt")]) == 0
        printed.append(capsys.readouterr().out.replace(name, ""))
    assert printed[0] == printed[1]
    assert main(["verify", str(folder)]) == 0
    target = links(folder)["chck_200"]
    assert f"{target} = chck_200" in capsys.readouterr().out


@pytest.mark.long
def test_a_kill_between_save_and_name_loses_no_name(named: Callable[..., ExperimentConfig]) -> None:
    whole = named("whole")
    run(whole, quiet=True)
    expected = links(Path(whole.training.output_dir))
    assert list(expected) == ["chck_100", "chck_200", "chck_400"]
    for killed_at in range(1, 7):  # each of the three links is made and then renamed
        config = named(f"killed at {killed_at}")

        class Dying(Disk):
            left = killed_at

            def _count(self) -> None:
                self.left -= 1
                if not self.left:
                    die()

            def link(self, path: Path, target: str) -> None:
                self._count()
                super().link(path, target)

            def rename(self, old: Path, new: Path) -> None:
                if old.is_symlink():
                    self._count()
                super().rename(old, new)

        def training(config: ExperimentConfig = config, disk: type[Disk] = Dying) -> None:
            storage.disk = disk()
            run(config, quiet=True)

        killed(training)
        folder = Path(config.training.output_dir)
        assert verify_run(folder)[1] == []
        assert len(links(folder)) < 3
        run(config, resume=True, quiet=True)
        assert links(folder) == expected
        assert verify_run(folder)[1] == []
        assert not list(folder.glob(".*.tmp"))


def test_names_that_are_asked_for_later_are_made_on_resuming(named: Callable[..., ExperimentConfig]) -> None:
    config = named()
    without = load_config(config.resolved(), ["training.checkpoints.names=null"])
    run(without, quiet=True)
    folder = Path(config.training.output_dir)
    assert links(folder) == {}
    run(config, resume=True, quiet=True)
    assert list(links(folder)) == ["chck_100", "chck_200", "chck_400"]


def test_what_has_the_name_of_a_milestone_stays(
    named: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of the user's own is not replaced, and ends nothing; a link that leads elsewhere is led back."""
    config = named()
    folder = Path(config.training.output_dir)
    (folder / "chck_100").mkdir(parents=True)
    (folder / "chck_100" / "mine.txt").write_text("mine")
    (folder / "chck_200").symlink_to("checkpoint-0")
    run(config, quiet=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "chck_100" in line]
    assert "something that is not a link has this name; remove it; training goes on" in line
    assert (folder / "chck_100" / "mine.txt").read_text() == "mine"
    assert checkpoint_step(Path(links(folder)["chck_200"])) > 0


def test_verify_reports_a_name_that_does_not_lead_where_it_says(named: Callable[..., ExperimentConfig]) -> None:
    config = named()
    run(config, quiet=True)
    folder = Path(config.training.output_dir)
    for name, target in (("chck_100", "checkpoint-12"), ("chck_200", "checkpoint-99")):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    first, second = verify_run(folder)[1]
    assert "chck_100 leads to checkpoint-12, which has seen " in first
    assert "chck_200 leads to checkpoint-99, which is not a checkpoint of this run" in second


def test_keep_leaves_milestones_and_listed_steps(named: Callable[..., ExperimentConfig]) -> None:
    """Whatever else there is; when retention of an earlier process comes late, too."""
    config = named(every_steps=1, steps=[3], keep=2)
    run(config, quiet=True)
    folder = Path(config.training.output_dir)
    steps = {checkpoint_step(path) for path in checkpoints(folder)}
    milestones = {checkpoint_step(Path(target)) for target in links(folder).values()}
    assert len(milestones) == 3
    assert steps == {0, 3, 11, 12} | milestones
    run(config, resume=True, quiet=True)
    assert {checkpoint_step(path) for path in checkpoints(folder)} == steps
    assert len(list(folder.glob("optimizer-*"))) == 2


def test_a_milestone_within_the_first_step_is_step_0(
    named: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = named(milestones={"words": [1, 10**6], "bytes": [5]})
    run(config, quiet=True)
    lines = capsys.readouterr().err.splitlines()
    assert links(Path(config.training.output_dir)) == {"chck_1": "checkpoint-0"}
    assert "warning: no checkpoint at 1,000,000 words: the run ends at step 12" in lines
    for amount in ("1 words", "5 bytes"):
        assert f"warning: the checkpoint at {amount} is that of step 0: one step sees more" in lines


def test_bytes_are_a_share_of_the_epoch_as_words_are() -> None:
    stream = StreamSizes(10, 10, 100, 50, 425)
    assert [stream.bytes_after(tokens) for tokens in (0, 20, 100, 200)] == [0, 85, 425, 850]
    assert [stream.words_after(tokens) for tokens in (0, 20, 100, 200)] == [0, 10, 50, 100]
