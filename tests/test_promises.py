"""Each promise of RELIABILITY.md without what keeps it: a mechanism is taken out, and a test that the page names fails.

`tests/faults/test_mutants.py` does the same for the protocol of the disk, in finer steps.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from tests import mutants
from tests.mutation import Replacement, check, mutated_environment, unmutated_environment
from tests.test_reliability import PROMISES, ROOT, sections


@dataclass(frozen=True)
class Without:
    """A promise, the function that is its mechanism, what is done in its place, and a test that notices."""

    promise: str
    target: str
    replacement: Replacement
    test: str

    def __str__(self) -> str:
        return f"{self.promise} {self.target.removeprefix('foundry_core.')} {self.replacement.__name__}"


MECHANISMS = [
    Without(
        "R1",
        "foundry_core.training.trainer:Trainer._seed_dropout",
        mutants.dropout_seeded_once,
        "test_exact_resume.py::test_a_run_killed_anywhere_and_resumed_equals_one_left_alone",
    ),
    Without(
        "R1",
        "foundry_core.data.batches:Batches.__init__",
        mutants.rows_from_the_first_on,
        "test_exact_resume.py::test_a_run_killed_anywhere_and_resumed_equals_one_left_alone",
    ),
    Without(
        "R1",
        "foundry_core.checkpoints.optimizer_state:load_optimizer",
        mutants.nothing,
        "test_trainer.py::test_a_killed_and_resumed_run_equals_an_uninterrupted_one",
    ),
    Without(
        "R2",
        "foundry_core.storage.files:Disk.rename",
        mutants.folder_renamed_file_by_file,
        "faults/test_kills.py::test_a_run_killed_at_any_disk_operation_resumes_exactly",
    ),
    Without(
        "R3",
        "foundry_core.training.sinks:reports_up_to",
        mutants.any_report_is_of_an_earlier_step,
        "faults/test_kills.py::test_killed_at_any_time_a_run_goes_on_as_if_nothing_had_been",
    ),
    Without(
        "R4",
        "foundry_core.storage.files:Writer.__exit__",
        mutants.files_not_synced,
        "faults/test_power_loss.py::test_a_power_loss_loses_nothing_that_was_acknowledged",
    ),
    Without(
        "R5",
        "foundry_core.storage.files:reported",
        mutants.errors_not_translated,
        "faults/test_errors.py::test_an_error_at_any_disk_operation_loses_nothing",
    ),
    Without(
        "R6",
        "foundry_core.storage.manifest:compare_digest",
        mutants.nothing,
        "test_damaged_checkpoints.py::test_a_flipped_byte_is_refused_by_the_name_of_its_file",
    ),
    Without(
        "R6",
        "foundry_core.checkpoints.checkpoint:newest_valid",
        mutants.newest_or_none,
        "test_damaged_checkpoints.py::test_resuming_falls_back_to_the_newest_whole_checkpoint",
    ),
    Without(
        "R6",
        "foundry_core.checkpoints.checkpoint:check_resumable",
        mutants.nothing,
        "test_keep_optimizer.py::test_a_damaged_state_is_passed_over_to_the_one_before",
    ),
    Without(
        "R7",
        "foundry_core.training.trainer:Trainer._stop",
        mutants.nothing,
        "faults/test_signals.py::test_a_signal_at_any_time_saves_at_the_next_step_boundary",
    ),
    Without(
        "R8",
        "foundry_core.evaluation.corpus_loss:evaluate",
        mutants.evaluation_leaves_its_mode,
        "test_trainer.py::test_saving_and_evaluating_do_not_change_the_weights",
    ),
    Without(
        "R8",
        "foundry_core.checkpoints.checkpoint:TensorBuffers.copy",
        mutants.tensors_not_copied,
        "test_saving.py::test_training_on_does_not_change_what_is_being_saved",
    ),
    Without(
        "R9",
        "foundry_core.training.trainer:Trainer._check_numbers",
        mutants.nothing,
        "test_saving.py::test_the_first_number_that_is_not_finite_is_located",
    ),
    Without(
        "R9",
        "foundry_core.training.trainer:Trainer._check_weights",
        mutants.nothing,
        "test_trainer.py::test_weights_that_became_infinite_are_not_saved",
    ),
    Without(
        "R10",
        "foundry_core.devices:memory_watched",
        mutants.memory_not_watched,
        "test_saving.py::test_without_memory_nothing_is_lost_and_a_remedy_is_named",
    ),
    Without(
        "R11",
        "foundry_core.data.workers:_notice_death",
        mutants.nothing,
        "test_workers.py::test_batches_that_were_sent_ahead_do_not_hide_a_death",
    ),
    Without(
        "R11",
        "foundry_core.data.workers:_end_with_parent",
        mutants.nothing,
        "test_workers.py::test_workers_end_when_their_parent_does",
    ),
    Without(
        "R12",
        "foundry_core.checkpoints.compatibility:environment_changes",
        mutants.none_found,
        "test_resume_refusals.py::test_another_number_of_threads_goes_on_with_a_warning",
    ),
    Without(
        "R12",
        "foundry_core.random_streams:derive",
        mutants.streams_by_hash,
        "test_trainer.py::test_other_hash_seeds_give_the_same_run_and_tokenizer",
    ),
    Without(
        "R13",
        "foundry_core.training.trainer:Trainer._add_gradient",
        mutants.micro_batch_divided_by_its_own_count,
        "test_trainer.py::test_unequal_micro_batches_have_the_gradient_of_the_batch",
    ),
    Without(
        "R14",
        "foundry_core.config.yaml_source:duplicate_key",
        mutants.nothing,
        "test_config.py::test_each_problem_is_one_line_with_its_place_and_its_key",
    ),
    Without(
        "R15",
        "foundry_core.corpus.reader:_texts",
        mutants.byte_order_mark_not_counted,
        "test_hostile_corpora.py::test_an_odd_corpus_trains_with_every_byte_accounted_for",
    ),
    Without(
        "R15",
        "foundry_core.corpus.files:refuse_changed",
        mutants.nothing,
        "test_corpus.py::test_a_file_that_changes_while_it_is_read_is_refused",
    ),
    Without(
        "R16",
        "foundry_core.storage.lock:take_lock",
        mutants.nothing,
        "test_trainer.py::test_a_run_in_use_is_refused_until_its_process_ends",
    ),
    Without(
        "R17",
        "foundry_core.storage.manifest:refuse_outside",
        mutants.nothing,
        "test_hostile_checkpoints.py::test_a_manifest_may_list_only_the_files_of_its_folder",
    ),
    Without(
        "R17",
        "foundry_core.models.folder:_check_sizes",
        mutants.nothing,
        "test_hostile_checkpoints.py::test_what_a_checkpoint_claims_is_checked_before_it_is_used",
    ),
    Without(
        "R17",
        "foundry_core.models.folder:load_model",
        mutants.pickles_loaded_first,
        "test_hostile_checkpoints.py::test_nothing_in_a_checkpoint_is_executed",
    ),
    Without(
        "R18",
        "foundry_core.checkpoints.compatibility:refused_differences",
        mutants.none_found,
        "test_resume_refusals.py::test_another_setting_is_refused_unless_its_key_is_allowed",
    ),
    Without(
        "R18",
        "foundry_core.checkpoints.compatibility:other_tokenizer",
        mutants.none_found,
        "test_resume_refusals.py::test_another_tokenizer_is_refused_whatever_is_allowed",
    ),
    Without(
        "R18",
        "foundry_core.checkpoints.compatibility:changed_data",
        mutants.none_found,
        "test_resume_refusals.py::test_other_data_are_refused_by_name_unless_allowed",
    ),
    Without(
        "R19",
        "foundry_core.checkpoints.checkpoint:retire",
        mutants.step_0_is_like_any_other,
        "test_trainer.py::test_keep_leaves_the_newest_and_step_0",
    ),
    Without(
        "R19",
        "foundry_core.checkpoints.checkpoint:retire",
        mutants.damaged_ones_count,
        "faults/test_retention.py::test_a_damaged_checkpoint_does_not_count_as_kept",
    ),
    Without(
        "R19",
        "foundry_core.checkpoints.checkpoint:retire",
        mutants.milestones_are_like_any_other,
        "test_milestones.py::test_keep_leaves_milestones_and_listed_steps",
    ),
    Without(
        "R20",
        "foundry_core.training.gradients:added",
        mutants.added_one_after_the_other,
        "test_processes.py::test_the_sum_of_a_step_is_the_same_tree_everywhere",
    ),
    Without(
        "R20",
        "foundry_core.training.trainer:Trainer._seed_dropout",
        mutants.dropout_seeded_once,
        "test_processes.py::test_a_run_on_two_processes_has_the_bits_of_one",
    ),
    Without(
        "R20",
        "foundry_core.processes:World.ended_with",
        mutants.errors_kept_to_oneself,
        "test_processes.py::test_what_goes_wrong_in_a_process_is_one_line_and_ends_all",
    ),
    Without(
        "R20",
        "foundry_core.processes:World.any",
        mutants.each_decides_alone,
        "test_processes.py::test_a_signal_to_one_process_stops_all_at_one_step",
    ),
]


def carried_out(environment: dict[str, str], *tests: str) -> subprocess.CompletedProcess[str]:
    """Carry out tests in a process of their own, until the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"tests/{test}" for test in tests]
    own = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)


