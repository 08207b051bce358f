"""What verbs share: the YAML on the command line, and answers as tables or YAML."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from foundry_core.errors import CheckpointError, ConfigError, PluginError, UsageError, one_line, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from foundry_core.config.experiment import ExperimentConfig
    from foundry_core.models.base import BaseLanguageModel


@contextmanager
def large_imports() -> Iterator[None]:
    """Around what imports torch and transformers: half a million objects that stay.

    Python's garbage collector would go through them over and over while they come, and once more when the process ends:
    1.5 s of the 4.4 s of processor time that the imports of a training take.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The YAML, its overrides, and plugin files."""
    parser.add_argument("config", metavar="YAML", help="the experiment's configuration")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the YAML"
    )
    add_plugin_argument(parser)


def read_config(options: argparse.Namespace) -> ExperimentConfig:
    """The configuration that the command line names."""
    from foundry_core.config.loading import load_config

    files = load_plugins(options)
    config = load_config(options.config, options.overrides)
    _warn_of_silent(files, config)
    return config


def _warn_of_silent(files: Sequence[ModuleType], config: ExperimentConfig) -> None:
    """Say which plugin files have hooks that this run does not call."""
    if not files:
        return
    from foundry_core.registry.hooks import hooks_in

    active = config.chosen.plugins.modules
    for file in dict.fromkeys(files):
        hooks = hooks_in(file)
        if hooks and file not in active:
            warn(
                f"--plugin {file.__file__} has hooks, {', '.join(hooks)}, which are not active in this run: "
                f"name it in the YAML, plugins: [{file.__name__}]"
            )


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """Plugin files."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file that registers an architecture; may be repeated",
    )


def load_plugins(options: argparse.Namespace) -> list[ModuleType]:
    """Run the plugin files that the command line names."""
    return [_plugin_file(path) for path in options.plugin]


def _plugin_file(path: str) -> ModuleType:
    from foundry_core.registry.loading import load_plugin_file

    try:
        return load_plugin_file(path)
    except PluginError as error:  # of a descriptor that the file makes, for instance
        if str(error).startswith("--plugin "):
            raise
        raise PluginError(f"--plugin {path}: {error}") from error


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """A checkpoint, plugin files that it may need, and where it computes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint folder, or a run for its newest one")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU when there is one"
    )
    add_plugin_argument(parser)


def open_checkpoint(options: argparse.Namespace) -> tuple[Path, BaseLanguageModel, PreTrainedTokenizerFast]:
    """The checkpoint that the command line names: its folder, its model on the device, its tokenizer."""
    from foundry_core.devices import choose_device
    from foundry_core.models.base import BaseLanguageModel
    from foundry_core.tokenization.tokenizer_folder import load_tokenizer

    load_plugins(options)
    folder = _checkpoint_folder(Path(options.checkpoint))
    model = BaseLanguageModel.from_pretrained(folder).to(choose_device(options.device))
    tokenizer = load_tokenizer(folder)
    if max(tokenizer.get_vocab().values()) >= model.context.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens, its model {model.context.vocab_size:,}"
        )
    return folder, model, tokenizer


def _checkpoint_folder(folder: Path) -> Path:
    """A checkpoint or model folder, which is taken as it was named, or the newest valid checkpoint of a run."""
    from foundry_core.checkpoints.checkpoint import checkpoints, newest_valid
    from foundry_core.run_folder import MANIFEST, MODEL_CONFIG

    if os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / MODEL_CONFIG):
        return folder
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    if not checkpoints(folder):
        raise CheckpointError(f"{folder} is neither a checkpoint nor a run with checkpoints")
    newest, passed_over = newest_valid(folder)
    for line in passed_over:
        warn(line)
    return newest


def report(text: str) -> None:
    """Say on stdout what a verb has done; that it cannot be said does not undo it."""
    try:
        print(text, flush=True)
    except OSError as error:
        discard_lost(sys.stdout)
        warn(f"stdout cannot be written: {error.strerror}")


def discard_lost(stream: IO[str]) -> None:
    """Let what could not be written to stdout or stderr go nowhere, or Python complains of it when it exits."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except ValueError:  # somebody has closed it
        pass


def open_closed_streams() -> None:
    """Streams that the shell has closed (`>&-`) go nowhere: the next file to be opened must not take their place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest number that is free is that of the stream.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns, two spaces apart; columns after the first that hold figures are right-aligned."""
    cells = [list(header), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        column > 0 and all(not row[column] or row[column][0] in "0123456789-+." for row in rows)
        for column in range(len(header))
    ]
    lines = []
    for row in cells:
        parts = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "-" * len(lines[0]) if len(lines[0]) >= sum(widths) else "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def write_answer(text: str, output: str | None) -> None:
    """Print a text, or write it to a file that must not exist yet."""
    from foundry_core.storage.files import write_file

    if output is None:
        sys.stdout.write(text)
        return
    if os.path.lexists(output):
        raise UsageError(f"{output} exists and is not overwritten: name another file, or remove it")
    write_file(output, text.encode())


def yaml_scalar(value: Any) -> str:
    """A plain value as YAML that `YamlSource` reads back as the same value; text is quoted only where it must be."""
    from foundry_core.config.yaml_source import YamlSource

    if not isinstance(value, str):
        return json.dumps(value)
    # Both places where it can stand: what is plain after a key need not be plain in a list.
    try:
        trial = YamlSource.parse(f"key: {value} # comment\nlist: [{value}, {value}]\n", "").data
        plain = trial == {"key": value, "list": [value, value]}
    except ConfigError:
        plain = False
    if plain:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
