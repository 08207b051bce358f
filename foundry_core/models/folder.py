"""Any language model as a normal transformers folder: config.json, model.safetensors, and the way back.

A model that transformers knows (GPT-2, BERT) is saved under its own keys. Any other is put behind an adapter, a
`PreTrainedModel` made here for its architecture and registered with the auto classes; the folder then also carries a
two-line module, so that `AutoModel...from_pretrained(folder, trust_remote_code=True)` opens it in a process that has
not imported the plugin, and transformers names the package to install when it is missing.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from foundry_core import __version__
from foundry_core.config.experiment import ExperimentConfig, load_config
from foundry_core.errors import CheckpointError, ConfigError, PluginError
from foundry_core.registry.architecture import BuildContext
from foundry_core.registry.loading import blame, import_string, shipped_by
from foundry_core.registry.objective import Objective
from foundry_core.run_folder import GENERATION_CONFIG, MANIFEST, MODEL_CONFIG, MODELING, TRAINER_STATE, WEIGHTS
from foundry_core.storage.files import FileSink
from foundry_core.storage.manifest import parse_json, read_manifest, read_plain_file

if TYPE_CHECKING:
    from foundry_core.models.base import BaseLanguageModel

_MODULE = MODELING.removesuffix(".py")
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


@contextmanager
def undisturbed_random_state() -> Iterator[None]:
    """Whatever is seeded or drawn inside, the process's generators, the GPUs' included, are left as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def describe(config: ExperimentConfig, context: BuildContext) -> dict[str, Any]:
    """What config.json carries under `foundry`: enough to build the model again, as plain data."""
    facts = asdict(context)
    facts["objective"] = context.objective.name
    return {
        "format": 1,
        "core": __version__,
        "plugin": installed_plugin(config.model.architecture),
        "providers": config.providers,
        "needs": config.needed_to_read,
        "experiment": config.resolved(),
        "context": facts,
    }


def installed_plugin(architecture: str) -> dict[str, str] | None:
    """Distribution and version that ship an architecture; None for one registered in this process."""
    point = shipped_by(architecture)
    return None if point is None else {"distribution": point.distribution, "version": point.version}


def release(plugin: Any) -> str:
    """What `installed_plugin` found, or a checkpoint says of itself, in words."""
    if not isinstance(plugin, dict):
        return "no installed package"
    return f"{plugin.get('distribution')} {plugin.get('version')}"


def rebuild(description: dict[str, Any]) -> BaseLanguageModel:
    """A model with fresh weights from what `describe` stored; the process's random state is left as it was.

    Raises CheckpointError when the architecture is not installed here, or the description is not one.
    """
    config, context = _described(description)
    with undisturbed_random_state():
        return build(config, context)


def _described(description: dict[str, Any]) -> tuple[ExperimentConfig, BuildContext]:
    try:
        config = load_config(_without_training(description))
        return config, _stored_context(description["context"], config.objective)
    except (ConfigError, PluginError) as error:
        made_with = release(description.get("plugin"))
        problems = "; ".join(str(error).splitlines())
        raise CheckpointError(f"this model cannot be built here. It was made with {made_with}. {problems}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the foundry part of config.json is damaged: {error}") from error


def _without_training(description: dict[str, Any]) -> dict[str, Any]:
    """The experiment without what only training took: observers, and the optimizer of another package."""
    experiment = dict(description["experiment"])
    needs = description.get("needs")
    if needs is not None:
        experiment["plugins"] = [module for module in experiment["plugins"] if module in needs]
    if "optimizer" in description.get("providers", {}):
        optimizer = ("optimizer", "optimizer_settings")
        experiment["training"] = {key: value for key, value in experiment["training"].items() if key not in optimizer}
    return experiment


def _stored_context(stored: dict[str, Any], objective: Objective) -> BuildContext:
    """Raises TypeError or ValueError for sizes and ids that no tokenizer gives."""
    context = BuildContext(**{**stored, "objective": objective})
    sizes = ("vocab_size", "max_sequence_length")
    for name in sizes:
        if type(stored[name]) is not int or stored[name] < 1:
            raise ValueError(f"its context has {name} {stored[name]!r}")
    for name, value in stored.items():
        if name in ("objective", *sizes) or value is None:
            continue
        if type(value) is not int or not 0 <= value < context.vocab_size:
            raise ValueError(f"its context has {name} {value!r}")
    return context


