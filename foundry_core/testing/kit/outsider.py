"""Open exported folders in a process without foundry. This source runs there, in transformers 4.46 to 5.x.

Imports torch, transformers and safetensors, and nothing of foundry.

Shapes: B batch, T tokens.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

NEW_TOKENS = 6
"""The length of generated continuations."""
WAYS_TO_GENERATE: dict[str, dict[str, Any]] = {
    "generated": {},
    "generated without a state": {"use_cache": False},
    "generated with beams": {"num_beams": 2},
}
FROM_EMBEDDINGS = "generated from embeddings"
HEADS = ("SequenceClassification", "TokenClassification")
LABELS = 3
REQUEST, ANSWER, THOROUGHLY = "request.safetensors", "answer.safetensors", "thoroughly"


def look(parent: str) -> None:
    """Open every folder that the request names, and write what it finds, or the error message, into the answer.

    The request has, by the name of a folder, ids (B, T) and, as `name/mask`, a mask of them with padding on the left
    where the model takes that. Its metadata has the auto class of each folder, and the names of the folders, in JSON,
    of which the other auto classes are tried, too.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # what nobody initialises is NaN, not what memory had
    found: dict[str, torch.Tensor] = {}
    problems: dict[str, str] = {}
    with safe_open(str(Path(parent) / REQUEST), framework="pt") as file:
        auto_classes = dict(file.metadata())
        thoroughly = json.loads(auto_classes.pop(THOROUGHLY))
        for name, auto_class in auto_classes.items():
            folder, given = Path(parent) / name, (file.get_tensor(name), file.get_tensor(f"{name}/mask"))
            try:
                torch.manual_seed(0)
                seen = _opened(folder, auto_class, *given)
                if name in thoroughly:
                    seen.update(_otherwise(folder, auto_class, *given))
                found.update({f"{name}/{what}": value.detach().contiguous() for what, value in seen.items()})
            except Exception as error:  # noqa: BLE001 - reported by the check
                problems[name] = " ".join(f"{type(error).__name__}: {error}".split())
    save_file(found, str(Path(parent) / ANSWER), metadata={"problems": json.dumps(problems)})


@torch.no_grad()
def _opened(folder: Path, auto_class: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    seen = {"logits": model(input_ids=ids).logits, "masked": model(input_ids=ids, attention_mask=mask).logits}
    taken = inspect.signature(model.forward).parameters
    if "labels" in taken:
        seen["loss"] = model(input_ids=ids, labels=ids).loss
    if "inputs_embeds" in taken:
        seen["embedded"] = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    if "output_hidden_states" in taken:
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        seen.update({f"states/{number}": each for number, each in enumerate(states)})
    if model.can_generate():
        options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
        for what, more in WAYS_TO_GENERATE.items():
            seen[what] = model.generate(ids, **options, **more)[:, ids.shape[1] :]
        if "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters:
            seen[FROM_EMBEDDINGS] = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options)
    return seen


def _otherwise(folder: Path, auto_class: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the other classes in `auto_map` find: the last hidden states, and the logits of trained heads."""
    seen: dict[str, torch.Tensor] = {}
    _saved_and_halved(getattr(transformers, auto_class), folder, ids, mask)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if "AutoModel" in config.auto_map:
        base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        output = base(input_ids=ids)
        seen["last states"] = output.last_hidden_state
        if hasattr(output, "logits"):  # which BabyLM's fine-tuning takes, even None, before the hidden states
            raise ValueError("what AutoModel returns has logits")
        if seen["last states"].shape[-1] != config.hidden_size:
            width = seen["last states"].shape[-1]
            raise ValueError(f"config.hidden_size is {config.hidden_size}, the last hidden states have {width}")
    for kind in HEADS:
        if f"AutoModelFor{kind}" in config.auto_map:
            seen[kind] = _head(getattr(transformers, f"AutoModelFor{kind}"), folder, ids, mask)
    return seen


@torch.no_grad()
def _saved_and_halved(auto_class: Any, folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Raise ValueError unless the language model is saved whole, and computes in half the precision."""
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    again = folder.with_name(f"{folder.name}-again")
    model.save_pretrained(again)
    if not torch.equal(auto_class.from_pretrained(again, trust_remote_code=True)(ids).logits, model(ids).logits):
        raise ValueError(f"{auto_class.__name__} is another model once it is saved and opened again")
    model.to(torch.bfloat16)
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    if logits.dtype != torch.bfloat16 or not bool(logits.isfinite().all()):
        raise ValueError("in bfloat16 the logits are not finite numbers of that type")
    if model.can_generate():
        model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False)


@torch.enable_grad()
def _head(auto_class: Any, folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the logits of a trained head, with padding. Raise ValueError unless it is new, learns and is saved."""
    trust = {"trust_remote_code": True}
    model = auto_class.from_pretrained(folder, num_labels=LABELS, **trust)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not bool(logits.any()) or not bool(logits.isfinite().all()):
        raise ValueError(f"the new head of {auto_class.__name__} is not initialised")
    labels = torch.arange(logits[..., 0].numel()).view(logits.shape[:-1]) % LABELS
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if not losses[-1] < losses[0]:
        raise ValueError(f"{auto_class.__name__} does not learn: its loss is {losses[0]:.3f}, then {losses[-1]:.3f}")
    again = folder.with_name(f"{folder.name}-{auto_class.__name__}")
    model.eval().save_pretrained(again)
    back = auto_class.from_pretrained(again, **trust)
    if not torch.equal(back(input_ids=ids).logits, model(input_ids=ids).logits):
        raise ValueError(f"{auto_class.__name__} is another model once it is saved and opened again")
    trained: torch.Tensor = back(input_ids=ids, attention_mask=mask).logits
    return trained


if __name__ == "__main__":
    look(sys.argv[1])
