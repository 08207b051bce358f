"""`foundry init`: what it writes validates as it is, and with every default uncommented, for any architecture."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from foundry_core.cli import main
from foundry_core.cli.common import yaml_scalar
from foundry_core.cli.init import COMMENT_COLUMN, WIDTH, starting_yaml
from foundry_core.config.experiment import ExperimentConfig
from foundry_core.config.loading import load_config
from foundry_core.config.yaml_source import YamlSource
from foundry_core.registry.architecture import Architecture, Capabilities
from foundry_core.registry.loading import available_architectures, get_architecture
from foundry_core.schema import ConfigSection, ModelConfig
from tests.each import each

ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "plugins"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ARCHITECTURES = ["bert", "gpt2", "gru", "lstm", "mamba", "ngram", "rnn", "transformers"]


def written(name: str, experiment: str | None = None) -> str:
    return starting_yaml(get_architecture(name), experiment or name)


def uncommented(text: str) -> str:
    """With the "# " before every hidden key removed; comments in the column of their own stay."""
    return re.sub(r"(?m)^( {0,8})# ( *[a-z_0-9]+:(?: .*)?)$", r"\1\2", text)


def data(text: str) -> Any:
    return YamlSource.parse(text, "text").data


def keys(section: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a configuration."""
    for name in type(section).model_fields:
        yield (*prefix, name)
        if isinstance(value := getattr(section, name), BaseModel):
            yield from keys(value, (*prefix, name))


def test_these_are_the_architectures_installed_here() -> None:
    assert set(ARCHITECTURES) <= set(available_architectures())


@each("name", ARCHITECTURES)
def test_the_file_validates_as_it_is(name: str) -> None:
    config = load_config(data(written(name)))
    assert config.model.architecture == name
    assert config.data.training_corpus == "corpora/train.txt"
    assert config.data.test_corpus == "corpora/dev.txt"
    assert config.training.output_dir == f"runs/{name}"
    assert config.tokenizer.tokenizer_type == get_architecture(name).default_tokenizer
    assert config.training.objective == config.capabilities.objectives[0]


@each("name", ARCHITECTURES)
def test_with_every_default_uncommented_the_experiment_is_equal(name: str) -> None:
    text = uncommented(written(name))
    assert text != written(name)
    assert load_config(data(text)) == load_config(data(written(name)))


@each("name", ARCHITECTURES)
def test_every_key_there_is_stands_in_the_file_with_its_meaning(name: str) -> None:
    source = YamlSource.parse(uncommented(written(name)), "text")
    expected = set(keys(load_config(data(written(name)))))
    assert {key for key in source.lines if key and all(isinstance(part, str) for part in key)} == expected
    flat = " ".join(re.sub(r"\n +# ", " ", written(name)).split())
    for field in get_architecture(name).config_class.model_fields.values():
        assert (field.description or "") in flat
    for section in ("data", "training", "logging"):
        model: Any = ExperimentConfig.model_fields[section].annotation
        for field in model.model_fields.values():
            assert f"# {field.description}" in flat


@each("name", ARCHITECTURES)
def test_lines_are_short_and_comments_stand_in_one_column(name: str) -> None:
    for line in written(name).split("\n"):
        assert len(line) <= WIDTH == 110, line
        assert line == line.rstrip()
        key, sign, _ = line[COMMENT_COLUMN - 1 :].partition("# ")
        if sign and not line.startswith("# ") and len(line) > COMMENT_COLUMN:
            assert key == " ", line


