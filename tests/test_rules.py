"""Rules that no single module can break alone: who imports whom, what is light, who writes, what is public."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import foundry_core
from tests.each import each

ROOT = Path(__file__).parents[1]
CORE = ROOT / "foundry_core"
CORE_FILES = sorted(CORE.rglob("*.py"))
PLUGIN_FILES = sorted(
    path
    for pattern in ("plugins/*/foundry_*/**/*.py", "tests/example_plugin/foundry_*/**/*.py")
    for path in ROOT.glob(pattern)
    if "build" not in path.parts
)

HEAVY = {"torch", "transformers", "numpy", "tokenizers", "sentencepiece", "safetensors", "rich", "matplotlib", "pandas"}

LAYERS = (
    "errors random_streams run_folder systems < storage < schema devices < processes < registry < config < corpus "
    "< tokenization < models < data < checkpoints < evaluation < training < analysis < study < publishing < testing "
    "< cli"
)
"""A module imports from its own package and from what stands to its left."""

ORDER = {name: place for place, names in enumerate(LAYERS.split(" < ")) for name in names.split()}
LIGHT = {"errors", "run_folder", "systems", "storage", "schema", "registry", "config", "cli"}
"""Rooms that import nothing heavy when imported. Up to `config` only `random_streams` and `devices`, which are about
torch, do. The command line imports what computes inside its commands.
"""
SHIMS = {"export"}
"""Modules that checkpoints of the first format import; nothing else may."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    """Return `cli.init` for foundry_core/cli/init.py, and the empty string for the package itself."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    """Return the package or the module at the top that a module of core is in."""
    return module.partition(".")[0]


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, *, types: bool, functions: bool) -> Iterator[ast.AST]:
    """Yield every node; those that only a type checker reads, and those inside functions, as asked."""
    for child in ast.iter_child_nodes(tree):
        if only_for_types(child) and not types:
            continue
        yield child
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from nodes(child, types=types, functions=functions)


def imports(path: Path, *, types: bool = True, functions: bool = True) -> Iterator[tuple[str, str, ast.AST]]:
    """Yield each import as (module, name, node); the name is empty for `import module`."""
    for node in nodes(parsed(path), types=types, functions=functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: imports are absolute here"
            yield from ((node.module or "", alias.name, node) for alias in node.names)


MODULES = {named(path) for path in CORE_FILES}


def core_imports(path: Path, **which: bool) -> Iterator[tuple[str, ast.AST]]:
    """Yield the modules of core that a module imports, as `cli.common`."""
    for module, name, node in imports(path, **which):
        if module == "foundry_core" or module.startswith("foundry_core."):
            below = module.removeprefix("foundry_core").lstrip(".")
            inside = f"{below}.{name}".lstrip(".")
            if inside in MODULES or below:
                yield (inside if inside in MODULES else below), node


def test_a_module_imports_from_its_own_room_and_those_left_of_it() -> None:
    assert {room(module) for module in MODULES} - SHIMS - {""} == set(ORDER)
    offenders = [
        f"{where(path, node)}: {named(path)} may not import {module}"
        for path in CORE_FILES
        for own in [room(named(path))]
        if own and own not in SHIMS  # the public API loads names on first use, from everywhere
        for module, node in core_imports(path)
        if room(module) != own and (room(module) in SHIMS or ORDER[room(module)] >= ORDER[own])
    ]
    assert offenders == []


def test_no_import_is_part_of_a_circle() -> None:
    """Imports inside functions and for types only count too."""
    graph = {named(path): {module for module, _ in core_imports(path)} for path in CORE_FILES if named(path)}
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, waiting = set[str](), list(graph[module])
        while waiting:
            following = waiting.pop()
            if following not in seen:
                seen.add(following)
                waiting += graph.get(following, ())
        reached[module] = seen
    assert sorted(module for module, seen in reached.items() if module in seen) == []


def test_no_module_of_core_is_named_in_a_string() -> None:
    """A name in a string is an import that no rule sees; the public API's table is the one exception."""
    pattern = re.compile(r"foundry_core(\.\w+)+(:\w+)?")
    offenders = [
        f"{where(path, node)}: {node.value!r}"
        for path in CORE_FILES
        if named(path) and "testing" not in path.parts
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value)
    ]
    assert offenders == []


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in [*CORE_FILES, *PLUGIN_FILES]}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_a_light_module_imports_nothing_heavy() -> None:
    descriptors = [path for path in PLUGIN_FILES if path.name == "__init__.py"]
    light = [path for path in CORE_FILES if room(named(path)) in LIGHT]
    offenders = [
        f"{where(path, node)}: {module} is heavy"
        for path in [*light, *descriptors]
        for module, _, node in imports(path, types=False, functions=path in descriptors)
        if room(module) in HEAVY
    ]
    assert offenders == []


LIGHT_VERBS = (
    "--help",
    "--version",
    "plugins list",
    "plugins show lstm",
    "plugins doctor",
    "validate configs/gpt2.yaml",
    "validate configs/llama.yaml",
    "init transformers",
    "schema",
    "train --help",
    "new-plugin --help",
)


