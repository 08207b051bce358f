"""Tables of scores as TSV or Parquet, part by part."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from foundry_core.errors import UsageError
from foundry_core.storage.files import Writer, write_file, write_file_with
from foundry_core.storage.manifest import refuse_inside

if TYPE_CHECKING:
    from foundry_core.evaluation.words import Columns


_QUOTED = re.compile('[\t\n\r"]')


def tsv(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as lines of a TSV, as spreadsheets, pandas and R's read.delim read them.

    Values with tabs, ends of lines or quotes are in quotes, and each quote in them doubled. Fractions have six digits
    after the point, truth is TRUE or FALSE, and there is nothing where there is no value.
    """
    return "".join("\t".join(map(_cell, row)) + "\n" for row in rows)


def check_output(output: str) -> None:
    """Raise UsageError if a table cannot be written there: before it is computed, which may take long."""
    suffix = Path(output).suffix.lower()
    if suffix not in (".tsv", ".parquet"):
        raise UsageError(f"{output}: the name of a table ends with .tsv or .parquet")
    if os.path.lexists(output):
        raise UsageError(f"{output} exists and is not overwritten: name another file, or remove it")
    refuse_inside(Path(output))
    if suffix == ".parquet":
        _parquet()


def write_table(parts: Iterable[Columns], output: str | None, stdout: IO[str]) -> None:
    """Write parts with the same columns, one below the other; a TSV has a line with their names.

    Args:
        parts: Each may be computed when it is asked for.
        output: A name that `check_output` accepts; None for `stdout`.
    """
    if output is None:
        for number, part in enumerate(parts):
            stdout.write(_lines(part, header=number == 0))
    elif Path(output).suffix.lower() == ".parquet":
        _write_parquet(parts, output)
    else:

        def fill(file: Writer) -> None:
            for number, part in enumerate(parts):
                file.write(_lines(part, header=number == 0).encode())

        write_file_with(output, fill)


def _lines(part: Columns, *, header: bool) -> str:
    return tsv([part] if header else []) + tsv(zip(*part.values(), strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{round(value, 6) + 0.0:.6f}"  # 0.0 turns -0.0 into 0.0
    text = str(value)
    # The csv module leaves a carriage return without quotes, which readers take for the end of a line.
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError("writing .parquet files needs a package: pip install model-foundry[parquet]") from None
    return parquet


def _write_parquet(parts: Iterable[Columns], output: str) -> None:
    """Write a group of rows for each part; numbers keep all of their digits."""
    import pyarrow

    buffer, writer = io.BytesIO(), None
    for part in parts:
        fields = [pyarrow.field(name, _type(name)) for name in part]
        table = pyarrow.table(part, schema=pyarrow.schema(fields))
        writer = writer or _parquet().ParquetWriter(buffer, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    write_file(output, buffer.getvalue())


def _type(name: str) -> Any:
    """Return the type of a column, which a part without any value would leave open."""
    import pyarrow

    kinds = {"text": pyarrow.string(), "in_vocabulary": pyarrow.bool_()}
    return kinds.get(name, pyarrow.float64() if name in ("surprisal", "entropy") else pyarrow.int64())
