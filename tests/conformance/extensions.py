"""The packages that `foundry new-plugin --kind` writes, as an installer leaves them, and defects planted in them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foundry_core.cli.new_plugin import KINDS, plugin_files
from foundry_core.testing.extensions.run import run
from foundry_core.testing.extensions.subjects import find
from foundry_core.testing.kit.run import Result

NAME = "planted"
PACKAGE = f"foundry_{NAME}"


@dataclass(frozen=True)
class Planted:
    """A defect: in a module of the package, a text is replaced, or added at the end where `old` is empty."""

    kind: str
    caught_by: str
    defect: str
    module: str = "__init__"
    old: str = ""
    new: str = ""
    requires: str = "model-foundry<0.2,>=0.1"

    def __str__(self) -> str:
        return f"{self.kind}, {self.defect}"


@contextmanager
def installed(kind: str, site: Path, planted: Planted | None = None) -> Iterator[None]:
    """The package of a kind lies in a folder on the path, with a defect if one is given."""
    group = KINDS[kind].group
    information = site / f"{PACKAGE}-1.0.dist-info"
    information.mkdir(parents=True)
    requires = planted.requires if planted is not None else Planted.requires
    metadata = f"Metadata-Version: 2.1\nName: foundry-{NAME}\nVersion: 1.0\nRequires-Dist: {requires}\n"
    (information / "METADATA").write_text(metadata)
    (information / "entry_points.txt").write_text(f"[{group}]\n{NAME} = {PACKAGE}\n")
    for path, text in plugin_files(NAME, kind).items():
        if planted is not None and path == f"{PACKAGE}/{planted.module}.py":
            assert planted.old in text, f"{planted}: {planted.old!r} is not there"
            changed = text.replace(planted.old, planted.new) if planted.old else text + planted.new
            assert changed != text or not planted.new
            text = changed
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    before = set(sys.modules)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE and name not in before]:
            del sys.modules[name]


def failures(kind: str, site: Path, planted: Planted | None = None, *, without: set[str] = frozenset()) -> list[Result]:  # type: ignore[assignment]
    """The results of the checks that fail, in their order; some may be left out."""
    from foundry_core.testing.extensions.run import all_checks

    with installed(kind, site, planted):
        names = [one.name for one in all_checks(kind) if one.name not in without]
        return [result for result in run(find(NAME, kind), names) if not result.good]


COLLATOR, OPTIMIZER, SCHEDULE, TOKENIZER = "collator", "optimizer", "schedule", "tokenizer"
DRAW = 'np.random.default_rng([self.seed, row["epoch"], row["row"]])'
GUARD = "                if weight.grad is None:\n                    continue\n"
STEP = "    def step(self, closure: None = None) -> None:  # type: ignore[override]\n"
MOVE = 'weight.add_(state["mean"].sign(), alpha=-group["lr"])'
LOGGED = "\n\nimport os, time\n\n@hookimpl\ndef foundry_evaluated(report):\n    "
SAVED = "\n\nimport os\n\n@hookimpl\ndef foundry_checkpoint_saved(step, folder):\n    "
IN_PLAIN_SIGHT = """

def _masked(offer):
    def foundry_objectives():
        (found,) = offer()
        return [type(found)(**{**vars(found), "causal": False, "same_interface_as": "masked_lm"})]

    return foundry_objectives


foundry_objectives = hookimpl(_masked(foundry_objectives))
"""
OWN_LOSS = """

def _with_loss(offer):
    def foundry_objectives():
        (found,) = offer()
        return [type(found)(**{**vars(found), "loss": f"{__name__}:loss"})]

    return foundry_objectives


foundry_objectives = hookimpl(_with_loss(foundry_objectives))


def loss(config):
    from torch.nn.functional import cross_entropy

    return lambda logits, labels, batch: RESULT
