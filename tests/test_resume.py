"""Going on with a run: which checkpoint, what must be equal, what is tidied up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from foundry_core import create_model, hookimpl, run
from foundry_core.checkpoints.checkpoint import checkpoints, load_checkpoint, optimizer_file
from foundry_core.checkpoints.state import TrainState
from foundry_core.errors import CheckpointError, StoppedError, UsageError
from foundry_core.models.building import rebuild
from foundry_core.models.folder import load_model
from foundry_core.run_folder import CONFIG, LOCK, MANIFEST, TOKENIZER, TOKENIZER_MODEL
from foundry_core.storage import files as storage
from foundry_core.storage.files import Disk
from foundry_core.storage.manifest import read_manifest
from foundry_core.systems import STOP_SIGNALS
from foundry_core.tokenization.tokenizer_folder import load_tokenizer
from foundry_core.training.optimizers import build_optimizer
from foundry_core.training.signals import StopRequest
from tests.each import each
from tests.interruption import die, killed


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def folder_of(config, step):
    return Path(config.training.output_dir) / f"checkpoint-{step}"


def loaded(config, step, fresh):
    folder = folder_of(config, step)
    model = create_model(config, load_tokenizer(folder))
    return load_checkpoint(folder, model, build_optimizer(model, config.training), config=config, fresh=fresh)


def test_another_test_corpus_is_other_data(experiment, corpus, tmp_path):
    dev = tmp_path / "dev.txt"
    dev.write_text(corpus.test.read_text())
    config = experiment("lstm", tmp_path, data={"test_corpus": str(dev)}, training={"train_steps": 2})
    run(config, quiet=True)
    dev.write_text("the man is old .\n")
    with pytest.raises(CheckpointError, match="data: the test corpus changed since"):
        run(config, resume=True, quiet=True)
    assert run(config, resume=True, quiet=True, allowed_changes=["data"]).step == 2


def test_a_run_does_not_go_on_in_another_precision(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    state = run(config, quiet=True)
    assert state.precision == "fp32"
    assert loaded(config, 2, TrainState(data=state.data, precision="fp32")).step == 2
    with pytest.raises(CheckpointError, match="training.precision was fp32, is bf16"):
        loaded(config, 2, TrainState(data=state.data, precision="bf16"))


def test_a_key_to_allow_must_exist(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    with pytest.raises(UsageError, match=r"--allow training.learning_rat: .* Did you mean 'training.learning_rate'"):
        run(config, resume=True, quiet=True, allowed_changes=["training.learning_rat"])


@pytest.mark.long
def test_auto_begins_where_no_checkpoint_is_and_then_goes_on(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 4, "checkpoints": {"every_steps": 2}})
    output = Path(config.training.output_dir)

    class Die:
        @hookimpl
        def foundry_run_started(self, run):
            die()

    killed(partial(run, config, resume="auto", extra_observers=[Die()], quiet=True))
    assert (output / CONFIG).exists()
    assert (output / TOKENIZER / TOKENIZER_MODEL).exists()
    assert checkpoints(output) == []
    assert run(config, resume="auto", quiet=True).step == 4
    saved = [(folder_of(config, step) / MANIFEST).stat().st_ino for step in (2, 4)]
    assert run(config, resume="auto", quiet=True).step == 4
    assert [(folder_of(config, step) / MANIFEST).stat().st_ino for step in (2, 4)] == saved
    shutil.rmtree(folder_of(config, 4))
    assert run(config, resume="auto", quiet=True).step == 4
    assert (folder_of(config, 2) / MANIFEST).stat().st_ino == saved[0]


def test_auto_trains_over_no_damaged_checkpoint(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    for step in (0, 2):
        (folder_of(config, step) / "model.safetensors").write_bytes(b"half")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files if path.name != LOCK]
    with pytest.raises(
        CheckpointError, match=r"(?s)nothing to resume in .*checkpoint-2 is passed over.*checkpoint-0 is"
    ):
        run(config, resume="auto", quiet=True)
    assert [path.read_bytes() for path in files if path.name != LOCK] == before


@pytest.mark.long
def test_an_ephemeral_checkpoint_is_removed_after_a_newer_one(experiment, tmp_path):
    settings = {"train_steps": 4, "checkpoints": {"ephemeral_minutes": 1e-9}}
    config = experiment("lstm", tmp_path, training=settings)

    class Die:
        @hookimpl
        def foundry_checkpoint_saved(self, step, folder):
            if step == 2:
                die()

    killed(partial(run, config, extra_observers=[Die()], quiet=True))
    assert json.loads((folder_of(config, 2) / MANIFEST).read_bytes())["ephemeral"] is True
    run(config, resume=True, quiet=True)
    assert [path.name for path in checkpoints(config.training.output_dir)] == ["checkpoint-0", "checkpoint-4"]


def test_what_a_killed_process_left_half_written_is_removed(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    output = Path(config.training.output_dir)
    token = "foundry-0123456789abcdef"
    for name in (f".checkpoint-2.{token}.tmp", f".checkpoint-1.{token}.old"):
        (output / name).mkdir()
        (output / name / "model.safetensors").write_bytes(b"half")
    (output / f".metrics.jsonl.{token}.tmp").write_text("half")
    run(config, resume=True, quiet=True)
    assert not [path.name for path in output.iterdir() if path.name.endswith((".tmp", ".old"))]


def test_going_on_from_step_0_leaves_its_checkpoint_as_it_is(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    run(config, quiet=True)
    before = (folder_of(config, 0) / MANIFEST).stat().st_ino
    (folder_of(config, 2) / MANIFEST).unlink()
    assert run(config, resume=True, quiet=True).step == 2
    assert (folder_of(config, 0) / MANIFEST).stat().st_ino == before


def test_a_file_added_to_a_checkpoint_makes_it_another(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    run(config, quiet=True)
    folder = folder_of(config, 1)
    (folder / ".DS_Store").write_bytes(b"")
    read_manifest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not in the manifest"):
        read_manifest(folder)


def test_sizes_and_ids_that_no_tokenizer_gives_are_refused(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    run(config, quiet=True)
    description = json.loads((folder_of(config, 1) / "config.json").read_bytes())["foundry"]
    for context, says in (
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"eos_token_id": 10**9}, "eos_token_id 1000000000"),
        ({"pad_token_id": True}, "pad_token_id True"),
        ({"colour": 3}, "colour"),
    ):
        with pytest.raises(CheckpointError, match=says):
            rebuild({**description, "context": description["context"] | context})


def test_without_its_architecture_a_checkpoint_names_the_package(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 1})
    run(config, quiet=True)
    path = folder_of(config, 1) / "config.json"
    content = json.loads(path.read_bytes())
    content["foundry"]["experiment"]["model"]["architecture"] = "zebra"
    content["foundry"]["plugin"] = {"distribution": "foundry-zebra", "version": "2.0"}
    path.write_text(json.dumps(content))
    for name in (MANIFEST, "trainer_state.json"):
        (folder_of(config, 1) / name).unlink()
    line = r"made with foundry-zebra 2\.0\. .*Unknown architecture: 'zebra'.* pip install foundry-zebra==2\.0\Z"
    with pytest.raises(CheckpointError, match=line):
        load_model(folder_of(config, 1))


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers of a process")
def test_a_killed_data_worker_ends_a_run_that_resumes_exactly(experiment, tmp_path):
    """So many batches that the workers cannot have sent all of them ahead; those that were sent hide nothing."""
    settings = {"train_steps": 60, "num_workers": 2, "checkpoints": {"steps": [2]}}
    data, logging = {"batch_size": 128}, {"log_every_steps": 1}
    config = experiment("lstm", tmp_path / "broken", training=settings, data=data, logging=logging)
    whole = experiment("lstm", tmp_path / "whole", training=settings | {"num_workers": 0}, data=data, logging=logging)
    run(whole, quiet=True)
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config.resolved()))
    command = [sys.executable, "-m", "foundry_core.cli", "train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            workers = children(process.pid)
            os.kill(workers[0], signal.SIGKILL)
            break
    started = time.monotonic()
    *_, last = process.stderr.read().splitlines()
    assert time.monotonic() - started < 5
    assert process.wait() == 4
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert last.startswith(f"error: data worker {workers[0]} was killed by SIGKILL; start again")
    assert [folder.name for folder in checkpoints(config.training.output_dir)] == ["checkpoint-0", "checkpoint-2"]
    assert run(config, resume=True, quiet=True).step == 60
    ends = [folder_of(each, 60) for each in (config, whole)]
    for name in ("model.safetensors", "trainer_state.json"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    assert optimizer_file(ends[0]).read_bytes() == optimizer_file(ends[1]).read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("heard")
def test_ctrl_c_says_how_to_go_on_and_a_later_run_does(experiment, tmp_path):
    config = experiment("lstm", tmp_path, training={"train_steps": 100_000, "checkpoints": {"steps": [2]}})
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config.resolved()))
    command = [sys.executable, "-m", "foundry_core.cli", "train", str(path), "logging.log_every_steps=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGINT)
            break
    *_, last = process.stderr.read().splitlines()
    assert process.wait() == 75
    assert last.startswith("stopped by SIGINT after step ")
    shorter = experiment("lstm", tmp_path, training={"train_steps": 4, "checkpoints": {"steps": [2]}})
    assert run(shorter, resume=True, quiet=True, allowed_changes=["training.train_steps"]).step == 4
    assert torch.isfinite(next(load_model(folder_of(shorter, 4)).parameters())).all()


@pytest.fixture
def heard():
    """The signals that reach the handlers from before a run; some are ignored where the tests run in the background."""
    numbers = []
    before = {kind: signal.signal(kind, lambda number, frame: numbers.append(number)) for kind in STOP_SIGNALS}
    yield numbers
    for kind, handler in before.items():
        signal.signal(kind, handler)


@each("number", STOP_SIGNALS)
def test_a_signal_before_training_ends_the_run_at_once(experiment, tmp_path, heard, number):
    """It comes while the corpus is being encoded."""

    class Signalling(Disk):
        def create(self, path):
            if ".tokens." in path.name:
                os.kill(os.getpid(), number)
            return super().create(path)

    config = experiment("lstm", tmp_path, training={"train_steps": 2})
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    before, storage.disk = storage.disk, Signalling()
    try:
        with pytest.raises(StoppedError) as caught:
            run(config, quiet=True)
    finally:
        storage.disk = before
    assert str(caught.value) == (
        f"stopped by {number.name} before training began, nothing is lost: start it again as it was started"
    )
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers
    assert checkpoints(config.training.output_dir) == []
    assert run(config, quiet=True).step == 2


def test_a_signal_before_anything_can_be_interrupted_is_kept():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match="stopped by SIGTERM before training began"), stop.at_once():
            pytest.fail("it went on")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU], ids=lambda number: number.name)
def test_signals_that_repeat_themselves_end_nothing_at_once(heard, first):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest() as stop:
        for number in (first, signal.SIGHUP, signal.SIGXCPU):
            os.kill(os.getpid(), number)
        assert stop.requested == first.name
    assert heard == []
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_before_training_keeps_its_old_meaning(heard):
    def tidied_slowly():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)

    with StopRequest() as stop, pytest.raises(StoppedError), stop.at_once():
        tidied_slowly()
    assert stop.requested == "SIGUSR1"
    assert heard == [signal.SIGUSR1]
