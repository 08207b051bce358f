"""The public API with signatures and docstrings, and the hooks: from the source, so that nothing heavy is imported."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import foundry_core
from docs.generator.text import block, code, docstring, page, table
from foundry_core.registry import hookspecs

CORE = Path(foundry_core.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(module: str) -> ast.Module:
    """Return the source of a module of core, as `models.base`; the package itself for an empty name."""
    path = CORE.joinpath(*module.split(".")) if module else CORE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def homes(module: str = "") -> dict[str, str]:
    """Return the module of core that each imported name of a module comes from."""
    return {
        alias.asname or alias.name: (node.module or "").removeprefix("foundry_core").lstrip(".")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foundry_core")
        for alias in node.names
    }


def api_page() -> str:
    """Return the page of the names of `foundry_core`."""
    where = homes()
    names = [name for name in foundry_core.__all__ if name in where]
    parts = [_overview({name: where[name] for name in names})]
    parts += [part for name in names for part in _name(name, where[name])]
    introduction = (
        "What `from foundry_core import ...` offers; [Stability](../plugins/stability.md) says what may change and "
        "when. `foundry_core.__version__` is the version. Names that need torch load on first use.\n\n"
        "Tensors are named by their shape: B rows of a batch, T tokens, D width, V vocabulary, N predicted tokens. "
        "Losses are in nats unless a name says bits."
    )
    return page("Python API", introduction, *parts)


TOPICS = {
    "config": "Experiments",
    "training": "Training",
    "models": "Models",
    "data": "Text and batches",
    "tokenization": "Tokenizers",
    "evaluation": "Suites",
    "analysis": "Runs that exist",
    "registry": "Descriptors, hooks and reports of plugins",
    "schema": "Sections of a YAML",
    "cli": "Commands of packages",
    "errors": "Errors",
}
"""Titles of groups of names, by the package that they come from."""
BASES_WITHOUT_METHODS = ("ConfigSection", "ModelConfig", "TransformerConfig")


def _overview(homes: Mapping[str, str]) -> str:
    """Return a table of the names by topic."""
    places = [home.partition(".")[0] for home in homes.values()]
    rows = []
    anchors = dict[str, str]()
    for name in homes:  # `Dropout` and `dropout` are two headings
        again = sum(each.lower() == name.lower() for each in anchors)
        anchors[name] = f"{name.lower()}-{again}" if again else name.lower()
    for place in sorted(set(places), key=lambda place: (list(TOPICS).index(place) if place in TOPICS else 99, place)):
        links = [f"[{code(name)}](#{anchors[name]})" for name, home in homes.items() if home.partition(".")[0] == place]
        rows.append([TOPICS.get(place, place), ", ".join(links)])
    return table(("topic", "names"), rows)


def _definition(name: str, module: str) -> tuple[ast.stmt, str]:
    """Return what defines a name, and the documentation that follows an assignment."""
    body = tree(module).body
    for at, node in enumerate(body):
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return node, ast.get_docstring(node) or ""
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            after = body[at + 1] if at + 1 < len(body) else None
            text = after.value if isinstance(after, ast.Expr) else None
            return node, text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""
    raise LookupError(f"foundry_core.{module} does not define {name}")


def _name(name: str, module: str) -> Iterator[str]:
    node, documentation = _definition(name, module)
    yield f"## {code(name)}"
    if isinstance(node, ast.ClassDef) and module == "config.sections":
        yield f"A section of a YAML. Its fields are described as [keys](keys.md#{name.lower().removesuffix('config')})."
    elif isinstance(node, ast.ClassDef):
        yield block("\n".join(_class_head(node)), "python")
        yield docstring(documentation)
        yield from (f"It also has the methods of [{code(base)}](#{base.lower()})." for base in _documented_bases(node))
        for method in _methods(node, module).values():
            yield f"### {code(f'{name}.{method.name}')}"
            yield block(_signature(method), "python")
            yield docstring(ast.get_docstring(method))
    elif isinstance(node, Function):
        yield block(_signature(node), "python")
        yield docstring(documentation)
    else:
        yield block(ast.unparse(node), "python")
        yield docstring(documentation)


def _decorators(node: ast.ClassDef | Function) -> list[str]:
    return [ast.unparse(each) for each in node.decorator_list]


def _class_head(node: ast.ClassDef) -> Iterator[str]:
    """Yield the line of the class and its fields, with types and defaults."""
    yield f"class {node.name}({', '.join(map(ast.unparse, node.bases))}):" if node.bases else f"class {node.name}:"
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not each.target.id.startswith("_"):
            yield "    " + ast.unparse(each)
        elif isinstance(each, Function) and each.name == "__init__":
            yield textwrap.indent(_signature(each), "    ")


def _documented_bases(node: ast.ClassDef) -> list[str]:
    """Return the bases of a class whose methods the page has already."""
    names = [ast.unparse(base).partition("[")[0] for base in node.bases]
    return [name for name in names if name in foundry_core.__all__ and name not in BASES_WITHOUT_METHODS]


def _methods(node: ast.ClassDef, module: str) -> dict[str, Function]:
    """Return the public methods and properties of a class that have documentation.

    Those of its bases are among them, except of bases that have a place on the page themselves.
    """
    found = {
        each.name: each
        for each in node.body
        if isinstance(each, Function) and not each.name.startswith("_") and ast.get_docstring(each)
    }
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0]
        if name in _documented_bases(node):
            continue
        local = any(isinstance(each, ast.ClassDef) and each.name == name for each in tree(module).body)
        place = module if local else homes(module).get(name)
        if place is not None:
            inherited, _ = _definition(name, place)
            if isinstance(inherited, ast.ClassDef):
                found = found | {key: each for key, each in _methods(inherited, place).items() if key not in found}
    return found


def _signature(node: Function) -> str:
    before = "".join(f"@{name}\n" for name in _decorators(node) if name in ("property", "classmethod", "staticmethod"))
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    pieces = list(_arguments(node.args))
    line = f"def {node.name}({', '.join(pieces)}){returned}"
    if len(line) > 100:
        line = f"def {node.name}(\n    " + ",\n    ".join(pieces) + f",\n){returned}"
    return before + line


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """Yield each argument, with its type and its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*missing, *arguments.defaults], strict=True):
        yield _with_default(argument, default)
    if arguments.vararg or arguments.kwonlyargs:
        yield f"*{ast.unparse(arguments.vararg) if arguments.vararg else ''}"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _with_default(argument, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _with_default(argument: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if argument.annotation else "="
    return ast.unparse(argument) + (f"{equals}{ast.unparse(default)}" if default else "")


def hooks() -> dict[str, object]:
    """Return the hooks by name."""
    return {name: hook for name, hook in vars(hookspecs).items() if name.startswith("foundry_")}


def hooks_page() -> str:
    """Return the page of the hooks, with the example of each, file by file."""
    parts = []
    for name in hooks():
        node, documentation = _definition(name, "registry.hookspecs")
        assert isinstance(node, Function)
        before, *files = re.split(r"(?m)^# ([\w/]+\.(?:py|yaml))\n", documentation)
        parts += [f"## {code(name)}", block(_signature(node), "python"), docstring(before)]
        for path, text in zip(files[::2], files[1::2], strict=True):
            parts += [
                f"{code(path)}:",
                block(textwrap.dedent(text).strip(), path.rpartition(".")[2].replace("py", "python")),
            ]
    introduction = docstring(hookspecs.__doc__)
    more = "[Write a plugin](../plugins/guide.md) leads from nothing to a published package."
    return page("Hooks", introduction, more, *parts)