def build(config: ExperimentConfig, context: BuildContext, **kwargs: Any) -> BaseLanguageModel:
    """The model of a configuration, through its plugin. Raises PluginError where that has no model to give."""
    target = config.architecture.model_class
    model_class = import_string(target) if isinstance(target, str) else target
    if not _is_ours(model_class):
        raise PluginError(f"{target} is no class derived from BaseLanguageModel")
    missing = ", ".join(sorted(model_class.__abstractmethods__))
    if missing:
        raise PluginError(f"{model_class.__module__}.{model_class.__qualname__} does not define {missing}")
    model: BaseLanguageModel = model_class.from_config(config, context, **kwargs)
    if not _is_ours(type(model)):
        kind = type(model).__name__
        raise PluginError(f"{model_class.__module__}.{model_class.__qualname__}.from_config gives a {kind}, no model")
    _refuse_misfit(model)
    return model


def _refuse_misfit(model: BaseLanguageModel) -> None:
    """What training calls, called wrongly, would fail in a line of ours: it is the model that does not take it."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if "context" not in vars(model):
        raise PluginError(f"{name}.__init__ does not call super().__init__(config, context)")
    embeddings: Any = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Module):
        kind = type(embeddings).__name__
        raise PluginError(
            f"{name}.get_input_embeddings gives a {kind}, not the module that turns token ids into vectors"
        )
    try:
        inspect.signature(model.forward).bind(
            None, attention_mask=None, labels=None, reduction="sum", return_logits=False
        )
    except TypeError as error:
        raise PluginError(
            f"{name}.forward does not take (input_ids, attention_mask=, labels=, **kwargs), which are handed on to "
            f"`self.output`: {error}"
        ) from error


def _is_ours(kind: Any) -> bool:
    from foundry_core.models.base import BaseLanguageModel

    return isinstance(kind, type) and issubclass(kind, BaseLanguageModel)


class _ExposedModel(PreTrainedModel):  # type: ignore[misc]
    """Adapter that gives a `BaseLanguageModel` the surface of transformers."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    supports_gradient_checkpointing = False

    def __init__(self, config: PreTrainedConfig, model: BaseLanguageModel | None = None):
        super().__init__(config)
        # transformers builds on the meta device, with some functions of torch on the CPU: a plugin may mix the two.
        with torch.device("cpu"):
            self.model = rebuild(config.foundry) if model is None else model
        objective = self.model.context.objective
        if objective.causal != isinstance(self, GenerationMixin):
            raise CheckpointError(f"a model trained with {objective.name} opens with {objective.auto_class}")
        self._tied_weights_keys = _ties(self)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **keywords: Any) -> Any:
        """As in transformers; buffers that are computed and not stored, which it leaves undefined, come back too."""
        opened = super().from_pretrained(*arguments, **keywords)
        outer = opened[0] if isinstance(opened, tuple) else opened
        stored = outer.state_dict()
        computed = {name: buffer for name, buffer in outer.model.named_buffers() if f"model.{name}" not in stored}
        if computed:
            built = dict(rebuild(outer.config.foundry).named_buffers())
            for name, buffer in computed.items():
                buffer.copy_(built[name])
        return opened

    def _init_weights(self, module: nn.Module) -> None:
        """The plugin has initialised its weights; transformers' own scheme would replace them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        state: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if state is not None:
            kwargs["state"] = state
        if use_cache is not None and self.model.config.capabilities.stateful:
            kwargs["use_cache"] = use_cache
        kwargs.pop("logits_to_keep", None)
        kwargs.pop("past_key_values", None)
        outputs = self.model(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        if use_cache is False and "state" in outputs:
            outputs = type(outputs)(**{key: value for key, value in outputs.items() if key != "state"})
        return outputs.to_tuple() if return_dict is False else outputs


class _ExposedCausalModel(_ExposedModel, GenerationMixin):  # type: ignore[misc]
    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, state: Any = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": kwargs.get("use_cache")}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        # From 5.24 on transformers hands its own caches from step to step, and no longer a `state`.
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return {**updated, "state": outputs["state"]} if "state" in outputs else updated

    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        beams = kwargs.get("num_beams") or (generation_config or self.generation_config).num_beams or 1
        # transformers reorders key-value caches between beams, not a recurrent state: recompute instead.
        if beams > 1 and generation_config is not None:
            generation_config = deepcopy(generation_config)
            generation_config.use_cache = False
        elif beams > 1:
            kwargs["use_cache"] = False
        return super().generate(inputs, generation_config, **kwargs)


@cache
def exposed(architecture: str) -> tuple[type[Any], type[Any], type[Any]]:
    """Configuration class, causal model class and masked model class of an architecture; registered once.

    `AutoConfig` then knows `foundry_<architecture>`, and the auto model classes open its folders.
    """
    name = "".join(part.capitalize() for part in architecture.replace("-", "_").split("_"))
    module = sys.modules[__name__]
    config_class: Any = type(
        f"Foundry{name}Config",
        (PreTrainedConfig,),
        {
            "__module__": __name__,
            "__annotations__": {
                "foundry": "dict | None",
                "vocab_size": "int",
                "max_position_embeddings": "int",
                "tie_word_embeddings": "bool",
            },
            "model_type": f"foundry_{architecture}",
            "foundry": None,
            "vocab_size": 0,
            "max_position_embeddings": 0,
            "tie_word_embeddings": False,
        },
    )
    classes: list[type[Any]] = [config_class]
    for suffix, base in (("ForCausalLM", _ExposedCausalModel), ("ForMaskedLM", _ExposedModel)):
        attributes = {"__module__": __name__, "config_class": config_class}
        classes.append(type(f"Foundry{name}{suffix}", (base,), attributes))
    for cls in classes:
        setattr(module, cls.__name__, cls)  # so that a model can be pickled by reference
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, classes[1])
    AutoModelForMaskedLM.register(config_class, classes[2])
    return config_class, classes[1], classes[2]


def expose(model: BaseLanguageModel) -> PreTrainedModel:
    """A transformers model around this one, sharing its weights."""
    config_class, causal, masked = exposed(model.model_type)
    chosen = causal if model.context.objective.causal else masked
    config = config_class(
        foundry=describe(model.config, model.context),
        vocab_size=model.context.vocab_size,
        max_position_embeddings=model.context.max_sequence_length,
        tie_word_embeddings=bool(_ties(model)),
        architectures=[chosen.__name__],
        **model.context.special_ids,
    )
    return chosen(config, model)


def _ties(module: nn.Module) -> dict[str, str]:
    """Names that share one parameter: each further name with the first."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return tied


