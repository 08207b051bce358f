"""`foundry schema`: editors accept and refuse what loading does, as far as a schema can tell."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foundry_core.cli import main
from foundry_core.cli.init import starting_yaml
from foundry_core.cli.schema import DIALECT, schema_of
from foundry_core.config.loading import load_config
from foundry_core.config.yaml_source import YamlSource
from foundry_core.errors import ConfigError
from foundry_core.registry.architecture import Architecture, registered_architectures
from foundry_core.registry.loading import available_architectures, get_architecture
from foundry_core.schema import ConfigSection, ModelConfig
from tests.each import each

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("**/*.yaml"))
ARCHITECTURES = ["bert", "gpt2", "gru", "lstm", "mamba", "ngram", "rnn", "transformers"]
MAMBA_SIZES = {"hidden_size": 8, "num_hidden_layers": 1}
_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "examples"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def accepts(schema: dict[str, Any] | bool, value: Any, root: dict[str, Any]) -> bool:
    """Draft 2020-12, of which the keywords that are used here; an unknown keyword fails the test that meets it."""
    if isinstance(schema, bool):
        return schema
    return all(
        _holds(key, argument, schema, value, root) for key, argument in schema.items() if key not in _ANNOTATIONS
    )


def _holds(key: str, argument: Any, schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match key:
        case "$ref":
            return accepts(root["$defs"][argument.removeprefix("#/$defs/")], value, root)
        case "allOf":
            return all(accepts(each, value, root) for each in argument)
        case "if":
            return not accepts(argument, value, root) or accepts(schema["then"], value, root)
        case "then":
            return True  # looked at with its "if"
        case "anyOf":
            return any(accepts(each, value, root) for each in argument)
        case "oneOf":
            return sum(accepts(each, value, root) for each in argument) == 1
        case "const":
            return bool(value == argument)
        case "enum":
            return value in argument
        case "type":
            return isinstance(value, _TYPES[argument]) and (argument == "boolean" or not isinstance(value, bool))
        case "minimum":
            return not number or value >= argument
        case "maximum":
            return not number or value <= argument
        case "exclusiveMinimum":
            return not number or value > argument
        case "exclusiveMaximum":
            return not number or value < argument
        case "minLength":
            return not isinstance(value, str) or len(value) >= argument
        case "pattern":
            return not isinstance(value, str) or re.search(argument, value) is not None
        case "items":
            return not isinstance(value, list) or all(accepts(argument, item, root) for item in value)
        case "prefixItems":
            pairs = zip(argument, value, strict=False) if isinstance(value, list) else ()
            return all(accepts(each, item, root) for each, item in pairs)
        case "minItems":
            return not isinstance(value, list) or len(value) >= argument
        case "maxItems":
            return not isinstance(value, list) or len(value) <= argument
        case "minProperties":
            return not isinstance(value, dict) or len(value) >= argument
        case "required":
            return not isinstance(value, dict) or set(argument) <= set(value)
        case "properties":
            items = value.items() if isinstance(value, dict) else ()
            return all(accepts(argument[name], item, root) for name, item in items if name in argument)
        case "patternProperties":
            items = value.items() if isinstance(value, dict) else ()
            matching = [(each, item) for name, item in items for at, each in argument.items() if re.search(at, name)]
            return all(accepts(each, item, root) for each, item in matching)
        case "propertyNames":
            return not isinstance(value, dict) or all(accepts(argument, name, root) for name in value)
        case "additionalProperties":
            items = value.items() if isinstance(value, dict) else ()
            others = [item for name, item in items if name not in schema.get("properties", {})]
            return not others if argument is False else all(accepts(argument, item, root) for item in others)
    raise AssertionError(f"the schema uses {key}, which this test does not know")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return schema_of([get_architecture(name) for name in ARCHITECTURES])


def start(name: str) -> dict[str, Any]:
    data: dict[str, Any] = YamlSource.parse(starting_yaml(get_architecture(name), name), "text").data
    return data


def changed(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one key set, or removed when the value is `...`."""
    data = copy.deepcopy(data)
    *sections, last = key.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return data


@each("name", ARCHITECTURES)
def test_what_init_writes_is_accepted(name: str, schema: dict[str, Any]) -> None:
    assert accepts(schema, start(name), schema)


@each("name", ARCHITECTURES)
def test_a_whole_resolved_configuration_is_accepted(name: str, schema: dict[str, Any]) -> None:
    assert accepts(schema, load_config(start(name)).resolved(), schema)