def test_what_people_set_is_written_out_and_the_rest_is_hidden() -> None:
    assert data(written("gpt2")) == {
        "experiment_name": "gpt2",
        "random_seed": 42,
        "data": {
            "training_corpus": "corpora/train.txt",
            "test_corpus": "corpora/dev.txt",
            "max_sequence_length": 128,
            "batch_size": 16,
        },
        "tokenizer": {"tokenizer_type": "sentencepiece", "vocab_size": 8000},
        "model": {
            "architecture": "gpt2",
            "transformer": {
                "layers": 4,
                "embedding_size": 192,
                "hidden_size": 192,
                "intermediate_hidden_size": 768,
                "attention_heads": 6,
                "activation_function": "gelu_new",
                "dropout": 0.1,
                "attention_dropout": 0.1,
            },
            "gpt2": {"tie_embeddings": True, "bias": True},
        },
        "training": {
            "output_dir": "runs/gpt2",
            "objective": "causal_lm",
            "learning_rate": 0.001,
            "epochs": 10,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.05,
            "evaluate_every_steps": 500,
            "checkpoints": {"every_steps": 1000, "log_base": 2},
        },
        "logging": {"log_every_steps": 10},
    }


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


INTENDED = {
    # The recipes are for a megabyte of plays, with an empty line between speeches.
    "data.documents": ("line", "block"),
    "tokenizer.vocab_size": (8000, 1000),
}
BOTH_DIRECTIONS = {
    "model.rnn.hidden_size": (256, 192),
    "model.rnn.bidirectional": (False, True),
    "training.objective": ("causal_lm", "masked_lm"),
    "training.mlm_probability": (0.15, 0.3),
    "training.learning_rate": (0.005, 0.003),
}


@each("path", CONFIGS)
def test_what_it_writes_is_the_recipe_of_configs(path: Path) -> None:
    recipe = load_config(path)
    name = recipe.model.architecture
    start = flat(load_config(data(written(name, path.stem))).resolved())
    differences = {key: (start[key], value) for key, value in flat(recipe.resolved()).items() if start[key] != value}
    # A tokenizer outside of the run serves several of them.
    assert differences.pop("tokenizer.output_dir") == (None, f"tokenizers/{path.stem}")
    assert differences == INTENDED | (BOTH_DIRECTIONS if path.stem == "bilstm" else {})


def test_every_architecture_has_a_recipe_in_configs() -> None:
    assert {load_config(path).model.architecture for path in CONFIGS} == set(ARCHITECTURES)


@each("name", ARCHITECTURES)
def test_the_readme_of_a_plugin_shows_the_sizes_of_its_recipe(name: str) -> None:
    home = {"lstm": "rnn", "gru": "rnn"}.get(name, name)
    readme = (PLUGINS / f"foundry-{home}" / "README.md").read_text(encoding="utf-8")
    shown = data(readme.partition("```yaml\n")[2].partition("```")[0])["model"]
    start = flat(data(written(name))["model"])
    assert {key: start[key] for key in flat(shown) if key != "architecture"} == {
        key: value for key, value in flat(shown).items() if key != "architecture"
    }


def test_the_share_of_hidden_tokens_is_written_only_for_masking() -> None:
    assert data(written("bert"))["training"]["mlm_probability"] == 0.3
    assert "\n  # mlm_probability: 0.15 " in written("gpt2")


class _Gates(ConfigSection):
    decay: float = Field(0.5, description="of a gate")
    kind: Literal["hard", "soft"] = Field("soft", description="of a gate")


class _Foreign(ModelConfig):
    width: int = Field(ge=1, description="no default: an example must say it")
    gates: _Gates = Field(_Gates(decay=0.25), description="a section whose default is not its class's")
    more: _Gates | None = Field(None, description="a section that may be left out")
    sizes: dict[str, int] = Field(default_factory=lambda: {"a": 1}, description="made anew for each")


FOREIGN = Architecture(
    name="foreign",
    summary="of a third party",
    config_class=_Foreign,
    model_class="nowhere:Model",
    capabilities=lambda config: Capabilities(
        objectives=("masked_lm",) if config.width == 12 else (), longest_sequence=64
    ),
    default_tokenizer="character",
    examples={"tiny": {"width": 12}},
)


