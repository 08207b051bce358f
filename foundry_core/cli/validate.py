"""Check a YAML: every key, every rule between sections, and the settings of the
architecture. Trains nothing.

All problems are reported at once, as file:line: key: problem, with exit code 2.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import add_config_arguments, read_config
from foundry_core.config.sections import BUDGETS

EXAMPLE = "example:\n  foundry validate configs/gpt2.yaml training.epochs=3"


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)
    training = config.training
    budget = next(f"{key} {value}" for key in BUDGETS if (value := getattr(training, key)) is not None)
    print(f"{options.config}: valid; {config.model.architecture}, {training.objective}, {budget}")