@each("name", ARCHITECTURES)
def test_an_editor_is_given_the_recipe_as_an_example(name: str, schema: dict[str, Any]) -> None:
    (variant,) = [each for each in schema["properties"]["model"]["anyOf"] if each["title"] == name]
    (example,) = variant["examples"]
    assert accepts(variant, example, schema)
    assert loads(changed(start(name), "model", example))


def test_every_shipped_configuration_is_accepted(schema: dict[str, Any]) -> None:
    refused = [path.name for path in CONFIGS if not accepts(schema, YamlSource.read(path).data, schema)]
    assert refused == []


@each(
    ("name", "key", "value", "valid"),
    [
        ("gpt2", "training.train_tokens", "10M", True),
        ("gpt2", "training.train_tokens", "2.5B", True),
        ("gpt2", "training.train_tokens", "2.01M", True),
        ("gpt2", "training.train_tokens", 100, True),
        ("gpt2", "training.train_tokens", None, False),
        ("gpt2", "training.train_tokens", "10MB", False),
        ("gpt2", "training.train_tokens", 0, False),
        ("gpt2", "training.train_tokens", 1.5, False),
    ],
)
def test_a_count_may_be_written_short(name: str, key: str, value: Any, valid: bool, schema: dict[str, Any]) -> None:
    data = changed(changed(start(name), "training.epochs", ...), key, value)
    # Null is the key left out: no schema of ours says that one budget must be given, loading does.
    assert accepts(schema, data, schema) == (valid or value is None)
    assert loads(data) == valid


def test_a_short_count_is_exact() -> None:
    data = changed(changed(start("gpt2"), "training.epochs", ...), "training.train_tokens", "2.01M")
    assert load_config(data).training.train_tokens == 2_010_000


def loads(data: dict[str, Any]) -> bool:
    try:
        load_config(data)
    except ConfigError:
        return False
    return True


@each(
    ("name", "key", "value", "valid"),
    [
        ("gpt2", "training.checkpoints.milestones.words", ["1M", 2000], True),
        ("gpt2", "training.checkpoints.milestones.words", ["1X"], False),
        ("gpt2", "training.checkpoints.milestones.words", [0], False),
        ("gpt2", "training.checkpoints.steps", [0, 10], True),
        ("gpt2", "training.checkpoints.steps", [10**30], False),
        ("gpt2", "training.num_workers", 10**24, False),
        ("gpt2", "training.plateau_patience", 10**30, False),
        ("gpt2", "training.output_dir", "a\0b", False),
        ("gpt2", "data.batch_size", 10**12, False),
        ("gpt2", "logging.log_every_steps", 2**31, False),
        ("gpt2", "logging.log_every_steps", 2**31 - 1, True),
        ("gpt2", "random_seed", 2**63 - 1, True),
        ("gpt2", "random_seed", 2**63, False),
        ("gpt2", "model.transformer.layers", 10**21, False),
        ("mamba", "model.mamba.hidden_size", 10**22, False),
        ("mamba", "model.mamba.time_step_rank", 10**22, False),
        ("lstm", "model.rnn.num_layers", 10**21, False),
        ("transformers", "model.transformers.hidden_size", 10**22, False),
        ("gpt2", "training.learning_rate", 1, True),
        ("gpt2", "training.learning_rate", 0, False),
        ("gpt2", "training.learning_rate", "fast", False),
        ("gpt2", "training.learning_rat", 1e-3, False),
        ("gpt2", "training.optimizer", "adam", False),
        ("gpt2", "training.max_grad_norm", None, True),
        ("gpt2", "training.compile", 1, False),
        ("gpt2", "training.output_dir", ..., False),
        ("gpt2", "experiment_name", ..., False),
        ("gpt2", "experiment_name", "a/b", False),
        ("gpt2", "random_seed", -1, False),
        ("gpt2", "surprise", 1, False),
        ("gpt2", "logging", None, False),
        ("gpt2", "logging", ..., True),
        ("gpt2", "seeds", {"dropout": 3}, True),
        ("gpt2", "seeds", {"drop_out": 3}, False),
        ("gpt2", "tokenizer.special_tokens", {"pad_token": "[PAD]", "mask_token": None}, True),
        ("gpt2", "tokenizer.special_tokens", {"padding": "[PAD]"}, False),
        ("gpt2", "plugins", "one", False),
        ("gpt2", "model", ..., False),
        ("gpt2", "model.architecture", ..., False),
        ("gpt2", "model.architecture", "gpt3", False),
        ("gpt2", "model.architecture", "lstm", False),
        ("gpt2", "model.bert", {"type_vocab_size": 2}, False),
        ("bert", "model.bert", {"type_vocab_size": 3}, True),
        ("bert", "model.bert.type_vocab_size", 0, False),
        ("bert", "model.bert.pooler_type", "mean", True),
        ("bert", "model.bert.pooler_type", "last", False),
        ("gpt2", "model.transformer", ..., False),
        ("gpt2", "model.transformer", {}, False),
        ("gpt2", "model.transformer.attention_heads", ..., False),
        ("gpt2", "model.transformer.dropout", ..., True),
        ("gpt2", "model.transformer.layers", 2, True),
        ("gpt2", "model.transformer.layer", 2, False),
        ("gpt2", "model.transformer.activation_function", "swish", False),
        ("lstm", "model.rnn", ..., False),
        ("lstm", "model.rnn.num_layers", ..., False),
        ("lstm", "model.rnn.bidirectional", ..., True),
        ("lstm", "model.rnn.bidirectional", False, True),
        ("lstm", "model.rnn.rnn_type", "elman", False),
        ("lstm", "model.transformer", {"layers": 2}, False),
        ("gru", "model.architecture", "lstm", True),
        ("gru", "model.rnn.num_layers", "2", False),
        ("mamba", "model.mamba.hidden_size", ..., False),
        ("mamba", "model.mamba.time_step_rank", None, True),
        ("mamba", "model.mamba.state_size", 0, False),
        ("transformers", "model.transformers", {"model_type": "mamba", "expand": 3, **MAMBA_SIZES}, True),
        ("transformers", "model.transformers", {"model_type": "mamba", "expand": 3}, False),
        ("transformers", "model.transformers.num_hidden_layers", ..., False),
        ("transformers", "model.transformers", ..., False),
        ("transformers", "model.transformers.expand", 3, False),
        ("transformers", "model.transformers.model_type", "vit", False),
        ("transformers", "model.transformers.vocab_size", 100, False),
        ("transformers", "model.transformers.hidden_size", "wide", False),
        ("transformers", "model.transformers.num_key_value_heads", None, True),
    ],
)
def test_the_schema_accepts_what_loading_accepts(
    name: str, key: str, value: Any, valid: bool, schema: dict[str, Any]
) -> None:
    data = changed(start(name), key, value)
    assert loads(data) is valid
    assert accepts(schema, data, schema) is valid


