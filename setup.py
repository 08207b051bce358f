"""The description of the package: README.md with links that work elsewhere. All else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?!https?://|#)[^)\s]+)\)")


def description() -> str:
    """Return README.md with links into the repository that `[project.urls]` names as `Source`.

    Without an address a link becomes its text, and a picture is left out.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    source = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Source")
    (version,) = re.findall(
        r'(?m)^__version__ = "(.+)"', (ROOT / "foundry_core/__init__.py").read_text(encoding="utf-8")
    )

    def outside(match: re.Match[str]) -> str:
        picture, name, path = match.groups()
        if source is None:
            return "" if picture else name
        return f"{picture}[{name}]({source}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return LINK.sub(outside, text)


setup(long_description=description(), long_description_content_type="text/markdown")
