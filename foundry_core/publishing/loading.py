"""How to open a published model: a snippet for each way that works for its architecture. Light."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foundry_core.run_folder import MODELING

_OPEN = """\
from transformers import {auto_class}, AutoTokenizer

{first}name, revision = "{repository}", "{revision}"
model = {auto_class}.from_pretrained(name, revision=revision{trust})
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision{trust})"""
_CAUSAL = """\
inputs = tokenizer("It is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5)[0]))"""
_LOGITS = """\
print(model(**tokenizer("It is", return_tensors="pt")).logits.shape)"""
_MASKED = """\
inputs = tokenizer(f"It {tokenizer.mask_token} so", return_tensors="pt")
logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
print(tokenizer.decode(logits.argmax(-1)))"""
_SHELL = """\
hf download {repository} --revision {revision} --local-dir model
foundry evaluate model --corpus TEXT.txt
foundry surprisal model TEXT.txt --output surprisal.tsv"""


def loading_text(config: Mapping[str, Any], repository: str, revision: str, *, generates: bool) -> str:
    """Return Markdown with the ways to open a revision.

    Args:
        config: The content of its config.json.
        repository: Where it is, `namespace/name`.
        revision: The name of the revision.
        generates: Whether the model generates text.
    """
    return "\n\n".join(_ways(config, repository, revision, generates))


def _ways(config: Mapping[str, Any], repository: str, revision: str, generates: bool) -> Iterator[str]:
    masked = str(config["architectures"][0]).endswith("MaskedLM")
    auto_class = "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"
    names = {"auto_class": auto_class, "repository": repository, "revision": revision}
    architecture = str(config["model_type"]).removeprefix("foundry_")
    plain = _OPEN.format(**names, first="", trust="")
    then = _MASKED if masked else _CAUSAL if generates else _LOGITS
    described = dict(config.get("foundry") or {})
    package = dict(described.get("plugin") or {}).get("distribution")
    install = " ".join(["pip install model-foundry", *filter(None, [package])])
    if not str(config["model_type"]).startswith("foundry_"):
        yield f"transformers has this architecture, and nothing else is needed:\n\n{_python(plain, then)}"
    elif config.get("auto_map"):
        trusting = _OPEN.format(**names, first="", trust=", trust_remote_code=True")
        yield (
            f"transformers lacks this architecture: `{install}` brings it. `trust_remote_code=True` lets the few lines "
            f"in `{MODELING}` import it:\n\n{_python(trusting, then)}"
        )
        ours = _OPEN.format(**names, first=f'auto_classes("{architecture}")\n', trust="")
        code = _python(f"from foundry_core import auto_classes\n{ours}", then)
        yield f"Without running code from this repository:\n\n{code}"
    else:
        yield (
            f"The architecture `{architecture}` is from a file of its author's, which `--plugin` of foundry names; "
            "ask for it. No installed package opens this model."
        )
        return
    shell = _SHELL.format(repository=repository, revision=revision)
    yield f"With foundry (`{install}`), on the command line:\n\n```sh\n{shell}\n```"


def _python(*parts: str) -> str:
    code = "\n".join(parts)
    return f"```python\n{code}\n```"
