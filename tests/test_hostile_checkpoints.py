"""Checkpoints that somebody made to do harm: nothing in them is executed, nothing outside of them is read, and what
they merely claim takes no memory.

Each payload is published with a manifest that fits it, so that no checksum is what saves us, as the newest checkpoint
of a run; then it is opened by every door. Those that must refuse it do so in one line that names the folder; the others
open it, because for them it is harmless.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from foundry_core import BaseLanguageModel, ExperimentConfig, run
from foundry_core.cli import main
from foundry_core.errors import FoundryError
from foundry_core.run_folder import MANIFEST
from foundry_core.storage.files import publish_folder
from foundry_core.storage.manifest import read_manifest, sealed
from tests.each import each

Files = dict[str, bytes]
Change = Callable[[Files, str], object]
"""Lists what is done to the files of a sound checkpoint, given code that leaves a mark when it runs."""

NAME = "checkpoint-2"
WEIGHTS, OPTIMIZER, STATE, CONFIG = "model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

SCORING = {"evaluate", "generate"}
TOKENIZING = SCORING | {"resume"}
OPENING = {"from_pretrained"} | SCORING
LOADING = OPENING | {"resume"}
READING_STATE = {"verify", "resume"}
ALL = OPENING | READING_STATE


# What a payload is made of.


class _Executed:
    def __init__(self, code: str):
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


def a_pickle(code: str) -> bytes:
    return pickle.dumps(_Executed(code))


def an_archive(code: str) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": _Executed(code)}, file)
    return file.getvalue()


def an_old_file(code: str) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": _Executed(code)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def a_tar(code: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(a_pickle(code))
        archive.addfile(entry, io.BytesIO(a_pickle(code)))
    return file.getvalue()


def a_module(code: str) -> bytes:
    return f"{code}\nclass Evil: pass\n".encode()


def deep(code: str) -> bytes:
    return b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def bare(content: bytes) -> Callable[[str], bytes]:
    return lambda code: content


def header(length: int) -> Callable[[str], bytes]:
    return bare(struct.pack("<Q", length) + b"{}")


def tensors(data: int, **described: tuple[list[int], int, int]) -> Callable[[str], bytes]:
    """A safetensors file with so many bytes of data, and tensors of (shape, first byte, last byte) in its header."""
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        for name, (shape, start, stop) in described.items()
    }
    text = json.dumps(entries).encode()
    return bare(struct.pack("<Q", len(text)) + text + bytes(data))


def put(*names: str, content: Callable[[str], bytes], instead_of: str | None = None) -> Change:
    def change(files: Files, code: str) -> None:
        if instead_of is not None:
            del files[instead_of]
        files.update({name: content(code) for name in names})

    return change


def put_key(file: str, keys: str, value: Any) -> Change:
    """A value in a JSON file, or none for `...`; keys are separated by slashes. evil.py stands beside it."""

    def change(files: Files, code: str) -> None:
        content = json.loads(files[file])
        *path, last = keys.split("/")
        section = content
        for key in path:
            section = section[key]
        section[last] = value
        if value is ...:
            del section[last]
        files |= {file: json.dumps(content).encode(), "evil.py": a_module(code)}

    return change


def put_text(file: str, old: str, new: str) -> Change:
    def change(files: Files, code: str) -> None:
        assert files[file].count(old.encode()) == 1, (file, old)
        files[file] = files[file].replace(old.encode(), new.encode())

    return change


def needed_plugin(module: str) -> Change:
    """A module that is said to offer what the model was trained with."""

    def change(files: Files, code: str) -> None:
        for key in (f"{SETTINGS}/plugins", "foundry/needs"):
            put_key(CONFIG, key, [module])(files, code)

    return change


def put_tensor(file: str, name: str, make: Callable[[Any], torch.Tensor | None]) -> Change:
    """A tensor made from the one of that name, or none."""

    def change(files: Files, code: str) -> None:
        stored = load(files[file])
        made = make(stored.pop(name, None))
        files[file] = save(stored if made is None else {**stored, name: made})

    return change


def every_key_that_names_code(files: Files, code: str) -> None:
    for file in (CONFIG, TOKENIZER_CONFIG, "generation_config.json"):
        for key, value in {
            "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
            "trust_remote_code": True,
            "custom_generate": "evil.py",
            "custom_pipelines": {"evil": {"impl": "evil.Evil", "pt": ["Evil"]}},
            "_attn_implementation": "evil/kernel",
            "quantization_config": {"quant_method": "evil"},
            "tokenizer_class": "Evil",
            "chat_template": "{{ cycler.__init__.__globals__.os.getcwd() }}",
        }.items():
            put_key(file, key, value)(files, code)


def files_of_the_tokenizer_elsewhere(files: Files, code: str) -> None:
    for key, value in {
        "fast_tokenizer_files": ["tokenizer./../../../../../etc/passwd.json"],
        "gguf_file": "/etc/passwd",
        "vocab_file": "/etc/passwd",
        "tokenizer_object": "evil",
        "init_inputs": ["/etc/passwd"],
    }.items():
        put_key(TOKENIZER_CONFIG, key, value)(files, code)


def an_entry_point(files: Files, code: str) -> None:
    put_key(CONFIG, "foundry/experiment/model/architecture", "evil")(files, code)
    files["entry_points.txt"] = b"[foundry.architectures]\nevil = evil:Evil\n"
    files["METADATA"] = b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"


PICKLES = ("pytorch_model.bin", "model.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
MODULES = ("json.py", "torch.py", "foundry_rnn.py", "foundry_core.py", "sitecustomize.py", "conftest.py", "evil.py")
SETTINGS = "foundry/experiment"

# name: what is done, and the doors that refuse it
EXECUTABLE: dict[str, tuple[Change, set[str]]] = {
    "pickle as weights": (put(WEIGHTS, content=a_pickle), LOADING),
    "archive of torch as weights": (put(WEIGHTS, content=an_archive), LOADING),
    "old file of torch as weights": (put(WEIGHTS, content=an_old_file), LOADING),
    "tar as weights": (put(WEIGHTS, content=a_tar), LOADING),
    "pickle as optimizer": (put(OPTIMIZER, content=a_pickle), {"resume"}),
    "archive of torch as optimizer": (put(OPTIMIZER, content=an_archive), {"resume"}),
    "pickle as state": (put(STATE, content=a_pickle), READING_STATE),
    "pickle as configuration": (put(CONFIG, content=a_pickle), ALL),
    "pickle as tokenizer": (put(TOKENIZER, content=a_pickle), TOKENIZING),
    "pickle as settings of the tokenizer": (put(TOKENIZER_CONFIG, content=a_pickle), TOKENIZING),
    "pickle as a model of sentencepiece": (put("sentencepiece.model", content=a_pickle), set()),
    "pickles beside it": (put(*PICKLES, content=a_pickle), set()),
    "archives of torch beside it": (put(*PICKLES, content=an_archive), set()),
    "archive of torch and no weights": (put("pytorch_model.bin", content=an_archive, instead_of=WEIGHTS), LOADING),
    "pickle and no optimizer": (put("optimizer.pt", content=a_pickle, instead_of=OPTIMIZER), {"resume"}),
    "loading module": (put("modeling_foundry.py", content=a_module), set()),
    "modules that shadow others": (put(*MODULES, content=a_module), set()),
    "every key that names code": (every_key_that_names_code, set()),
    "auto_map of the model": (put_key(CONFIG, "auto_map", {"AutoModelForCausalLM": "evil.Evil"}), set()),
    "auto_map of the tokenizer": (
        put_key(TOKENIZER_CONFIG, "auto_map", {"AutoTokenizer": ["evil.E", "evil.E"]}),
        set(),
    ),
    "entry point": (an_entry_point, LOADING),
    "import string": (put_key(CONFIG, f"{SETTINGS}/model/architecture", "evil:Evil"), LOADING),
    # A run that goes on has the plugins that its YAML names, whatever the checkpoint says.
    "plugin": (needed_plugin("evil"), LOADING - {"resume"}),
    "plugin that is a module of Python": (needed_plugin("antigravity"), LOADING - {"resume"}),
    "plugin that only watched": (put_key(CONFIG, f"{SETTINGS}/plugins", ["evil"]), set()),
    "class to call": (put_key(CONFIG, f"{SETTINGS}/model/_target_", "evil.Evil"), LOADING),
    "tag of YAML": (put_key(CONFIG, SETTINGS, "!!python/object/apply:os.abort []"), ALL),
    "files of the tokenizer elsewhere": (files_of_the_tokenizer_elsewhere, set()),
}

HUGE = 10**12
MOMENT = "exp_avg/embedding.weight"
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
OF_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
MAP = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + b"a" * 5000 + b"\0").decode()}
TWICE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
PADDING = {
    "strategy": {"Fixed": 10**12},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}


def growing(name: str, step: dict[str, Any]) -> dict[str, Any]:
    """A sequence in a sequence: each step makes text longer by itself, and all together fill a memory."""
    return {"type": "Sequence", name: [step, {"type": "Sequence", name: [step] * 40}]}


CLAIMS: dict[str, tuple[Change, set[str]]] = {
    "header of 2^60 bytes": (put(WEIGHTS, content=header(2**60)), LOADING),
    "header of 99 MB": (put(WEIGHTS, content=header(99_000_000)), LOADING),
    "deep header": (put(WEIGHTS, content=lambda code: struct.pack("<Q", len(deep(code))) + deep(code)), LOADING),
    "no header": (put(WEIGHTS, content=bare(b"")), LOADING),
    "tensor larger than its file": (put(WEIGHTS, content=tensors(4, a=([HUGE], 0, 4 * HUGE))), LOADING),
    "tensors that overlap": (put(WEIGHTS, content=tensors(12, a=([2], 0, 8), b=([2], 4, 12))), LOADING),
    "tensors with a hole": (put(WEIGHTS, content=tensors(12, a=([1], 0, 4), b=([1], 8, 12))), LOADING),
    "shape that wraps around": (put(WEIGHTS, content=tensors(0, a=([2**32, 2**32], 0, 0))), LOADING),
    "negative shape": (put(WEIGHTS, content=tensors(4, a=([-1], 0, 4))), LOADING),
    "bytes after the last tensor": (lambda files, code: files.update({WEIGHTS: files[WEIGHTS] + b"more"}), LOADING),
    "name of control characters": (put(WEIGHTS, content=tensors(4, **{"a\n\x1b[2Jb": ([1], 0, 4)})), LOADING),
    "weights of other bits": (put_tensor(WEIGHTS, "model.embedding.weight", lambda t: t.to(torch.complex64)), LOADING),
    "vocabulary of 10^12": (put_key(CONFIG, "foundry/context/vocab_size", HUGE), OPENING),
    "vocabulary of 2^70": (put_key(CONFIG, "foundry/context/vocab_size", 2**70), OPENING),
    "million layers": (put_key(CONFIG, f"{SETTINGS}/model/rnn/num_layers", 10**6), LOADING),
    "width of 10^9": (put_key(CONFIG, f"{SETTINGS}/model/rnn/hidden_size", 10**9), LOADING),
    "token id of 2^31": (put_text(TOKENIZER, '"the":', '"thee":2147483648,"the":'), TOKENIZING),
    "token that the model has not": (put_key(TOKENIZER_CONFIG, "pad_token", "<another>"), TOKENIZING),
    "tokenizer that panics": (put_key(TOKENIZER, "model/unk_token", "<gone>"), TOKENIZING),
    "normalizer that grows": (put_key(TOKENIZER, "normalizer", growing("normalizers", REPLACE)), TOKENIZING),
    "decoder that grows": (put_key(TOKENIZER, "decoder", growing("decoders", REPLACE)), TOKENIZING),
    "bytes of bytes": (put_key(TOKENIZER, "pre_tokenizer", growing("pretokenizers", OF_BYTES)), TOKENIZING),
    "map of characters that grows": (put_key(TOKENIZER, "normalizer", MAP), TOKENIZING),
    "template that doubles": (put_key(TOKENIZER, "post_processor", growing("processors", TWICE)), TOKENIZING),
    "padding to 10^12": (put_key(TOKENIZER, "padding", PADDING), set()),
    "deep state": (put(STATE, content=deep), READING_STATE),
    "deep configuration": (put(CONFIG, content=deep), ALL),
    "deep tokenizer": (put(TOKENIZER, content=deep), TOKENIZING),
    "state that is a list": (put(STATE, content=bare(b"[[]]")), READING_STATE),
    "number of 5000 digits": (put_text(STATE, '"global_step": 2', f'"global_step": {"9" * 5000}'), READING_STATE),
    "not a number": (put_key(STATE, "foundry/epoch", float("nan")), READING_STATE),
    "number that becomes infinite": (put_text(STATE, '"scale": 1.0', '"scale": 1e999'), READING_STATE),
    "seed that becomes infinite": (put_text(CONFIG, '"random_seed": 42', '"random_seed": 1e999'), ALL),
    "batch of 4 * 10^12": (put_key(CONFIG, f"{SETTINGS}/data/batch_size", 4 * 10**12), ALL),
    "batch that is half a row": (put_key(CONFIG, f"{SETTINGS}/data/batch_size", 0.5), ALL),
    "negative position": (put_key(STATE, "foundry/samples", -1), READING_STATE),
    "position of 2^63": (put_key(STATE, "foundry/samples", 2**63), READING_STATE),
    "position beyond the end": (put_key(STATE, "foundry/samples", 2**62), READING_STATE),
    "truth for a number": (put_key(STATE, "foundry/tokens_seen", True), READING_STATE),
    "stream of no rows": (put_key(STATE, "foundry/stream/rows", 0), READING_STATE),
    "no stream": (put_key(STATE, "foundry/stream", None), READING_STATE),
    "step of another checkpoint": (put_key(STATE, "foundry/step", 1), READING_STATE),
    "ledger that is no hash": (put_key(STATE, "foundry/ledger", "../../etc/passwd"), READING_STATE),
    "unknown key": (put_key(STATE, "foundry/colour", "red"), READING_STATE),
    "missing key": (put_key(STATE, "foundry/words_seen", ...), READING_STATE),
    "numbers of an optimizer that are a list": (put_key(STATE, "foundry/optimizer", {"values": []}), READING_STATE),
    "group of an optimizer that is a number": (put_key(STATE, "foundry/optimizer", {"groups": [1]}), READING_STATE),
    "list in a group of an optimizer": (put_key(STATE, "foundry/optimizer", {"groups": [{"a": [1]}]}), READING_STATE),
    "log of something else": (put_key(STATE, "log_history", ["x"]), READING_STATE),
    "moment of another shape": (put_tensor(OPTIMIZER, MOMENT, lambda t: torch.zeros(3)), {"resume"}),
    "moment of another type": (put_tensor(OPTIMIZER, MOMENT, lambda t: t.half()), {"resume"}),
    "moment that is missing": (put_tensor(OPTIMIZER, MOMENT, lambda t: None), {"resume"}),
    "moment of another kind": (
        put_tensor(OPTIMIZER, "__class__/embedding.weight", lambda t: torch.ones(1)),
        {"resume"},
    ),
    "no moment at all": (put(OPTIMIZER, content=tensors(0)), {"resume"}),
}


# The doors.


@pytest.fixture(scope="module")
def sound(experiment: Callable[..., ExperimentConfig], corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, and the YAML that goes on with it for another one."""
    folder = tmp_path_factory.mktemp("sound")
    data, rnn = {"test_corpus": str(corpus.test)}, {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}
    shared = {"output_dir": str(folder / "tokenizer")}
    config = experiment(
        "lstm",
        folder,
        data=data,
        tokenizer=shared,
        model={"rnn": rnn},
        training={"train_steps": 2, "optimizer": "adamw", "checkpoints": {"keep_optimizer": "all"}},
    )
    run(config, quiet=True)
    longer = config.resolved()
    longer["training"]["train_steps"] = 3
    (folder / "longer.yaml").write_text(yaml.safe_dump(longer))
    return folder


