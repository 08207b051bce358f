"""foundry: small language models of any architecture, trained under equal conditions from one YAML.

The names of `__all__` are the public API. Those that need torch or transformers load on first use, so that
`import foundry_core` costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foundry_core.analysis.runs import open_run
    from foundry_core.cli.common import write_answer
    from foundry_core.cli.init import starting_yaml
    from foundry_core.config.experiment import ExperimentConfig
    from foundry_core.config.loading import load_config
    from foundry_core.config.sections import TrainingConfig
    from foundry_core.data.collators import CausalLMDataCollator, MaskedLMDataCollator, get_data_collator
    from foundry_core.data.preparation import train_tokenizer_from_config
    from foundry_core.errors import FoundryError, did_you_mean
    from foundry_core.evaluation.suites.items import BETTER, Operation, Score, SuiteItem
    from foundry_core.models.adapter import auto_classes
    from foundry_core.models.base import BaseLanguageModel, create_model, create_model_from_config
    from foundry_core.models.inner import Skeleton
    from foundry_core.models.kernels import attention, attention_mask, dropout, projected, projected_tanh_gelu
    from foundry_core.models.loss import ModelOutput
    from foundry_core.models.registration import register_auto_classes
    from foundry_core.models.wrapped import WrappedLanguageModel
    from foundry_core.registry.architecture import (
        Architecture,
        BuildContext,
        Capabilities,
        Migration,
        register_architecture,
    )
    from foundry_core.registry.corpus_step import CorpusStep, DroppingSettings
    from foundry_core.registry.data_order import DataOrder, OrderedRows
    from foundry_core.registry.hookspecs import hookimpl
    from foundry_core.registry.objective import Objective
    from foundry_core.registry.optimizer import Optimizer
    from foundry_core.registry.reports import EvaluationReport, RunInfo, StepReport, SuiteReport
    from foundry_core.registry.schedule import LearningRateSchedule
    from foundry_core.registry.suite import Suite
    from foundry_core.registry.tokenizer_type import TokenizerType
    from foundry_core.schema import (
        ConfigSection,
        Dropout,
        Layers,
        LearnedPositionsConfig,
        ModelConfig,
        Positions,
        TransformerConfig,
    )
    from foundry_core.tokenization.training import TokenizerFactory
    from foundry_core.training.run import run

_NAMES = {
    "analysis.runs": "open_run",
    "cli.common": "write_answer",
    "cli.init": "starting_yaml",
    "config.experiment": "ExperimentConfig",
    "config.loading": "load_config",
    "config.sections": "TrainingConfig",
    "data.collators": "CausalLMDataCollator MaskedLMDataCollator get_data_collator",
    "data.preparation": "train_tokenizer_from_config",
    "errors": "FoundryError did_you_mean",
    "evaluation.suites.items": "BETTER Operation Score SuiteItem",
    "models.adapter": "auto_classes",
    "models.registration": "register_auto_classes",
    "models.base": "BaseLanguageModel create_model create_model_from_config",
    "models.inner": "Skeleton",
    "models.kernels": "attention attention_mask dropout projected projected_tanh_gelu",
    "models.loss": "ModelOutput",
    "models.wrapped": "WrappedLanguageModel",
    "registry.architecture": "Architecture BuildContext Capabilities Migration register_architecture",
    "registry.corpus_step": "CorpusStep DroppingSettings",
    "registry.hookspecs": "hookimpl",
    "registry.objective": "Objective",
    "registry.data_order": "DataOrder OrderedRows",
    "registry.optimizer": "Optimizer",
    "registry.reports": "EvaluationReport RunInfo StepReport SuiteReport",
    "registry.schedule": "LearningRateSchedule",
    "registry.suite": "Suite",
    "registry.tokenizer_type": "TokenizerType",
    "schema": "ConfigSection Dropout Layers LearnedPositionsConfig ModelConfig Positions TransformerConfig",
    "tokenization.training": "TokenizerFactory",
    "training.run": "run",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "BETTER",
    "Architecture",
    "BaseLanguageModel",
    "BuildContext",
    "Capabilities",
    "CausalLMDataCollator",
    "ConfigSection",
    "CorpusStep",
    "DataOrder",
    "Dropout",
    "DroppingSettings",
    "EvaluationReport",
    "ExperimentConfig",
    "FoundryError",
    "Layers",
    "LearnedPositionsConfig",
    "LearningRateSchedule",
    "MaskedLMDataCollator",
    "Migration",
    "ModelConfig",
    "ModelOutput",
    "Objective",
    "Operation",
    "Optimizer",
    "OrderedRows",
    "Positions",
    "RunInfo",
    "Score",
    "Skeleton",
    "StepReport",
    "Suite",
    "SuiteItem",
    "SuiteReport",
    "TokenizerFactory",
    "TokenizerType",
    "TrainingConfig",
    "TransformerConfig",
    "WrappedLanguageModel",
    "__version__",
    "attention",
    "attention_mask",
    "auto_classes",
    "create_model",
    "create_model_from_config",
    "did_you_mean",
    "dropout",
    "get_data_collator",
    "hookimpl",
    "load_config",
    "open_run",
    "projected",
    "projected_tanh_gelu",
    "register_architecture",
    "register_auto_classes",
    "run",
    "starting_yaml",
    "train_tokenizer_from_config",
    "write_answer",
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
