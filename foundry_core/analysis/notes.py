"""Notes for the reader on the figures of runs that stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foundry_core.analysis.figures import Suite, last_scores, last_text, task
from foundry_core.analysis.runs import Run


def notes_on(runs: Sequence[Run], suites: Sequence[Suite]) -> Iterable[str]:
    """Yield a sentence for each thing that makes figures of runs less comparable than they look.

    Args:
        runs: The runs.
        suites: The suites that some of them were scored on.
    """
    yield from _on_losses(runs)
    if unfinished := [run for run in runs if not run.finished]:
        steps = ", ".join(f"{run.folder.name} at step {run.step:,}" for run in unfinished)
        yield f"Not trained to the end of the plan: {steps}."
    for suite in suites:
        yield from _on_suite(runs, suite.name)
    behind = [
        f"{run.folder.name} at step {max(row['step'] for row in run.scored):,} of {run.step:,}"
        for run in runs
        if run.scored and max(row["step"] for row in run.scored) < run.step
    ]
    if behind:
        yield f"Accuracies are those of the last step that was scored: {', '.join(behind)}."


def _on_losses(runs: Sequence[Run]) -> Iterable[str]:
    objectives = {run.objective for run in runs}
    if len(objectives) > 1:
        yield (
            f"The loss is in nats per predicted token, and the objectives differ ({', '.join(sorted(objectives))}): "
            "their losses answer different questions."
        )
    tokenizers = {task(run)[1] for run in runs} - {None}
    if len(tokenizers) > 1:
        yield "The tokenizers differ: compare bits per byte and perplexity per word, not the loss per token."
    by_text: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if (text := last_text(run)) is not None:
            by_text.setdefault(text, []).append(run.folder.name)
    if len(by_text) > 1:
        several = len({corpus for corpus, _ in by_text}) < len(by_text)
        named = {f"{corpus} {digest[:12]}" if several else corpus: names for (corpus, digest), names in by_text.items()}
        on = "; ".join(f"{text}: {', '.join(names)}" for text, names in named.items())
        yield f"The losses are not of one text. {on}."


def _on_suite(runs: Sequence[Run], name: str) -> Iterable[str]:
    by_digest: dict[str, dict[str, None]] = {}
    for run in runs:
        for row in run.scored:
            if row["suite"] == name and row["suite_digest"]:
                by_digest.setdefault(str(row["suite_digest"])[:12], {})[run.folder.name] = None
    if len(by_digest) > 1:
        of = "; ".join(f"{digest}: {', '.join(each)}" for digest, each in by_digest.items())
        yield f"Different suites are called {name}, and the accuracies of one are not those of another. {of}."
    scored = [run for run in runs if name in last_scores(run)]
    if missing := [run for run in runs if run not in scored]:
        yield f"Not scored on {name}: {_names(missing)}. A model has an accuracy only if all of its runs are scored."
    left_out = [f"{count:,} by {run.folder.name}" for run in scored if (count := last_scores(run)[name]["left_out"])]
    if left_out:
        yield f"Items of {name} left out, because a model cannot score them: {', '.join(left_out)}."


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.folder.name for run in runs)
