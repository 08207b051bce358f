"""Sphinx configuration; `make docs` builds the site without a network."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.generator import write_pages  # noqa: E402
from docs.generator.pages import beginning, relinked  # noqa: E402
from foundry_core import __version__  # noqa: E402

project = "foundry"
author = "the foundry developers"
copyright = "the foundry developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build", "generator"]
highlight_language = "text"
smartquotes = False  # would turn the two hyphens of an option into a dash
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_links_external_new_tab = False

html_theme = "furo"
html_title = f"foundry {release}"
html_extra_path = ["llms.txt"]
html_static_path = ["_static"]
html_css_files = ["foundry.css"]
html_copy_source = True
html_use_index = False
html_show_sourcelink = False


def _relink(app: Any, page: str, source: list[str]) -> None:
    """Let links to files that are shown as pages lead to these pages."""
    source[0] = relinked(source[0], f"docs/{page}.md", f"{page}.md")
    if page == "decisions/README":  # read on its own, too, where a toctree would be shown as code
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def _describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give each page its first sentence as a description, for search engines and previews of links."""
    source = Path(app.srcdir, f"{page}.md")
    if source.exists():
        title, sentence = beginning(source)
        text = f"A design decision of foundry: {title}" if sentence.startswith("Status") else sentence.replace("`", "")
        context["metatags"] = context.get("metatags", "") + f'<meta name="description" content="{escape(text)}" />'


def setup(app: Any) -> None:
    """Write the pages that are made before Sphinx looks for pages."""
    write_pages()
    app.connect("source-read", _relink)
    app.connect("html-page-context", _describe)
