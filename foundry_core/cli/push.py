"""Publish a run, or every run of a study, on the Hugging Face hub.

Each checkpoint becomes a branch of the repository, `step-1000`, and a second
one where the run has a name for it, `chck_10M`; `main` is the last. Each is a
folder as `foundry export` writes it, --standalone where the architecture has
a file for that: without the optimizer. README.md says, from the record of the
run, what it was trained on, how far, with which settings and seeds, how it
scores, and how to load it. Nothing is sent if two checkpoints have the same
weights.

What is there already is not sent again, so the same command goes on after an
interruption. `--dry-run` writes what would be sent and needs no network. To
log in: `hf auth login`, or HF_TOKEN.

Of a study each run becomes a repository, the name of its cell after the one
that is given, and all of them a collection.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_core.cli.common import (
    add_plugin_argument,
    large_imports,
    load_plugins,
    path_argument,
    report,
    text_argument,
    whole_checkpoints,
)
from foundry_core.errors import UsageError, warn, warned_once

if TYPE_CHECKING:
    from foundry_core.analysis.runs import Run
    from foundry_core.publishing.card import Statements
    from foundry_core.publishing.hub import Publication
    from foundry_core.publishing.revisions import Revision
    from foundry_core.publishing.study import Study

EXAMPLE = """\
examples:
  foundry push runs/lstm anna/lstm --licence apache-2.0 --dry-run look
  foundry push runs/lstm anna/lstm --licence apache-2.0 --language en
  foundry push runs/lstm anna/lstm --licence mit --private --with-optimizer
  foundry push studies/sizes anna/sizes --licence cc-by-4.0"""


def configure(parser: argparse.ArgumentParser) -> None:
    what = "folder of a run or of a study, or a folder whose subfolders are runs"
    parser.add_argument("run", metavar="RUN", type=path_argument, help=what)
    what = "NAMESPACE/NAME on the hub; for a study NAMESPACE/PREFIX"
    parser.add_argument("repository", metavar="REPOSITORY", type=text_argument, help=what)
    what = "licence of the model, as the hub names it: apache-2.0, mit, cc-by-4.0, cc-by-sa-4.0, cc0-1.0, other"
    parser.add_argument("--licence", "--license", required=True, type=text_argument, metavar="ID", help=what)
    for option, metavar, what in (
        ("--language", "CODE", "language of the text, such as en"),
        ("--dataset", "NAME", "the text on the hub, NAMESPACE/NAME, if it is there"),
        ("--author", "NAME", "whom to cite instead of the namespace, such as 'Ny, Anna'"),
        ("--leave-out", "NAME", "leave out the checkpoint of this revision, such as step-1000, or CELL/step-1000"),
    ):
        parser.add_argument(
            option, action="append", default=[], type=text_argument, metavar=metavar, help=f"{what} (repeatable)"
        )
    what = "write what would be sent to an empty or new folder, a subfolder for each revision, and send nothing"
    parser.add_argument("--dry-run", type=path_argument, metavar="DIR", help=what)
    what = "publish the states from which training goes on, too, as far as they are kept"
    parser.add_argument("--with-optimizer", action="store_true", help=what)
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    add_plugin_argument(parser)


def execute(options: argparse.Namespace) -> None:
    load_plugins(options)
    with large_imports():
        from foundry_core.analysis.folders import find_runs
        from foundry_core.analysis.runs import is_run
        from foundry_core.publishing import hub
        from foundry_core.publishing.card import Statements
        from foundry_core.publishing.licences import check_licence
        from foundry_core.publishing.revisions import candidates_of, check_known
        from foundry_core.publishing.study import Study
        from foundry_core.training.progress import counting

    stated = Statements(
        check_licence(options.licence),
        [hub.check_language(code) for code in options.language],
        [hub.check_repository(name, "a data set", "anna/childes") for name in options.dataset],
        options.author,
    )
    hub.check_repository(options.repository)
    folder = Path(options.dry_run) if options.dry_run is not None else None
    if folder is not None:
        hub.check_empty(folder)
    one, runs = is_run(Path(options.run)), find_runs([options.run])
    names = [options.repository if one else hub.repository_of(options.repository, run.folder.name) for run in runs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two runs would become {twice}, as the hub does not take their names: push them one by one")
    api: Any = hub.logged_in() if folder is None else None
    study = None if one else Study(runs, {run.folder: name for run, name in zip(runs, names, strict=True)})
    # Everything is read before the first file is sent: a refusal leaves no half of a study on the hub.
    candidates, publications = [], []
    with counting("reading", len(runs)) as begin:
        for run in runs:
            begin(run.folder.name)
            candidates.append(candidates_of(whole_checkpoints(run.folder)))
    check_known(options.leave_out, candidates, several=not one)
    with counting("describing", len(runs)) as begin:
        for run, name, found in zip(runs, names, candidates, strict=True):
            begin(run.folder.name)
            publications.append(_publication(run, name, found, stated, study, options))
    total = sum(len(each.revisions) for each in publications)
    with warned_once(), counting("publishing", total) as begin:  # a checkpoint may have several names
        for each in publications:
            if folder is not None:
                place = folder if one else folder / each.repository.partition("/")[2]
                hub.write_dry_run(place, each, begin)
            else:
                sent = hub.send(api, each, begin, private=options.private)
                there = len(each.revisions) - len(sent)
                rest = f", {there} {'was' if there == 1 else 'were'} there" if there else ""
                report(f"{api.endpoint}/{each.repository}: sent {_counted(len(sent), 'revision')}{rest}")
    if study is not None:
        namespace, _, title = options.repository.partition("/")
        collection = study.collection(title, namespace)
        if folder is not None:
            hub.write_collection(folder, collection, private=options.private)
        else:
            report(f"collection: {hub.send_collection(api, collection, private=options.private)}")
    if folder is not None:
        repositories = _counted(len(publications), "repository", "repositories")
        report(f"wrote {_counted(total, 'revision')} of {repositories}, nothing was sent: {folder}")


def _publication(
    run: Run,
    repository: str,
    candidates: Sequence[Revision],
    stated: Statements,
    study: Study | None,
    options: argparse.Namespace,
) -> Publication:
    """Return what a run becomes; warn if it is not finished."""
    from foundry_core.publishing.card import Card
    from foundry_core.publishing.hub import Publication
    from foundry_core.publishing.revisions import revision_files, revisions_of, shared_by

    revisions = revisions_of(candidates, options.leave_out, f"{run.folder.name}/" if study is not None else "")
    if not run.finished:
        warn(f"{run.folder} has not come to the end of its plan: main is its step {revisions[-1].step:,}")
    shared = shared_by(revisions)
    card = Card(run, repository, revisions, shared.files, stated, study)
    files = {
        name: partial(revision_files, each, shared, card.of(each, name), with_optimizer=options.with_optimizer)
        for each in revisions
        for name in each.names
    }
    return Publication(repository, files)


def _counted(number: int, name: str, several: str | None = None) -> str:
    return f"{number} {name if number == 1 else several or f'{name}s'}"
