"""Each promise of RELIABILITY.md without what keeps it: a copy of the sources, one mechanism taken out, and a test that
the page names has to fail there.

`tests/faults/test_mutants.py` does the same for the protocol of the disk, in finer steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.test_reliability import PROMISES, ROOT, sections

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Without:
    """A promise, the change of one module that takes its mechanism out, and a test that shows it."""

    promise: str
    module: str
    text: str
    instead: str
    test: str

    def __str__(self) -> str:
        return f"{self.promise} {self.module}: {self.text.strip()}"


MECHANISMS = [
    Without(
        "R1",
        "trainer",
        'torch.manual_seed(derive(self.config.seed("dropout"), "dropout", state.step))',
        'if not hasattr(self, "seeded"):\n            self.seeded = torch.manual_seed(0)',
        "test_exact_resume.py::test_a_run_that_dies_and_goes_on_equals_one_that_was_left_alone",
    ),
    Without(
        "R1",
        "trainer",
        "                self.state.samples,\n                self.plan.total_samples,",
        "                0,\n                self.plan.total_samples - self.state.samples,",
        "test_exact_resume.py::test_a_run_that_dies_and_goes_on_equals_one_that_was_left_alone",
    ),
    Without(
        "R1",
        "checkpoint",
        "load_optimizer(folder / _OPTIMIZER, state.optimizer, model, optimizer, begun=state.step > 0)",
        "pass",
        "test_trainer.py::test_a_run_that_was_killed_and_resumed_equals_one_that_was_not",
    ),
    Without(
        "R2",
        "storage",
        "disk.rename(hidden, target)",
        "target.mkdir()\n            for inside in sorted(hidden.iterdir()):\n"
        "                disk.rename(inside, target / inside.name)\n            disk.remove_folder(hidden)",
        "faults/test_kills.py::test_killed_at_any_operation_of_the_disk_a_run_goes_on_as_if_nothing_had_been",
    ),
    Without(
        "R3",
        "reporting",
        'json.loads(line)["step"] <= step',
        "json.loads(line)",
        "faults/test_kills.py::test_killed_at_any_time_a_run_goes_on_as_if_nothing_had_been",
    ),
    Without(
        "R4",
        "storage",
        "                if kind is None:\n                    disk.sync(self._file)",
        "                pass",
        "faults/test_power_loss.py::test_after_a_power_loss_all_that_was_acknowledged_is_there_and_the_run_goes_on",
    ),
    Without(
        "R5",
        "storage",
        'raise StorageError(f"cannot {failed} {path}{amount}: {error.strerror or error}") from error',
        "raise",
        "faults/test_errors.py::test_an_error_at_any_operation_of_the_disk_is_one_line_and_loses_nothing",
    ),
    Without(
        "R6",
        "manifest",
        "        if not same:",
        "        if False:",
        "test_damaged_checkpoints.py::test_a_flipped_byte_is_refused_by_the_name_of_its_file",
    ),
    Without(
        "R6",
        "checkpoint",
        "        except CheckpointError as error:\n            passed_over",
        "        except ZeroDivisionError as error:\n            passed_over",
        "test_damaged_checkpoints.py::"
        "test_going_on_falls_back_to_the_newest_whole_checkpoint_says_so_and_ends_the_same",
    ),
    Without(
        "R7",
        "trainer",
        "if stop.requested:",
        "if False:",
        "faults/test_signals.py::test_a_signal_at_any_time_saves_at_the_step_boundary_and_the_run_goes_on",
    ),
    Without(
        "R8",
        "evaluation",
        "        model.train(was_training)",
        "        pass",
        "test_trainer.py::test_saving_and_evaluating_often_rarely_or_never_gives_the_same_weights",
    ),
    Without(
        "R8",
        "trainer",
        "tensors, state = self.buffers.copy(tensors), deepcopy(state)",
        "pass",
        "test_saving.py::test_training_on_does_not_change_what_is_being_saved",
    ),
    Without(
        "R9",
        "trainer",
        "raise TrainingError(self._not_finite(loss, norm))",
        "pass",
        "test_saving.py::test_the_first_number_that_is_not_finite_stops_before_the_update_and_is_located",
    ),
    Without(
        "R9",
        "trainer",
        "        self.saving.finish()\n        self._check_weights()",
        "        self.saving.finish()",
        "test_trainer.py::test_weights_that_an_update_made_infinite_are_not_saved_and_the_checkpoint_before_stays",
    ),
    Without(
        "R10",
        "devices",
        "raise TrainingError(line()) from error",
        "raise",
        "test_saving.py::test_without_memory_nothing_is_lost_and_the_line_says_how_to_go_on",
    ),
    Without(
        "R11",
        "workers",
        "        if self.code:\n            raise self._lost()",
        "        pass",
        "test_workers.py::test_batches_that_were_sent_ahead_do_not_hide_a_death",
    ),
    Without(
        "R11",
        "workers",
        "pipe.close()\n        import torch",
        "pass\n        import torch",
        "test_workers.py::test_workers_end_when_their_parent_is_killed",
    ),
    Without(
        "R12",
        "trainer",
        "changes = environment_changes(folder, self.device)",
        "changes = []",
        "test_resume_refusals.py::test_another_number_of_threads_goes_on_with_a_warning",
    ),
    Without(
        "R12",
        "streams",
        "hashlib.sha256(",
        "hashlib.sha256(str(hash(str(seed))).encode() + ",
        "test_trainer.py::test_another_process_with_other_hashes_gives_the_same_run_from_the_tokenizer_on",
    ),
    Without(
        "R13",
        "trainer",
        "scaler.scale(loss_sum / count)",
        "scaler.scale(loss_sum / max(self._predictions(batch), 1) / len(micro_batches))",
        "test_trainer.py::test_the_gradient_of_micro_batches_with_unequal_counts_is_that_of_the_whole_batch",
    ),
    Without(
        "R14",
        "yaml_source",
        "            if name in mapping:",
        "            if False:",
        "test_config.py::test_each_problem_is_one_line_with_its_place_and_its_key",
    ),
    Without(
        "R15",
        "corpus",
        "            account.bytes_separators += len(_BOM)",
        "            pass",
        "test_hostile_corpora.py::test_every_byte_of_an_odd_corpus_is_accounted_for_and_it_trains",
    ),
    Without(
        "R15",
        "corpus_files",
        "            if (status.st_size, status.st_mtime_ns) != stamp:",
        "            if False:",
        "test_corpus.py::test_a_file_that_changes_while_it_is_read_is_refused",
    ),
    Without(
        "R16",
        "storage",
        "fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_trainer.py::test_a_run_in_use_is_refused_and_the_lock_dies_with_its_process",
    ),
    Without(
        "R17",
        "manifest",
        "        if Path(name).name != name or path.is_symlink():",
        "        if False:",
        "test_hostile_checkpoints.py::test_a_manifest_of_anything_but_the_folders_own_files_is_refused",
    ),
    Without(
        "R17",
        "export",
        "    _check_sizes(config, context, folder)\n",
        "",
        "test_hostile_checkpoints.py::test_what_a_checkpoint_claims_is_checked_before_it_is_believed",
    ),
    Without(
        "R17",
        "export",
        "    folder = Path(folder)\n    if os.path.lexists(folder / MANIFEST)",
        "    folder = Path(folder)\n    import torch as _t\n    for _path in sorted(folder.iterdir()):\n"
        "        try:\n            _t.load(_path, weights_only=False)\n        except Exception:\n            pass\n"
        "    if os.path.lexists(folder / MANIFEST)",
        "test_hostile_checkpoints.py::test_nothing_in_a_checkpoint_is_executed",
    ),
    Without(
        "R18",
        "checkpoint",
        "    if barred:",
        "    if False:",
        "test_resume_refusals.py::test_another_setting_is_refused_with_what_differs_unless_its_key_is_allowed",
    ),
    Without(
        "R18",
        "checkpoint",
        '    if changed and not covered("data", allowed):',
        "    if False:",
        "test_resume_refusals.py::test_other_data_are_refused_by_name_unless_allowed",
    ),
    Without(
        "R19",
        "checkpoint",
        "if path not in ephemeral and _step(path) > 0]",
        "if path not in ephemeral]",
        "test_trainer.py::test_keep_leaves_the_newest_and_step_0",
    ),
    Without(
        "R19",
        "checkpoint",
        "[path for path in permanent if path not in damaged][-keep:]",
        "permanent[-keep:]",
        "faults/test_retention.py::test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept",
    ),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources in a folder where they may be changed."""
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for part in ("foundry_core", "plugins", "tests", "configs", "benchmarks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=leave)
    for part in ("conftest.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, tmp_path / part)
    return tmp_path


def carried_out(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Tests of the sources in a folder, until the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command += [f"tests/{test}" for test in tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_each_promise_has_a_mechanism_that_is_taken_out_and_a_test_that_its_part_of_the_page_names() -> None:
    assert list(dict.fromkeys(each.promise for each in MECHANISMS)) == PROMISES
    page = sections()
    unnamed = [str(each) for each in MECHANISMS if f"`tests/{each.test}`" not in page[each.promise]]
    assert unnamed == []


def test_the_tests_pass_in_a_copy_that_nothing_was_taken_out_of(copy: Path) -> None:
    found = carried_out(copy, *dict.fromkeys(each.test for each in MECHANISMS))
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.parametrize("without", MECHANISMS, ids=str)
def test_without_its_mechanism_the_test_of_a_promise_fails(without: Without, copy: Path, record_property: Any) -> None:
    module = copy / "foundry_core" / f"{without.module}.py"
    source = module.read_text()
    assert source.count(without.text) == 1, f"this does not stand once in {module.name}: adapt the mutant"
    module.write_text(source.replace(without.text, without.instead))
    found = carried_out(copy, without.test)
    failed = re.findall(r"^FAILED (\S+)", found.stdout, flags=re.MULTILINE)
    record_property("figure: promises broken", 1)
    record_property("figure: promises whose test noticed", len(failed))
    assert found.returncode == 1, found.stdout[-3000:]
    assert len(failed) == 1, found.stdout[-3000:]
