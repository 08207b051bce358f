"""Saving beside the training loop, and endings that lose nothing: no memory left, numbers that are not finite."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from foundry_core import BaseLanguageModel, ModelConfig, create_model, hookimpl, load_config, register_architecture, run
from foundry_core.checkpoints.checkpoint import TensorBuffers, checkpoint_tensors, checkpoints, optimizer_file
from foundry_core.data.preparation import experiment_corpora, experiment_rows, experiment_tokenizer, experiment_tokens
from foundry_core.devices import is_out_of_memory
from foundry_core.errors import TrainingError
from foundry_core.registry.hooks import hook_manager
from foundry_core.run_folder import WEIGHTS
from foundry_core.storage import files as storage
from foundry_core.storage.files import Disk, StorageError
from foundry_core.training.notifier import Notifier
from foundry_core.training.optimizers import build_optimizer
from foundry_core.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def disk():
    """Puts another disk below `storage` until the test ends."""
    before = storage.disk

    def put(other):
        storage.disk = other
        return other

    yield put
    storage.disk = before


def trainer_of(config, *, background, observers=()):
    corpora = experiment_corpora(config)
    tokenizer = experiment_tokenizer(config, corpora.train)
    data = experiment_rows(config, tokenizer, experiment_tokens(config, tokenizer, corpora))
    notifier = Notifier(hook_manager(list(observers)))
    return Trainer(config, create_model(config, tokenizer), tokenizer, data, notifier, background=background)


def weights(config, step):
    return load((Path(config.training.output_dir) / f"checkpoint-{step}" / "model.safetensors").read_bytes())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("architecture", "keep_optimizer", "optimizer"),
    [("lstm", "newest", "adamw"), ("gpt2", "all", "adamw"), ("lstm", "newest", "asgd")],
)
def test_saving_in_the_background_gives_the_same_checkpoints(
    experiment, tmp_path, architecture, keep_optimizer, optimizer
):
    results = []
    for background in (False, True):
        settings = {"train_steps": 6, "checkpoints": {"every_steps": 1, "keep": 3, "keep_optimizer": keep_optimizer}}
        settings["optimizer"] = optimizer
        config = experiment(architecture, tmp_path / str(background), training=settings)
        trainer_of(config, background=background).train()
        folders = checkpoints(config.training.output_dir)
        assert [folder.name for folder in folders] == [f"checkpoint-{step}" for step in (0, 4, 5, 6)]
        states = [folder.name for folder in sorted(tmp_path.glob(f"{background}/run/optimizer-*"))]
        assert states == (["optimizer-5", "optimizer-6"] if keep_optimizer == "newest" else [])
        files = [folder / name for folder in folders for name in ("model.safetensors", "trainer_state.json")]
        files += [path for folder in folders if (path := optimizer_file(folder)).exists()]
        results.append([path.read_bytes() for path in files])
    assert results[0] == results[1]


def test_training_on_does_not_change_what_is_being_saved(experiment, tmp_path, disk):
    moved_on = threading.Event()

    class SlowDisk(Disk):
        def create(self, path):
            if ".checkpoint-0" in str(path):
                assert moved_on.wait(60)
            return super().create(path)

    class Steps:
        saved_after = None

        @hookimpl
        def foundry_step_ended(self, report):
            if report.step == 3:
                moved_on.set()

        @hookimpl
        def foundry_checkpoint_saved(self, step, folder):
            self.saved_after = self.saved_after or (step, moved_on.is_set())

    config = experiment("lstm", tmp_path, training={"train_steps": 4}, logging={"log_every_steps": 1})
    steps = Steps()
    trainer = trainer_of(config, background=True, observers=[steps])
    untrained = {
        name: tensor.clone() for name, tensor in checkpoint_tensors(trainer.model, trainer.optimizer)[WEIGHTS].items()
    }
    disk(SlowDisk())
    trainer.train()
    assert steps.saved_after == (0, True)
    assert same(weights(config, 0), untrained)
    assert not same(weights(config, 4), untrained)


def test_an_error_in_the_background_ends_the_run_with_its_line(experiment, tmp_path, disk):
    class FullDisk(Disk):
        def write(self, file, data):
            if ".checkpoint-2" in str(file.name):
                raise OSError(28, "No space left on device")
            super().write(file, data)

    config = experiment("lstm", tmp_path, training={"train_steps": 6, "checkpoints": {"every_steps": 2}})
    disk(FullDisk())
    with pytest.raises(StorageError, match=r"checkpoint-2.* \([\d,]+ bytes\): No space left on device"):
        trainer_of(config, background=True).train()
    assert [folder.name for folder in checkpoints(config.training.output_dir)] == ["checkpoint-0"]


def test_buffers_are_used_again(experiment, tmp_path):
    config = experiment("lstm", tmp_path)
    model = create_model(config)
    tensors = checkpoint_tensors(model, build_optimizer(model, config.training))
    buffers = TensorBuffers()
    first, second = buffers.copy(tensors), buffers.copy(tensors)
    for name, tensor in tensors[WEIGHTS].items():
        assert first[WEIGHTS][name].data_ptr() == second[WEIGHTS][name].data_ptr() != tensor.data_ptr()
        assert torch.equal(second[WEIGHTS][name], tensor)


class Bigram(BaseLanguageModel):
    """Each token from the one before. `trouble` is called in each forward pass."""

    trouble = staticmethod(lambda model: None)

    def __init__(self, config, context):
        super().__init__(config, context)
        self.table = nn.Embedding(context.vocab_size, context.vocab_size)

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        Bigram.trouble(self)
        return self.lm_output(self.table(input_ids), lambda x: x, labels, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self):
        return self.table

    def resize_token_embeddings(self, new_num_tokens):
        raise NotImplementedError


@pytest.fixture
def trouble():
    """`trouble(step, what)`: something happens in the forward pass of a step of `bigram-in-trouble`, once."""
    register_architecture("bigram-in-trouble", config=ModelConfig)(Bigram)

    def plan(step, what):
        passes = 0

        def happen(model):
            nonlocal passes
            passes += 1
            if passes == step:
                what(model)

        Bigram.trouble = staticmethod(happen)

    yield plan
    Bigram.trouble = staticmethod(lambda model: None)


def raising(error):
    def act(model):
        raise error

    return act


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_without_memory_nothing_is_lost_and_a_remedy_is_named(experiment, tmp_path, trouble, error):
    settings = {"train_steps": 6, "checkpoints": {"every_steps": 2}}
    config = experiment("bigram-in-trouble", tmp_path / "short", training=settings, data={"batch_size": 6})
    trouble(4, raising(error))
    with pytest.raises(TrainingError) as caught:
        run(config, quiet=True)
    assert str(caught.value) == (
        "out of memory in step 4, nothing is lost: a batch of 3 is expected to fit, go on with --resume "
        "data.batch_size=3 training.gradient_accumulation_steps=2 "
        "--allow data.batch_size --allow training.gradient_accumulation_steps"
    )
    # What the line says, done: the same rows in the same steps, so the same model but for rounding.
    content = config.resolved()
    content["data"]["batch_size"], content["training"]["gradient_accumulation_steps"] = 3, 2
    allowed = ["data.batch_size", "training.gradient_accumulation_steps"]
    ended = run(load_config(content), resume=True, allowed_changes=allowed, quiet=True)
    whole = experiment("bigram-in-trouble", tmp_path / "whole", training=settings, data={"batch_size": 6})
    assert ended.ledger == run(whole, quiet=True).ledger
    for name, tensor in weights(whole, 6).items():
        torch.testing.assert_close(weights(config, 6)[name], tensor, rtol=1e-5, atol=1e-6)


def test_what_the_allocator_really_says_is_known(experiment, tmp_path, trouble):
    config = experiment("bigram-in-trouble", tmp_path)
    trouble(2, lambda model: torch.empty(1 << 55, dtype=torch.uint8))
    with pytest.raises(
        TrainingError, match="out of memory in step 2, nothing is lost: a batch of 2 is expected to fit"
    ):
        run(config, quiet=True)


def test_without_memory_for_an_evaluation_the_line_is_the_same(experiment, corpus, tmp_path, trouble):
    data, settings = {"test_corpus": str(corpus.test), "batch_size": 1}, {"evaluate_every_steps": 2}
    config = experiment("bigram-in-trouble", tmp_path, training=settings, data=data)
    trouble(3, raising(MemoryError()))
    says = "out of memory in the evaluation after step 2, nothing is lost: give a smaller data.max_sequence_length"
    with pytest.raises(TrainingError, match=says):
        run(config, quiet=True)


def test_other_errors_of_a_model_are_not_called_missing_memory(experiment, tmp_path, trouble):
    config = experiment("bigram-in-trouble", tmp_path)
    trouble(2, raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(config, quiet=True)
    assert not is_out_of_memory(RuntimeError("device-side assert triggered"))


def test_the_first_number_that_is_not_finite_is_located(experiment, tmp_path, trouble):
    settings = {"train_steps": 6, "checkpoints": {"every_steps": 1}}
    config = experiment("bigram-in-trouble", tmp_path, training=settings, logging={"log_every_steps": 1})

    def poison(model):
        with torch.no_grad():
            model.table.weight[:, 0] = float("nan")

    trouble(3, poison)
    with pytest.raises(TrainingError, match=r"before the update of step 3: loss nan, .*table\.weight; samples 8 to 11"):
        run(config, quiet=True)
    assert [folder.name for folder in checkpoints(config.training.output_dir)][-1] == "checkpoint-2"
    assert len((Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(experiment, tmp_path, trouble, factor):
    config = experiment("bigram-in-trouble", tmp_path, training={"checkpoints": {"every_steps": 1}})
    trouble(3, lambda model: model.table.weight.register_hook(lambda gradient: gradient * factor))
    says = r"update of step 3: loss \d+\.\d+, gradient norm nan, first in the gradient of table\.weight; samples 8"
    with pytest.raises(TrainingError, match=says):
        run(config, quiet=True)
    assert [folder.name for folder in checkpoints(config.training.output_dir)][-1] == "checkpoint-2"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), None],
    ids=["on the device", "in the machine", "what the allocator says"],
)
@pytest.mark.parametrize("where", ["built", "moved"])
def test_without_memory_for_the_model_the_line_names_a_remedy(experiment, tmp_path, where, error):
    def fail():
        if error is not None:
            raise error
        torch.empty(1 << 55, dtype=torch.uint8)

    @register_architecture("large", config=ModelConfig)
    class Large(Bigram):
        def __init__(self, config, context):
            super().__init__(config, context)
            if where == "built":
                fail()

        def to(self, *arguments, **named):
            fail()

    says = (
        "^out of memory while the model is built, nothing was trained: give smaller sizes in the section model, or a "
        "smaller tokenizer.vocab_size$"
    )
    with pytest.raises(TrainingError, match=says):
        run(experiment("large", tmp_path), quiet=True)