@dataclass
class Opened:
    """Describes what came of opening a checkpoint by one door: exit code, and the lines on standard error."""

    code: int
    lines: list[str]


class Target:
    """A run whose newest checkpoint may be changed, and the doors to it."""

    def __init__(self, sound: Path, folder: Path):
        self.run, self.yaml, self.mark = folder / "run", sound / "longer.yaml", folder / "mark"
        self.checkpoint = self.run / NAME
        self.code = f"open({str(self.mark)!r}, 'w').close()"
        shutil.copytree(sound / "run", self.run)

    def publish(self, change: Change) -> None:
        """The newest checkpoint after a change, with a manifest that fits."""
        manifest = read_manifest(self.checkpoint)
        files = {name: (self.checkpoint / name).read_bytes() for name in manifest.pop("files")}
        change(files, self.code)
        shutil.rmtree(self.checkpoint)
        with publish_folder(self.checkpoint, {key: manifest[key] for key in manifest if key != "format"}) as sink:
            for name, content in files.items():
                sink.write(name, content)

    def command(self, door: str) -> list[str]:
        if door == "resume":
            output = f"training.output_dir={self.run}"
            return ["train", str(self.yaml), output, "--quiet", "--resume", "--allow", "training.train_steps"]
        place = self.run if door == "verify" else self.checkpoint
        return [door, str(place), *(["--greedy", "--tokens", "2"] if door == "generate" else [])]

    def open(self, door: str) -> Opened:
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            if door == "from_pretrained":
                try:
                    BaseLanguageModel.from_pretrained(self.checkpoint)
                    code = 0
                except FoundryError as error:
                    code = error.exit_code
                    errors.write(f"error: {error}\n")
            else:
                code = main(self.command(door))
        return Opened(code, errors.getvalue().splitlines())

    def check(self, refused_by: set[str]) -> None:
        """Every door does what it must, and nothing was executed."""
        for door in ("from_pretrained", "evaluate", "generate", "verify", "resume"):
            opened = self.open(door)
            assert not self.mark.exists(), door
            if door not in refused_by:
                assert (opened.code, opened.lines) == (0, []), door
                continue
            assert opened.code in (5, 6), (door, opened)
            assert len(opened.lines) == 1, (door, opened)
            assert opened.lines[0].startswith("error: "), (door, opened)
            assert str(self.run) in opened.lines[0], (door, opened)
            assert opened.lines[0].isprintable(), (door, opened)