"""


def own_loss(result: str) -> str:
    """Give the objective a loss of its own; `losses` are those of a correct one."""
    losses = 'cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)'
    return OWN_LOSS.replace("RESULT", result.replace("losses", losses))


PLANTED = [
    Planted("optimizer", "entry-point", "no upper bound on model-foundry", requires="model-foundry>=0.1"),
    Planted("command", "entry-point", "model-foundry not required", requires="torch"),
    Planted("tokenizer", "light-import", "tokenizers and torch in the light module", new="\nimport torch\n"),
    Planted("observer", "hooks", "a misspelt hook without a mark", new="\n\ndef foundry_run_endet(step):\n    pass\n"),
    Planted(
        "objective", "settings", "a key without a description", old=', description="largest', new=', title="largest'
    ),
    # Objectives.
    Planted("objective", "runs", "a misspelt name", COLLATOR, "batch = self.pad(rows)", "batch = self.paad(rows)"),
    Planted(
        "objective",
        "batch",
        "a mask of another type",
        COLLATOR,
        "        return batch\n",
        '        batch["attention_mask"] = batch["attention_mask"].bool()\n        return batch\n',
    ),
    Planted(
        "objective",
        "batch",
        "a draw from the global generator",
        COLLATOR,
        "self.pad(rows)\n",
        "self.pad(rows); torch.rand(1)\n",
    ),
    Planted(
        "objective",
        "padding",
        "labels at padding",
        COLLATOR,
        "        return batch\n",
        '        batch["labels"][batch["attention_mask"] == 0] = 0\n        return batch\n',
    ),
    Planted(
        "objective",
        "predictions",
        "shifted labels",
        COLLATOR,
        "            labels[real[:beginning]] = -100\n",
        "            labels[real] = labels[real].roll(-1)\n            labels[real[:beginning]] = -100\n",
    ),
    Planted(
        "objective",
        "predictions",
        "rows without a prediction",
        COLLATOR,
        "beginning = 1 +",
        'beginning = 1000 if row["row"] % 7 == 3 else 1 +',
    ),
    Planted("objective", "predictions", "targets in plain sight", new=IN_PLAIN_SIGHT),
    Planted("objective", "place", "one generator for a batch", COLLATOR, 'row["row"]])', 'rows[0]["row"]])'),
    Planted(
        "objective",
        "workers",
        "the id of the process",
        COLLATOR,
        "([self.seed,",
        "([self.seed, __import__('os').getpid(),",
    ),
    Planted(
        "objective",
        "draws",
        "the same in every epoch",
        COLLATOR,
        DRAW,
        'np.random.default_rng([self.seed, row["row"]])',
    ),
    Planted("objective", "draws", "the same for every seed", COLLATOR, "[self.seed, ", "["),
    Planted("objective", "draws", "the same for every row", COLLATOR, ', row["row"]', ""),
    Planted(
        "objective",
        "tokens",
        "an undeclared mask token",
        COLLATOR,
        "self.longest,",
        "self.mask = tokenizer.mask_token_id + 0\n        self.longest,",
    ),
    Planted("objective", "loss", "a loss that is not finite", new=own_loss("losses / 0")),
    Planted("objective", "loss", "a loss without a gradient", new=own_loss("losses.detach() + 0 * logits.sum()")),
    Planted("objective", "loss", "a mean over the batch", new=own_loss("losses / len(labels)")),
    # Optimizers.
    Planted("optimizer", "runs", "no gradient is an error", OPTIMIZER, GUARD, ""),
    Planted(
        "optimizer",
        "resume",
        "steps counted in a global variable",
        OPTIMIZER,
        STEP,
        "    def step(self, closure=None, counts={}):\n        counts[id(self)] = counts.get(id(self), 0) + 1\n"
        '        self.param_groups[0]["lr"] *= 1 + 0.1 * counts[id(self)]\n',
    ),
    Planted(
        "optimizer",
        "state",
        "steps counted in an attribute",
        OPTIMIZER,
        STEP,
        f'{STEP}        self.taken = getattr(self, "taken", 0) + 1\n        if self.taken > 99:\n            return\n',
    ),
    Planted("optimizer", "decay", "a decay of its own", OPTIMIZER, 'group["weight_decay"])', "0.01)"),
    Planted(
        "optimizer",
        "decay",
        "a decay of everything",
        OPTIMIZER,
        'group["weight_decay"])',
        'max(each["weight_decay"] for each in self.param_groups))',
    ),
    Planted("optimizer", "learning-rate", "no schedule", OPTIMIZER, 'alpha=-group["lr"]', 'alpha=-self.defaults["lr"]'),
    Planted("optimizer", "learns", "up the gradient", OPTIMIZER, MOVE, MOVE.replace("-group", "group")),
    # Schedules.
    Planted("schedule", "runs", "no run of one step", SCHEDULE, "/ total % 1", "/ (total - 1) % 1"),
    Planted("schedule", "runs", "below 0", SCHEDULE, "return 1 -", "return 0.5 -"),
    Planted("schedule", "function", "a draw", SCHEDULE, "return 1 -", "__import__('random').random(); return 1 -"),
    Planted("schedule", "resume", "the process", SCHEDULE, "return 1 -", "return __import__('os').getpid() -"),
    # Tokenizer types.
    Planted(
        "tokenizer",
        "runs",
        "a tokenizer of another library",
        TOKENIZER,
        "    return PreTrainedTokenizerFast(\n",
        "    return backend\n    return PreTrainedTokenizerFast(\n",
    ),
    Planted(
        "tokenizer",
        "special-tokens",
        "a fixed end of a text",
        TOKENIZER,
        "**special_tokens,",
        '**{**special_tokens, "eos_token": "</s>"},',
    ),
    Planted(
        "tokenizer", "vocab-size", "special tokens not counted", TOKENIZER, "vocab_size - smallest", "vocab_size - 256"
    ),
    Planted(
        "tokenizer",
        "same-bytes",
        "the order of a set",
        TOKENIZER,
        "sorted(counts, key=lambda character: (-counts[character], character))",
        "list(set(counts))",
    ),
    Planted("tokenizer", "text-back", "no decoder", TOKENIZER, "    backend.decoder = ", "    unused = "),
    Planted(
        "tokenizer", "text-back", "rare characters dropped", TOKENIZER, "byte_fallback=True", "byte_fallback=False"
    ),
    Planted(
        "tokenizer",
        "auto-tokenizer",
        "lower case in a subclass",
        TOKENIZER,
        "    return PreTrainedTokenizerFast(\n",
        "    class Lower(PreTrainedTokenizerFast):\n"
        "        def __call__(self, texts, **options):\n"
        "            return super().__call__([text.lower() for text in texts], **options)\n\n"
        "    return Lower(\n",
    ),
    Planted(
        "tokenizer",
        "literal-tokens",
        "special tokens that text reaches",
        TOKENIZER,
        "backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])",
        "backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])",
    ),
    # Observers.
    Planted("observer", "runs", "arithmetic on a missing figure", new=f"{LOGGED}report.bits_per_byte + 1\n"),
    Planted(
        "observer", "side-effects", "an environment variable", new=f"{LOGGED}os.environ['SEEN'] = str(report.step)\n"
    ),
    Planted(
        "observer",
        "side-effects",
        "a handler of SIGTERM",
        new=f"{LOGGED}import signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n",
    ),
    Planted(
        "observer", "checkpoints", "a note in the checkpoint", new=f"{SAVED}(folder / 'note').write_text('seen')\n"
    ),
    Planted(
        "observer",
        "failures",
        "an exit where a folder is missing",
        new=f"{SAVED}if not folder.exists():\n        os._exit(3)\n",
    ),
    Planted(
        "observer",
        "failures",
        "an interrupt where a folder is missing",
        new=f"{SAVED}if not folder.exists():\n        raise KeyboardInterrupt\n",
    ),
    Planted(
        "observer",
        "time",
        "a pause in every step",
        old="    if _Run.file is not None:\n",
        new="    __import__('time').sleep(0.15)\n    if _Run.file is not None:\n",
    ),
    # Commands.
    Planted(
        "command",
        "runs",
        "nothing to execute",
        old="    parser.set_defaults(execute=execute)\n\n\ndef execute(",
        new="\n\ndef work(",
    ),
    Planted("command", "help", "no example", old="EXAMPLE = ", new="EXAMPEL = "),
    Planted("command", "help", "an argument without help", old=', help="the folder of a run"', new=""),
    Planted(
        "command", "bad-input", "an exception of its own", old="except (OSError, ValueError)", new="except KeyError"
    ),
    Planted(
        "command",
        "bad-input",
        "an error that ends with 0",
        old='        raise FoundryError(f"{path} cannot be read: name the folder of a run ({error})") from error\n',
        new="        return print(error, file=__import__('sys').stderr)\n",
    ),
]