# Three hundred configurations that the schema refuses, and what loading says of them.

WRONG = ["", "zzz", "a/b", "8", True, 0, -1, 1.5, 10**9, float("nan"), None, [], ["zzz"], [[1]], {}, {"zzz": 1}]
CHECKING = """
import json, sys, time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from foundry_core.cli import main
found = []
for number, path in enumerate(json.load(sys.stdin)):
    out, err, started = StringIO(), StringIO(), time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([("validate", "train", "plan")[number % 3], path])
    found.append([code, out.getvalue(), err.getvalue().splitlines(), time.process_time() - started])
json.dump({"found": found, "heavy": sorted({"torch", "transformers", "numpy"} & set(sys.modules))}, sys.stdout)
"""


def places(schema: dict[str, Any], value: Any, root: dict[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration with the part of the schema that describes it."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    for variant in schema.get("anyOf", ()):
        if isinstance(value, dict) and accepts(variant, value, root):
            yield from places(variant, value, root, key)
    for name, part in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            dotted = f"{key}.{name}".removeprefix(".")
            yield dotted, part
            yield from places(part, value[name], root, dotted)


def block_style(data: dict[str, Any], indent: str = "") -> list[str]:
    """A YAML with one line for each key; lists and what is wrong in the place of a section are written in one line."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{json.dumps(key)}:", *block_style(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{json.dumps(key)}: {json.dumps(value).replace('NaN', '.nan')}")
    return lines


def line_of(lines: list[str], key: str) -> int:
    """Return where a key stands, or the nearest section around it; 1 for the whole file."""
    at, found = 0, 1
    for depth, name in enumerate(key.split(".")):
        start = f"{'  ' * depth}{json.dumps(name)}:"
        here = next((n for n, line in enumerate(lines[at:], at) if line.startswith(start)), None)
        if here is None:
            return found
        at, found = here + 1, here + 1
    return found


def mistakes(schema: dict[str, Any], chance: random.Random) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(key, configuration): each key of each architecture with each wrong value, then left out, then misspelt.

    Some keys may be left out.
    """
    for name in ARCHITECTURES:
        whole = load_config(start(name)).resolved()
        for key, part in places(schema, whole, schema):
            for value in WRONG:
                if not accepts(part, value, schema):
                    yield key, partial(changed, whole, key, value)
            yield key, partial(changed, whole, key, ...)
            cut = chance.randint(key.rfind(".") + 1, len(key))
            misspelt = f"{key[:cut]}x{key[cut:]}"
            yield misspelt, partial(changed, whole, misspelt, 1)


@pytest.mark.long
def test_300_malformed_files_are_refused_by_line_and_key(schema: dict[str, Any], tmp_path: Path) -> None:
    chance = random.Random(14)
    everything = list(mistakes(schema, chance))
    chance.shuffle(everything)
    keys = {key for name in ARCHITECTURES for key, _ in places(schema, load_config(start(name)).resolved(), schema)}
    once: dict[str, tuple[str, dict[str, Any]]] = {}
    more: list[tuple[str, dict[str, Any]]] = []
    for key, make in everything:
        if (first := key in keys and key not in once) or len(more) < 300:
            data = make()
            if not accepts(schema, data, schema):
                if first:
                    once[key] = key, data
                else:
                    more.append((key, data))
    assert set(once) == keys
    chosen = [*once.values(), *more][:300]
    assert len(chosen) == 300
    files = []
    for number, (_, data) in enumerate(chosen):
        path = tmp_path / f"{number}.yaml"
        path.write_text("\n".join(block_style(data)) + "\n")
        files.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", CHECKING], input=json.dumps(files), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["heavy"] == []
    for file, (key, data), (code, out, lines, seconds) in zip(files, chosen, answer["found"], strict=True):
        where = (key, Path(file).read_text(), lines)
        assert (code, out) == (2, ""), where
        assert all(re.fullmatch(rf"{re.escape(file)}:\d+: [^:]+: .+", line) for line in lines), where
        said = [line.removeprefix(f"{file}:").split(": ", 2)[:2] for line in lines]
        assert any(
            f"{named}.".startswith(f"{key}.") and line == str(line_of(block_style(data), named)) for line, named in said
        ), where
        assert seconds < 1, where


def test_the_command_prints_the_schema_of_all_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert err == ""
    assert printed["$schema"] == DIALECT == "https://json-schema.org/draft/2020-12/schema"
    variants = printed["properties"]["model"]["anyOf"]
    assert [each["properties"]["architecture"]["const"] for each in variants] == available_architectures()
    assert all(each["description"] for each in variants)


def test_it_uses_only_known_keywords_and_needed_definitions(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) == set(schema["$defs"])
    assert '"ge"' not in text
    assert schema["properties"]["data"] == {"$ref": "#/$defs/DataConfig"}


class _Section(ConfigSection):
    width: int = 1


class _Registered(ModelConfig):
    mine: _Section = _Section()


class _Unspeakable(ModelConfig):
    when: Callable[[int], int]


def _descriptor(name: str, section: type[ModelConfig]) -> Architecture:
    return Architecture(name=name, summary="of a third party", config_class=section, model_class="nowhere:Model")


def test_a_registered_architecture_is_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registered_architectures(), "mine", _descriptor("mine", _Registered))
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    data = changed(start("gpt2"), "model", {"architecture": "mine", "mine": {"width": 2}})
    assert accepts(printed, data, printed)
    assert not accepts(printed, changed(data, "model.mine.widht", 2), printed)


def test_a_plugin_that_fails_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    information = tmp_path / "foundry_broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: foundry-broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[foundry.architectures]\nbroken = foundry_broken_absent:broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registered_architectures(), "unspeakable", _descriptor("unspeakable", _Unspeakable))
    assert main(["schema"]) == 0
    out, err = capsys.readouterr()
    first, second = err.strip().split("\n")
    assert first.startswith("warning: left out: the plugin foundry-broken 1.0 ")
    assert second.startswith("warning: left out: the JSON schema of 'unspeakable' fails: ")
    variants = json.loads(out)["properties"]["model"]["anyOf"]
    assert {each["title"] for each in variants} == set(available_architectures()) - {"broken", "unspeakable"}


def test_without_any_architecture_the_rest_is_described() -> None:
    schema = schema_of([])
    assert not accepts(schema, changed(start("gpt2"), "data.batch", 3), schema)


def test_the_help_names_the_comment_that_editors_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schema", "--help"])
    assert "# yaml-language-server: $schema=" in capsys.readouterr().out


@pytest.mark.long
def test_printing_it_imports_no_torch() -> None:
    code = "import sys; from foundry_core.cli import main; sys.exit(main(['schema']) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
