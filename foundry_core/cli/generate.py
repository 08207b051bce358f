"""Generate text from a checkpoint: continue --prompt, or start a new document if
it is omitted."""

from __future__ import annotations

import argparse

from foundry_core.cli.common import (
    add_checkpoint_argument,
    large_imports,
    number,
    open_checkpoint,
    seed_argument,
    text_argument,
)
from foundry_core.errors import warn

EXAMPLE = """\
examples:
  foundry generate runs/gpt2 --prompt "The keys to the cabinet"
  foundry generate runs/gpt2 --tokens 100 --temperature 0.8 --samples 3 --seed 1
  foundry generate runs/gpt2 --prompt "The" --greedy"""

_TOKENS = 40


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--prompt", type=text_argument, default="", metavar="TEXT", help="the text to continue")
    count, whole, temperature = number(int, 1, 1_000_000), number(int, 0, 2**63 - 1), number(float, 0.001, 1000)
    parser.add_argument("--tokens", type=count, metavar="N", help=f"add at most N tokens (default {_TOKENS})")
    parser.add_argument(
        "--temperature", type=temperature, default=1.0, metavar="T", help="below 1: less random (default 1)"
    )
    parser.add_argument(
        "--top-k", type=whole, default=0, metavar="K", help="choose among the K likeliest (default: all)"
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--samples", type=count, default=1, metavar="N", help="number of continuations (default 1)")
    parser.add_argument("--seed", type=seed_argument, default=0, metavar="N", help="random seed (default 0)")


def execute(options: argparse.Namespace) -> None:
    with large_imports():
        from foundry_core.evaluation.generation import continuations, prompt_warnings

    _, model, tokenizer = open_checkpoint(options)
    for line in prompt_warnings(model, tokenizer, options.prompt, options.tokens or 0):
        warn(line)
    texts = continuations(
        model,
        tokenizer,
        options.prompt,
        tokens=options.tokens or _TOKENS,
        samples=options.samples,
        seed=options.seed,
        temperature=0.0 if options.greedy else options.temperature,
        top_k=options.top_k,
    )
    for text in texts:
        print(text)
