"""Checks every link of the built site without a network: `python -m docs.generator.links docs/_build/html`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTERNAL = ("http", "https", "mailto")


class _Page(HTMLParser):
    """The links, the resources and the anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        for name in ("href", "src"):
            if value := given.get(name):
                (self.links if tag == "a" else self.resources).append(value)


@cache
def page(path: Path) -> _Page:
    """Return the links and anchors of a file."""
    return _Page(path.read_text(encoding="utf-8"))


def broken(folder: Path) -> Iterator[str]:
    """Yield `page: link` for every link to a file or an anchor that does not exist, and for every outside resource.

    A resource is what a browser loads by itself: styles, scripts, pictures. Links to other sites are not followed.
    """
    for path in sorted(folder.rglob("*.html")):
        place = path.relative_to(folder)
        for link in [*page(path).links, *page(path).resources]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme not in EXTERNAL or (link in page(path).resources and parts.scheme != "mailto"):
                    yield f"{place}: {link}"
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if target.is_dir():
                target /= "index.html"
            exists = target.is_file() and target.is_relative_to(folder)
            if not exists or (target.suffix == ".html" and unquote(parts.fragment) not in page(target).anchors):
                yield f"{place}: {link}"


if __name__ == "__main__":
    found = list(broken(Path(sys.argv[1])))
    sys.exit("\n".join(["broken links:", *found]) if found else 0)
