"""Open an exported folder as somebody who does not have foundry: opened.py FOLDER, in an environment that has it.

Every package of ours that is installed is made impossible to import first. Prints what the model writes.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions

ours = [name for name in packages_distributions() if name.startswith("foundry_")]
if "foundry_core" not in ours:
    sys.exit("foundry is not installed here, so that blocking it would prove nothing")
for name in ours:
    sys.modules[name] = None  # type: ignore[assignment]  # what makes `import name` an ImportError

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

(folder,) = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer("the cat", return_tensors="pt")
with torch.no_grad():
    states = AutoModel.from_pretrained(folder, trust_remote_code=True)(**batch).last_hidden_state
    logits = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)(**batch).logits
    classes = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, trust_remote_code=True)(**batch)
rows = batch["input_ids"].shape
if states.shape[:2] != rows or logits.shape[:2] != rows or classes.logits.shape != (1, 3):
    sys.exit(f"wrong shapes: {states.shape}, {logits.shape}, {classes.logits.shape} of ids {rows}")
if not (states.isfinite().all() and logits.isfinite().all()):
    sys.exit("states or logits are not finite")
write = pipeline("text-generation", model=folder, trust_remote_code=True)
sys.stdout.write(write("the cat", max_new_tokens=8, do_sample=False)[0]["generated_text"] + "\n")
