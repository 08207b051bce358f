"""Texts in columnar files: the column `text` of Parquet and Arrow files, read through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundry_core.corpus.files import Stamp, disguised, refuse, unchanged

_ROWS = 1024
"""Rows that are made Python strings at once."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def table_texts(path: Path, stamp: Stamp) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts of a Parquet or Arrow file in lists, each with the number of its first row, counted from 1.

    Raises:
        DataError: pyarrow is not installed; the file is damaged, was changed, or has no column `text` of strings.
    """
    try:
        from pyarrow import ArrowException  # a folder named pyarrow has none
    except ImportError as error:
        refuse(path, f"reading {path.suffix} files needs a package: pip install model-foundry[parquet]", error)
    row, start = 1, b""
    try:
        with unchanged(path, stamp) as raw:
            start = raw.read(8)
            raw.seek(0)
            for column in _parquet(path, raw) if path.suffix.lower() == ".parquet" else _arrow(path, raw, start):
                column.validate(full=True)  # damage can lead out of the file
                for first in range(0, len(column), _ROWS):
                    texts = column.slice(first, _ROWS).to_pylist()
                    if None in texts:
                        refuse(path, f'row {row + texts.index(None)}: "text" is null, not a string.')
                    yield row, texts
                    row += len(texts)
    except (ArrowException, OSError) as error:
        looks_like = disguised(start)
        own = not looks_like or path.suffix[1:].title() in looks_like
        cause = str(error).partition("\n")[0].rstrip(".") if own else f"it is {looks_like}"
        refuse(path, f"cannot be read as {path.suffix} from row {row} on: {cause}.", error)


def _check_schema(path: Path, schema: Any) -> None:
    from pyarrow import types

    if schema.names.count("text") != 1:
        names = ", ".join(map(ascii, schema.names[:8])) or "none"
        refuse(path, f'needs one column "text", and its columns are {names}: rename the one with the text.')
    kind = schema.field("text").type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        refuse(path, f'the column "text" contains {kind}, not strings.')


def _parquet(path: Path, raw: Any) -> Iterator[Any]:
    from pyarrow import parquet

    file = parquet.ParquetFile(raw, page_checksum_verification=True)
    _check_schema(path, file.schema_arrow)
    for batch in file.iter_batches(_ROWS, columns=["text"]):
        yield batch.column("text")


def _arrow(path: Path, raw: Any, start: bytes) -> Iterator[Any]:
    """Yield the column from the file format, or from the stream format, in which the datasets library saves."""
    from pyarrow import ipc

    if start.startswith(b"ARROW1"):
        file = ipc.open_file(raw)
        _check_schema(path, file.schema)
        for number in range(file.num_record_batches):
            yield file.get_batch(number).column("text")
        return
    stream = ipc.open_stream(raw)
    _check_schema(path, stream.schema)
    for batch in stream:
        yield batch.column("text")
    # pyarrow takes a stream that was cut between two batches, or followed by another one, for a whole one.
    end = raw.tell()
    raw.seek(-min(end, len(_END_OF_STREAM)), 1)
    if raw.read() != _END_OF_STREAM:
        refuse(path, "does not end where its stream of rows does: it was cut off, or files were joined.")
