"""Errors and exit codes, the files of a run, and environment variables, from the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache

from docs.generator.api import CORE, tree
from docs.generator.text import block, code, docstring, escaped, page, table
from foundry_core import run_folder

CAUSES: dict[str, list[tuple[str, str]]] = {
    "FoundryError": [
        ("`foundry study --check` or `foundry compare` finds conditions that differ", "read the lines `DIFFERS`"),
        ("something is asked of a model that it does not do, or a package is missing", "the line says which"),
        ("the Hugging Face hub refuses something, or cannot be reached", "[what to do](../evaluation/publishing.md)"),
    ],
    "UsageError": [
        ("a name, a path or an option does not exist", "the line has the nearest name, or the command that lists them"),
        ("the output exists", "foundry replaces no file of yours: name another one, or remove it"),
        ("what is asked for cannot be had here (`fp16` without a GPU, `mps` on Linux)", "the line names what can"),
    ],
    "ConfigError": [
        (
            "a key is unknown, missing, of the wrong type or out of bounds",
            "`file:line: key:` is the place; the [keys](keys.md) have types and bounds",
        ),
        ("two keys contradict each other (two budgets, warm-up twice)", "remove one of the keys that are named"),
        ("a size of the model is missing", "sizes have no default: `foundry init ARCHITECTURE` writes all of them"),
        ("the YAML is of an old format", "`foundry migrate old.yaml -o new.yaml`"),
    ],
    "PluginError": [
        ("a package is missing", "the line ends with the command that installs it"),
        ("a package is broken, made for another plugin API, or two claim one name", "`foundry plugins doctor`"),
        (
            "a package is switched off",
            "`FOUNDRY_PLUGINS` or `FOUNDRY_PLUGINS_DISABLE`: see [environment variables](environment.md)",
        ),
        ("an architecture does not do what its descriptor says", "tell its authors; `foundry check NAME` shows it"),
    ],
    "DataError": [
        ("a file is empty, or is not UTF-8", "the line has the file and the byte: convert the file"),
        ("files of a folder are not read", "`data.files` says which files are meant"),
        ("every document of the test text stands in the training text", "test on another text"),
        ("a file of a suite is malformed", "the line has the file and the line; nothing has been scored"),
        ("`data.steps` leaves nothing", "the line names the step"),
    ],
    "TokenizerError": [
        ("the text has too few distinct pieces for `vocab_size`", "lower it as the line says"),
        ("a given tokenizer lacks a special token", "name it under `tokenizer.special_tokens`"),
        (
            "a given tokenizer may lose text, or is not deterministic",
            "use another one: [tokenizers](../training/given.md)",
        ),
        ("the folder has a tokenizer of other settings or other text", "choose another `tokenizer.output_dir`"),
    ],
    "CheckpointError": [
        ("the folder of the run has checkpoints", "go on with `--resume`, or choose another `training.output_dir`"),
        ("there is no checkpoint in the folder", "check the path; without `--resume` a run begins"),
        (
            "a file is damaged, missing or of another checkpoint",
            "use the checkpoint before; `foundry verify RUN` lists all",
        ),
        ("the run was begun with other settings or another text", "put them back, or `--allow KEY` by name"),
        ("the package of the architecture is not installed", "the line has the command"),
        (
            "the optimizer's state was not kept",
            "only the newest two checkpoints can be resumed from, unless `training.checkpoints.keep_optimizer: all`",
        ),
    ],
    "StateNotKeptError": [
        (
            "the optimizer's state of the checkpoint was not kept",
            "resume from a newer one; `training.checkpoints.keep_optimizer: all` keeps every state",
        ),
    ],
    "TrainingError": [
        (
            "a loss, a gradient or a weight is not finite",
            "lower `training.learning_rate`, lengthen the warm-up, or "
            "use bf16 in place of fp16; the newest checkpoint is from before",
        ),
        ("memory does not suffice", "the line names a batch size that is expected to fit, and how to resume with it"),
        ("a data worker or another process of the run has died", "go on with `--resume`"),
        ("a cell of a study has failed", "its line names the log; the other cells were trained"),
    ],
    "StorageError": [
        (
            "the disk is full, or a quota is reached",
            "make room and go on with `--resume`: nothing that was saved is lost",
        ),
        ("the folder cannot be written to", "correct its permissions, or choose another `training.output_dir`"),
        ("another process is training the run", "wait for it, or stop it"),
    ],
    "ConformanceError": [
        (
            "a check of `foundry check` fails",
            "the line says what was found and how to fix it; [the checks](../plugins/guide.md#the-checks)",
        ),
    ],
    "StoppedError": [
        ("Ctrl-C, or a signal of a scheduler", "nothing is wrong: the same command with `--resume` goes on"),
    ],
    "EndedElsewhereError": [
        ("another process of the same run has ended", "its line is the reason; the exit code is its own"),
    ],
}
"""Usual causes of the errors of each kind, and their cures."""

OTHER_CODES = [
    ("0", "success"),
    ("70", "an internal error: a fault of foundry. Please report it, with the traceback that `--debug` shows"),
    ("130", "interrupted by Ctrl-C, in a verb that does not train"),
    ("above 128", "killed by a signal: 128 and its number (137 for `kill -9`)"),
]

VARIABLES: dict[str, tuple[str, str]] = {
    "FOUNDRY_PLUGINS": (
        "use only these plugins: names of packages or of plugins, separated by commas",
        "foundry-rnn,gpt2",
    ),
    "FOUNDRY_PLUGINS_DISABLE": ("do not use these plugins", "foundry-mamba"),
    "FOUNDRY_RENDEZVOUS": ("where the processes of `foundry train --processes` meet; set by it, not by you", ""),
    "FOUNDRY_TEST_DATA": ("a folder with texts that some slow tests read", ""),
    "FOUNDRY_TEST_TRANSFORMERS": (
        "Pythons of other environments, `:` between them, in which slow tests open exported folders",
        ".venv-4.51.3/bin/python",
    ),
    "FOUNDRY_TEST_DISK": ("a folder on a disk, for tests that must not run in memory", ""),
    "RANK": (
        "the number of this process among those that train a run together; set by `torchrun`, `foundry train "
        "--processes` or a job script, together with the next four",
        "0",
    ),
    "WORLD_SIZE": ("how many processes train a run together", "4"),
    "LOCAL_RANK": ("the number of this process on its machine, and of its GPU", "0"),
    "LOCAL_WORLD_SIZE": ("how many of the processes are on this machine", "4"),
    "MASTER_ADDR": ("the machine at which the processes meet; read by torch, as is `MASTER_PORT`", "node1"),
    "TORCHELASTIC_USE_AGENT_STORE": ("set by torchrun, which then keeps what its processes tell each other", ""),
    "PYTHONWARNINGS": (
        "Python's own; `--processes` adds what silences its notes on a process that was killed",
        "error",
    ),
    "TORCH_CPP_LOG_LEVEL": ("set in each of several processes, so that torch's C++ prints errors alone", "INFO"),
    "OMP_NUM_THREADS": (
        "threads of each process. Another number changes the last bits of sums. Where it is not set, "
        "processes of one run, and cells of `foundry study --jobs`, share the cores",
        "2",
    ),
    "RAYON_NUM_THREADS": ("an upper limit on the processes that encode a corpus, as is `OMP_NUM_THREADS`", "2"),
    "TOKENIZERS_PARALLELISM": ("set to `false` by foundry in processes that encode a corpus", ""),
    "WANDB_SILENT": ("set to `true` with `logging.use_wandb`, unless you set it", "false"),
    "WANDB_MODE": ("read by wandb: `offline` where there is no network", "offline"),
    "WANDB_ENTITY": ("read by wandb: the team to report to", "my-lab"),
    "PYTORCH_ENABLE_MPS_FALLBACK": ("read by torch: compute on the CPU what the GPU of a Mac lacks", "1"),
    "KINETO_LOG_LEVEL": ("set with `--profile`, so that torch's profiler prints nothing, unless you set it", "0"),
    "COLUMNS": ("the width of tables and help texts where there is no terminal", "100"),
    "LC_ALL": ("the locale; where it is not UTF-8, characters that it lacks are printed with escapes", "C.UTF-8"),
    "CUDA_VISIBLE_DEVICES": ("read by torch: the GPUs that may be used", "0"),
    "HF_HUB_OFFLINE": ("read by transformers; foundry downloads nothing either way, and `push` needs the hub", "1"),
    "HF_TOKEN": ("read by `foundry push`: your token on the hub, before the one of `hf auth login`", ""),
    "HF_ENDPOINT": ("read by `foundry push`: another hub than https://huggingface.co", "https://hub.lab.org"),
}
"""The effect of each environment variable, and an example."""


GROUPS = {
    "Plugins": "FOUNDRY_(?!TEST|REND)",
    "Runs of several processes": "FOUNDRY_REND|RANK|WORLD_SIZE|LOCAL_|MASTER_|TORCHELASTIC|TORCH_CPP",
    "Threads": "OMP_|RAYON_|TOKENIZERS_",
    "Libraries, Python and the terminal": "(?!FOUNDRY_TEST)",
    "For developers": "",
}
"""Headings of the page of variables, with a pattern of the names below each; the first that fits."""


def modules() -> Iterator[str]:
    """Yield the dotted name of each module of core."""
    for path in sorted(CORE.rglob("*.py")):
        parts = path.relative_to(CORE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__")


def kinds() -> dict[str, tuple[int, str]]:
    """Return each kind of error that a user can cause, with its exit code and documentation."""
    found: dict[str, tuple[int, str]] = {}
    waiting = ["FoundryError"]
    classes = [each for name in modules() for each in tree(name).body if isinstance(each, ast.ClassDef)]
    while waiting:
        name = waiting.pop(0)
        for each in classes:
            bases = [ast.unparse(base) for base in each.bases]
            if each.name == name == "FoundryError":
                found[name] = 1, ast.get_docstring(each) or ""
            elif name in bases and not each.name.startswith("_"):
                given = [key.value for key in each.keywords if key.arg == "exit_code"]
                own = given[0].value if given and isinstance(given[0], ast.Constant) else found[name][0]
                found[each.name] = int(str(own)), ast.get_docstring(each) or ""
                waiting.append(each.name)
    return found


@cache
def messages() -> dict[str, list[str]]:
    """Return the messages that are made where an error is, by its kind, with placeholders for what is filled in."""
    found: dict[str, set[str]] = {}
    for name in modules():
        for node in ast.walk(tree(name)) if not name.startswith("testing") else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
                text = _filled(node.args[0]) if node.func.id.endswith("Error") else None
                if text is not None and re.search(r"[a-z]{3}.* [a-z]{2}", re.sub(r"<[^>]*>", "", text)):
                    found.setdefault(node.func.id, set()).add(text)
    return {
        kind: sorted(texts, key=lambda text: re.sub(r"\W|<[^>]*>", "", text).lower()) for kind, texts in found.items()
    }


def _filled(node: ast.expr) -> str | None:
    """Return the text of a string with `<name>` for each value in it; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = _filled(node.left), _filled(node.right)
        return "".join(part if part is not None else "<...>" for part in parts)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"<{_placeholder(part)}>" for part in node.values
        )
    return None