@pytest.fixture
def target(sound: Path, tmp_path: Path, one_thread: None) -> Target:
    return Target(sound, tmp_path)


def test_a_sound_checkpoint_is_opened_by_every_door(target: Target) -> None:
    target.publish(lambda files, code: None)
    target.check(refused_by=set())


@pytest.mark.long
@each("name", EXECUTABLE)
def test_nothing_in_a_checkpoint_is_executed(
    sound: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = Target(sound, tmp_path)
    change, refused_by = EXECUTABLE[name]
    target.publish(change)
    monkeypatch.chdir(target.checkpoint)
    monkeypatch.syspath_prepend(target.checkpoint)  # as in a notebook beside it: an import by name would find evil.py
    target.check(refused_by)
    for auto in (
        AutoModelForCausalLM,
        AutoTokenizer,
    ):  # who trusts nothing is not harmed by what importing us registers
        with suppress(Exception):
            auto.from_pretrained(target.checkpoint, trust_remote_code=False)
    assert not target.mark.exists()


@pytest.mark.parametrize("make", [a_pickle, an_archive, an_old_file])
def test_the_payloads_do_run_where_they_are_loaded_carelessly(target: Target, make: Callable[[str], bytes]) -> None:
    with suppress(Exception):
        torch.load(io.BytesIO(make(target.code)), weights_only=False)
    assert target.mark.exists()


def test_the_hostile_loading_module_does_run_for_who_trusts_it(target: Target) -> None:
    target.publish(EXECUTABLE["auto_map of the tokenizer"][0])
    with suppress(Exception):
        AutoTokenizer.from_pretrained(target.checkpoint, trust_remote_code=True)
    assert target.mark.exists()


@pytest.mark.long
def test_modules_in_the_folder_one_stands_in_are_not_imported(target: Target) -> None:
    target.publish(put(*MODULES, content=a_module))
    program = "import sys; from foundry_core.cli import main; sys.exit(main(['evaluate', '.', '--json']))"
    # -P is how an installed script starts: without the present folder on the path.
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, cwd=target.checkpoint, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["checkpoint"] == "."
    assert not target.mark.exists()


@pytest.mark.long
@each("name", CLAIMS)
def test_what_a_checkpoint_claims_is_checked_before_it_is_used(
    sound: Path, tmp_path: Path, one_thread: None, name: str
) -> None:
    target = Target(sound, tmp_path)
    change, refused_by = CLAIMS[name]
    target.publish(change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target.check(refused_by)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_outside_its_folder_only_the_default_test_corpus_is_read(target: Target, corpus: Any) -> None:
    """A corpus that is not there stands for one that must not be read: whoever tries says so."""
    gone = target.run / "gone.txt"
    for name in ("training_corpus", "test_corpus"):
        target.publish(put_key(CONFIG, f"{SETTINGS}/data/{name}", str(gone.with_name(f"{name}.txt"))))
    for door in ("from_pretrained", "generate", "verify"):
        assert target.open(door).lines == []
    given = [*target.command("evaluate"), "--corpus", str(corpus.test)]
    with redirect_stdout(io.StringIO()) as printed:
        assert main(given) == 0
    assert str(corpus.test) in printed.getvalue()
    (line,) = target.open("evaluate").lines
    assert f"{target.run}/test_corpus.txt" in line


# The manifest, and files that are none.

Edit = Callable[[dict[str, Any]], object]


def manifest_of(target: Target, edit: Edit) -> None:
    manifest = read_manifest(target.checkpoint)
    edit(manifest)
    (target.checkpoint / MANIFEST).write_bytes(sealed(manifest))


def listed(name: str, **entry: Any) -> Edit:
    return lambda manifest: manifest["files"].update({name: {"size": 4, "sha256": "0" * 64, **entry}})


@each(
    "edit",
    [
        listed("../checkpoint-0/config.json"),
        listed("/etc/hostname"),
        listed("a/../../x"),
        listed(".."),
        listed("."),
        listed(""),
        listed("a\0b"),
        listed("a\n\x1b[2Jb"),
        listed("\ud800"),
        listed("config.json", size=float("inf")),
        listed("config.json", size=float("nan")),
        listed("config.json", size=-1),
        listed("config.json", size=10**400),
        listed("config.json", size=[]),
        listed("config.json", sha256=None),
        lambda manifest: manifest["files"].update(x="y"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(format=2),
    ],
)
def test_a_manifest_may_list_only_the_files_of_its_folder(
    sound: Path, tmp_path: Path, one_thread: None, edit: Edit
) -> None:
    target = Target(sound, tmp_path)
    manifest_of(target, edit)
    for door in ("from_pretrained", "verify"):
        refused = target.open(door)
        assert refused.code == 6
        assert len(refused.lines) == 1
        assert str(target.checkpoint) in refused.lines[0]
        assert refused.lines[0].isprintable()


@each("facts", [{"step": 3}, {"step": "2"}, {"step": None}, {"environment": None}])
def test_a_manifest_of_another_step_cannot_be_resumed(
    sound: Path, tmp_path: Path, one_thread: None, facts: dict[str, Any]
) -> None:
    target = Target(sound, tmp_path)
    manifest_of(target, lambda manifest: manifest.update(facts))
    refused = target.open("resume")
    if "environment" in facts:
        assert refused.code == 6
        assert refused.lines[0].endswith(f"{MANIFEST} has no environment")
    else:
        assert refused.code == 0
        assert f"{NAME} is passed over: {target.checkpoint} does not match its name" in refused.lines[0]


def linked(target: Target, name: str) -> None:
    (target.checkpoint / name).rename(target.run / "elsewhere")
    (target.checkpoint / name).symlink_to(target.run / "elsewhere")


def endless(target: Target, name: str) -> None:
    (target.checkpoint / name).unlink()
    (target.checkpoint / name).symlink_to("/dev/zero")


def fifo(target: Target, name: str) -> None:
    (target.checkpoint / name).unlink()
    os.mkfifo(target.checkpoint / name)


@each("name", [MANIFEST, WEIGHTS, CONFIG, STATE])
@each("make", [linked, fifo, endless])
@pytest.mark.long
def test_what_is_no_plain_file_of_the_folder_is_refused(
    sound: Path, tmp_path: Path, one_thread: None, make: Callable[[Target, str], None], name: str
) -> None:
    target = Target(sound, tmp_path)
    make(target, name)
    for door in (*OPENING, "verify"):
        assert target.open(door).code == 6, door
    resumed = target.open("resume")
    assert resumed.code == 0
    assert resumed.lines[0].startswith(f"warning: {NAME} is passed over: {target.checkpoint}/")


@each("name", [CONFIG, WEIGHTS])
@each("make", [fifo, endless])
def test_a_model_folder_must_hold_plain_files_without_a_manifest(
    sound: Path, tmp_path: Path, one_thread: None, make: Callable[[Target, str], None], name: str
) -> None:
    target = Target(sound, tmp_path)
    for other in (MANIFEST, STATE):
        (target.checkpoint / other).unlink()
    make(target, name)
    assert {target.open(door).code for door in OPENING} == {6}


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, TOKENIZER_CONFIG])
def test_a_file_too_large_for_what_it_is_is_not_read(target: Target, name: str) -> None:
    for other in (MANIFEST, STATE):
        (target.checkpoint / other).unlink()
    os.truncate(target.checkpoint / name, 1 << 40)
    opened = target.open("evaluate")
    assert opened.code in (5, 6)
    assert "is larger than the 256 MiB limit" in opened.lines[0]