def save_model(model: BaseLanguageModel, sink: FileSink) -> None:
    """Write what `model_files` gives, and model.safetensors."""
    for name, content in model_files(model).items():
        sink.write(name, content)
    sink.write(WEIGHTS, weights_file(stored_tensors(model)))


def model_files(model: BaseLanguageModel) -> dict[str, bytes]:
    """config.json, and where they apply generation_config.json and the loading module."""
    outer = model.to_transformers()
    config = outer.config.to_dict()
    config.update(model.context.special_ids, architectures=[type(outer).__name__], dtype="float32")
    config["foundry"] = describe(model.config, model.context)
    files = {}
    loading_module = _loading_module(model) if isinstance(outer, _ExposedModel) else None
    if loading_module is not None:
        files[MODELING] = loading_module
        config["auto_map"] = {
            "AutoConfig": f"{_MODULE}.{type(outer.config).__name__}",
            model.context.objective.auto_class: f"{_MODULE}.{type(outer).__name__}",
        }
    files[MODEL_CONFIG] = _json(config)
    if model.supports_generation:
        generation = {key: value for key, value in model.context.special_ids.items() if value is not None}
        files[GENERATION_CONFIG] = _json(generation)
    return files


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()


def _loading_module(model: BaseLanguageModel) -> bytes | None:
    """The module that `auto_map` names; None for an architecture that no installed package ships."""
    point = shipped_by(model.model_type)
    if point is None:
        return None
    package = point.module.partition(".")[0]
    names = ", ".join(cls.__name__ for cls in exposed(model.model_type))
    text = (
        f"import {package}  # pip install {point.distribution}\n"
        f"from foundry_core.models.folder import exposed\n\n"
        f'{names} = exposed("{model.model_type}")\n'
    )
    return text.encode()


def weights_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of tensors on any device."""
    content: bytes = to_safetensors(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"}
    )
    return content


def stored_tensors(model: BaseLanguageModel) -> dict[str, torch.Tensor]:
    """The model's own tensors under their names in the file, each shared one once."""
    outer = model.to_transformers()
    tied = _ties(outer)
    return {name: tensor.detach() for name, tensor in outer.state_dict().items() if name not in tied}