def _placeholder(part: ast.expr) -> str:
    expression = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else "..."
    names = [name for name in re.findall(r"[A-Za-z_]\w*", expression) if name not in ("self", "str", "shown", "len")]
    return names[-1].strip("_").replace("_", " ") if names and len(expression) < 40 else "..."


def errors_page() -> str:
    """Return the page of exit codes and errors."""
    found = kinds()
    codes: dict[int, list[str]] = {}
    for name, (number, _) in found.items():
        codes.setdefault(number, []).append(f"[{name}](#{name.lower()})")
    rows = [[str(number), ", ".join(names)] for number, names in sorted(codes.items())]
    parts = ["## Exit codes", table(("code", "kind"), rows), table(("code", "meaning"), OTHER_CODES)]
    for name, (number, text) in found.items():
        parts += [f"## {name}", f"Exit code {number}. {docstring(text)}"]
        parts.append(table(("cause", "cure"), CAUSES[name]))
    introduction = (
        "An error that you can fix is one line on stderr, or one line for each problem of a file: the place, the "
        "problem and the way out. It ends the command with the exit code of its kind; in Python each kind is a class, "
        "all of them subclasses of `foundry_core.FoundryError`. `--debug` adds the traceback. Warnings begin with "
        "`warning:` and stop nothing. [Messages](messages.md) has the texts."
    )
    return page("Errors and exit codes", introduction, *parts)


