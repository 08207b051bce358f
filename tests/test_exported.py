"""Checkpoints as folders for others: what is in them, and what a process without foundry does with them.

FOUNDRY_TEST_TRANSFORMERS names further Pythons, `:` between them, with transformers of other versions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import foundry_core.testing.kit.run  # noqa: F401 - registers all checks, in their order
from foundry_core import BaseLanguageModel, ExperimentConfig, create_model, run
from foundry_core.cli import main
from foundry_core.registry.loading import get_architecture
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.check import CHECKS
from foundry_core.testing.kit.standalone import compare_elsewhere
from foundry_core.tokenization.encoding import as_trained
from foundry_core.tokenization.tokenizer_folder import load_tokenizer, save_tokenizer, tokenizer_digest
from foundry_core.tokenization.training import default_special_tokens, train_tokenizer
from tests.each import each

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[1] / "docs" / "sharing" / "export.md"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
PLAIN = {"config.json", "generation_config.json", "model.safetensors", *TOKENIZER}
IDS = torch.randint(0, 26, (3, 10), generator=torch.Generator().manual_seed(0))

# name: architecture, example, objective
STANDALONE = {
    "lstm": ("lstm", "tiny_tied", "causal_lm"),
    "gru": ("gru", "tiny_one_hot", "causal_lm"),
    "rnn-both": ("rnn", "tiny_bidirectional", "masked_lm"),
    "mamba": ("mamba", "tiny", "causal_lm"),
}
ROTARY = {"rope_theta": 77.0, "rope_type": "default"}
OF_TRANSFORMERS: dict[str, tuple[Any, ...]] = {
    "gpt2": ("gpt2", "tiny", "causal_lm"),
    "bert": ("bert", "tiny", "masked_lm"),
    "llama": ("transformers", "tiny", "causal_lm", {"rope_parameters": ROTARY}),
    "gpt-neox": (
        *("transformers", "tiny_gpt_neox", "causal_lm"),
        {"rope_parameters": {**ROTARY, "partial_rotary_factor": 0.5}},
    ),
}

# A process without foundry: folders in pipelines, a batch of prompts padded on the left, and fine-tuning on texts that
# are of class 1 if they begin with an a. Nothing but the first letter tells which, 11 letters before the end.
USER = """
import json, sys
import torch
for name in ("foundry_core", "foundry_rnn", "foundry_mamba"):
    sys.modules[name] = None  # importing it is an error
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
trust, found = {"trust_remote_code": True}, {}
ids, folders = json.loads(sys.argv[1]), sys.argv[2:]
for folder in folders:
    seen = found[folder] = {}
    config = AutoConfig.from_pretrained(folder, **trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    masked = config.architectures[0].endswith("ForMaskedLM")
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    output = auto.from_pretrained(folder, **trust)(torch.tensor(ids), labels=torch.tensor(ids))
    seen["logits"], seen["loss"] = output.logits.tolist(), float(output.loss)
    states = pipeline("feature-extraction", model=folder, **trust)("abc")
    assert len(states[0][0]) == config.hidden_size
    if masked:
        filled = pipeline("fill-mask", model=folder, **trust)(f"a{tokenizer.mask_token}c")
        assert len(filled) == 5
    else:
        write = pipeline("text-generation", model=folder, **trust)
        write.tokenizer.padding_side = "left"
        options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
        prompts = ["abcdefgh", "b"]
        for more in ({}, {"num_beams": 3}, {"use_cache": False}):
            alone = [write(each, **options, **more)[0]["generated_text"] for each in prompts]
            together = [each[0]["generated_text"] for each in write(prompts, batch_size=2, **options, **more)]
            assert alone == together, (more, alone, together)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(2, 26, (16, 11), generator=generator).tolist()
    letters = ["".join(chr(97 + each) for each in row) for row in drawn]
    texts = ["ab"[number % 2] + text[: 4 + number % 8] for number, text in enumerate(letters)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = torch.tensor([int(text.startswith("a")) for text in texts])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **trust).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02 if "foundry" in config.model_type else 0.002)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = model.eval()(**batch).logits
    # As PEFT and others call any classifier.
    asked = dict.fromkeys(["inputs_embeds", "labels", "output_attentions", "output_hidden_states", "return_dict"])
    assert torch.equal(model(**batch, **asked).logits, logits)
    seen["right"] = float((logits.argmax(-1) == labels).float().mean())
    model.save_pretrained(folder + "-tuned")
    tokenizer.save_pretrained(folder + "-tuned")
    classified = pipeline("text-classification", model=folder + "-tuned", **trust)(texts)
    assert [each["label"] for each in classified] == [f"LABEL_{label}" for label in logits.argmax(-1).tolist()]
    seen["texts"], seen["scores"] = texts, logits.tolist()
