"""The table of other programs on docs/evaluation/transformers.md, from what `make peers` has measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docs.generator.text import code, table

PAGE = Path(__file__).parents[1] / "evaluation" / "transformers.md"
DATA = PAGE.parent / "peers.json"
BEGIN, END = "<!-- from peers.json, by make peers -->\n", "<!-- end of what make peers writes -->\n"


def peers_table(data: Any) -> str:
    """Return the table of the largest differences, by program, environment and architecture."""
    environments = data["environments"]
    names = list(dict.fromkeys(name for each in environments for name in each["peers"]))
    columns = list(
        dict.fromkeys(
            architecture
            for each in environments
            for seen in each["peers"].values()
            for architecture in seen["differences"]
        )
    )
    rows = []
    for name in names:
        for each in environments:
            seen = each["peers"][name]
            cells = [_number(seen["differences"].get(architecture)) for architecture in columns]
            version = seen["version"] or "not installed"
            rows.append([f"{name} {version}", each["transformers"], each["folders"], *cells])
    return table(["program", "transformers", "folder", *map(code, columns)], rows)


def with_table(text: str, data: Any) -> str:
    """Return the text of the page with this table in place of the one between the marks."""
    between = f"{BEGIN}\n{peers_table(data)}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: between, text, flags=re.DOTALL)


def _number(value: float | None) -> str:
    """Return a difference with one digit, rounded up."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits, power = f"{value:.1e}".split("e")
    upper = -int(-float(digits) // 1)
    return f"{upper}e{int(power)}" if upper < 10 else f"1e{int(power) + 1}"
