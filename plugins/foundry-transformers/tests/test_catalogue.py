"""The catalogue read from the library's source agrees with its classes, and checks a section without torch."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from foundry_transformers import TransformersModelConfig, catalogue, section_class
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from foundry_core import Capabilities, ExperimentConfig, load_config
from foundry_core.errors import ConfigError
from foundry_core.registry.loading import get_architecture
from tests.each import each

Experiment = Callable[..., ExperimentConfig]
EXAMPLES = get_architecture("transformers").examples
TYPES = ["llama", "mamba", "roberta", "deberta-v2", "opt", "gpt_neox", "gpt2", "xlm-roberta", "mistral", "modernbert"]


def section(**settings: Any) -> Any:
    return TransformersModelConfig.model_validate({"architecture": "transformers", "transformers": settings})


def sized(name: str, **settings: Any) -> dict[str, Any]:
    """Settings of a type with a number for each of its sizes."""
    kind = catalogue.model_type(name)
    assert kind is not None
    return {"model_type": name, **dict.fromkeys(sorted(kind.sizes), 32), **settings}


def capabilities(name: str, **settings: Any) -> Capabilities:
    return get_architecture("transformers").capabilities(section(**sized(name, **settings)))


@each("name", TYPES)
def test_the_keys_and_defaults_of_a_type_are_those_of_its_class(name: str) -> None:
    kind = catalogue.model_type(name)
    assert kind is not None
    config_class = getattr(transformers, kind.config_class)
    own = {field.name: field for field in dataclasses.fields(config_class) if not field.name.startswith("_")}
    of_all = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert set(kind.settings) == {key for key in own if key not in of_all or key in config_class.__annotations__}
    for key, setting in kind.settings.items():
        if not setting.opaque:
            assert setting.default == own[key].default, key
    assert kind.aliases == config_class.attribute_map


@each("name", TYPES)
def test_what_a_type_can_do_is_what_its_class_says(name: str) -> None:
    kind = catalogue.model_type(name)
    assert kind is not None
    assert kind.causal_class == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(name)
    assert kind.masked_class == MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(name)
    model_class = getattr(transformers, kind.causal_class or kind.masked_class)
    assert kind.gradient_checkpointing == model_class.supports_gradient_checkpointing
    assert kind.stateful == model_class._is_stateful


@each(
    ("name", "sizes"),
    [
        ("llama", ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"]),
        ("gpt2", ["n_embd", "n_head", "n_layer"]),
        ("opt", ["ffn_dim", "hidden_size", "num_attention_heads", "num_hidden_layers"]),
        ("mamba", ["hidden_size", "num_hidden_layers"]),
        ("bart", ["d_model", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layers"]),
    ],
)
def test_sizes_have_no_default(name: str, sizes: list[str]) -> None:
    fields = section_class(name).model_fields
    assert sorted(key for key, field in fields.items() if field.is_required()) == sorted(["model_type", *sizes])


def test_nearly_every_type_asks_for_its_width_and_its_layers() -> None:
    few = [name for name in catalogue.model_types() if len(catalogue.model_type(name).sizes) < 2]  # type: ignore[union-attr]
    assert few == ["blt", "perceiver"]


def test_every_type_has_a_section_whose_defaults_round_trip() -> None:
    names = catalogue.model_types()
    assert len(names) > 150
    for name in names:
        written = section_class(name).model_validate(sized(name)).model_dump(mode="json")
        read = section(**written).transformers
        assert type(read) is section_class(name)
        assert read.model_dump(mode="json") == written
        assert all(field.description for field in section_class(name).model_fields.values())


@each(
    ("name", "role"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", "matrix"),
        ("transformer.layer.0.rel_attn.q", "matrix"),
        ("funnel.encoder.blocks.0.0.attention.r_kernel", "matrix"),
        ("transformer.layer.0.rel_attn.seg_embed", "embedding"),
        ("perceiver.embeddings.latents", "embedding"),
        ("reformer.embeddings.position_embeddings.weights.0", "embedding"),
        ("backbone.layers.0.mixer.A_log", "other"),
        ("model.layers.0.scale", "other"),
    ],
)
def test_a_parameter_outside_layers_has_a_role_by_its_name(name: str, role: str) -> None:
    assert catalogue.role(name) == role


@pytest.mark.long
def test_reading_and_checking_imports_no_torch_or_transformers() -> None:
    program = (
        "import sys\nfrom foundry_core.registry.loading import get_architecture\n"
        "descriptor = get_architecture('transformers')\n"
        "for example in descriptor.examples.values():\n"
        "    settings = {'architecture': 'transformers', **example}\n"
        "    descriptor.capabilities(descriptor.config_class.model_validate(settings))\n"
        "assert not {'torch', 'transformers', 'numpy', 'foundry_transformers.model'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.long
def test_the_descriptor_by_itself_reads_no_source() -> None:
    program = "import foundry_transformers.catalogue as c; assert c._tables.cache_info().misses == 0"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


PROBLEMS = [
    ("hidden_sise: 3", "hidden_sise: unknown key: not in LlamaConfig. Did you mean 'hidden_size'?"),
    ("expand: 3", "expand: unknown key: not in LlamaConfig."),
    ("hidden_size: wide", "hidden_size: must be an integer, not 'wide'"),
    ("hidden_size: 3.5", "hidden_size: must be an integer, not 3.5"),
    ("hidden_size: true", "hidden_size: must be an integer, not True"),
    ("hidden_size: null", "hidden_size: must be an integer, not nothing (null)"),
    ("tie_word_embeddings: 1", "tie_word_embeddings: must be a boolean, not 1"),
    ("rms_norm_eps: .nan", "rms_norm_eps: must be a finite number, not nan"),
    ("rope_parameters: 7", "rope_parameters: must be a section, not 7"),
    ("vocab_size: 100", "vocab_size: comes from the tokenizer: set tokenizer.vocab_size"),
    ("bos_token_id: 1", "bos_token_id: comes from the tokenizer: see tokenizer.special_tokens"),
    ("mask_token_id: 1", "mask_token_id: comes from the tokenizer: see tokenizer.special_tokens"),
    (
        "max_position_embeddings: 9",
        "max_position_embeddings: comes from data.max_sequence_length, or set max_positions",
    ),
    ("use_cache: false", "use_cache: is set for each call: remove it"),
    ("model_type: lama", "model_type: transformers has no model type 'lama'. Did you mean 'llama'?"),
    ("model_type: zzzzzz", "model_type: transformers has no model type 'zzzzzz'. There are * see foundry schema."),
    ("model_type: vit", "model_type: 'vit' has no causal or masked language model that can be trained here.*"),
    ("model_type: gemma3", "model_type: 'gemma3' has no causal or masked * Did you mean 'gemma3_text'?"),
    ("model_type: 7", "model_type: must be a string, not 7"),
    ("model_type: null", "model_type: must be a string, not nothing (null)"),
    ("{model_type: gpt2, hidden_size: 3}", "hidden_size: is called n_embd in a GPT2Config"),
    ("{model_type: gpt2, n_positions: 3}", "n_positions: comes from data.max_sequence_length, or set max_positions"),
    ("{model_type: mamba, time_step_rank: [3]}", "time_step_rank: must be str | int, not [3]"),
    ("{model_type: mamba, max_positions: 9}", "max_positions: unknown key: not in MambaConfig."),
    ("{model_type: mamba, max_position_embeddings: 9}", "max_position_embeddings: comes from data.max_sequence_length"),
    ("{model_type: opt, _remove_final_layer_norm: true}", "_remove_final_layer_norm: unknown key*"),
    ("{hidden_size: 3}", "model_type: missing: architecture 'transformers' requires it"),
]


@each(("text", "problem"), PROBLEMS)
def test_a_problem_is_one_line_with_its_place_and_its_key(
    text: str, problem: str, experiment: Experiment, tmp_path: Path
) -> None:
    resolved = experiment("transformers", tmp_path).resolved()
    resolved["model"] = {"architecture": "transformers"}
    written = yaml.safe_dump(resolved)
    if text.startswith("{"):
        written = written.replace(
            "architecture: transformers\n", f"architecture: transformers\n  transformers:\n    {text}\n"
        )
        line = 2
    else:
        lines = "" if text.startswith("model_type") else "    model_type: llama\n"
        written = written.replace(
            "architecture: transformers\n", f"architecture: transformers\n  transformers:\n{lines}    {text}\n"
        )
        line = 2 if lines == "" else 3
    path = tmp_path / "trial.yaml"
    path.write_text(written)
    start = written[: written.index("  architecture: transformers")].count("\n") + 1
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    # Besides the sizes, which these sections lack.
    (told,) = [line for line in str(caught.value).splitlines() if "missing" not in line or "missing" in problem]
    place, found = told.split(": model.transformers.", 1)
    assert place == f"{path}:{start + (1 if 'missing' in problem else line)}"
    assert fnmatch.fnmatchcase(found.replace("[", "("), problem.replace("[", "(")), found


def test_all_problems_of_a_section_are_told_at_once(experiment: Experiment, tmp_path: Path) -> None:
    settings = {"model_type": "opt", "ffn_dimm": 3, "dropout": "much", "vocab_size": 9, "layerdrop": None}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(ConfigError) as caught:
        experiment("transformers", tmp_path, model={"transformers": settings})
    keys = [problem.key.rpartition(".")[2] for problem in caught.value.problems]
    assert sorted(keys) == ["dropout", "ffn_dim", "ffn_dimm", "hidden_size", "layerdrop", "vocab_size"]


def test_a_section_survives_pickling_and_copying(experiment: Experiment, tmp_path: Path) -> None:
    for example in EXAMPLES:
        own = experiment("transformers", tmp_path, example=example).model.transformers
        for other in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
            assert other == own
            assert type(other) is type(own)
            assert other.model_fields_set == own.model_fields_set


def test_an_encoder_is_trained_in_its_configured_direction() -> None:
    masked, causal = (capabilities("roberta", is_decoder=decoder) for decoder in (False, True))
    assert (masked.objectives, masked.generation, masked.stateful) == (("masked_lm",), False, False)
    assert (causal.objectives, causal.generation, causal.stateful) == (("causal_lm",), True, True)
    assert capabilities("gpt_neox").objectives == ("causal_lm",)  # its is_decoder says nothing


def test_what_is_declared_depends_on_the_type() -> None:
    llama, mamba, xlm = (capabilities(name) for name in ("llama", "mamba", "xlm"))
    assert (llama.stateful, llama.unbounded_length) == (True, False)
    assert (mamba.stateful, mamba.unbounded_length, mamba.padding_sides) == (False, True, ("left", "right"))
    assert (xlm.gradient_checkpointing, llama.gradient_checkpointing) == (False, True)
    assert capabilities("bloom").padding_sides == ("right",)
