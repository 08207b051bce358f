"""RELIABILITY.md: every promise is there, and every test that it names exists and is collected."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "foundry_core"
PAGE = CORE / "RELIABILITY.md"
PROMISES = [f"R{number}" for number in range(1, 21)]


def sections() -> dict[str, str]:
    parts = re.split(r"^## (R\d+) ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert len(parts) == 2 * len(PROMISES)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def is_in_a_module(name: str) -> bool:
    """Check that a dotted name begins with a module of core: `devices.memory_watched`, `training.trainer`."""
    parts = name.split(".")
    return any((CORE.joinpath(*parts[:length])).with_suffix(".py").is_file() for length in (1, 2))


def test_every_promise_names_its_mechanism_and_its_tests() -> None:
    found = sections()
    assert list(found) == PROMISES
    for promise, text in found.items():
        (keepers,) = re.findall(r"^Kept by: (.+?)$", text, flags=re.MULTILINE)
        names = re.findall(r"`(\w+(?:\.\w+)*)`", keepers)
        assert names, promise
        assert [name for name in names if not is_in_a_module(name)] == [], promise
        assert re.search(r"^\* `tests/", text, flags=re.MULTILINE), promise


def test_every_test_that_is_named_exists() -> None:
    names = re.findall(r"^\* `(.+)`$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(names) == PAGE.read_text().count("::")
    assert len(names) > 40
    missing = [name for name in names if name.partition("::")[2] not in functions(ROOT / name.partition("::")[0])]
    assert missing == []
    assert all(name.partition("::")[2].startswith("test_") for name in names)


def test_the_page_ships_with_the_package_and_readme_links_to_it() -> None:
    assert "(foundry_core/RELIABILITY.md)" in (ROOT / "README.md").read_text()
    assert '"*.md"' in (ROOT / "pyproject.toml").read_text()
