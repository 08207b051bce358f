"""Train the model that a YAML describes, with its tokenizer and token files.

Everything is written to training.output_dir: checkpoint-<step> folders that
transformers can open, metrics.jsonl, config.yaml.
"""

from __future__ import annotations

import argparse

from foundry_core.cli.common import add_config_arguments, large_imports, read_config, report

EXAMPLE = """\
examples:
  foundry train configs/gpt2.yaml
  foundry train configs/gpt2.yaml training.learning_rate=1e-3
  foundry train configs/gpt2.yaml --resume
  foundry train my.yaml --plugin my_architecture.py"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the newest valid checkpoint of output_dir")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="with --resume: a key (training.learning_rate), a section, or 'data' that may differ from the "
        "checkpoint; can be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    config = read_config(options)

    from foundry_core.errors import UsageError

    with large_imports():
        from foundry_core.training.run import run

    if options.allow and not options.resume:
        raise UsageError("--allow names what may differ from the checkpoint that --resume continues from: use both")
    try:
        state = run(config, resume=options.resume, allowed_changes=options.allow, quiet=options.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("continue from the last checkpoint with --resume") from None
    checkpoint = f"{config.training.output_dir}/checkpoint-{state.step}"
    report(f"trained {state.step} steps, {state.tokens_seen:,} tokens: {checkpoint}")
