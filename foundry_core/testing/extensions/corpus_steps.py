"""Checks of corpus steps: text comes out, the same in every pass and process, and one that drops changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from foundry_core.corpus.account import ByteAccount
from foundry_core.corpus.steps import Steps
from foundry_core.errors import DataError
from foundry_core.registry.loading import load_plugin_file, plugin_files
from foundry_core.testing.extensions.check import bench, check
from foundry_core.testing.extensions.experiment import experiment
from foundry_core.testing.extensions.retrained import documents
from foundry_core.testing.extensions.subjects import Subject, find
from foundry_core.testing.kit.check import NotApplicableError, NotLookedAtError, require
from foundry_core.testing.kit.processes import fresh

_UNUSUAL = (
    "a",
    "...",
    "\u4f60\u597d",
    "two lines\nof text",
    "x\u0301 \N{GRINNING FACE}",
    "tab\there",
    " led by one",
    "\r",
)


class _Texts:
    """The documents of the checks; the last ones say again what was said before."""

    digest = "the corpus of the checks"

    def documents(self, account: ByteAccount | None = None) -> Iterator[str]:
        texts = [*documents(), *_UNUSUAL]
        yield from (*texts, *texts[:50])


@dataclass(frozen=True, eq=False)
class StepBench:
    """A corpus step with its settings."""

    subject: Subject

    @cached_property
    def steps(self) -> Steps:
        steps = Steps.of(experiment(self.subject))
        assert steps is not None
        return steps

    def one_pass(self) -> Iterator[tuple[int, str, bool]]:
        """Start a pass over the corpus of the checks."""
        return self.steps.applied(_Texts(), ByteAccount())


@bench("step")
def step_bench(subject: Subject) -> StepBench:
    return StepBench(subject)


@check(
    "step",
    "runs",
    fix="The named line raises an exception, or the function returns neither a text nor None. `f(settings)` returns a "
    "function `change(text, number)`. An empty text, or white space only, leaves the document out.",
)
def runs(bench: StepBench) -> str:
    """The step takes every document, also short ones and such in other scripts, and leaves something of a corpus."""
    account = ByteAccount()
    try:
        kept = sum(kept for _, _, kept in bench.steps.applied(_Texts(), account))
    except DataError as error:
        raise NotLookedAtError(f"with these settings nothing is left ({error}): pass others with --settings") from error
    total = sum(1 for _ in _Texts().documents())
    return f"keeps {kept:,} of {total:,} documents, changes {account.steps[0]['documents_changed']:,}"


@check(
    "step",
    "same-again",
    fix="Draw random numbers from a seed of the settings and the number or the text, as "
    "`random.Random(f'{settings.seed} {number}')` does; never from a global generator, a clock or hash(text), which "
    "differs between processes. The text is read several times in a run: for the tokenizer and for the tokens.",
)
def same_again(bench: StepBench) -> None:
    """Every pass gives the same text: with other states of global generators, and in another process."""
    random.seed(1)
    first = list(bench.one_pass())
    random.seed(2)
    require(list(bench.one_pass()) == first, "a second pass gives another text")
    subject = bench.subject
    file = None
    if subject.module is not None:
        if subject.module.__name__ in plugin_files:
            file = subject.module.__file__
        elif subject.point is None:
            raise NotLookedAtError("defined in this process: no other process can import it")
    program = "import sys\nfrom foundry_core.testing.extensions.corpus_steps import answer\nanswer(sys.argv[1])"
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    request = json.dumps([subject.name, subject.settings, file])
    found = fresh(program, request, hash_seed=other_seed).splitlines()[-1]
    require(found == _digest(first), "in another process, with another hash seed, it gives another text")


def answer(request: str) -> None:
    """Print a digest of what a step leaves of the corpus: what the other process runs."""
    name, settings, file = json.loads(request)
    if file is not None:
        load_plugin_file(file)
    bench = StepBench(find(name, "step", settings))
    sys.stdout.write(_digest(list(bench.one_pass())) + "\n")


def _digest(texts: list[tuple[int, str, bool]]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


@check(
    "step",
    "own-pass",
    fix="Keep what is remembered between documents inside `f(settings)`, which is called before each pass, not in a "
    "global variable, a default argument or the module: several passes may run at the same time.",
)
def own_pass(bench: StepBench) -> None:
    """Two passes at the same time give what each gives alone."""
    alone = list(bench.one_pass())
    one, other = bench.one_pass(), bench.one_pass()
    for number, (ours, theirs) in enumerate(zip(one, other, strict=True)):
        require(ours == theirs == alone[number], "two passes at the same time give another text than one alone")


@check(
    "step",
    "drops",
    fix="Return the text that was given, or None: with `drops=True` a step may not change a text, as a hole or a "
    "control could not stand for it. Leave `drops` out for a step that changes texts.",
)
def drops(bench: StepBench) -> None:
    """A step that is declared to drop leaves each text as it is or leaves it out."""
    if not bench.subject.descriptor.drops:
        raise NotApplicableError("is not declared to drop only")
    texts = list(_Texts().documents())
    for number, text, _ in bench.one_pass():
        require(text == texts[number], f"{texts[number]!r} becomes {text!r}")
