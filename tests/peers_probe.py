"""What programs for analysis read in folders of foundry, beside what foundry itself computed. Needs none of our code.

    python tests/peers_probe.py CASES.json

CASES.json has the cases of `tests/peers.py`, by name, and packages that must not be imported. Printed is JSON: for each
program its version, or null where it is not installed, and by case the largest difference of each thing that was
compared, or an error.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

Case = dict[str, Any]
Differences = dict[str, float]
TRUST = {"trust_remote_code": True}


def opened(case: Case) -> tuple[Any, Any]:
    """Return model and tokenizer of a case as any program opens them."""
    model = getattr(transformers, case["auto"]).from_pretrained(case["folder"], **TRUST)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(case["folder"], **TRUST)


def largest(found: Any, expected: Any) -> float:
    """Return the largest difference between numbers of one shape."""
    ours = torch.as_tensor(expected, dtype=torch.float64)
    theirs = torch.as_tensor(found).detach().to(torch.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the shape is {tuple(theirs.shape)} and not {tuple(ours.shape)}")
    return float((ours - theirs).abs().max())


def by_minicons(case: Case) -> Differences:
    """Log-probabilities of sentences; of a masked model pseudo-log-likelihoods."""
    scorer = importlib.import_module("minicons.scorer")
    model, tokenizer = opened(case)
    if case["masked"]:
        masked = scorer.MaskedLMScorer(model, "cpu", tokenizer=tokenizer)
        encoded = tokenizer(case["texts"], padding=True)
        found = masked.token_score(encoded, surprisal=False, PLL_metric="original")
        return {"sentences": largest([sum(score for _, score in each) for each in found], case["scores"])}
    causal = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
    found = causal.sequence_score(case["texts"], reduction=lambda x: x.sum(0).item(), bos_token=True)
    return {"sentences": largest(found, case["scores"])}


def by_lm_eval(case: Case) -> Differences:
    """Log-probabilities of sentences."""
    harness = importlib.import_module("lm_eval.models.huggingface")
    instance = importlib.import_module("lm_eval.api.instance")
    options = {"backend": "causal", "batch_size": 8, "device": "cpu", **TRUST}
    scorer = harness.HFLM(pretrained=case["folder"], **options)
    requests = [instance.Instance("loglikelihood", {}, ("", text), at) for at, text in enumerate(case["texts"])]
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    return {"sentences": largest([score for score, _ in found], case["scores"])}


def by_captum(case: Case) -> Differences:
    """Gradients times inputs of a token's log-probability; integrated gradients, whose sum is known."""
    attribution = importlib.import_module("captum.attr")
    model, _ = opened(case)
    place, token = case["target"]

    def score(embeds_BTE: torch.Tensor) -> torch.Tensor:
        logits_BTV: torch.Tensor = model(inputs_embeds=embeds_BTE).logits
        return logits_BTV[:, place].log_softmax(-1)[:, token]

    embeds_BTE = model.get_input_embeddings()(torch.tensor([case["ids"]])).detach()
    products = attribution.InputXGradient(score).attribute(embeds_BTE.requires_grad_())
    # From the first vector at every place: between zero and a vector, the norm of a layer jumps.
    start_BTE = embeds_BTE[:, :1].detach().expand_as(embeds_BTE)
    paths = attribution.IntegratedGradients(score).attribute(embeds_BTE, start_BTE, n_steps=100)
    return {
        "gradient x input": largest(products.sum(-1)[0], case["products"]),
        "integrated gradients": largest(paths.sum() + score(start_BTE)[0], case["score"]),
    }


