"""The base of all classes of the adapter: building and opening a model, and calling it in the words of transformers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file

from foundry_core.errors import FoundryError
from foundry_core.models.adapted_config import AdaptedConfig, hidden_size, tied_names
from foundry_core.models.building import read_description, rebuild
from foundry_core.models.interface import LanguageModel
from foundry_core.models.loss import ModelOutput
from foundry_core.models.migrations import own_shapes, pending, present_names
from foundry_core.run_folder import MODEL_CONFIG, WEIGHTS

_stored_shapes: ContextVar[Mapping[str, tuple[int, ...]]] = ContextVar("stored_shapes", default=MappingProxyType({}))
"""The shapes in the file that is about to be loaded: transformers builds the model from config.json alone."""


_OF_DOWNLOADS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def _opened(name: Any, keywords: Mapping[str, Any]) -> Path | None:
    """Return the folder that transformers is about to open: of a repository on the hub, the copy that it opens."""
    if name is None or Path(name).is_dir():
        return None if name is None else Path(name)
    asked = {key: keywords[key] for key in _OF_DOWNLOADS if key in keywords}
    try:
        config, weights = (cached_file(str(name), file, **asked) for file in (MODEL_CONFIG, WEIGHTS))
    except OSError:  # transformers says what is missing
        return None
    return Path(weights).parent if config and weights else None


class AdaptedModel(PreTrainedModel):  # type: ignore[misc]
    """Wraps a `LanguageModel` in the interface of transformers."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    supports_gradient_checkpointing = False

    def __init__(self, config: PreTrainedConfig, model: LanguageModel | None = None):
        super().__init__(config)
        self.model = _rebuilt(config) if model is None else model
        config.hidden_size = hidden_size(self.model)  # the first checkpoints lack it
        self.finish()
        self._tied_weights_keys = tied_names(self)
        # On one device of a `device_map`: inputs are moved where a layer is called, and a plugin may only read weights.
        self._no_split_modules = [type(self.model).__name__]
        self.post_init()

    def finish(self) -> None:
        """Check or extend the model, before transformers looks at it."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **keywords: Any) -> Any:
        """Open as transformers does, and restore the buffers that are not stored, which it leaves undefined.

        Weights that the plugin has renamed since a folder was written are found under their old names.
        """
        folder, shapes = _opened(arguments[0], keywords) if arguments else None, dict[str, tuple[int, ...]]()
        if folder is not None and (folder / WEIGHTS).exists():
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                names = present_names(file.keys(), pending(read_description(folder)), adapted=True)
                shapes = own_shapes(file, names)
            old = {f"^{re.escape(old)}$": new for new, old in names.items() if new != old}
            keywords = {"key_mapping": old or None, **keywords}
        token = _stored_shapes.set(shapes)
        try:
            opened = super().from_pretrained(*arguments, **keywords)
        finally:
            _stored_shapes.reset(token)
        outer = opened[0] if isinstance(opened, tuple) else opened
        stored = outer.state_dict()
        computed = {name: buffer for name, buffer in outer.model.named_buffers() if f"model.{name}" not in stored}
        built = dict(rebuild(outer.config.foundry).named_buffers()) if computed else {}
        for name, buffer in computed.items():
            buffer.copy_(built[name])
        return opened

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the weights that the plugin has initialised; transformers' own scheme would replace them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    def outputs(
        self,
        input_ids: torch.Tensor | None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        use_cache: bool | None = None,
        **passed: Any,
    ) -> ModelOutput:
        """Call the model with what is asked for in the words of transformers, or by its configuration.

        passed: Passed to the model unless it is None.

        Raises:
            FoundryError: The model does not support what is asked for.
            ValueError: There are not either ids or vectors.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        asked = {
            "inputs_embeds": inputs_embeds,
            "output_hidden_states": self._asked("output_hidden_states", output_hidden_states),
            "output_attentions": self._asked("output_attentions", output_attentions),
        }
        asked = {name: value for name, value in asked.items() if value is not None and value is not False}
        for name in asked:
            if name not in inspect.signature(self.model.forward).parameters:
                raise FoundryError(f"{self.model.model_type} does not support {name}")
        asked |= {name: value for name, value in passed.items() if value is not None}
        if use_cache is not None and self.model.config.capabilities.stateful:
            asked["use_cache"] = use_cache
        output: ModelOutput = self.model(input_ids, **asked)
        return output

    def _asked(self, name: str, given: Any) -> Any:
        """Return an argument of forward; as in all of transformers, the configuration has its default."""
        return getattr(self.config, name, None) if given is None else given


def _rebuilt(config: AdaptedConfig) -> LanguageModel:
    """Build the model on the CPU in fp32, whatever it is loaded into, and return it in the dtype asked for.

    transformers loads in a context of the meta device, with some functions of torch on the CPU, and of the dtype. A
    plugin may mix the two devices, and an initialisation such as `orthogonal_` exists only in fp32 and float64.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            model = rebuild(config.foundry or {})
            model.make_room(_stored_shapes.get())
            return model.to(dtype)
    finally:
        torch.set_default_dtype(dtype)


# torch collects the functions that `torch.device` acts on at the first use of one. In from_pretrained of transformers
# some are replaced by others: after a first use there, a model with `torch.linspace` could not be built on torch's
# meta device any more.
with torch.device("meta"):
    torch.empty(0)
