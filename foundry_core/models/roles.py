"""Roles of parameters: they decide which ones decay, and which an optimizer treats alike.

Derived from the module that a parameter belongs to. A parameter that a model creates itself shows no
role: the model has to name it.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

Role = Literal["matrix", "output", "filter", "embedding", "norm", "bias", "other"]
ROLES: tuple[Role, ...] = get_args(Role)

DECAYED: tuple[Role, ...] = ("matrix", "output", "filter")
"""Roles to which weight decay applies under `weight_decay_on: matrices`.

Decaying norm scales, rates and the embeddings of rare tokens shrinks them without regularising the model.
"""

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_SEVERAL_MATRICES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def derived_roles(model: nn.Module) -> dict[str, str]:
    """Return the roles that follow from the modules, by parameter name; a shared parameter of embeddings is one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    roles: dict[str, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            role, key = derived_role(module, name, parameter), names[id(parameter)]
            if role is not None and roles.get(key) != "embedding":
                roles[key] = role
    return roles


def derived_role(module: nn.Module, name: str, parameter: nn.Parameter) -> Role | None:
    """Return the role of a parameter, given the module that owns it and its name there; None if it cannot be derived.

    None is a parameter of several dimensions that is not the weight of a layer: a matrix, positions, rates, a stack of
    matrices.
    """
    role = _by_module(module, name, parameter)
    # A mark that state-space models set (Gu and Dao 2023) and other trainers read.
    return "other" if role in (*DECAYED, None) and getattr(parameter, "_no_weight_decay", False) else role


def _by_module(module: nn.Module, name: str, parameter: nn.Parameter) -> Role | None:
    kind = type(module).__name__.lower()
    vector = sum(size > 1 for size in parameter.shape) <= 1
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or ("embedding" in kind and name == "weight"):
        return "embedding"
    if "bias" in name:
        return "bias"
    if isinstance(module, _NORMS) or ("norm" in kind and parameter.ndim == 1):
        return "norm"
    if name == "weight" or isinstance(module, _SEVERAL_MATRICES):
        if parameter.ndim == 2:
            return "matrix"
        if isinstance(module, nn.modules.conv._ConvNd):
            return "filter"
    return "other" if vector else None