@pytest.mark.long
def test_a_light_verb_loads_nothing_heavy() -> None:
    """One process carries out all of them: what one has loaded is still there after the last."""
    program = f"""
import contextlib, io, json, sys
from foundry_core.cli import main
for line in {LIGHT_VERBS!r}:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            code = main(line.split())
    except SystemExit as exit:  # --help and --version
        code = exit.code or 0
    loaded = sorted(name for name in sys.modules if "." not in name)
    print(json.dumps([line, code, bool(printed.getvalue()), loaded]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line, *_ in found] == list(LIGHT_VERBS)
    for line, code, printed, loaded in found:
        assert (code, printed, HEAVY & set(loaded)) == (0, True, set()), line


@pytest.mark.long
def test_the_public_api_loads_nothing_heavy_before_it_is_used() -> None:
    program = "import sys, foundry_core; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (HEAVY | {"pydantic", "yaml", "pluggy"}) & set(done.stdout.split()) == set()


def test_plugins_import_only_public_names_of_core() -> None:
    assert {path.parent.name for path in PLUGIN_FILES} >= {
        *(f"foundry_{name}" for name in ("gpt2", "bert", "rnn", "transformers", "mamba", "ngram", "babylm", "example")),
    }
    offenders = []
    for path in PLUGIN_FILES:
        for module, name, node in imports(path):
            if room(module) == "foundry_core":
                public = module == "foundry_core" and name in foundry_core.__all__
            else:
                public = not module.startswith("foundry") or room(module) == path.relative_to(ROOT).parts[2]
            if not public:
                offenders.append(f"{where(path, node)}: {module}:{name}")
    assert offenders == []


def test_core_names_no_module_of_a_plugin() -> None:
    offenders = []
    for path in CORE_FILES:
        names = [(module, node) for module, _, node in imports(path)]
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names += [
                    (name, node)
                    for name in re.findall(r"foundry_(?:gpt2|bert|rnn|mamba|ngram|transformers)\b", node.value)
                ]
        offenders += [where(path, node) for name, node in names if re.match(r"foundry_(?!core\b)", name)]
    assert offenders == []


def test_training_knows_no_architecture_and_no_objective_by_name() -> None:
    known = re.compile(r"\b(gpt2|bert|lstm|gru|rnn|mamba|ngram|llama|causal_lm|masked_lm)\b", re.IGNORECASE)
    offenders = []
    for path in CORE_FILES:
        for node in ast.walk(parsed(path)) if room(named(path)) == "training" else ():
            said = node.value if isinstance(node, ast.Constant) else ""
            if isinstance(node, ast.Name | ast.Attribute):
                said = (node.id if isinstance(node, ast.Name) else node.attr).replace("_LM", "_lm")
            if isinstance(said, str) and known.search(said):
                offenders.append(where(path, node))
    assert offenders == []


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
    ("evaluation.corpus_loss", "TemporaryDirectory"): "scratch: the tokens of a text that is only scored",
    ("cli.plan", "TemporaryDirectory"): "scratch: the data of architectures that are only measured",
    ("analysis.curves", "savefig"): "into memory; `storage` writes the picture",
    ("training.launcher", "TemporaryDirectory"): "scratch: the file at which the processes of a run meet",
    ("training.profiling", "TemporaryDirectory"): "scratch for torch's profiler, which writes its trace to a path",
    ("tokenization.trainers", "NamedTemporaryFile"): "scratch for a library that reads a path",
    ("tokenization.tokenizer_folder", "TemporaryDirectory"): "scratch for the next one",
    ("tokenization.tokenizer_folder", "save_pretrained"): "into a temporary folder, from which the files are read",
    (
        "models.adapted_config",
        "save_pretrained",
    ): "transformers' own, for those who call it; a run saves through `storage`",
    ("testing.kit.outsider", "save_file"): "runs where there is no foundry, and no `storage` of it",
    ("testing.kit.outsider", "save_pretrained"): "transformers' own, there: what is checked is that it can be opened",
    ("testing.kit.reopened", "save_pretrained"): "our own, through `storage`: what is checked is that it can be opened",
    ("testing.kit.state", "save_pretrained"): "our own, through `storage`: what is checked is that ties survive it",
}


def writes(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield each call that makes, changes or removes something on a disk, unless it goes through `storage.disk`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name.startswith(("disk.", "files.disk.")):
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


DISK = CORE / "storage" / "files.py"


def test_everything_is_written_through_storage() -> None:
    """An exception that is no longer needed is an offender too."""
    found = {(named(path), call) for path in CORE_FILES if path != DISK for call, _ in writes(parsed(path))}
    assert sorted(found ^ WRITES_BY_ITSELF.keys()) == []


def test_storage_writes_through_one_object_that_can_be_replaced() -> None:
    tree = parsed(DISK)
    disk = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Disk")
    inside = {call for call, _ in writes(disk)}
    assert inside == {"mkdir", "FileIO", "truncate", "fsync", "replace", "open", "symlink_to", "unlink", "rmdir"}
    allowed = {id(node) for node in ast.walk(disk)}
    assert [f"{where(DISK, node)}: {call}" for call, node in writes(tree) if id(node) not in allowed] == []


@each(
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


PICKLES_IN_MEMORY = {
    "foundry_core/testing/kit/state.py": {"pickle"},
    "foundry_core/training/trial.py": {"pickle"},
    "foundry_core/data/workers.py": {"pickle"},
}
"""Lists who makes a pickle and reads it at once, of what it holds itself: the check that models can be pickled, and who
sends something to a process that it starts: the trial of the compiler a model's configuration, the parent of data
workers that are no forks what they make batches from.
"""
OPENS_WHAT_IT_WROTE = {"foundry_core/testing/kit/outsider.py"}
"""Run in a process of the checks on folders that the checks have just written, with the file of an installed plugin."""
RUNS_CODE = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


def running(path: Path) -> Iterator[ast.AST]:
    """Yield what could carry out content of a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if not RUNS_CODE & set(modules) <= PICKLES_IN_MEMORY.get(str(path.relative_to(ROOT)), set()):
                yield node
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in ("eval", "exec", "compile", "__import__", "torch.load") or re.fullmatch(
                r"yaml\.(load|load_all|full_load|unsafe_load)", name
            ):
                yield node
        elif isinstance(node, ast.keyword):
            asked = node.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(node.value) != "False"
            own = node.arg == "trust_remote_code" and str(path.relative_to(ROOT)) in OPENS_WHAT_IT_WROTE
            yield from [node] if asked and not own else []


