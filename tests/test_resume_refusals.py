"""Going on with something else than a run began with: refused, with all that differs, unless that key is allowed.

Also what a run goes on with, though not bit for bit: another number of threads, other versions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry_core import ExperimentConfig, load_config, run, train_tokenizer_from_config
from foundry_core.errors import CheckpointError, TokenizerError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.files import publish_folder
from foundry_core.storage.manifest import read_manifest, sealed
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, tokenizer_digest
from tests.each import each

TEXT = "the cat sees a dog\na dog sees the cat\n" * 40


@pytest.fixture(scope="module")
def begun(experiment: Callable[..., ExperimentConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with everything it reads and writes below one folder."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "train.txt").write_text(TEXT)
    (folder / "dev.txt").write_text("the dog sees a cat\n" * 9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = experiment(
        "lstm",
        folder,
        data={
            "training_corpus": str(folder / "train.txt"),
            "test_corpus": str(folder / "dev.txt"),
            "max_sequence_length": 8,
        },
        tokenizer={"vocab_size": 10},
        model={"rnn": {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}},
        training={"train_steps": 2},
    )
    run(config, quiet=True)
    torch.set_num_threads(threads)
    (folder / "settings.json").write_text(json.dumps(config.resolved()))
    return folder


class Begun:
    """A copy of the run at another place, so that each test may change it."""

    def __init__(self, begun: Path, folder: Path):
        self.folder = folder / "begun"
        shutil.copytree(begun, self.folder)
        self.checkpoint = self.folder / "run" / "checkpoint-2"

    def go_on(self, *overrides: str, allow: tuple[str, ...] = ()) -> int:
        """The step that it ends with; always one step longer, which is always allowed."""
        config = load_config(self.settings(), ["training.train_steps=3", *overrides])
        allowed = (*MOVED, "training.train_steps", *allow)
        return run(config, resume=True, quiet=True, allowed_changes=allowed).step

    def settings(self) -> dict[str, Any]:
        text = (self.folder / "settings.json").read_text()
        was = json.loads(text)["training"]["output_dir"].removesuffix("/run")
        settings: dict[str, Any] = json.loads(text.replace(was, str(self.folder)))
        return settings

    def publish(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """The checkpoint with another description of itself, and a manifest that fits."""
        manifest = read_manifest(self.checkpoint)
        files = {name: (self.checkpoint / name).read_bytes() for name in manifest.pop("files")}
        content = json.loads(files["config.json"])
        edit(content["foundry"])
        files["config.json"] = json.dumps(content).encode()
        shutil.rmtree(self.checkpoint)
        with publish_folder(self.checkpoint, {key: manifest[key] for key in manifest if key != "format"}) as sink:
            for name, data in files.items():
                sink.write(name, data)


MOVED = ("data.training_corpus", "data.test_corpus")
"""Lists what differs because the folder was copied."""


@pytest.fixture
def copy(begun: Path, tmp_path: Path, one_thread: None) -> Begun:
    return Begun(begun, tmp_path)


def test_the_same_goes_on(copy: Begun) -> None:
    assert copy.go_on() == 3


# name: settings, what the refusal lists, and what has to be allowed
SETTINGS: dict[str, tuple[list[str], str, tuple[str, ...]]] = {
    "learning rate": (["training.learning_rate=1e-3"], "training.learning_rate was 0.0005, is 0.001", ()),
    "batch size": (["data.batch_size=3"], "data.batch_size was 4, is 3", ()),
    "accumulation": (
        ["training.gradient_accumulation_steps=2"],
        "training.gradient_accumulation_steps was 1, is 2",
        (),
    ),
    "random seed": (["random_seed=7"], "random_seed was 42, is 7", ()),
    "seed of a stream": (["seeds.data_order=7"], "seeds.data_order was None, is 7", ()),
    "optimizer": (["training.optimizer=sgd"], "training.optimizer was 'adamw', is 'sgd'", ()),
    "weight decay": (["training.weight_decay=0.5"], "training.weight_decay was 0.01, is 0.5", ()),
    "clipping": (["training.max_grad_norm=null"], "training.max_grad_norm was 1.0, is None", ()),
    "schedule": (["training.lr_scheduler=cosine"], "training.lr_scheduler was 'linear', is 'cosine'", ()),
    "warm-up": (["training.warmup_steps=1"], "training.warmup_steps was None, is 1", ()),
    "budget of another kind": (
        ["training.train_steps=null", "training.epochs=0.2"],
        "training.epochs was None, is 0.2",
        ("training.epochs",),
    ),
    "length of a row": (["data.max_sequence_length=7"], "data.max_sequence_length was 8, is 7", ()),
    "tokens of a row": (["data.tokens_per_row=5"], "data.tokens_per_row was 6, is 5", ()),
    "dropout": (["model.rnn.dropout=0.5"], "model.rnn.dropout was 0.1, is 0.5", ()),
    "name": (["experiment_name=other"], "experiment_name was 'tiny', is 'other'", ()),
    "two at once": (
        ["training.adam_beta1=0.5", "training.adam_beta2=0.9"],
        "training.adam_beta1 was 0.9, is 0.5; training.adam_beta2 was 0.999, is 0.9",
        ("training.adam_beta1", "training.adam_beta2"),
    ),
    "precision": (["training.precision=bf16"], "training.precision was 'auto', is 'bf16'", ()),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_is_refused_unless_its_key_is_allowed(copy: Begun, name: str) -> None:
    overrides, listed, allow = SETTINGS[name]
    allow = allow or (overrides[0].partition("=")[0],)
    with pytest.raises(CheckpointError) as refused:
        copy.go_on(*overrides)
    assert (
        f"checkpoint-2 was trained with other settings: {listed}. Put them back, or allow a key by name: --allow"
        in (str(refused.value))
    )
    with pytest.raises(CheckpointError, match=r"was trained with other settings"):
        copy.go_on(*overrides, allow=("training.mlm_probability", *allow[1:]))
    assert copy.go_on(*overrides, allow=allow) >= 3


def test_a_section_may_be_allowed_as_a_whole(copy: Begun) -> None:
    assert copy.go_on("training.adam_beta1=0.5", "training.weight_decay=0.5", allow=("training",)) == 3


@pytest.mark.parametrize(
    ("overrides", "listed"),
    [
        (["model.rnn.hidden_size=5"], "model.rnn.hidden_size was 4, is 5"),
        (["model.rnn.num_layers=2"], "model.rnn.num_layers was 1, is 2"),
        (
            ["model={architecture: gru, rnn: {embedding_size: 4, hidden_size: 4, num_layers: 1}}"],
            "was 'lstm', is 'gru'",
        ),
    ],
)
def test_another_model_is_refused_even_when_it_is_allowed(copy: Begun, overrides: list[str], listed: str) -> None:
    with pytest.raises(CheckpointError, match="was trained with other settings") as refused:
        copy.go_on(*overrides)
    assert listed in str(refused.value)
    with pytest.raises(CheckpointError, match=r"model\.safetensors(: | lacks )"):
        copy.go_on(*overrides, allow=("model", "plugin"))


# What a run reads, under the same settings.


def other_text(copy: Begun) -> None:
    (copy.folder / "train.txt").write_text(TEXT.replace("sees", "hears"))


def other_test_text(copy: Begun) -> None:
    (copy.folder / "dev.txt").write_text("a dog\n")


def other_unit(copy: Begun) -> None:
    (copy.folder / "train.txt").write_text(TEXT.replace("\n", "\n\n"))
    shutil.rmtree(copy.folder / "run" / "tokenizer")


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (other_text, "the training corpus changed since"),
        (other_test_text, "the test corpus changed since"),
        (other_unit, "the training corpus changed since"),
    ],
)
def test_other_data_are_refused_by_name_unless_allowed(
    copy: Begun, change: Callable[[Begun], None], listed: str
) -> None:
    change(copy)
    with pytest.raises(CheckpointError, match=f"checkpoint-2 was trained with other settings: data: {listed}"):
        copy.go_on()
    before = tokenizer_digest(load_tokenizer(copy.checkpoint))
    assert copy.go_on(allow=("data",)) == 3
    assert tokenizer_digest(load_tokenizer(copy.checkpoint.with_name("checkpoint-3"))) == before


def test_a_kept_tokenizer_of_another_text_is_mentioned(copy: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    other_text(copy)
    assert copy.go_on(allow=("data",)) == 3
    assert "run/tokenizer was trained on another corpus than this one, and is kept" in capsys.readouterr().err


def trained_again(copy: Begun) -> list[str]:
    other_text(copy)
    config = load_config(copy.settings())
    with pytest.raises(TokenizerError, match=r"training_corpus changed.*--force"):
        train_tokenizer_from_config(config)
    train_tokenizer_from_config(config, force=True)
    return []


def removed(copy: Begun) -> list[str]:
    other_text(copy)
    shutil.rmtree(copy.folder / "run" / "tokenizer")
    return []


def of_another_size(copy: Begun) -> list[str]:
    return ["tokenizer.vocab_size=8", f"tokenizer.output_dir={copy.folder / 'another'}"]


def with_other_special_tokens(copy: Begun) -> list[str]:
    return ["tokenizer.special_tokens.pad_token=<p>", f"tokenizer.output_dir={copy.folder / 'another'}"]


@each("change", [trained_again, removed, of_another_size, with_other_special_tokens])
def test_another_tokenizer_is_refused_whatever_is_allowed(begun: Path, change: Any, tmp_path: Path) -> None:
    copy = Begun(begun, tmp_path)
    overrides = change(copy)
    with pytest.raises(
        CheckpointError, match="its tokenizer is another one.*or begin a new run in another training.ou"
    ):
        copy.go_on(*overrides, allow=("data", "tokenizer", "plugin", "training", "model"))


def test_a_tokenizer_is_neither_replaced_nor_changed_under_a_run(copy: Begun) -> None:
    with pytest.raises(TokenizerError, match=r"other inputs .vocab_size was 10, is 11.*begin a new run in another tr"):
        copy.go_on("tokenizer.vocab_size=11")
    path = copy.folder / "run" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(TokenizerError, match="was changed after it was trained"):
        copy.go_on()


@pytest.mark.parametrize(
    ("plugin", "listed"),
    [
        ({"distribution": "foundry-rnn", "version": "0.0.9"}, "plugin was foundry-rnn 0.0.9, is foundry-rnn "),
        ({"distribution": "foundry-lstm", "version": "0.1.0"}, "plugin was foundry-lstm 0.1.0, is foundry-rnn "),
        (None, "plugin was no installed package, is foundry-rnn "),
    ],
)
def test_another_plugin_is_refused_by_version_unless_allowed(
    copy: Begun, plugin: dict[str, str] | None, listed: str
) -> None:
    copy.publish(lambda description: description.update(plugin=plugin))
    with pytest.raises(CheckpointError, match=f"was trained with other settings: {listed}"):
        copy.go_on()
    assert copy.go_on(allow=("plugin",)) == 3


def test_a_budget_that_is_spent_already_is_refused(copy: Begun) -> None:
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2 lies beyond the end of this run: 2 steps and 8 rows of 1 "
    ):
        copy.go_on("training.train_steps=1")


# What goes on, and says that it is not the same.


def test_another_number_of_threads_goes_on_with_a_warning(copy: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    assert copy.go_on() == 3
    says = "warning: the run continues, but not bit for bit as it would have: threads was 1, is 2\n"
    assert capsys.readouterr().err == says


def test_the_same_environment_goes_on_without_one(copy: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy.go_on() == 3
    assert capsys.readouterr().err == ""


def test_other_versions_go_on_with_a_warning_that_names_each(copy: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(copy.checkpoint)
    manifest["environment"] |= {"torch": "2.0.0", "device": "cuda"}
    (copy.checkpoint / MANIFEST).write_bytes(sealed(manifest))
    assert copy.go_on() == 3
    says = f"not bit for bit as it would have: torch was 2.0.0, is {torch.__version__}; device was cuda, is cpu\n"
    assert capsys.readouterr().err.endswith(says)