def messages_page() -> str:
    """Return the page of the texts of errors, by kind."""
    parts = []
    for name in kinds():
        if lines := messages().get(name):
            listed = "\n".join(f"* {escaped(line)}" for line in lines)
            parts += [f"## Messages of {name}", f"[Causes and cures](errors.md#{name.lower()}).", listed]
    introduction = (
        "The texts of errors by kind, in alphabetical order, as far as they stand in the code in one piece. `<...>` "
        "stands for what is filled in. Problems of a YAML, which begin with `file:line: key:`, come from the rules of "
        "its keys, and not all of them are listed."
    )
    return page("Messages", introduction, *parts)


MANIFESTS = """
`MANIFEST.json` of a checkpoint is written last. It has the size and the sha256 of every other file of the folder, the
step, the checkpoint before, and the environment; its own last line is the sha256 of what precedes it. A folder with a
file that is missing, changed or added is refused, and the file is named. It shows damage; it is not a signature.
"""
FORMATS = {"data.token_file": "Token files", "config.yaml_source": "Reading YAML"}


READ = (
    "Each line is a JSON object with the key `kind`. [`open_run`](../evaluation/comparing.md#in-python-with-pandas) "
    "reads them into data frames."
)


def files_page() -> str:
    """Return the page of what a run and a study write."""
    rest = inspect.cleandoc(run_folder.__doc__ or "").partition("\n")[2]
    run, _, study = rest.strip("\n").partition("\n\n")
    kinds_of_line = [("train", "StepReport"), ("eval", "EvaluationReport"), ("suite", "SuiteReport")]
    lines = table(
        ("kind", "further fields"), [[code(kind), f"[{name}](api.md#{name.lower()})"] for kind, name in kinds_of_line]
    )
    parts = ["## A run", block(run), "## A study", block(study)]
    parts += ["## Lines of `metrics.jsonl`", READ, lines]
    parts += ["## Manifests", MANIFESTS.strip()]
    for module, title in FORMATS.items():
        parts += [f"## {title}", docstring(ast.get_docstring(tree(module)))]
    introduction = (
        "Every file and folder name that a run writes, with what it holds. JSON is UTF-8; checkpoints are ordinary "
        "transformers folders, and contain no pickle. Names that begin with `.` and contain `.foundry-` are files that "
        "are being written. [A decision](../decisions/0006-manifest-protocol.md) explains "
        "the order in which a checkpoint is written. Names in capitals are constants of `foundry_core/run_folder.py`."
    )
    return page("Files", introduction, *parts)


