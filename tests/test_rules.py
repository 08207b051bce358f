"""Rules that no single module can break alone: what is light, who imports whom, who writes, what is public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

import foundry_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "foundry_core"
CORE_FILES = sorted(CORE.rglob("*.py"))
PLUGIN_FILES = sorted(
    path
    for pattern in ("plugins/*/foundry_*/**/*.py", "tests/example_plugin/foundry_*/**/*.py")
    for path in ROOT.glob(pattern)
    if "build" not in path.parts
)

HEAVY = {"torch", "transformers", "numpy", "tokenizers", "sentencepiece", "safetensors", "rich", "matplotlib"}

LAYERS = """
errors surroundings
descriptors foreign
objective optimizer tokenizer_type
manifest yaml_source streams workers text_counts corpus_files interruption devices background discovery
storage architecture
config_sections tokenizer_training tokenizer_bounds lineage
hookspecs
plugins
hooks
config diagnosis
corpus export migrate_rules
tokenizers model migrate
dataset collators optim optimizer_state huggingface reporting estimate
prepare checkpoint
evaluation verification
trainer
testing
cli.common
quickstart
cli
"""
"""Bottom first; a module imports from the lines above its own, `cli` also from itself.

Where this is finer than the design: `manifest`, which reads what `storage` has published, lies below it; `objective`
lies below `architecture`, which has one in its `BuildContext`; `export` lies below `model`, whose `save_pretrained`
writes with it; `prepare`, which the trainer and the evaluation share, lies above the datasets that it makes;
`evaluation` lies below `trainer`, which evaluates while it trains; `quickstart` is the body of a verb and prints a
table as verbs do.
"""

LIGHT_MODULES = (
    "errors descriptors foreign architecture objective optimizer tokenizer_type hookspecs discovery plugins hooks "
    "diagnosis config config_sections manifest storage yaml_source migrate_rules migrate testing cli"
)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    """`cli.init` for foundry_core/cli/init.py; the empty string for the package itself."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_time_nodes(tree: ast.AST, *, inside_functions: bool = True) -> Iterator[ast.AST]:
    """Every node except those that only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if only_for_types(child):
            yield from (node for branch in child.orelse for node in (branch, *run_time_nodes(branch)))  # type: ignore[attr-defined]
            continue
        yield child
        if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from run_time_nodes(child, inside_functions=inside_functions)


def imports(path: Path, *, inside_functions: bool = True) -> Iterator[tuple[str, str, ast.AST]]:
    """Each import as (module, name, node); the name is empty for `import module`."""
    for node in run_time_nodes(parsed(path), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: imports are absolute here"
            yield from ((node.module or "", alias.name, node) for alias in node.names)


def core_modules(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The modules of core that a module imports, as `config` or `cli.common`."""
    for module, name, node in imports(path):
        if module == "foundry_core":
            if name != "__version__":
                yield name, node
        elif module.startswith("foundry_core."):
            yield module.removeprefix("foundry_core."), node


def layer(module: str) -> int:
    """The line of the table, counted from the bottom; that of the package where the module has none of its own."""
    rows = [line.split() for line in LAYERS.strip().splitlines()]
    for name in (module, module.partition(".")[0]):
        for index, row in enumerate(rows):
            if name in row:
                return index
    raise AssertionError(f"foundry_core/{module.replace('.', '/')}.py has no place in the table of layers: give it one")


def test_every_module_has_one_place_in_the_table_of_layers() -> None:
    table = LAYERS.split()
    assert len(table) == len(set(table))
    for path in CORE_FILES:
        if named(path):
            layer(named(path))
    there = {named(path) for path in CORE_FILES}
    assert set(table) <= there


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: named(path) or "package")
def test_a_module_imports_only_from_layers_below_its_own(path: Path) -> None:
    own = named(path)
    if not own:  # the public API: its names load on first use, from everywhere
        assert list(core_modules(path)) == []
        return
    for module, node in core_modules(path):
        within = own.partition(".")[0] == module.partition(".")[0] in ("cli", "testing")
        assert layer(module) < layer(own) or within, f"{where(path, node)}: {own} may not import {module}"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in CORE_FILES
        if named(path).partition(".")[0] in LIGHT_MODULES.split() and not named(path).startswith("testing.kit")
    ],
    ids=named,
)
def test_a_light_module_imports_nothing_heavy_when_it_is_imported(path: Path) -> None:
    for module, _, node in imports(path, inside_functions=False):
        assert module.partition(".")[0] not in HEAVY, f"{where(path, node)}: {module} is heavy"


@pytest.mark.parametrize(
    "path", [path for path in PLUGIN_FILES if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_a_plugins_descriptor_imports_nothing_heavy(path: Path) -> None:
    for module, _, node in imports(path):
        assert module.partition(".")[0] not in HEAVY, f"{where(path, node)}: {module} is heavy"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "show", "lstm"],
        ["plugins", "doctor"],
        ["validate", "configs/gpt2.yaml"],
        ["validate", "configs/lstm.yaml"],
        ["validate", "configs/bert.yaml"],
        ["validate", "configs/mamba.yaml"],
        ["validate", "configs/llama.yaml"],
        ["init", "lstm"],
        ["init", "transformers"],
        ["schema"],
        ["train", "--help"],
        ["new-plugin", "--help"],
    ],
    ids=" ".join,
)
def test_a_light_verb_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import json, sys
from foundry_core.cli import main
try:
    code = main({arguments!r})