def test_nothing_that_is_read_can_run() -> None:
    assert [where(path, node) for path in [*CORE_FILES, *PLUGIN_FILES] for node in running(path)] == []


def test_only_code_and_packages_name_modules_to_import() -> None:
    importing = {
        named(path)
        for path in CORE_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("import_module", "exec_module")
    }
    # The kit watches what an import does that `loading` would put back; the name is the descriptor's, too.
    assert importing == {"", "registry.loading", "cli", "testing.kit.reopened"}


def test_every_public_name_is_there() -> None:
    assert sorted(foundry_core.__all__, key=lambda name: (not name.isupper(), name)) == foundry_core.__all__
    assert all(getattr(foundry_core, name) is not None for name in foundry_core.__all__)
    assert dir(foundry_core) == sorted(foundry_core.__all__)
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
        value = getattr(foundry_core, name)
        assert getattr(sys.modules[str(module)], name) is value, name


def test_the_name_of_a_test_has_at_most_60_characters() -> None:
    paths = [path for pattern in ("tests/**/*.py", "plugins/*/tests/*.py") for path in sorted(ROOT.glob(pattern))]
    names = [
        f"{where(path, node)}: {node.name}"
        for path in paths
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 60
    ]
    assert len(paths) > 50
    assert names == []


def test_the_walk_through_the_code_has_a_line_for_each_package() -> None:
    page = (ROOT / "docs" / "explanation" / "inside.md").read_text()
    rooms = {path.parent.name for path in CORE.glob("*/__init__.py")} | {path.stem for path in CORE.glob("*.py")}
    missing = [
        each for each in sorted(rooms - SHIMS - {"__init__"}) if not re.search(rf"^  {each}[/. ]", page, flags=re.M)
    ]
    assert missing == []


STOPPED_AT_FIRST_STEP = """
import os, sys
from foundry_core import hookimpl

@hookimpl
def foundry_step_ended(report):
    os.write(1, " ".join(sys.modules).encode())
    os._exit(0)
"""

NOT_FOR_A_FIRST_STEP = {
    "accelerate",
    "datasets",
    "foundry_core.models.adapter",
    "foundry_core.tokenization.trainers",
    "rich.progress",
    "sentencepiece",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.models.gpt2.modeling_gpt2",
    "wandb",
}
"""Modules that an LSTM does not need on prepared data, without compile and without a sink that is asked for."""


@pytest.mark.long
def test_the_first_step_loads_nothing_it_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sees the dog\n" * 200)
    (tmp_path / "stop.py").write_text(STOPPED_AT_FIRST_STEP)
    yaml = {
        "experiment_name": "start",
        "data": {"training_corpus": str(tmp_path / "corpus.txt"), "max_sequence_length": 16, "batch_size": 4},
        "tokenizer": {"tokenizer_type": "word", "vocab_size": 20, "output_dir": str(tmp_path / "tokenizer")},
        "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
        "training": {"output_dir": str(tmp_path / "run"), "train_steps": 10, "device": "cpu"},
        "plugins": ["stop"],
    }
    (tmp_path / "x.yaml").write_text(json.dumps(yaml))
    command = [sys.executable, "-m", "foundry_core.cli"]
    options = [str(tmp_path / "x.yaml"), "--plugin", str(tmp_path / "stop.py")]
    subprocess.run([*command, "data", "prepare", *options], capture_output=True, cwd=ROOT, check=True)
    done = subprocess.run([*command, "train", *options], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert loaded & NOT_FOR_A_FIRST_STEP == set()
