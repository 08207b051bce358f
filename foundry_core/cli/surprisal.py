"""Write the surprisal of each word of a text, in bits, as a table: with its place
in the text, the entropy of the prediction and the rank of the word.

A document is read as in training: it begins after the separator, and nothing of
another document is its context. By default each line is a document. Words are
separated by white space; a word of several tokens has their summed surprisal,
and entropy and rank of its first token.

Many tokenizers mark the start of a word. By default the probability that a new
word begins is counted with the word that ends there (--boundary trailing), so
that the words which may follow, and the end of the text, sum to 1. Papers
before 2024 count it with the next word (--boundary leading). Masked models have
pseudo-log-likelihoods (--pll).

docs/evaluation/surprisal.md explains the columns and has examples for R and
Python.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from foundry_core.cli.common import (
    add_checkpoint_argument,
    large_imports,
    open_checkpoint,
    path_argument,
    whole_checkpoints,
)
from foundry_core.errors import DataError, UsageError, did_you_mean, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from foundry_core.evaluation.words import Boundary, Columns
    from foundry_core.models.base import BaseLanguageModel

EXAMPLE = """\
examples:
  foundry surprisal runs/lstm sentences.txt --output surprisal.tsv
  foundry surprisal runs/gpt2 stimuli.tsv --column sentence --boundary leading
  foundry surprisal runs/gpt2 stories.txt --documents block --all -o all.parquet
  echo "the keys to the cabinet are" | foundry surprisal runs/gpt2 - --by token"""

_STDIN = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    what = "a file, a folder or a glob as of a corpus, a TSV (with --column), or - for stdin"
    parser.add_argument("text", metavar="TEXT", type=path_argument, help=what)
    parser.add_argument("--by", choices=("word", "token"), default="word", help="a row for each (default: word)")
    what = "whether the boundary after a word belongs to the next word or to the word itself (default: trailing)"
    parser.add_argument("--boundary", choices=("leading", "trailing"), help=what)
    what = "what is hidden of a masked model: one token at a time (default), or also the rest of its word"
    parser.add_argument("--pll", choices=("original", "within_word_l2r"), help=what)
    what = "what a document of a text file is: a line (default), a block between blank lines, or the file"
    parser.add_argument("--documents", choices=("line", "block", "file"), help=what)
    parser.add_argument("--column", metavar="NAME", help="TEXT is a TSV, each row of this column a document")
    what = "all checkpoints of a run; adds the columns step and words_seen"
    parser.add_argument("--all", action="store_true", help=what)
    what = "write a .tsv or .parquet file (default: TSV to stdout)"
    parser.add_argument("-o", "--output", type=path_argument, metavar="FILE", help=what)


def execute(options: argparse.Namespace) -> None:
    if options.by == "token" and options.boundary is not None:
        raise UsageError("--boundary is about words: leave it out with --by token")
    if options.column is not None and options.documents is not None:
        raise UsageError("--documents is for text, and with --column each row is a document: leave it out")
    if options.column is None and Path(options.text).suffix.lower() == ".tsv":
        raise UsageError(f"{options.text}: name the column that contains the text, as --column sentence")
    with large_imports():
        from foundry_core.evaluation.score_table import check_output, write_table

    if options.output is not None:
        check_output(options.output)
    texts = list(_texts(options))
    if not any(text and not text.isspace() for text in texts):
        raise DataError(f"{_name(options)}: only white space, no text.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    write_table(_parts(options, texts), options.output, sys.stdout)


def _parts(options: argparse.Namespace, texts: list[str]) -> Iterator[Columns]:
    """Yield the table of each checkpoint."""
    from foundry_core.checkpoints.state import read_state

    for number, folder in enumerate(whole_checkpoints(options.checkpoint) if options.all else [options.checkpoint]):
        given = {**vars(options), "checkpoint": folder} | ({"plugin": []} if number else {})
        found, model, tokenizer = open_checkpoint(argparse.Namespace(**given))
        columns = _table(options, found.name, model, tokenizer, texts)
        unknown = columns["in_vocabulary"].count(False)
        if unknown and not number:
            total = f"{len(columns['in_vocabulary']):,} {options.by}s"
            warn(f"{unknown:,} of {total} are not in the vocabulary of the tokenizer: in_vocabulary is FALSE")
        if options.all:
            state = read_state(found)
            rows = len(columns["text"])
            columns |= {"step": [state.step] * rows, "words_seen": [state.words_seen] * rows}
        yield columns


def _table(
    options: argparse.Namespace,
    label: str,
    model: BaseLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
) -> Columns:
    """Score the texts with a model. Raises UsageError if an option does not apply to its objective."""
    from foundry_core.evaluation.surprisal import token_scores
    from foundry_core.evaluation.words import text_words, token_columns, word_beginnings, word_columns
    from foundry_core.training.progress import scoring

    causal = model.context.objective.causal
    if causal and options.pll is not None:
        raise UsageError(f"--pll is for masked models, and this {model.model_type} is causal")
    if not causal and options.boundary == "trailing":
        raise UsageError(
            f"--boundary trailing is for causal models, and this {model.model_type} is masked: it does not predict "
            "where a word ends"
        )
    boundary: Boundary = options.boundary or ("trailing" if causal else "leading")
    words = text_words(tokenizer, texts)
    by_words = options.by == "word" and boundary == "trailing"
    with scoring(label, sum(len(each.ids) for each in words)) as progress:
        scores = token_scores(
            model,
            tokenizer,
            [each.ids for each in words],
            beginnings=word_beginnings(tokenizer, model.context.vocab_size) if by_words else None,
            groups=[each.groups for each in words] if options.pll == "within_word_l2r" else None,
            progress=progress,
        )
    if options.by == "token":
        return token_columns(words, scores, unknown=tokenizer.unk_token_id)
    return word_columns(words, scores, boundary=boundary, unknown=tokenizer.unk_token_id)


def _name(options: argparse.Namespace) -> str:
    return "stdin" if options.text == _STDIN else str(options.text)


def _texts(options: argparse.Namespace) -> Iterator[str]:
    """Yield the documents; a blank line, or a blank cell of a TSV, is one without words, so that they are numbered."""
    from foundry_core.corpus.reader import Corpus

    unit: Literal["line", "block", "file"] = options.documents or "line"
    if options.column is not None:
        yield from _column(options)
    elif options.text == _STDIN:
        text = _stdin()
        cuts = {"line": r"\n", "block": r"\n(?:[^\S\n]*\n)+", "file": r"\Z"}
        yield from (part.strip("\n") for part in re.split(cuts[unit], text.removesuffix("\n")))
    else:
        yield from Corpus.open(options.text, unit=unit, name="text", keep_blank_lines=unit == "line").documents()


def _stdin() -> str:
    """Read stdin, as strictly as a corpus."""
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8") from error
    if "\0" in text:
        raise DataError("stdin: has a NUL character: this is not text")
    return text


def _column(options: argparse.Namespace) -> Iterator[str]:
    """Yield the text of each row of a TSV. Raises DataError with the line of what is not one."""
    from foundry_core.corpus.reader import placed_lines

    if options.text == _STDIN:
        lines = ((f"stdin:{number}", line) for number, line in enumerate(_stdin().split("\n"), 1) if line.strip())
    else:
        path = Path(options.text)
        lines = ((str(place), line) for place, line in placed_lines(path) if line and not line.isspace())
    place = _name(options)

    def given() -> Iterator[str]:
        nonlocal place
        for place, line in lines:  # noqa: B007 - for the messages below
            yield f"{line}\n"

    def refuse(problem: str) -> NoReturn:
        raise DataError(f"{place}: {problem}")

    rows = csv.reader(given(), delimiter="\t", strict=True)
    try:
        header = next(rows, [])
        if header.count(options.column) != 1:
            times = "more than one" if options.column in header else "no"
            known = f"its columns are {', '.join(map(ascii, header[:8])) or 'none'}"
            refuse(f"{times} column {options.column!a}; {known}.{did_you_mean(options.column, header)}")
        for row in rows:
            if len(row) != len(header):
                refuse(f"a row of {len(row)} columns, and the header has {len(header)}")
            yield row[header.index(options.column)]
    except csv.Error as error:
        refuse(f"not a row of a TSV: {error}; a value with quotes is written in quotes, each of its own doubled")
