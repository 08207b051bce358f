"""Show which tokens of a text the objective of a YAML hides in each epoch: the input of the model."""

import argparse

EXAMPLE = 'example:\n  foundry spans experiment.yaml "The keys to the cabinet are on the table."'


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="YAML", help="the experiment's configuration")
    parser.add_argument("text", help="a text, used as one row")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs to show; default: 3")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    import numpy as np

    from foundry_core import get_data_collator, load_config, train_tokenizer_from_config

    config = load_config(options.config)
    tokenizer = train_tokenizer_from_config(config)
    collate = get_data_collator(config, tokenizer)
    ids = np.array([tokenizer.cls_token_id, *tokenizer(options.text)["input_ids"], tokenizer.sep_token_id])
    for epoch in range(options.epochs):
        batch = collate([{"input_ids": ids, "epoch": epoch, "row": 0}])
        print(*tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()))