def environment_page() -> str:
    """Return the page of the environment variables."""
    parts, left = [], dict(VARIABLES)
    for title, pattern in GROUPS.items():
        names = [name for name in left if re.match(pattern, name)]
        listed = [(name, *left.pop(name)) for name in names]
        parts.append(f"## {title}")
        parts.append(
            "\n".join(f"* {code(f'{name}={example}' if example else name)}: {text}." for name, text, example in listed)
        )
    introduction = "No variable is needed. Settings of an experiment are in its YAML, and never in the environment."
    return page("Environment variables", introduction, *parts)


def variables_in_the_code() -> set[str]:
    """Return the environment variables that core reads or sets."""
    found = set[str]()
    for name in modules():
        constants: Mapping[str, str] = {
            target.id: node.value.value
            for node in tree(name).body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree(name)):
            key: ast.expr | None = None
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                key = node.slice
            elif isinstance(node, ast.Call) and re.match(
                r"os\.environ\.(get|setdefault|pop)$|os\.getenv$", ast.unparse(node.func)
            ):
                key = node.args[0]
            elif isinstance(node, ast.Compare) and "os.environ" in ast.unparse(node.comparators[-1]):
                key = node.left
            for each in ast.walk(key) if key is not None else ():
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    found.add(each.value)
                elif isinstance(each, ast.Name) and each.id in constants:
                    found.add(constants[each.id])
    return found
