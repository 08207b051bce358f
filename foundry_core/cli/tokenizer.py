"""Train the tokenizer of a YAML on its training corpus, never on its test corpus.

foundry train does the same when it starts.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import add_config_arguments, add_verb, listing, read_config, report
from foundry_core.registry.tokenizer_type import CORE_TOKENIZER_TYPES

EXAMPLE = "example:\n  foundry tokenizer train configs/bert.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    summary = "train the tokenizer, or reuse it if its inputs are unchanged"
    kinds = listing(((kind.name, kind.summary) for kind in CORE_TOKENIZER_TYPES.values()), "  ")
    description = f"{__doc__}\ntokenizer.tokenizer_type is one of these, or one that a plugin offers:\n\n{kinds}"
    train = add_verb(verbs, "train", summary, description, EXAMPLE, execute)
    add_config_arguments(train)
    train.add_argument("--force", action="store_true", help="replace a tokenizer of other inputs (otherwise refused)")


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)

    from foundry_core.data.preparation import tokenizer_folder, train_tokenizer_from_config

    tokenizer = train_tokenizer_from_config(config, force=options.force)
    kind = config.tokenizer_type.name
    report(f"{kind} tokenizer with {len(tokenizer)} tokens in {tokenizer_folder(config)}")
    words = "The researcher, in 1998, wrote: naïve learners generalise."
    report(f"for example: {' '.join(tokenizer.convert_ids_to_tokens(tokenizer(words)['input_ids']))}")