def test_each_promise_has_a_mechanism_and_a_test_on_its_page() -> None:
    assert list(dict.fromkeys(each.promise for each in MECHANISMS)) == PROMISES
    page = sections()
    unnamed = [str(each) for each in MECHANISMS if f"`tests/{each.test}`" not in page[each.promise]]
    assert unnamed == []


@pytest.mark.parametrize("without", MECHANISMS, ids=str)
def test_each_mechanism_is_a_function_that_can_be_replaced(without: Without) -> None:
    check(without.target, without.replacement)


@pytest.mark.faults
def test_the_tests_pass_when_nothing_is_taken_out() -> None:
    found = carried_out(unmutated_environment(), *dict.fromkeys(each.test for each in MECHANISMS))
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.faults
@pytest.mark.parametrize("without", MECHANISMS, ids=str)
def test_without_its_mechanism_the_test_of_a_promise_fails(without: Without, record_property: Any) -> None:
    check(without.target, without.replacement)
    found = carried_out(mutated_environment(without.target, without.replacement), without.test)
    failed = re.findall(r"^FAILED (\S+)", found.stdout, flags=re.MULTILINE)
    reason = re.search(r"^E +(.+)", found.stdout, flags=re.MULTILINE)
    record_property("figure: promises broken", 1)
    record_property("figure: promises whose test noticed", len(failed))
    record_property("noticed", f"{failed}: {reason and reason[1]}")
    assert found.returncode == 1, found.stdout[-3000:]
    assert len(failed) == 1, found.stdout[-3000:]
    raised = re.findall(r"^tests/(?:mutants|mutation)\.py:\d+: (?!in )\w+", found.stdout, flags=re.MULTILINE)
    assert raised == [], "the mutant itself has failed, and no test has noticed anything"