print(json.dumps(found))
"""

# A process without foundry: more texts at a time than the model has layers.
BATCHES = """
import json, sys
for name in ("foundry_core", "foundry_rnn", "foundry_mamba"):
    sys.modules[name] = None
from transformers import AutoModel, pipeline
texts = ["abc", "a", "defgh", "ij"]
read = pipeline("feature-extraction", model=sys.argv[1], trust_remote_code=True)
together = read(texts, batch_size=4)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = read.tokenizer("abc", return_tensors="pt")["input_ids"]
states = [model(ids, use_cache=asked).state is not None for asked in (None, False, True)]
pairs = list(zip(together, map(read, texts)))
print(json.dumps([states, max(abs(a - b) for x, y in pairs for u, v in zip(x[0], y[0]) for a, b in zip(u, v))]))
"""

# What a process of another version finds in the folders that USER has fine-tuned.
REOPENED = """
import json, sys
import torch, transformers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
transformers.utils.logging.set_verbosity_error()
trust, found = {"trust_remote_code": True}, {}
texts, folders = json.loads(sys.argv[1]), sys.argv[2:]
for folder in folders:
    # AutoTokenizer of version 4 does not know the class that version 5 names in the folders that it saves.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder + "-tuned")
    model = AutoModelForSequenceClassification.from_pretrained(folder + "-tuned", **trust)
    found[folder] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(
    experiment: Callable[..., ExperimentConfig], letters: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`saved(architecture, example, objective)`: a folder of a new model, and of its tokenizer, as in a checkpoint."""
    home = tmp_path_factory.mktemp("saved")

    def make(
        architecture: str,
        example: str = "tiny",
        objective: str = "causal_lm",
        changes: Any = None,
        *,
        tokenizer: Any = None,
    ) -> Path:
        folder = home / f"{len(list(home.iterdir()))}-{architecture}"
        more: dict[str, Any] = {}
        if changes:
            section = get_architecture(architecture).examples[example]["transformers"]
            more["model"] = {"transformers": {**section, **changes}}
        config = experiment(architecture, home, example=example, training={"objective": objective}, **more)
        model = create_model(config, tokenizer or letters)
        if model.config.capabilities.trained_by_counting:
            model.count(IDS)
        model.save_pretrained(folder)
        save_tokenizer(as_trained(tokenizer or letters, framed=objective == "masked_lm"), folder)
        return folder

    return make


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What is in a folder.


@pytest.mark.usefixtures("one_thread")
def test_a_folder_has_the_model_and_its_tokenizer_alone(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(experiment("lstm", tmp_path, training={"train_steps": 2}), quiet=True)
    checkpoint, plain, alone = tmp_path / "run" / "checkpoint-2", tmp_path / "plain", tmp_path / "alone"
    assert main(["export", str(tmp_path / "run"), str(plain)]) == 0
    assert main(["export", str(checkpoint), str(alone), "--standalone"]) == 0
    printed = capsys.readouterr().out
    assert f'AutoModelForCausalLM.from_pretrained("{alone}", trust_remote_code=True)' in printed
    assert names(plain) == names(alone) == {*PLAIN, "modeling_foundry.py"}
    assert "import foundry_rnn" in (plain / "modeling_foundry.py").read_text()
    assert "import foundry" not in (alone / "modeling_foundry.py").read_text()
    weights = (checkpoint / "model.safetensors").read_bytes()
    model = BaseLanguageModel.from_pretrained(checkpoint)
    for folder in (plain, alone):
        assert (folder / "model.safetensors").read_bytes() == weights
        assert torch.equal(BaseLanguageModel.from_pretrained(folder)(IDS).logits, model(IDS).logits)
        assert tokenizer_digest(load_tokenizer(folder)) == tokenizer_digest(load_tokenizer(checkpoint))


@each(
    "architecture, objective",
    [("gpt2", "causal_lm"), ("bert", "masked_lm"), ("transformers", "causal_lm")],
)
def test_a_model_of_transformers_needs_no_file_of_ours(
    saved: Callable[..., Path], architecture: str, objective: str, tmp_path: Path
) -> None:
    source, folder = saved(architecture, objective=objective), tmp_path / "exported"
    assert main(["export", str(source), str(folder), "--standalone"]) == 0
    masked = objective == "masked_lm"
    assert names(folder) == PLAIN - ({"generation_config.json"} if masked else set())
    assert "auto_map" not in json.loads((folder / "config.json").read_bytes())
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    logits = BaseLanguageModel.from_pretrained(source)(IDS).logits
    assert torch.allclose(auto.from_pretrained(folder)(IDS).logits, logits, atol=1e-6)


def test_an_exported_folder_has_the_names_of_transformers_4(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Of weights and of rotary positions: version 4 draws weights that it does not find, and says so in a warning."""
    written = {}
    for name in ("llama", "gpt-neox"):
        source, folder = saved(*OF_TRANSFORMERS[name]), tmp_path / name
        assert main(["export", str(source), str(folder)]) == 0
        config = written[name] = json.loads((folder / "config.json").read_bytes())
        logits = BaseLanguageModel.from_pretrained(source)(IDS).logits
        assert torch.equal(BaseLanguageModel.from_pretrained(folder)(IDS).logits, logits)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.allclose(model(IDS).logits, logits, atol=1e-6)
        assert model.config.rope_parameters == config["rope_parameters"]
        model.save_pretrained(tmp_path / "theirs")
        assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "theirs/model.safetensors").keys()
    assert written["llama"]["rope_theta"] == written["gpt-neox"]["rotary_emb_base"] == 77
    assert written["gpt-neox"]["rotary_pct"] == 0.5


