"""Names in transformers 4 for weights and settings that transformers 5 has renamed.

transformers 5 reads both, and its own `save_pretrained` writes the names of version 4, too.
"""

from __future__ import annotations

from typing import Any

import torch

from foundry_core.models.interface import LanguageModel

_ROTARY = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Types of model that call the settings of rotary positions otherwise than the rest."""


def original_names(model: LanguageModel) -> dict[str, str]:
    """Return the original names of the weights of a model of transformers, by their present names.

    Empty where nothing has another name, and where weights have been put together since, such as those of experts.
    """
    from transformers.modeling_utils import PreTrainedModel

    inner = None if model.is_adapted else model.transformers_form().weights
    if not isinstance(inner, PreTrainedModel):  # the parameters alone of one that has not been built
        return {}
    from transformers.core_model_loading import revert_weight_conversion

    names = list(inner.state_dict())
    # Numbers in place of the tensors: renaming does not look at them.
    found = [list(revert_weight_conversion(inner, {name: torch.tensor(place)})) for place, name in enumerate(names)]
    if any(len(each) != 1 for each in found):
        return {}
    renamed = {name: new for name, (new,) in zip(names, found, strict=True)}
    return renamed if any(name != new for name, new in renamed.items()) else {}


def with_original_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json with rotary positions also as transformers 4 names their settings."""
    rotary, known = config.get("rope_parameters"), _ROTARY.get(config["model_type"], {})
    if not isinstance(rotary, dict) or "rope_type" not in rotary:  # or one section for each kind of layer
        return config
    added = {known.get(key, key): rotary[key] for key in ("rope_theta", "partial_rotary_factor") if key in rotary}
    if rotary["rope_type"] != "default":
        added["rope_scaling"] = rotary
    return {**config, **added}
