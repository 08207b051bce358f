"""A saved model as a normal transformers folder: opened by strangers, complete, and refused when it is not whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GenerationConfig

from foundry_core import BaseLanguageModel, ExperimentConfig, create_model
from foundry_core.cli.new_plugin import plugin_files
from foundry_core.errors import CheckpointError
from tests.each import each

# name: architecture, example, objective
MODELS = {
    "gpt2": ("gpt2", "tiny", "causal_lm"),
    "bert": ("bert", "tiny", "masked_lm"),
    "lstm": ("lstm", "tiny", "causal_lm"),
    "lstm-tied": ("lstm", "tiny_tied", "causal_lm"),
    "gru-masked": ("gru", "tiny", "masked_lm"),
    "rnn-both": ("rnn", "tiny_bidirectional", "masked_lm"),
    "mamba": ("mamba", "tiny", "causal_lm"),
}
BUILT = {**MODELS, "third": ("third", "tiny", "causal_lm")}  # the last one is of a package that a test writes
CAUSAL_CLASSES = ("GPT2LMHeadModel", "FoundryLstmForCausalLM", "FoundryMambaForCausalLM")
AUTO = {"causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}
IDS = torch.randint(0, 26, (3, 10), generator=torch.Generator().manual_seed(0))
Build = Callable[..., BaseLanguageModel]

# A process that knows transformers alone: opens folders, leaves in each what it found, and saves the model again.
STRANGER = """
import json, sys
from pathlib import Path
import torch
import transformers
arguments = json.loads(sys.argv[1])
for module in arguments["modules"]:
    __import__(module)
assert arguments["modules"] or not any(name.startswith("foundry") for name in sys.modules)
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
torch.manual_seed(99)
ids = torch.tensor(arguments["ids"])
for folder, auto in arguments["folders"].items():
    folder = Path(folder)
    options = {"trust_remote_code": True} if arguments["trust"] else {}
    model = getattr(transformers, auto).from_pretrained(folder, **options)
    assert not model.training
    found = {"logits": model(ids).logits.detach()}
    if auto == "AutoModelForCausalLM":
        found["text"] = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    torch.save(found, folder / "found.pt")
    model.save_pretrained(folder / "again")
"""


def saved(model: BaseLanguageModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Build]:
    home = tmp_path_factory.mktemp("export")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(name: str) -> BaseLanguageModel:
        architecture, example, objective = BUILT[name]
        model = create_model(
            experiment(architecture, home, example=example, training={"objective": objective}), letters
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # an untrained model hardly tells its tokens apart
        return model.eval()

    yield make
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved folder of each model, by name."""
    parent = tmp_path_factory.mktemp("saved")
    for name in MODELS:
        saved(build(name), parent / name)
    resized = build("lstm-tied")
    resized.resize_token_embeddings(40)
    saved(resized, parent / "resized")
    return parent


def strangers_findings(
    folders: dict[str, Path], *, modules: Sequence[str] = (), trust: bool = True, path: str = ""
) -> dict[str, Any]:
    arguments = {
        "folders": {str(folder): AUTO[BUILT[name][2]] for name, folder in folders.items()},
        "ids": IDS.tolist(),
        "modules": modules,
        "trust": trust,
    }
    command = [sys.executable, "-c", STRANGER, json.dumps(arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    found = {name: torch.load(folder / "found.pt") for name, folder in folders.items()}
    return {"stderr": ended.stderr, "stdout": ended.stdout, **found}


@pytest.fixture(scope="module")
def opened_with_trust(folders: Path) -> dict[str, Any]:
    return strangers_findings({name: folders / name for name in MODELS})


@pytest.fixture(scope="module")
def opened_after_import(folders: Path) -> dict[str, Any]:
    ours = {name: folders / name for name in MODELS if name not in ("gpt2", "bert")}
    return strangers_findings(ours, modules=["foundry_rnn.model", "foundry_mamba.model"], trust=False)


# A fresh process.


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_with_transformers_alone_the_logits_are_the_same(
    build: Build, opened_with_trust: dict[str, Any], name: str
) -> None:
    assert torch.equal(opened_with_trust[name]["logits"], build(name)(IDS).logits)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gpt2", "bert")])
def test_no_trust_is_needed_once_the_plugin_is_imported(
    build: Build, opened_after_import: dict[str, Any], name: str
) -> None:
    assert torch.equal(opened_after_import[name]["logits"], build(name)(IDS).logits)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "lstm", "lstm-tied", "mamba"])
def test_generation_through_the_auto_class_is_ours(build: Build, opened_with_trust: dict[str, Any], name: str) -> None:
    ours = build(name).generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
    assert torch.equal(opened_with_trust[name]["text"], ours)
    assert ours.shape[1] > IDS.shape[1]


@pytest.mark.long
def test_transformers_has_nothing_to_warn_of(
    opened_with_trust: dict[str, Any], opened_after_import: dict[str, Any]
) -> None:
    assert opened_with_trust["stderr"] == opened_with_trust["stdout"] == ""
    assert opened_after_import["stderr"] == opened_after_import["stdout"] == ""


