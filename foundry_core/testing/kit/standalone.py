"""The check of standalone folders, which a process without foundry opens.

One process does everything for all cases of an architecture, because starting it takes longer than the rest.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from foundry_core.checkpoints.exported import export
from foundry_core.errors import PluginError
from foundry_core.models.adapted_config import adapted_config
from foundry_core.models.base import BaseLanguageModel
from foundry_core.run_folder import WEIGHTS
from foundry_core.storage.files import write_file
from foundry_core.testing.kit import outsider
from foundry_core.testing.kit.case import Case, Suite
from foundry_core.testing.kit.check import NonconformanceError, check, require, require_close, require_equal
from foundry_core.testing.kit.processes import Warm

_WITHOUT = """
import os, sys
os.environ["HF_MODULES_CACHE"] = sys.argv[1] + "/modules"
for name in sys.argv[2:]:
    sys.modules[name] = None  # importing it is an error
"""


def _names_a_file(case: Case) -> str | None:
    return None if case.architecture.standalone else "the architecture names no standalone file"


@check(
    "integration",
    "standalone",
    scope="architecture",
    needs=_names_a_file,
    after=("hugging-face", "left-padding", "step-by-step"),
    fix="The file that `Architecture.standalone` names imports torch and transformers alone, takes the section "
    "`model:` as `settings` of its configuration, and names the weights as model.safetensors does. Compare its "
    "`forward` with that of the model line by line.",
)
def standalone(suite: Suite) -> None:
    """A standalone folder opens in a fresh process that cannot import foundry or the plugin. Logits, also of a padded
    batch, the loss and hidden states are the model's within 1e-6, and generated text is the same; `inputs_embeds` give
    what ids give, new heads learn, what they have learned the adapter of checkpoints reads in the same way, a model
    that is saved opens again, and one in bfloat16 computes and writes.
    """
    compare_elsewhere(suite, lambda program, *arguments: Warm.of(suite.folder).run(program, *arguments))


def compare_elsewhere(suite: Suite, run: Callable[..., object], *, beams: bool = True) -> None:
    """Compare standalone folders of all cases with their models.

    Args:
        run: Runs a program with arguments in another process.
        beams: Whether beam search finds the same texts there: versions of transformers compare the scores of texts of
            unequal length in different ways.
    """
    parent = suite.folder / "standalone"
    models: dict[str, BaseLanguageModel] = {}
    given: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, case in enumerate(suite.cases):
        name, models[name] = str(number), case.stirred()
        given[name] = _padded(case)
        try:
            export(models[name], case.tokenizer, parent / name, standalone=True)
        except PluginError as error:
            raise NonconformanceError(f"{case}: {error}") from error
    with safe_open(str(_looked_at(suite, parent, given, run)), framework="pt") as file:
        problems = json.loads(file.metadata()["problems"])
        for case, (name, model) in zip(suite.cases, models.items(), strict=True):
            require(name not in problems, f"{case}: {problems.get(name)}")
            own = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118
            found = {key.partition("/")[2]: file.get_tensor(key) for key in own}
            _compare(case, model, *given[name], found, beams=beams)
            for kind in outsider.HEADS:
                if kind in found:
                    weights = load_file(parent / f"{name}-AutoModelFor{kind}" / WEIGHTS)
                    _compare_head(case, model, *given[name], kind, weights, found[kind])


def _looked_at(
    suite: Suite, parent: Path, given: dict[str, tuple[torch.Tensor, torch.Tensor]], run: Callable[..., object]
) -> Path:
    """Run the other process; returns the file with what it finds."""
    first = {case.sees_right: str(number) for number, case in reversed([*enumerate(suite.cases)])}
    metadata = {str(number): case.objective.auto_class for number, case in enumerate(suite.cases)}
    metadata[outsider.THOROUGHLY] = json.dumps(sorted(first.values()))
    request = {name: ids for name, (ids, _) in given.items()} | {
        f"{name}/mask": mask for name, (_, mask) in given.items()
    }
    write_file(parent / outsider.REQUEST, save(request, metadata=metadata))
    package = type(suite.cases[0].model()).__module__.partition(".")[0]
    run(_WITHOUT + inspect.getsource(outsider), str(parent), "foundry_core", package)
    return parent / outsider.ANSWER


def _padded(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and a mask of them with padding, on the left if the model takes that."""
    ids, lengths, places = case.ids(3, case.length), torch.tensor([case.length, 5, 1]), torch.arange(case.length)
    left = case.capabilities.left_padding
    return ids, (places >= case.length - lengths[:, None] if left else places < lengths[:, None]).long()


@torch.no_grad()
def _compare(
    case: Case,
    model: BaseLanguageModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    found: dict[str, torch.Tensor],
    *,
    beams: bool,
) -> None:
    """Compare what the other process found with what the model gives here."""

    def close(what: str, expected: torch.Tensor) -> None:
        require_close(found[what], expected, f"{case}: {what} of the standalone folder", atol=1e-6, rtol=1e-6)

    close("logits", model(ids).logits)
    real = mask.bool()
    found["masked"], masked = found["masked"][real], model(ids, attention_mask=mask).logits[real]
    close("masked", masked)
    if "loss" in found:
        close("loss", model(ids, labels=ids).loss)
    if "embedded" in found:
        close("embedded", model(ids).logits)
    if "states/0" in found and "output_hidden_states" in inspect.signature(model.forward).parameters:
        for number, states in enumerate(model(ids, output_hidden_states=True)["hidden_states"]):
            close(f"states/{number}", states)
    if "last states" in found:
        read = list[torch.Tensor]()
        model(ids, read=lambda hidden_BTD, _: read.append(hidden_BTD))
        close("last states", read[0])
        for last in sorted((name for name in found if name.startswith("states/")), key=_number)[-1:]:
            close("last states", found[last])
    if model.supports_generation:
        ways = {**outsider.WAYS_TO_GENERATE, outsider.FROM_EMBEDDINGS: {}}
        for what, more in ways.items():
            if (what == outsider.FROM_EMBEDDINGS and what not in found) or ("num_beams" in more and not beams):
                continue
            require(what in found, f"{case}: the standalone folder does not generate")
            options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": outsider.NEW_TOKENS, **more}
            text = model.generate(ids, do_sample=False, **options)[:, ids.shape[1] :]
            require_equal(found[what], text, f"{case}: text {what} by the standalone folder")


def _number(name: str) -> int:
    return int(name.partition("/")[2])


@torch.no_grad()
def _compare_head(
    case: Case,
    model: BaseLanguageModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    kind: str,
    weights: dict[str, torch.Tensor],
    found: torch.Tensor,
) -> None:
    """Compare the logits of a trained head with those of the adapter, with its weights."""
    from foundry_core.models.adapter import auto_classes

    config, what = adapted_config(model), f"{case}: AutoModelFor{kind} of the standalone folder"
    config.num_labels = outsider.LABELS
    (own_class,) = auto_classes(model.model_type, f"AutoModelFor{kind}")
    own = own_class(config, deepcopy(model))
    own.eval()
    unknown = own.load_state_dict(weights, strict=False).unexpected_keys
    require(not unknown, f"{what} has the weight {', '.join(unknown[:1])}, the adapter of checkpoints does not")
    expected, real = own(ids, attention_mask=mask).logits, mask.bool() if found.ndim == 3 else ...
    require_close(found[real], expected[real], f"{what} against the adapter of checkpoints", atol=1e-6, rtol=1e-6)