def by_nnsight(case: Case) -> Differences:
    """Logits and hidden states that are read in a run of the model, and logits after embeddings were exchanged."""
    library = importlib.import_module("nnsight")
    task = "fill-mask" if case["masked"] else "text-generation"
    traced = library.TransformersModel(case["folder"], task=task, dispatch=True, **TRUST)
    inner = traced._module
    names = {id(module): name for name, module in inner.named_modules()}
    embedding = traced.get(names[id(inner.get_input_embeddings())])
    logits, states = None, None
    with traced.trace({"input_ids": torch.tensor([case["ids"]])}, output_hidden_states=True):
        states = traced.output.hidden_states[-1].save()
        logits = traced.output.logits.save()
    found = {"logits": largest(logits[0], case["logits"]), "states": largest(states[0], case["states"])}
    vectors = inner.get_input_embeddings()(torch.tensor([case["ids"]])).detach()
    with traced.trace({"input_ids": torch.tensor([case["ids"][::-1]])}):
        embedding.output = vectors
        logits = traced.output.logits.save()
    return {**found, "exchanged": largest(logits[0], case["logits"])}


def by_transformer_lens(case: Case) -> Differences:
    """Log-probabilities of every token at every place, and the states after the first block."""
    ids, folder = torch.tensor([case["ids"]]), case["folder"]
    state = "blocks.0.hook_resid_post"
    if int(version("transformer-lens").split(".")[0]) >= 3:
        bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
        hooked = bridge.boot_transformers(folder, device="cpu")
    else:  # from_pretrained takes names of published models alone
        lens = importlib.import_module("transformer_lens")
        loading = importlib.import_module("transformer_lens.loading_from_pretrained")
        config = loading.get_pretrained_model_config(folder, device="cpu")
        opened_by = transformers.BertForPreTraining if case["masked"] else transformers.AutoModelForCausalLM
        weights = loading.get_pretrained_state_dict(folder, config, opened_by.from_pretrained(folder))
        hooked = (lens.HookedEncoder if case["masked"] else lens.HookedTransformer)(config)
        if case["masked"]:
            state = "blocks.0.hook_normalized_resid_post"
            hooked.load_state_dict(weights, strict=False)
        else:
            hooked.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False)
    logits, cache = hooked.eval().run_with_cache(ids)
    return {
        "log-probabilities": largest(logits[0].log_softmax(-1), torch.tensor(case["logits"]).log_softmax(-1)),
        "states": largest(cache[state][0], case["first states"]),
    }


PEERS: dict[str, tuple[str, Callable[[Case], Differences], Callable[[Case], bool]]] = {
    "minicons": ("minicons", by_minicons, lambda case: True),
    "lm-eval": ("lm_eval", by_lm_eval, lambda case: not case["masked"]),
    "captum": ("captum", by_captum, lambda case: True),
    "nnsight": ("nnsight", by_nnsight, lambda case: True),
    "TransformerLens": ("transformer-lens", by_transformer_lens, lambda case: case["architecture"] in ("gpt2", "bert")),
}
"""Each program: its distribution, what is compared with it, and what it is for."""


def installed(name: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def probe(cases: dict[str, Case]) -> dict[str, Any]:
    """Return what each program read, by program and case."""
    found: dict[str, Any] = {}
    for peer, (distribution, compare, fits) in PEERS.items():
        found[peer] = {"version": installed(distribution), "cases": {}}
        if found[peer]["version"] is None:
            continue
        for name, case in cases.items():
            if fits(case):
                try:
                    found[peer]["cases"][name] = compare(case)
                except Exception as error:  # noqa: BLE001 - that of another program, to be listed beside the others
                    found[peer]["cases"][name] = {"error": f"{type(error).__name__}: {error}"}
    return found


def main() -> None:
    """Print what was found in the cases of a file."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        asked = json.load(file)
    sys.modules.update(dict.fromkeys(asked["without"]))  # importing one is an error
    answer = sys.stdout
    sys.stdout = sys.stderr  # some print what they do
    found = {
        "python": sys.version.split()[0],
        "torch": version("torch").partition("+")[0],
        "transformers": transformers.__version__,
        "peers": probe(asked["cases"]),
    }
    print(json.dumps(found), file=answer)


if __name__ == "__main__":
    main()
