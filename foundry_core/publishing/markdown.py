"""Values of a run as Markdown. Light."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "–"
"""The mark for a missing value in a cell."""


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown: figures to the right."""
    header, rows = list(header), [list(row) for row in rows]
    figures = [
        all(re.fullmatch(r"[\d,.:e+–-]+[kMB]?( ± [\d.]+)?", row[at]) for row in rows) for at in range(len(header))
    ]
    rule = ["--:" if figure and at else "---" for at, figure in enumerate(figures)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def number(value: Any) -> str:
    """Return a number with separators, to three decimals."""
    if not isinstance(value, int | float):
        return NONE
    return f"{round(value, 3):,}"


def setting(value: Any) -> str:
    """Return the value of a setting."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return str(value)
    return plain(str(value)) if re.search(r"[`|\s]", str(value)) else f"`{value}`"


def plain(text: str) -> str:
    """Return text of a run in one line that Markdown and HTML show as it is."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\|`*\[\]])", r"\\\1", escaped)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def link(repository: str, text: str | None = None) -> str:
    """Return a link to a repository of models."""
    return f"[{plain(text or repository)}](https://huggingface.co/{repository})"


def bibtex(key: str, facts: Mapping[str, str]) -> str:
    """Return an entry for a bibliography; facts that are empty are left out."""
    escaped = {name: value if name == "url" else re.sub(r"([_&%#$])", r"\\\1", value) for name, value in facts.items()}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in escaped.items() if value)
    return f"@misc{{{key},\n{lines}\n}}"
