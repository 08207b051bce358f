"""The examples of docs/training/models.md are valid, and name every option that they explain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from foundry_core import load_config
from foundry_core.config.sections import TrainingConfig
from foundry_core.registry.loading import get_architecture

GUIDE = Path(__file__).parents[1] / "docs" / "training" / "models.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
BASE: dict[str, Any] = {
    "experiment_name": "guide",
    "data": {"training_corpus": "train.txt"},
    "training": {"output_dir": "runs/guide", "epochs": 1},
}


def test_every_example_is_valid_in_an_experiment() -> None:
    assert len(EXAMPLES) > 10
    for example in EXAMPLES:
        given = yaml.safe_load(example)
        load_config({**BASE, **given, "training": {**BASE["training"], **given.get("training", {})}})


def test_every_option_has_an_example() -> None:
    sections = [get_architecture(name).config_class.model_fields for name in ("lstm", "gpt2")]
    kinds: list[Any] = [sections[0]["rnn"].annotation, sections[1]["gpt2"].annotation]
    names = {name for kind in kinds for name in kind.model_fields} - {"rnn_type", "bidirectional"}
    names |= {"masking", "mlm_probability"} & set(TrainingConfig.model_fields)
    assert not {name for name in names if not any(f"{name}:" in example for example in EXAMPLES)}