def read_description(folder: str | Path) -> dict[str, Any]:
    """The `foundry` part of a folder's config.json. Raises CheckpointError when it has none."""
    path = Path(folder) / MODEL_CONFIG
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} is not a model folder: it has no {MODEL_CONFIG}")
    content = parse_json(path, read_plain_file(path))
    try:
        description = content["foundry"]
        if description["format"] != 1 or not isinstance(description["experiment"], dict):
            raise KeyError("format")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} was not written by foundry, or is damaged ({type(error).__name__})") from error
    return dict(description)


def load_model(folder: str | Path) -> BaseLanguageModel:
    """The model of a saved folder, weights included, in evaluation mode.

    A checkpoint must match its manifest; a folder of `save_pretrained` has none. Sizes that the folder merely claims
    take no memory. Raises CheckpointError for whatever is not as it should be, naming the file.
    """
    folder = Path(folder)
    if os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / TRAINER_STATE):
        read_manifest(folder)
    description = read_description(folder)
    try:
        config, context = _described(description)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MODEL_CONFIG}: {error}") from error
    _check_sizes(config, context, folder)
    with undisturbed_random_state():
        model = build(config, context)
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def _check_sizes(config: ExperimentConfig, context: BuildContext, folder: Path) -> None:
    """Compare a model that takes no memory (torch's meta device) with the weights file, name by name.

    Otherwise 60 bytes of JSON could ask for a terabyte, or for a million layers. The parameters are counted while they
    are made, so that the latter ends early: a tied one is made twice, and a file may hold narrower numbers.
    """
    path = folder / WEIGHTS
    with open_tensors(path) as file:
        room = 16 * path.stat().st_size

        def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            nonlocal room
            room -= parameter.nbytes
            if room < 0:
                raise CheckpointError(
                    f"{folder / MODEL_CONFIG} describes a model that is larger than {WEIGHTS}: they do not "
                    "belong together"
                )

        counting = register_module_parameter_registration_hook(count)
        try:
            with torch.device("meta"), undisturbed_random_state():
                skeleton = build(config, context)
        except (RuntimeError, ArithmeticError, MemoryError, TypeError, ValueError, LookupError) as error:
            reason = blame(error) or error
            raise CheckpointError(
                f"{folder / MODEL_CONFIG} describes a model that cannot be built on torch's meta device: {reason}"
            ) from error
        finally:
            counting.remove()
        _fitting(skeleton, path, file)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """A safetensors file whose header has been read. Raises CheckpointError naming it when it is none."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a plain file")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def check_shape(path: Path, file: Any, name: str, expected: torch.Tensor) -> None:
    """Raises CheckpointError when a tensor of a file is not of the expected shape, before any of it is read."""
    header = file.get_slice(name)
    shape = tuple(header.get_shape())
    if shape != tuple(expected.shape):
        raise CheckpointError(f"{path}: {name} has shape {shape}, the model {tuple(expected.shape)}")
    if header.get_dtype() not in _DTYPES:
        raise CheckpointError(f"{path}: {name} is of type {header.get_dtype()}, which no model here has")


def _fitting(model: BaseLanguageModel, path: Path, file: Any) -> dict[str, torch.Tensor]:
    """The model's tensors that a file stores, by name. Raises CheckpointError naming the first that does not fit."""
    outer = model.to_transformers()
    state = outer.state_dict()
    stored = set(file.keys())
    missing = sorted(set(state) - stored - set(_ties(outer)))
    unknown = sorted(stored - set(state))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model has not"
        raise CheckpointError(f"{path} {what}: it belongs to another architecture or setting")
    for name in sorted(stored):
        check_shape(path, file, name, state[name])
    return {name: state[name] for name in sorted(stored)}


def load_weights(model: BaseLanguageModel, path: str | Path) -> None:
    """Copy a weights file into a model. Raises CheckpointError naming the first tensor that does not fit."""
    with open_tensors(path) as file, torch.no_grad():
        for name, tensor in _fitting(model, Path(path), file).items():
            tensor.copy_(file.get_tensor(name))


def exposed_by_plugin(*architectures: str) -> None:
    """Called at the end of a plugin's model module: `AutoModel` opens its checkpoints from then on."""
    for name in architectures:
        exposed(name)
