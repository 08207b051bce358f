"""Shared parts of the verbs: arguments, and answers as tables or YAML."""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from foundry_core.errors import CheckpointError, PluginError, UsageError, one_line, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from foundry_core.config.experiment import ExperimentConfig
    from foundry_core.data.preparation import ExperimentData
    from foundry_core.models.base import BaseLanguageModel


def add_verb(
    verbs: Any, name: str, summary: str, description: str | None, example: str | None, execute: Any
) -> argparse.ArgumentParser:
    """Add a verb: its line in the list of verbs, its help text and example, and the function that executes it."""
    layout = argparse.RawDescriptionHelpFormatter
    verb = verbs.add_parser(name, help=summary, description=description, epilog=example, formatter_class=layout)
    verb.set_defaults(execute=execute)
    return verb  # type: ignore[no-any-return]


@contextmanager
def large_imports() -> Iterator[None]:
    """Pause the garbage collector while torch and transformers are imported.

    Their half a million objects stay until the process ends. Collecting them over and over takes 1.5 s of the 4.4 s of
    processor time that the imports of a training take.
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


def path_argument(text: str) -> str:
    """Return the path that an argument names; `~` is what it is in a path key of a YAML."""
    from foundry_core.schema import expand_home

    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def text_argument(text: str) -> str:
    """Return an argument that is text, also UTF-8 in a locale of another encoding; other bytes are refused."""
    try:
        return os.fsencode(text).decode() if any("\udc80" <= c <= "\udcff" for c in text) else text
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8 text") from None


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], Any]:
    """Return the type of a numeric option: a number from `least` to `most`, and so neither NaN nor infinite."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what} from {least:,} to {most:,}")
        return value

    return parse


seed_argument = number(int, 0, 2**63 - 1)
"""A random seed; its bounds are those of the seeds in a YAML."""


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the YAML, its overrides, and --plugin."""
    what = (
        "replaces a setting of the YAML; a key of text takes the value as it is typed, any other as YAML; null resets "
        "a key that is not required"
    )
    parser.add_argument(
        "config",
        metavar="YAML",
        type=path_argument,
        nargs=None if required else "?",
        help="the configuration of the experiment",
    )
    # Without a default argparse reports them as required where the YAML is missing.
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=what)
    add_plugin_argument(parser)


def read_config(options: argparse.Namespace) -> ExperimentConfig:
    """Load the configuration; warn of plugin files whose hooks it does not make active."""
    from foundry_core.config.loading import load_config
    from foundry_core.registry.hooks import hooks_in

    files = dict.fromkeys(load_plugins(options))
    config = load_config(options.config, options.overrides)
    for file in files:
        hooks = hooks_in(file)
        if hooks and file not in config.chosen.plugins.modules:
            warn(
                f"--plugin {file.__file__} has hooks, {', '.join(hooks)}, which are not active in this run: "
                f"name it in the YAML, plugins: [{file.__name__}]"
            )
    return config


def prepare_data(config: ExperimentConfig) -> tuple[PreTrainedTokenizerFast, ExperimentData]:
    """Train the tokenizer, encode the corpora and cut them into rows, or reuse what is there."""
    with large_imports():
        from foundry_core.data import preparation
        from foundry_core.training.progress import reading

    corpora = preparation.experiment_corpora(config)
    tokenizer = preparation.experiment_tokenizer(config, corpora.train)
    with reading("encoding", corpora.train.bytes) as progress:
        tokens = preparation.experiment_tokens(config, tokenizer, corpora, progress=progress)
    return tokenizer, preparation.experiment_rows(config, tokenizer, tokens, corpora)


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """Add --plugin."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE.py",
        help="file with an architecture; can be repeated",
    )


