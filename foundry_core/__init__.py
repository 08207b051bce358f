"""foundry: small language models of any architecture, trained under equal conditions from one YAML.

The names of `__all__` are the public API. Those that need torch or transformers load on first use, so that
`import foundry_core` costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foundry_core.architecture import (
        Architecture,
        BuildContext,
        Capabilities,
        ConfigSection,
        ModelConfig,
        TransformerConfig,
        register_architecture,
    )
    from foundry_core.collators import CausalLMDataCollator, MaskedLMDataCollator, get_data_collator
    from foundry_core.config import ExperimentConfig, load_config
    from foundry_core.config_sections import TrainingConfig
    from foundry_core.errors import FoundryError, did_you_mean
    from foundry_core.export import exposed_by_plugin
    from foundry_core.hookspecs import EvaluationReport, RunInfo, StepReport, hookimpl
    from foundry_core.huggingface import WrappedLanguageModel
    from foundry_core.model import BaseLanguageModel, ModelOutput, create_model, create_model_from_config
    from foundry_core.objective import Objective
    from foundry_core.optimizer import Optimizer
    from foundry_core.prepare import train_tokenizer_from_config
    from foundry_core.tokenizer_type import TokenizerType
    from foundry_core.tokenizers import TokenizerFactory
    from foundry_core.trainer import run

_HOME = {
    "Architecture": "architecture",
    "BaseLanguageModel": "model",
    "BuildContext": "architecture",
    "Capabilities": "architecture",
    "CausalLMDataCollator": "collators",
    "ConfigSection": "architecture",
    "EvaluationReport": "hookspecs",
    "ExperimentConfig": "config",
    "FoundryError": "errors",
    "MaskedLMDataCollator": "collators",
    "ModelConfig": "architecture",
    "ModelOutput": "model",
    "Objective": "objective",
    "Optimizer": "optimizer",
    "RunInfo": "hookspecs",
    "StepReport": "hookspecs",
    "TokenizerFactory": "tokenizers",
    "TokenizerType": "tokenizer_type",
    "TrainingConfig": "config_sections",
    "TransformerConfig": "architecture",
    "WrappedLanguageModel": "huggingface",
    "create_model": "model",
    "create_model_from_config": "model",
    "did_you_mean": "errors",
    "exposed_by_plugin": "export",
    "get_data_collator": "collators",
    "hookimpl": "hookspecs",
    "load_config": "config",
    "register_architecture": "architecture",
    "run": "trainer",
    "train_tokenizer_from_config": "prepare",
}

__all__ = [
    "Architecture",
    "BaseLanguageModel",
    "BuildContext",
    "Capabilities",
    "CausalLMDataCollator",
    "ConfigSection",
    "EvaluationReport",
    "ExperimentConfig",
    "FoundryError",
    "MaskedLMDataCollator",
    "ModelConfig",
    "ModelOutput",
    "Objective",
    "Optimizer",
    "RunInfo",
    "StepReport",
    "TokenizerFactory",
    "TokenizerType",
    "TrainingConfig",
    "TransformerConfig",
    "WrappedLanguageModel",
    "__version__",
    "create_model",
    "create_model_from_config",
    "did_you_mean",
    "exposed_by_plugin",
    "get_data_collator",
    "hookimpl",
    "load_config",
    "register_architecture",
    "run",
    "train_tokenizer_from_config",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'foundry_core' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"foundry_core.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
