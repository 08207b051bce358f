"""Train the model that a YAML describes, with its tokenizer and token files.

Writes to training.output_dir: checkpoint-<step> folders that transformers can
open, metrics.jsonl, config.yaml and run.json. The tokenizer goes there too
unless tokenizer.output_dir is set.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from foundry_core.cli.common import add_config_arguments, large_imports, number, read_config, report
from foundry_core.errors import FoundryError, UsageError, warnings_silenced
from foundry_core.systems import reports, started_together

EXAMPLE = """\
examples:
  foundry train configs/gpt2.yaml
  foundry train configs/gpt2.yaml training.learning_rate=1e-3
  foundry train configs/gpt2.yaml --resume --allow training.learning_rate
  foundry train configs/gpt2.yaml --resume auto   # in a job that is requeued
  foundry train configs/gpt2.yaml --profile 10
  foundry train configs/gpt2.yaml --processes 2
  foundry train my.yaml --plugin my_architecture.py"""

_GO_ON = "continue from the last checkpoint with --resume"


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    what = "continue from the newest valid checkpoint of output_dir; auto: begin the run if there is none"
    parser.add_argument("--resume", nargs="?", const=True, default=False, choices=["auto"], metavar="auto", help=what)
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="let a key, a section or 'data' differ from the checkpoint",
    )
    what = "measure where the time of N steps goes, after a few that warm up: profile/ in output_dir"
    parser.add_argument("--profile", type=number(int, 1, 1000), default=0, metavar="N", help=what)
    what = "divide the micro-batches of a step between N processes of this machine; does not change the result"
    parser.add_argument("--processes", type=number(int, 1, 1024), default=1, metavar="N", help=what)
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def execute(options: argparse.Namespace) -> None:
    if started_together():  # torch reads this when it is imported: it prints pages when a process has gone otherwise
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    launches = options.processes > 1 and not started_together()
    try:
        with warnings_silenced(launches or not reports()):  # one process of the run prints them
            config = read_config(options)
        if options.allow and not options.resume and config.training.start_from is None:
            raise UsageError("--allow can only be used with --resume, or with training.start_from")
    except FoundryError as error:
        if not started_together():
            raise
        with large_imports():
            from foundry_core.processes import ended_before_joining

        raise ended_before_joining(error) from error
    if launches:
        from foundry_core.training.division import check_division
        from foundry_core.training.launcher import launch

        check_division(config, options.processes)
        command = (sys.executable, "-P", "-m", __name__.rpartition(".")[0], *options.arguments)
        try:
            launch(command, options.processes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_GO_ON) from None
        return
    if options.profile:  # torch reads this when it is imported: its profiler prints lines of its own otherwise
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with large_imports():
        from foundry_core.models.registration import postpone_registration
        from foundry_core.training.console import amounts
        from foundry_core.training.run import run

    postpone_registration()
    try:
        state = run(
            config,
            resume=options.resume,
            allowed_changes=options.allow,
            quiet=options.quiet,
            profile=options.profile,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_GO_ON) from None
    checkpoint = Path(config.training.output_dir) / f"checkpoint-{state.step}"
    if not reports():
        return
    seen = amounts(state.epoch, state.tokens_seen, state.words_seen, state.bytes_seen)
    report(f"trained {state.step} steps, {seen}: {checkpoint}")
