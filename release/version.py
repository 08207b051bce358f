"""Write one version wherever a release states it; `foundry_core/__init__.py` is where it is kept.

    python release/version.py 0.2.0     sets the version of core and of everything below
    python release/version.py           lets everything below agree with core

A plugin is built from its own folder, without core, so that its version cannot be read from core's: it is written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from foundry_core.cli.new_plugin import core_versions

CORE = "foundry_core/__init__.py"
_BOUND = re.compile(r"model-foundry>=[\d.]+,<[\d.]+")
_BOUNDED = ("plugins/README.md", "plugins/STABILITY.md", "foundry_core/testing/**/*.py")
"""Texts that show which cores a plugin should require."""


def kept(root: Path) -> str:
    """Return the version of core in the sources below `root`."""
    match = re.search(r'^__version__ = "(.+)"$', (root / CORE).read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{root / CORE} has no line __version__ = ...")
    return match[1]


def write(root: Path, version: str) -> list[str]:
    """Write a version into the sources below `root` and return the files that have changed."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        raise SystemExit(f"{version} is not a version such as 0.2.0 or 0.2.0rc1")
    changed = []
    lowest, below = core_versions(version)
    places: dict[str, tuple[str, str] | None] = {
        CORE: ('^__version__ = ".+"$', f'__version__ = "{version}"'),
        "CITATION.cff": ("^version: .+$", f"version: {version}"),
        "docs/project.md": (r"^  version = \{.+\},$", f"  version = {{{version}}},"),
        "plugins/foundry-*/pyproject.toml": ('^version = ".+"$', f'version = "{version}"'),
        **dict.fromkeys(_BOUNDED),
    }
    for pattern, place in places.items():
        for path in sorted(root.glob(pattern)):
            before = text = path.read_text("utf-8")
            if place is not None:
                line, replacement = place
                text, count = re.subn(line, replacement, text, count=1, flags=re.MULTILINE)
                if not count:
                    raise SystemExit(f"{path} has no line with its version")
            text = _BOUND.sub(f"model-foundry>={lowest},<{below}", text)
            if text != before:
                path.write_text(text, "utf-8")
                changed.append(str(path.relative_to(root)))
    return changed


if __name__ == "__main__":
    here = Path(__file__).parents[1]
    for name in write(here, sys.argv[1] if len(sys.argv) > 1 else kept(here)):
        sys.stdout.write(f"{name}\n")