except SystemExit as exit:  # --help and --version
    code = exit.code or 0
sys.stderr.write(json.dumps([code, sorted(name for name in sys.modules if "." not in name)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    code, loaded = json.loads(done.stderr)
    assert code == 0
    assert done.stdout
    assert HEAVY & set(loaded) == set()


def test_the_public_api_loads_nothing_heavy_before_it_is_used() -> None:
    program = "import sys, foundry_core; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (HEAVY | {"pydantic", "yaml", "pluggy"}) & set(done.stdout.split()) == set()


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_plugin_imports_only_public_names_of_core(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("foundry_core") for alias in node.names), where(path, node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foundry"):
            if node.module == "foundry_core":
                private = {alias.name for alias in node.names} - set(foundry_core.__all__)
                assert private == set(), f"{where(path, node)}: not public"
            else:
                assert (node.module or "").partition(".")[0] == path.relative_to(ROOT).parts[2], where(path, node)


def test_there_are_plugins_to_look_at() -> None:
    assert {path.parent.name for path in PLUGIN_FILES} >= {
        *(f"foundry_{name}" for name in ("gpt2", "bert", "rnn", "transformers", "mamba", "example")),
    }


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: named(path) or "package")
def test_core_names_no_module_of_a_plugin(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(r"foundry_(?:gpt2|bert|rnn|mamba|transformers)\b", node.value)
        else:
            continue
        assert not [name for name in names if re.match(r"foundry_(?!core\b)", name)], where(path, node)


def test_the_trainer_knows_no_architecture_and_no_objective_by_name() -> None:
    path = CORE / "trainer.py"
    names = re.compile(r"\b(gpt2|bert|lstm|gru|rnn|mamba|llama|causal_lm|masked_lm)\b", re.IGNORECASE)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not names.search(node.value), where(path, node)
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert not names.search(name.replace("_LM", "_lm")), where(path, node)


def dotted(node: ast.AST) -> str:
    """`os.replace` for that expression; only the attribute where what precedes it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def opening_mode(call: ast.Call) -> str:
    """The mode of an `open(path, mode)` or `path.open(mode)`."""
    position = 1 if isinstance(call.func, ast.Name) or dotted(call.func) in ("io.open", "gzip.open") else 0
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[position : position + 1]
    return given[0].value if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else "r"


WRITING_CALLS = re.compile(
    r"(.*\.)?(write_text|write_bytes|symlink_to|hardlink_to|touch|to_file|tofile|savefig|save_file|save_pretrained)"
    r"|(.*\.)?(mkdir|rmdir|unlink|rmtree|truncate|chmod|lchmod|rename|FileIO)"
    r"|os\.(open|write|fsync|makedirs|remove|removedirs|renames|replace|link|symlink|mkfifo|fdopen|utime|chown)"
    r"|shutil\.(move|copy|copy2|copyfile|copyfileobj|copytree|copymode|copystat|make_archive|unpack_archive|chown)"
    r"|(torch|np|numpy|safetensors\.torch|json|pickle)\.(save|savez|savez_compressed|savetxt|save_file|dump)"
    r"|(tempfile|zipfile|tarfile|sqlite3|dbm|shelve)\.\w+"
)

WRITES_BY_ITSELF = {
    ("cli.common", "open"): "the null device, in place of a reader that has gone",
    ("evaluation", "TemporaryDirectory"): "scratch: the tokens of a text that is only scored",
    ("quickstart", "savefig"): "into memory; `storage` writes the picture",
    ("tokenizer_training", "NamedTemporaryFile"): "scratch for a library that reads a path",
    ("tokenizers", "TemporaryDirectory"): "scratch for the next one",
    ("tokenizers", "save_pretrained"): "into a temporary folder, from which the files are read",
    ("testing.kit.reopened", "save_pretrained"): "our own, through `storage`: what is checked is that it can be opened",
    ("testing.kit.state", "save_pretrained"): "our own, through `storage`: what is checked is that ties survive it",
}


def writes(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each call that makes, changes or removes something on a disk, unless it goes through `storage.disk`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name.startswith("disk."):
            continue
        if name != "os.open" and (name == "open" or name.endswith(".open")):
            mode = opening_mode(node)
            if set(mode) & set("wax+"):
                yield f"open({mode!r})", node
        elif name.endswith("memmap"):
            if not any(keyword.arg == "mode" and ast.unparse(keyword.value) == "'r'" for keyword in node.keywords):
                yield "memmap", node
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "replace" and len(node.args) == 1:
            if not node.keywords:  # of a path: that of a text takes two, that of a date names
                yield "replace", node
        elif WRITING_CALLS.fullmatch(name):
            yield name.rpartition(".")[2], node


@pytest.mark.parametrize("path", [p for p in CORE_FILES if p.name != "storage.py"], ids=lambda p: named(p) or "package")
def test_everything_is_written_through_storage(path: Path) -> None:
    for call, node in writes(parsed(path)):
        assert (named(path), call) in WRITES_BY_ITSELF, f"{where(path, node)}: {call} goes past foundry_core.storage"


def test_what_writes_by_itself_is_still_there_and_nothing_else_is_let_through() -> None:
    found = {(named(path), call) for path in CORE_FILES for call, _ in writes(parsed(path))}
    assert {each for each in found if each[0] != "storage"} == set(WRITES_BY_ITSELF)


def test_storage_itself_writes_through_one_object_that_fault_injection_can_replace() -> None:
    tree = parsed(CORE / "storage.py")
    disk = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Disk")
    inside = {call for call, _ in writes(disk)}
    assert inside == {"mkdir", "FileIO", "truncate", "fsync", "replace", "open", "unlink", "rmdir"}
    allowed = {id(node) for node in ast.walk(disk)}
    for call, node in writes(tree):
        assert id(node) in allowed, f"{where(CORE / 'storage.py', node)}: {call} goes past Disk"


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "path.open(mode='a')",
        "Path(name).unlink()",
        "shutil.rmtree(folder)",
        "old.replace(new)",
        "os.open(path, flags)",
        "numpy.memmap(path, mode='r+')",
        "tensor.tofile(path)",
        "self.folder.mkdir(parents=True)",
    ],
)
def test_what_writes_is_recognised(line: str) -> None:
    assert len(list(writes(ast.parse(line)))) == 1


def test_what_only_reads_is_not_taken_for_writing() -> None:
    text = "open(path); path.open('rb'); text.replace(a, b); replace(state, step=1); np.memmap(path, mode='r')"
    assert list(writes(ast.parse(f"{text}; disk.rename(old, new)"))) == []


PICKLES_IN_MEMORY = {"foundry_core/testing/kit/state.py": {"pickle"}}
"""Who makes a pickle and reads it at once, of what it holds itself: the check that models can be pickled."""


@pytest.mark.parametrize("path", [*CORE_FILES, *PLUGIN_FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            runs_code = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"} & set(modules)
            assert runs_code <= PICKLES_IN_MEMORY.get(str(path.relative_to(ROOT)), set()), where(path, node)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            assert name not in ("eval", "exec", "compile", "__import__", "torch.load"), where(path, node)
            assert not re.fullmatch(r"yaml\.(load|load_all|full_load|unsafe_load)", name), where(path, node)
        elif isinstance(node, ast.keyword):
            risky = node.arg in ("allow_pickle", "trust_remote_code")
            assert not (risky and ast.unparse(node.value) != "False"), where(path, node)


def test_modules_are_imported_by_name_only_where_the_name_is_the_codes_or_a_packages() -> None:
    importing = {
        named(path)
        for path in CORE_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("import_module", "exec_module")
    }
    # The kit watches what an import does that `plugins` would put back; the name is the descriptor's, too.
    assert importing == {"", "plugins", "cli", "testing.kit.reopened"}


def test_every_public_name_is_there() -> None:
    assert sorted(foundry_core.__all__) == foundry_core.__all__
    assert all(getattr(foundry_core, name) is not None for name in foundry_core.__all__)
    assert dir(foundry_core) == foundry_core.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = foundry_core.nothing


def test_public_names_are_those_a_type_checker_sees() -> None:
    tree = parsed(CORE / "__init__.py")
    block = next(node for node in tree.body if only_for_types(node))
    seen = {
        (alias.name, node.module)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for name, _ in seen} | {"__version__"} == set(foundry_core.__all__)
    for name, module in seen:
        assert getattr(foundry_core, name) is getattr(importlib.import_module(module), name), name


TEST_FILES = sorted({*(ROOT / "tests").rglob("*.py"), *ROOT.glob("plugins/*/tests/**/*.py"), ROOT / "conftest.py"})
TEST_FILES.remove(Path(__file__))  # it holds examples of what it forbids
PRIVATE = re.compile(r"_(?!_)\w+")
OF_TRANSFORMERS = {"_is_stateful"}
"""Private names that core defines, too, because transformers looks for them."""


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
            names = [f"{each.value}".rpartition(".")[2] for each in node.args if isinstance(each, ast.Constant)]
            yield from ((name, node) for name in names if name in private)


def test_tests_do_not_use_private_names_of_core() -> None:
    private = private_names_of_core() - OF_TRANSFORMERS
    offenders = [
        f"{where(path, node)}: {name}"
        for path in TEST_FILES
        for tree in programs(parsed(path))
        for name, node in private_names_used(tree, private)
    ]
    assert offenders == []


@pytest.mark.parametrize(
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


def test_the_readme_lists_every_module() -> None:
    listed = re.search(r"^foundry_core/ (.+?)^  cli/", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    modules = {path.stem for path in CORE.glob("*.py")} - {"__init__"}
    assert modules <= set(listed.group(1).split())