def load_plugins(options: argparse.Namespace) -> list[ModuleType]:
    """Run the plugin files that the command line names."""
    from foundry_core.registry.loading import load_plugin_file

    modules = []
    for path in options.plugin:
        try:
            modules.append(load_plugin_file(path))
        except PluginError as error:  # from a descriptor that the file makes, for instance
            place = "" if str(error).startswith("--plugin ") else f"--plugin {path}: "
            raise PluginError(f"{place}{error}") from error
    return modules


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add a checkpoint, --device, and --plugin."""
    folder = "folder of a checkpoint, or of a run (its newest valid checkpoint is used)"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=path_argument, help=folder)
    devices = ("auto", "cpu", "cuda", "mps")
    parser.add_argument("--device", choices=devices, default="auto", help="auto (default): a GPU if there is one")
    add_plugin_argument(parser)


def open_checkpoint(options: argparse.Namespace) -> tuple[Path, BaseLanguageModel, PreTrainedTokenizerFast]:
    """Open the checkpoint that the command line names: its folder, its model on the device, its tokenizer."""
    load_plugins(options)
    folder = checkpoint_folder(options.checkpoint)
    return folder, *open_folder(folder, options.device)


def open_folder(folder: Path, device: str) -> tuple[BaseLanguageModel, PreTrainedTokenizerFast]:
    """Open a checkpoint or a model folder: its model on the device, its tokenizer."""
    from foundry_core.checkpoints.compatibility import changed_plugins, present_plugins
    from foundry_core.devices import choose_device
    from foundry_core.models.base import BaseLanguageModel
    from foundry_core.models.building import read_description
    from foundry_core.tokenization.tokenizer_folder import load_tokenizer

    model = BaseLanguageModel.from_pretrained(folder).to(choose_device(device, "--device"))
    changes = changed_plugins(read_description(folder), present_plugins(model.config)).values()
    if changes:
        warn(f"{folder}: {'; '.join(changes)}: its scores may not be those it had before")
    tokenizer = load_tokenizer(folder)
    if max(tokenizer.get_vocab().values()) >= model.context.vocab_size:
        sizes = f"{len(tokenizer):,} tokens, its model {model.context.vocab_size:,}"
        raise CheckpointError(f"{folder}: its tokenizer has {sizes}")
    return model, tokenizer


def checkpoint_folder(path: str | Path) -> Path:
    """Return a checkpoint or model folder as it was named, or the newest valid checkpoint of a run."""
    from foundry_core.checkpoints.checkpoint import checkpoints, newest_valid
    from foundry_core.run_folder import MANIFEST, MODEL_CONFIG, no_checkpoints

    folder = Path(path)
    if os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / MODEL_CONFIG):
        return folder
    if not checkpoints(folder):
        raise CheckpointError(no_checkpoints(folder, "is neither a checkpoint nor a run with checkpoints"))
    newest, passed_over = newest_valid(folder)
    for line in passed_over:
        warn(line)
    return newest


def whole_checkpoints(run: str | Path) -> list[Path]:
    """Return the checkpoints of a run that are whole, in their order; warn of the others."""
    from foundry_core.checkpoints.checkpoint import check_whole, checkpoints
    from foundry_core.run_folder import no_checkpoints

    found = []
    for folder in checkpoints(run):
        try:
            check_whole(folder)
        except CheckpointError as error:
            warn(f"{folder.name} is passed over: {error}")
        else:
            found.append(folder)
    if not found:
        raise CheckpointError(no_checkpoints(Path(run), "is not a run with a valid checkpoint"))
    return found


def report(text: str) -> None:
    """Print what a verb has done; where stdout cannot be written, warn and carry on."""
    try:
        print(text, flush=True)
    except OSError as error:
        discard_lost(sys.stdout)
        warn(f"stdout cannot be written: {error.strerror}")


def discard_lost(stream: IO[str]) -> None:
    """Discard what stdout or stderr could not write, which Python would complain about when it exits."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    except ValueError:  # the stream is closed
        pass


def open_closed_streams() -> None:
    """Reopen streams that the shell closed (`>&-`) on the null device, so that no file gets descriptor 0, 1 or 2."""
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers: open() takes the lowest free one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115


