"""Writes the pages that are made, and turns links to files into links to pages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from docs.generator.api import api_page, hooks_page
from docs.generator.facts import environment_page, errors_page, files_page, messages_page
from docs.generator.keys import keys_page, models_page
from docs.generator.verbs import verbs_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PLUGINS = [path.name for path in sorted((ROOT / "plugins").glob("foundry-*")) if (path / "README.md").exists()]
INCLUDED = {
    "plugins/guide.md": "plugins/README.md",
    "plugins/stability.md": "plugins/STABILITY.md",
    **{f"plugins/{name}.md": f"plugins/{name}/README.md" for name in PLUGINS},
    "explanation/reliability.md": "foundry_core/RELIABILITY.md",
    "explanation/benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages that stand elsewhere in the repository, by their place in the documentation."""
SAME = {
    "foundry_core/PLUGINS.md": "plugins/guide.md",
    "foundry_core/STABILITY.md": "plugins/stability.md",
    "README.md": "index.md",
}
"""Other copies of pages, and what the first page stands for."""

MADE: dict[str, Callable[[], str]] = {
    "reference/keys.md": keys_page,
    "reference/models.md": models_page,
    "reference/verbs.md": verbs_page,
    "reference/api.md": api_page,
    "reference/hooks.md": hooks_page,
    "reference/errors.md": errors_page,
    "reference/messages.md": messages_page,
    "reference/files.md": files_page,
    "reference/environment.md": environment_page,
}
LINK = re.compile(r"(?<!!)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def relinked(text: str, origin: str, place: str) -> str:
    """Return a page whose links lead to pages, and which names other files of the repository without a link.

    Args:
        text: Markdown.
        origin: The path of the file in the repository, from which its links are relative.
        place: The path of the page below `docs/`.
    """
    pages = {source: page for page, source in INCLUDED.items()} | SAME

    def target(match: re.Match[str]) -> str:
        path = os.path.normpath(Path(origin).parent / match.group(1))
        page = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            return match.group()
        return f"]({os.path.relpath(page, Path(place).parent)}{match.group(2) or ''})"

    parts = re.split(r"(?ms)(^```.*?^```)", text)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


@cache
def made_pages() -> Mapping[str, str]:
    """Return the text of every page that is made, by its place."""
    included = {
        place: relinked((ROOT / source).read_text(encoding="utf-8"), source, place)
        for place, source in INCLUDED.items()
    }
    return included | {place: make() for place, make in MADE.items()}


def write_pages(folder: Path = DOCS) -> None:
    """Write the pages that are made, and `llms.txt`, into the folder of the documentation."""
    for place, text in made_pages().items():
        path = folder / place
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    (folder / "llms.txt").write_text(overview(folder), encoding="utf-8")


def listed(page: Path) -> list[str]:
    """Return what the toctrees of a page name, in their order, as paths from its folder without a suffix."""
    trees = re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"))
    found: list[str] = []
    for name in re.findall(r"(?m)^[\w/*-]+$", "".join(trees)):
        several = (
            sorted(path.stem for path in page.parent.glob(f"{name}.md") if path != page) if "*" in name else [name]
        )
        found += [each for each in several if each not in found]
    return found


def overview(folder: Path) -> str:
    """Return `llms.txt`: every page with its first sentence, by section (https://llmstxt.org)."""
    index = folder / "index.md"
    lines = ["# foundry", "", f"> {beginning(index)[1]}"]
    for section in listed(index):
        page = folder / f"{section}.md"
        inside = listed(page)
        title, sentence = beginning(page)
        lines += ["", f"## {title}", "", f"- [{title}]({section}.html): {sentence}"]
        for each in inside:
            place = (
                os.path.relpath(each, "/") if each.startswith("/") else os.path.normpath(Path(section).parent / each)
            )
            name, sentence = beginning(folder / f"{place}.md")
            lines.append(f"- [{name}]({place}.html): {sentence}")
    return "\n".join(lines) + "\n"


def beginning(page: Path) -> tuple[str, str]:
    """Return the title of a page and its first sentence."""
    text = page.read_text(encoding="utf-8")
    title = next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    paragraphs = re.split(r"\n\s*\n", text.partition(f"# {title}\n")[2].strip())
    first = next((each for each in paragraphs if re.match(r"(?!```)[\w`*\[]", each)), "")
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return title.replace("`", ""), re.split(r"(?<=[.:;]) ", words)[0].rstrip(":;")