@pytest.mark.long
def test_what_transformers_saves_opens_again(
    build: Build, folders: Path, opened_with_trust: dict[str, Any], distribution: Callable[..., Path], tmp_path: Path
) -> None:
    """The folders that the fresh process saved, and one of a third party, saved by a process with the plugin."""
    points = {"foundry.architectures": {"third": "foundry_third:third"}}
    place = distribution("foundry-third", points, plugin_files("third"))
    third = saved(build("third"), tmp_path / "third")
    AutoModelForCausalLM.from_pretrained(third).save_pretrained(third / "again")
    again = {**{name: folders / name / "again" for name in MODELS}, "third": third / "again"}
    found = strangers_findings(again, path=str(place))
    assert found["stderr"] == found["stdout"] == ""
    for name, folder in again.items():
        modules = [path.name for path in folder.glob("*.py")]
        assert modules == ([] if name in ("gpt2", "bert") else ["modeling_foundry.py"]), name
        logits = build(name)(IDS).logits
        assert torch.equal(found[name]["logits"], logits), name
        assert torch.equal(BaseLanguageModel.from_pretrained(folder)(IDS).logits, logits), name


FINE_TUNING_STRANGER = """
import sys
import torch, transformers
folder, again = sys.argv[1:]
auto = transformers.AutoModelForSequenceClassification
model = auto.from_pretrained(folder, trust_remote_code=True, num_labels=3)
ids = torch.arange(12).view(2, 6)
model(ids, labels=torch.tensor([0, 2])).loss.backward()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter -= parameter.grad
model.save_pretrained(again)
back = auto.from_pretrained(again, trust_remote_code=True)
assert back.config.num_labels == 3
assert torch.equal(back(ids).logits, model(ids).logits)
hidden = transformers.AutoModel.from_pretrained(again, trust_remote_code=True)(ids).last_hidden_state
assert torch.equal(model.score(hidden[:, -1]), model(ids).logits)
"""


@pytest.mark.long
def test_a_stranger_fine_tunes_a_classifier_and_opens_it_again(folders: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FINE_TUNING_STRANGER, str(folders / "lstm"), str(tmp_path / "again")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in (tmp_path / "again").glob("*.py")] == ["modeling_foundry.py"]
    assert "AutoModelForCausalLM" in json.loads((tmp_path / "again" / "config.json").read_bytes())["auto_map"]


# The way back.


@each("name", MODELS)
def test_the_architecture_is_found_and_the_bits_are_the_same(build: Build, folders: Path, name: str) -> None:
    model = build(name)
    torch.manual_seed(3)
    chance = torch.random.get_rng_state()
    back = BaseLanguageModel.from_pretrained(folders / name)
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert type(back) is type(model)
    assert not back.training
    assert torch.equal(back(IDS).logits, model(IDS).logits)
    assert back.context == model.context
    assert back.config == model.config
    assert back.get_parameter_count() == model.get_parameter_count()


def test_a_resized_model_is_loaded_with_its_new_size_and_ties(folders: Path) -> None:
    back: Any = BaseLanguageModel.from_pretrained(folders / "resized")
    assert back(IDS).logits.shape == (3, 10, 40)
    assert back.output_layer.weight is back.embedding.weight


def test_saving_twice_changes_nothing_and_writes_the_same_bytes(build: Build, tmp_path: Path) -> None:
    for name in MODELS:
        model = build(name).train()
        before, chance = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
        first, second = saved(model, tmp_path / name / "1"), saved(model, tmp_path / name / "2")
        assert model.training
        assert torch.equal(torch.random.get_rng_state(), chance)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


# What is in the folder.


@each("name", MODELS)
def test_config_json_says_what_others_look_for(letters: Any, folders: Path, name: str) -> None:
    config = json.loads((folders / name / "config.json").read_bytes())
    architecture, _, objective = MODELS[name]
    masked = objective == "masked_lm"
    assert config["model_type"] == (architecture if name in ("gpt2", "bert") else f"foundry_{architecture}")
    (class_name,) = config["architectures"]
    assert class_name.endswith("ForMaskedLM") if masked else class_name in CAUSAL_CLASSES
    assert config["vocab_size"] == 32
    start = letters.cls_token_id if masked else letters.eos_token_id
    assert (config["bos_token_id"], config["eos_token_id"]) == (start, letters.eos_token_id)
    assert config["pad_token_id"] == letters.pad_token_id
    assert config["tie_word_embeddings"] == (name in ("gpt2", "bert", "lstm-tied", "mamba"))
    assert config.get("max_position_embeddings", config.get("n_positions")) == 24
    assert config["dtype"] == "float32"
    generation = folders / name / "generation_config.json"
    assert generation.exists() == (not masked)
    if generation.exists():
        assert json.loads(generation.read_bytes())["eos_token_id"] == letters.eos_token_id


