"""`run()` is the walk of the data that the documentation describes, and looks everything up once."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest

from foundry_core import ExperimentConfig, load_config, run
from foundry_core.registry import discovery, hooks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the hook managers and the rounds of offers that are made."""
    made: Counter[str] = Counter()

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **keywords: Any) -> Any:
            made[name] += 1
            return original(*arguments, **keywords)

        return count

    monkeypatch.setattr(pluggy.PluginManager, "__init__", counting("managers", pluggy.PluginManager.__init__))
    monkeypatch.setattr(hooks.Offers, "__init__", counting("offers", hooks.Offers.__init__))
    return made


def test_a_whole_run_resolves_its_plugins_once(
    experiment: Callable[..., ExperimentConfig], tmp_path: Path, counted: Counter[str]
) -> None:
    config = experiment("lstm", tmp_path, training={"train_steps": 3})
    written = tmp_path / "experiment.yaml"
    written.write_text(json.dumps(config.resolved()))
    counted.clear()
    discovery.read_packages.cache_clear()
    run(load_config(written), quiet=True)
    assert counted == {"managers": 1, "offers": 1}
    assert discovery.read_packages.cache_info().misses == 1


def test_run_is_the_walk_of_readme_in_under_forty_lines() -> None:
    function = ast.parse(inspect.getsource(run)).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert function.end_lineno is not None
    assert function.end_lineno - function.lineno < 40
    body = "\n".join(ast.unparse(statement) for statement in function.body[1:])
    stages = [
        "experiment_corpora",
        "experiment_tokenizer",
        "experiment_tokens",
        "experiment_rows",
        "create_model",
        "Trainer",
        "trainer.train",
    ]
    assert [body.index(stage) for stage in stages] == sorted(body.index(stage) for stage in stages)
    page = (ROOT / "docs" / "explanation" / "inside.md").read_text()
    walk = page[page.index("## The walk of the data") : page.index("## The packages")]
    assert [stage for stage in stages if not re.search(rf"\b{stage}\b", walk)] == []