def test_its_tokenizer_names_bos_and_eos_and_encodes_as_before(
    saved: Callable[..., Path], letters: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    special = default_special_tokens("wordpiece")
    pieces = train_tokenizer("wordpiece", lambda: ["a cat sat on a mat"] * 9, 60, special)
    sources = {
        "masked": saved("bert", objective="masked_lm", tokenizer=pieces),
        "causal": saved("gpt2", tokenizer=pieces),
    }
    for name, source in sources.items():
        before = AutoTokenizer.from_pretrained(source)
        assert main(["export", str(source), str(tmp_path / name)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        after = AutoTokenizer.from_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_bytes())
        for role in ("bos_token", "eos_token"):
            assert getattr(after, f"{role}_id") == config[f"{role}_id"]
            assert (f"{role}: {getattr(after, role)}" in printed) == (getattr(before, role) is None), (name, printed)
        assert after("a cat")["input_ids"] == before("a cat")["input_ids"]
    assert "eos_token: [SEP]" in printed or before.eos_token is not None


@pytest.mark.long
def test_the_page_about_it_does_what_it_says(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "lstm"):
        shutil.copytree(saved(name), tmp_path / "runs" / name)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["", "python", "", "python"]
    found: dict[str, Any] = {}
    for language, text in blocks:
        if language:
            exec(text, found)
        else:
            assert main(text.split()[1:]) == 0
    batch = found["tokenizer"](["abc", "de"], padding=True, return_tensors="pt")
    assert found["classifier"](**batch).logits.shape == (2, 2)


# Refusals.


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_what_cannot_be_exported_is_refused_in_one_line(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted, taken = saved("ngram"), tmp_path / "taken"
    line = refusal(capsys, counted, tmp_path / "alone", "--standalone")
    assert line.startswith("error: transformers does not have the architecture 'ngram', and foundry-ngram ")
    assert line.endswith(" leave --standalone out")
    assert not (tmp_path / "alone").exists()
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert refusal(capsys, counted, taken).startswith(f"error: {taken} exists and is not overwritten")
    assert names(taken) == {"notes.txt"}


# A process without foundry.


def found_by(python: str, program: str, home: Path, *arguments: str, seconds: float = 300) -> Any:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, "-c", program, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout) if ended.stdout else None


def check_use(
    python: str, saved: Callable[..., Path], home: Path, models: Mapping[str, tuple[Any, ...]] = STANDALONE
) -> Any:
    folders = {name: home / name for name in models}
    for name, folder in folders.items():
        assert main(["export", str(saved(*models[name])), str(folder), "--standalone"]) == 0
    found = found_by(python, USER, home / "cache", json.dumps(IDS.tolist()), *map(str, folders.values()))
    for name, folder in folders.items():
        seen = found[str(folder)]
        assert seen["right"] == 1, (name, seen)
        with torch.no_grad():
            output = BaseLanguageModel.from_pretrained(folder)(IDS, labels=IDS)
            expected = output.logits
        assert abs(seen["loss"] - float(output.loss)) < 1e-5, name
        torch.testing.assert_close(
            torch.tensor(seen["logits"]), expected, rtol=0, atol=1e-6, msg=f"{name}: {{}}".format
        )
    return found


@pytest.mark.long
def test_a_standalone_folder_is_fine_tuned_and_used_in_pipelines(saved: Callable[..., Path], tmp_path: Path) -> None:
    check_use(sys.executable, saved, tmp_path)


@each("name", ["mamba", "lstm"])
def test_a_pipeline_takes_more_texts_than_layers(saved: Callable[..., Path], tmp_path: Path, name: str) -> None:
    assert main(["export", str(saved(*STANDALONE[name])), str(tmp_path / name), "--standalone"]) == 0
    states, difference = found_by(sys.executable, BATCHES, tmp_path / "cache", str(tmp_path / name))
    assert states == [False, False, True]
    assert difference < 1e-5


@pytest.fixture
def others() -> list[str]:
    named = os.environ.get("FOUNDRY_TEST_TRANSFORMERS")
    if not named:
        pytest.skip("FOUNDRY_TEST_TRANSFORMERS names no further Pythons")
    return named.split(":")


@pytest.mark.slow
def test_other_versions_open_folders_and_what_others_tuned(
    saved: Callable[..., Path], others: list[str], tmp_path: Path
) -> None:
    """What one version has fine-tuned opens in all of them, but for rotary positions, whose settings 5 renames."""
    pythons = [sys.executable, *others]
    for number, python in enumerate(pythons):
        home = tmp_path / str(number)
        found = check_use(python, saved, home, {**STANDALONE, **OF_TRANSFORMERS})
        texts = json.dumps(next(iter(found.values()))["texts"])
        found = {folder: seen for folder, seen in found.items() if Path(folder).name not in ("llama", "gpt-neox")}
        for reader in pythons:
            again = found_by(reader, REOPENED, home / "cache", texts, *found)
            for folder, seen in found.items():
                torch.testing.assert_close(torch.tensor(again[folder]), torch.tensor(seen["scores"]), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["lstm", "gru", "rnn", "mamba"])
def test_the_kit_compares_standalone_folders_elsewhere(others: list[str], architecture: str, tmp_path: Path) -> None:
    assert "standalone" in CHECKS
    for python in others:
        suite = Suite.of(architecture)
        compare_elsewhere(
            suite,
            lambda program, *arguments, python=python: found_by(python, program, tmp_path, *arguments, seconds=600),
            beams=False,
        )