@each("name", MODELS)
def test_every_parameter_is_stored_once(build: Build, folders: Path, name: str) -> None:
    stored = load_file(folders / name / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == build(name).get_parameter_count().total


@pytest.mark.parametrize("name", ["lstm", "rnn-both"])
def test_the_loading_module_imports_from_the_installed_plugin(folders: Path, name: str) -> None:
    config = json.loads((folders / name / "config.json").read_bytes())
    others = ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"]
    assert sorted(config["auto_map"]) == sorted(["AutoConfig", AUTO[MODELS[name][2]], *others])
    assert config["hidden_size"] == (64 if name == "rnn-both" else 32)
    lines = (folders / name / "modeling_foundry.py").read_text().splitlines()
    assert lines[0] == "import foundry_rnn  # pip install foundry-rnn"
    assert not (folders / "gpt2" / "modeling_foundry.py").exists()


def test_the_auto_class_of_another_objective_is_refused(folders: Path) -> None:
    with pytest.raises(CheckpointError, match="^a model trained with causal_lm opens with AutoModelForCausalLM$"):
        AutoModelForMaskedLM.from_pretrained(folders / "lstm")
    with pytest.raises(CheckpointError, match="^a model trained with masked_lm opens with AutoModelForMaskedLM$"):
        AutoModelForCausalLM.from_pretrained(folders / "gru-masked")


# Folders that are not whole.


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return shutil.copytree(folders / name, tmp_path / name)

    return make


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        BaseLanguageModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_weights_file_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("lstm")
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder}/model.safetensors is missing"


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_a_cut_weights_file_is_refused(copied: Callable[[str], Path], size: int) -> None:
    path = copied("lstm") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert refusal(path.parent).startswith(f"{path} is damaged: ")


def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(copied: Callable[[str], Path]) -> None:
    path = copied("lstm") / "model.safetensors"
    whole = load_file(path)
    name = "model.recurrent.weight_hh_l0"
    save_file({key: value for key, value in whole.items() if key != name}, path)
    assert refusal(path.parent) == f"{path} lacks {name}: it belongs to another architecture or setting"
    save_file({**whole, "model.extra": torch.zeros(2)}, path)
    expected = f"{path} has model.extra, which the model does not have: it belongs to another architecture or setting"
    assert refusal(path.parent) == expected
    save_file({**whole, name: whole[name][:, :-1].contiguous()}, path)
    assert refusal(path.parent) == f"{path}: {name} has shape (128, 31), the model (128, 32)"


def test_the_weights_of_another_architecture_are_refused(copied: Callable[[str], Path], folders: Path) -> None:
    for ours, theirs in (("gpt2", "bert"), ("lstm", "gru-masked"), ("lstm", "rnn-both"), ("gpt2", "lstm")):
        folder = copied(ours)
        shutil.copy(folders / theirs / "model.safetensors", folder)
        assert "model.safetensors" in refusal(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"model_type": "gpt2"}',
        '{"foundry": null}',
        '{"foundry": {"format": 2}}',
        "\x00\x01",
    ],
)
def test_a_config_json_that_is_not_ours_is_refused(copied: Callable[[str], Path], content: str | None) -> None:
    folder = copied("gpt2")
    path = folder / "config.json"
    path.unlink()
    if content is None:
        assert refusal(folder) == f"{folder} is not a model folder: it has no config.json"
    else:
        path.write_text(content)
        assert refusal(folder).startswith(f"{path} ")
        assert "is damaged" in refusal(folder)
        assert ("minicons" in refusal(folder)) == (content in ("{}", '{"model_type": "gpt2"}'))


def test_a_config_json_whose_facts_are_damaged_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("lstm")
    path = folder / "config.json"
    whole = json.loads(path.read_bytes())
    for damage in ({"context": None}, {"context": {"vocab_size": 32}}, {"context": {"colour": "red"}}):
        path.write_text(json.dumps({**whole, "foundry": {**whole["foundry"], **damage}}))
        assert "damaged" in refusal(folder)


# Beams.


@pytest.mark.parametrize("name", ["lstm", "lstm-tied", "mamba"])
def test_beam_search_is_the_same_with_a_recurrent_state(build: Build, name: str) -> None:
    model, mask = build(name), torch.ones_like(IDS)
    settings = {"num_beams": 4, "max_new_tokens": 8, "do_sample": False, "num_return_sequences": 2}
    plain = model.generate(IDS, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **settings), plain)
    asked = GenerationConfig(
        pad_token_id=model.context.pad_token_id, eos_token_id=model.context.eos_token_id, **settings
    )
    assert torch.equal(model.generate(IDS, attention_mask=mask, generation_config=asked), plain)
    assert asked.use_cache is None or asked.use_cache  # the caller's settings stay as they were
    greedy = model.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert plain[::2].shape != greedy.shape or not torch.equal(plain[::2], greedy)


def test_a_carried_state_generates_what_recomputing_does(build: Build) -> None:
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    mask[1, :4] = 0
    for name in ("gpt2", "lstm", "mamba"):
        model = build(name)
        texts = [
            model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
        assert torch.equal(*texts)