def test_a_third_party_architecture_gets_its_keys_and_defaults() -> None:
    text = starting_yaml(FOREIGN, "mine")
    section = data(text)["model"]
    assert section == {
        "architecture": "foreign",
        "width": 12,
        "gates": {"decay": 0.25, "kind": "soft"},
        "sizes": {"a": 1},
    }
    assert data(uncommented(text))["model"]["more"] is None
    assert _Foreign.model_validate(section).gates.decay == 0.25
    assert data(text)["training"]["objective"] == "masked_lm"
    assert data(text)["tokenizer"]["tokenizer_type"] == "character"
    assert data(text)["data"]["max_sequence_length"] == 64


def test_the_values_of_its_recipe_precede_defaults_and_examples() -> None:
    recipe: dict[str, dict[str, Any]] = {
        "model": {"width": 20},
        "training": {"learning_rate": 0.02},
        "data": {"batch_size": 3},
    }
    section = data(starting_yaml(replace(FOREIGN, recipe=recipe), "mine"))
    assert section["model"]["width"] == 20
    assert section["model"]["gates"] == {"decay": 0.25, "kind": "soft"}
    assert (section["training"]["learning_rate"], section["data"]["batch_size"]) == (0.02, 3)
    assert section["data"]["max_sequence_length"] == 64


ARCHITECTURE_FILE = """\
from pydantic import Field
from foundry_core.registry.architecture import Architecture, registered_architectures
from foundry_core.schema import ConfigSection, ModelConfig

class Config(ModelConfig):
    width: int = Field(description="how wide")

unsized = Architecture("unsized", "no example says its width", Config, "nowhere:Model")
registered_architectures()["unsized"] = unsized
"""


def test_a_key_without_default_or_example_is_left_to_fill_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "unsized_plugin.py"
    plugin.write_text(ARCHITECTURE_FILE)
    assert main(["init", "unsized", "--plugin", str(plugin)]) == 0
    out, err = capsys.readouterr()
    assert "\n  width: null " in out
    assert err.startswith("to fill in before training: model.width: ")


def test_the_file_of_the_command_is_that_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.yaml"
    assert main(["init", "lstm", "--name", "small", "-o", str(target)]) == 0
    assert capsys.readouterr() == ("", "")
    assert target.read_text() == written("lstm", "small")
    assert load_config(target).experiment_name == "small"
    assert load_config(target).training.output_dir == "runs/small"
    assert main(["init", "lstm", "--name", "small"]) == 0
    assert capsys.readouterr().out == target.read_text()


def test_an_existing_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    assert main(["init", "gpt2", "-o", str(target)]) == 2
    assert (
        capsys.readouterr().err == f"error: {target} exists and is not overwritten: name another file, or remove it\n"
    )
    assert target.read_text() == "mine"
    assert main(["init", "gpt2", "-o", str(tmp_path / "new" / "x.yaml")]) == 0
    assert main(["init", "gpt2", "-o", str(target / "x.yaml")]) == 8


def test_an_unknown_architecture_is_the_error_of_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "lstn"]) == 3
    assert capsys.readouterr().err.startswith("error: Unknown architecture: 'lstn'. Did you mean 'lstm'?")


def test_a_name_that_cannot_be_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "gpt2", "--name", "a/b"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --name: ")
    assert err.count("\n") == 1


TEXTS = (
    "a",
    "a b",
    "1e-4",
    "true",
    "null",
    "",
    " x",
    "a: b",
    "a #b",
    "a\nb",
    "a, b",
    "-",
    "~",
    "'q'",
    "\x85",
    "\x7f",
    "😀\n",
)


@each("value", [*TEXTS, 1e-8, 0.1, 10**12, True, None])
def test_a_value_reads_back_as_itself(value: Any) -> None:
    text = yaml_scalar(value)
    assert data(f"key: {text} # comment\nlist: [{text}, {text}]\n") == {"key": value, "list": [value, value]}


@pytest.mark.long
def test_writing_it_imports_no_torch() -> None:
    code = "import sys; from foundry_core.cli import main; sys.exit(main(['init', 'rnn']) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
