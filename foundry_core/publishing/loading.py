"""How to open a published model: a snippet for each way that works for its architecture. Light."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from foundry_core.run_folder import GENERATION_CONFIG, MODEL_CONFIG, MODELING

_OPEN = """\
from transformers import {auto_class}, AutoTokenizer

name, revision = "{repository}", "{revision}"{others}
model = {auto_class}.from_pretrained(name, revision=revision{trust})
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision{trust})"""
_REGISTERED = """\
from foundry_core import auto_classes
from transformers import {auto_class}, AutoTokenizer

auto_classes("{architecture}")
model = {auto_class}.from_pretrained("{repository}", revision="{revision}")
tokenizer = AutoTokenizer.from_pretrained("{repository}", revision="{revision}")"""
_CAUSAL = """\
inputs = tokenizer("It is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5)[0]))"""
_LOGITS = """\
print(model(**tokenizer("It is", return_tensors="pt")).logits.shape)"""
_MASKED = """\
inputs = tokenizer(f"It {tokenizer.mask_token} so", return_tensors="pt")
logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
print(tokenizer.decode(logits.argmax(-1)))"""
_WRITE = """\
from transformers import pipeline

write = pipeline("text-generation", model="{repository}", revision="{revision}"{trust})
print(write("It is", max_new_tokens=5)[0]["generated_text"])"""
_FILL = """\
from transformers import pipeline

fill = pipeline("fill-mask", model="{repository}", revision="{revision}"{trust})
print(fill(f"It {{fill.tokenizer.mask_token}} so")[0]["sequence"])"""
_SCORE = """\
from minicons import scorer

lm = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)
print(lm.sequence_score(["It is so.", "It so is."], bos_token=True))"""
_SHELL = """\
hf download {repository} --revision {revision} --local-dir model
foundry evaluate model --corpus TEXT.txt
foundry surprisal model TEXT.txt --output surprisal.tsv"""


def loading_text(files: Mapping[str, bytes], repository: str, revision: str, others: str = "") -> str:
    """Return Markdown with the ways to open a revision.

    Args:
        files: The files of every revision besides its weights, as of `foundry export`.
        repository: Where it is, `namespace/name`.
        revision: The name of the revision.
        others: The name of another revision, for a remark that there are some.
    """
    return "\n\n".join(_ways(files, repository, revision, others))


def _ways(files: Mapping[str, bytes], repository: str, revision: str, others: str) -> Iterator[str]:
    config = json.loads(files[MODEL_CONFIG])
    masked, generates = str(config["architectures"][0]).endswith("MaskedLM"), GENERATION_CONFIG in files
    architecture = config["foundry"]["experiment"]["model"]["architecture"]
    package = dict(config["foundry"]["plugin"] or {}).get("distribution")
    install = " ".join(["pip install model-foundry", *filter(None, [package])])
    imports_ours, mapped = config["model_type"] == f"foundry_{architecture}", MODELING in files
    names = {
        "auto_class": "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM",
        "architecture": architecture,
        "repository": repository,
        "revision": revision,
        "others": f'  # or another one, such as "{others}"' if others else "",
        "trust": ", trust_remote_code=True" if mapped else "",
    }
    if imports_ours and not mapped:
        yield (
            f"The architecture `{architecture}` is from a file of its author's, which `--plugin` of foundry names; "
            "ask for it. No installed package opens this model."
        )
        return
    then = _MASKED if masked else _CAUSAL if generates else _LOGITS
    if imports_ours:
        yield (
            f"transformers lacks this architecture: `{install}` brings it. `trust_remote_code=True` lets the few lines "
            f"in `{MODELING}` import it:"
        )
    elif mapped:
        yield (
            f"transformers lacks this architecture, so that the model comes with its own code, `{MODELING}`, which "
            "needs only torch and transformers (4.46 to 5.x). `trust_remote_code=True` runs it:"
        )
    else:
        yield "With transformers; nothing else is needed:"
    yield _python(_OPEN.format(**names), then)
    if imports_ours:
        yield "Without running code from this repository:"
        yield _python(_REGISTERED.format(**names), then)
    elif masked or generates:
        yield "As a pipeline:"
        yield _python((_FILL if masked else _WRITE).format(**names))
    if generates and not imports_ours:
        # Of masked models minicons 0.3.39 calls a method of the tokenizer that transformers 5 has removed.
        yield "Sentences scored by [minicons](https://github.com/kanishkamisra/minicons), after the first snippet:"
        yield _python(_SCORE)
    heads = [f"AutoModelFor{task}Classification" for task in ("Sequence", "Token")]
    if set(heads) <= set(config.get("auto_map") or ()):
        yield f"`AutoModel`, `{'` and `'.join(heads)}` open it in the same way: hidden states, and fine-tuning."
    yield f"With foundry (`{install}`), on the command line:"
    yield f"```sh\n{_SHELL.format(**names)}\n```"


def _python(*parts: str) -> str:
    code = "\n".join(parts)
    return f"```python\n{code}\n```"