def make_printable() -> None:
    """Let stdout and stderr escape what a locale cannot encode, so that a complete run does not end in an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def screen_width() -> int:
    """Return the columns of the terminal; 80 without a terminal."""
    return shutil.get_terminal_size().columns


def hanging(start: str, text: str, indent: int | None = None) -> str:
    """Return a text after `start`, wrapped at the screen; further lines are indented, by the length of `start`."""
    filled = textwrap.fill(
        text,
        max(screen_width(), len(start) + 20),
        initial_indent=start,
        subsequent_indent=" " * (len(start) if indent is None else indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.rstrip() or start.rstrip()


def listing(facts: Iterable[tuple[str, str]], indent: str = "") -> str:
    """Return a line for each fact: its name and, in a second column, its value."""
    facts = list(facts)
    width = max(len(name) for name, _ in facts)
    return "\n".join(hanging(f"{indent}{name:<{width}}  ", one_line(value)) for name, value in facts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return text in columns: figures right-aligned, the last column wrapped at the screen."""
    cells = [list(header), *([one_line(cell) for cell in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    figures = [place > 0 and all(cell[:1] in "0123456789-+." for cell in cs[1:]) for place, cs in enumerate(columns)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, figures, strict=True)
        ]
        lines.append(hanging("  ".join([*padded[:-1], ""]), padded[-1]))
    lines.insert(1, "-" * min(screen_width(), sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def write_answer(text: str, output: str | None) -> None:
    """Print a text, or write it to a file that must not exist yet."""
    from foundry_core.storage.files import write_file
    from foundry_core.storage.manifest import refuse_inside

    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a YAML is UTF-8 in every locale
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(text)
    elif os.path.lexists(output):
        raise UsageError(f"{output} exists and is not overwritten: name another file, or remove it")
    else:
        refuse_inside(Path(output))
        write_file(output, text.encode())


def yaml_scalar(value: Any) -> str:
    """Return a plain value as YAML that `YamlSource` reads back as the same value, quoted only where needed."""
    import yaml

    from foundry_core.config.yaml_source import YamlSource

    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    # Words and paths can be plain, in a list too, unless they read as null, a boolean or a number.
    if re.fullmatch(r"[\w./][\w./-]*", value) and YamlSource.parse(f"x: {value}", "").data == {"x": value}:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


_PIPELINES = {"GLUE, as the BabyLM pipeline fine-tunes on it,": 512}
"""Tokens that evaluations of others read at a time."""


def shown_positions(number: int | None) -> str:
    """Return how many tokens a model reads at a time, and who will need more; None: any number."""
    if number is None:
        return "any number"
    more = [f"{name} reads {tokens:,}" for name, tokens in _PIPELINES.items() if tokens > number]
    return f"{number:,}" + (f" ({'; '.join(more)}: set max_positions, or longer rows)" if more else "")


def shown_fact(name: str, value: Any) -> str:
    """Return a fact of a planned run, by its name in the JSON of `foundry plan`, as a person reads it."""
    from foundry_core.training.console import duration, share

    if name.startswith("unknown_share"):
        return f"no {name.rpartition('_')[2]} corpus" if value is None else share(value)
    if name == "positions":
        return shown_positions(value)
    if name == "compile":
        return "on" if value else "off"
    if name in ("checkpoints", "evaluations"):
        if not value:
            return "none"
        steps = ", ".join(map(str, value if len(value) <= 8 else [*value[:5], "...", *value[-2:]]))
        return f"{len(value)}, at steps {steps}"
    if name.endswith("_beyond_the_end"):
        return ", ".join(value) or "none"
    if name == "passes":
        return ", ".join(f"{passes:,} over {corpus}" for corpus, passes in value.items())
    if name == "milestones":
        return ", ".join(f"{amount} at {step:,}" for amount, step in value.items()) or "none"
    if name == "seconds":
        return f"{duration(value)} on this machine, without compiling, evaluations and saving"
    if "bytes" in name or name == "of_which_activations":
        return f"{value / 1e6:,.1f} MB"
    if "flops" in name or name == "seconds_per_step":
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
