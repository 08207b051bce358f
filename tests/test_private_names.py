"""Tests do not touch what core keeps private, so that modules can be moved and split without them."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.each import each
from tests.test_rules import CORE_FILES, ROOT, dotted, parsed, where

TEST_FILES = sorted({*(ROOT / "tests").rglob("*.py"), *ROOT.glob("plugins/*/tests/**/*.py"), ROOT / "conftest.py"})
TEST_FILES.remove(Path(__file__))  # it holds examples of what it forbids
PRIVATE = re.compile(r"_(?!_)\w+")
OF_OTHERS = {"_is_stateful", "_module", "_no_split_modules"}
"""Private names of transformers and nnsight that core defines, too."""


def private_names_of_core() -> set[str]:
    """Every private name that core defines: of functions and classes, of variables and attributes."""
    found = set()
    for path in CORE_FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if PRIVATE.fullmatch(name)}


def programs(tree: ast.AST) -> Iterator[ast.AST]:
    """A file, and the programs that it holds as texts."""
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            with suppress(SyntaxError):
                yield ast.parse(textwrap.dedent(node.value))


def private_names_used(tree: ast.AST, private: set[str]) -> Iterator[tuple[str, ast.AST]]:
    """Each private name of core that is imported, read or set from outside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foundry_core"):
            yield from ((alias.name, node) for alias in node.names if PRIVATE.fullmatch(alias.name))
        elif isinstance(node, ast.Attribute) and node.attr in private:
            if ast.unparse(node.value) not in ("self", "cls", "super()"):
                yield node.attr, node
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("getattr", "setattr", "delattr"):
            names = [str(each.value).rpartition(".")[2] for each in node.args if isinstance(each, ast.Constant)]
            yield from ((name, node) for name in names if name in private)


@pytest.mark.long
def test_tests_do_not_use_private_names_of_core() -> None:
    private = private_names_of_core() - OF_OTHERS
    offenders = [
        f"{where(path, node)}: {name}"
        for path in TEST_FILES
        for tree in programs(parsed(path))
        for name, node in private_names_used(tree, private)
    ]
    assert offenders == []


@each(
    "line",
    [
        "from foundry_core.storage import _hidden",
        "storage._hidden",
        "encoder._cuts = True",
        "monkeypatch.setattr(module, '_hidden', None)",
        "monkeypatch.setattr('foundry_core.storage._hidden', None)",
        "PROGRAM = 'from foundry_core.storage import _hidden'",
    ],
)
def test_the_use_of_a_private_name_is_recognised(line: str) -> None:
    found = [name for tree in programs(ast.parse(line)) for name, _ in private_names_used(tree, {"_hidden", "_cuts"})]
    assert len(found) == 1
