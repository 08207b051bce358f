"""Write a checkpoint as a folder for other tools: the model and its tokenizer,
without the optimizer's state.

A model that transformers has (GPT-2, BERT, Llama) opens there as it is. For
any other the folder imports the plugin that the model was trained with; with
--standalone it carries a file that needs only torch and transformers (4.46 to
5.x), which trust_remote_code=True opens."""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry_core.cli.common import (
    add_plugin_argument,
    checkpoint_folder,
    hanging,
    large_imports,
    load_plugins,
    open_folder,
    path_argument,
    report,
)
from foundry_core.errors import UsageError
from foundry_core.storage.manifest import refuse_inside

EXAMPLE = """\
examples:
  foundry export runs/gpt2 published/gpt2
  foundry export runs/lstm/checkpoint-1000 published/lstm --standalone"""


def configure(parser: argparse.ArgumentParser) -> None:
    given = "folder of a checkpoint, or of a run (its newest valid checkpoint is used)"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=path_argument, help=given)
    parser.add_argument("folder", metavar="FOLDER", type=path_argument, help="folder to write, new or empty")
    parser.add_argument("--standalone", action="store_true", help="open without foundry, whatever the architecture")
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not overwritten: name another folder, or remove it")
    refuse_inside(folder)
    load_plugins(options)
    source = checkpoint_folder(options.checkpoint)
    with large_imports():
        from foundry_core.checkpoints.exported import export

    done = export(*open_folder(source, "cpu"), folder, standalone=options.standalone)
    own, *further = done.auto_classes
    # Not wrapped: to be copied.
    report(f"{folder}: {source}, without the optimizer's state")
    report(f'  {own}.from_pretrained("{folder}"{", trust_remote_code=True" if done.trust else ""})')
    if further:
        report(hanging("", f"{', '.join(further)} open it in the same way."))
    if done.named:
        names = ", ".join(f"{role}: {token}" for role, token in done.named.items())
        report(hanging("", f"Its tokenizer_config.json names what that of the checkpoint does not: {names}."))
