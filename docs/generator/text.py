"""Markdown from plain text: escapes, tables, docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Yields")


def escaped(text: str) -> str:
    """Return plain text so that Markdown shows it as it is, except for `code` and *one* emphasised word."""
    parts = re.split(r"(`[^`]+`|(?<![\w*])\*[a-z]+\*(?![\w*]))", text)
    plain = [re.sub(r"([\\*_<>\[\]|{}$#~])", r"\\\1", part) for part in parts[::2]]
    return "".join(chain.from_iterable(zip_longest(plain, parts[1::2], fillvalue="")))


def code(text: str) -> str:
    """Return text as inline code."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("\n", " ").replace("|", r"\|") for cell in row) + " |" for row in lines
    )


def page(title: str, introduction: str, *parts: str) -> str:
    """Return a page that is made, not written."""
    return "\n\n".join([f"# {title}", introduction, *(part for part in parts if part)]) + "\n"


def prose(text: str) -> str:
    """Return plain text of paragraphs as Markdown; paragraphs that are indented become blocks of code."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        if all(line.startswith("  ") for line in lines):
            kept = inspect.cleandoc("\n" + paragraph)
            if parts and parts[-1].endswith("\n```"):
                parts[-1] = parts[-1].removesuffix("```") + f"\n{kept}\n```"
            else:
                parts.append(block(kept))
        else:
            parts.append(escaped(paragraph))
    return "\n\n".join(parts)


def docstring(text: str | None) -> str:
    """Return a docstring with sections such as Args: as Markdown, each section a list."""
    if not text:
        return ""
    parts: list[str] = []
    heading = rf"(?m)^({'|'.join(SECTIONS)}):[ \t]*\n"
    body, *sections = re.split(heading, inspect.cleandoc(text) + "\n")
    if body.strip():
        parts.append(prose(body))
    for name, content in zip(sections[::2], sections[1::2], strict=True):
        inside, after = _indented(content)
        parts.append(f"**{name}**")
        if name in ("Returns", "Yields"):
            parts.append(escaped(" ".join(inside.split())))
        else:
            entries = re.split(r"\n(?=\S)", inspect.cleandoc("\n" + inside))
            parts.append("\n".join(f"* {_entry(' '.join(each.split()))}" for each in entries if each.strip()))
        if after.strip():
            parts.append(prose(after))
    return "\n\n".join(parts)


def _indented(content: str) -> tuple[str, str]:
    """Return the lines of a section, which are indented, and what follows them."""
    lines = content.splitlines()
    end = next((at for at, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:])


def _entry(text: str) -> str:
    name, colon, rest = text.partition(": ")
    return (
        f"{code(name)}: {escaped(rest)}" if colon and re.fullmatch(r"\*{0,2}[\w.]+(, [\w.]+)*", name) else escaped(text)
    )
