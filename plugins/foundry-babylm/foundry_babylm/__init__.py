"""Enter the BabyLM challenge with models of any architecture.

The official evaluation pipeline is not part of foundry. These commands write
a configuration within the limits of a track, check a run before the pipeline
reads it, and collect the predictions of the pipeline into a submission.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from foundry_babylm.tracks import TRACKS

EXAMPLE = """\
examples:
  foundry babylm init strict-small --architecture lstm -o lstm.yaml
  foundry babylm check runs/lstm
  foundry babylm collect results/lstm --track strict-small \\
      --fast-data evaluation_data/fast_eval -o submission.json"""

_INIT = """Write a commented YAML for a track: its budget of words, which is never
exceeded, and its checkpoints with the names that the pipeline expects
(chck_1M, chck_2M, ...). The text is corpora/train_10M or corpora/train_100M,
a folder; set data.training_corpus to have it elsewhere."""

_CHECK = """Check a run, or a folder that foundry export wrote, before the official
pipeline reads it. Each finding is a line with its cure. Code 1 if one of them
stops the pipeline or breaks a rule of the track; a line that begins with note
is only worth knowing."""

_COLLECT = """Collect the predictions of the official pipeline, results/NAME in its folder,
into the file that is submitted. Nothing is written unless every file is there
and has all of its predictions; each that is missing or wrong gets a line.

--fast-data names the pipeline's evaluation_data/fast_eval: with it the scores
of the checkpoints are computed, which a challenge entry has to contain."""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True, help="what to do")
    add = _Verbs(verbs)

    init = add("init", "write a configuration for a track", _INIT, "init strict --architecture gpt2", _init)
    init.add_argument("track", choices=list(TRACKS), metavar="TRACK", help=f"one of {', '.join(TRACKS)}")
    init.add_argument("--architecture", required=True, metavar="NAME", help="an installed architecture")
    init.add_argument("--name", metavar="TEXT", help="name of the experiment (default: architecture and track)")
    init.add_argument("-o", "--output", metavar="FILE", help="write to this new file instead of stdout")

    check = add("check", "list what the official pipeline will stumble over", _CHECK, "check runs/lstm", _check)
    check.add_argument("run", metavar="RUN", help="the folder of a run, or one that foundry export wrote")
    what = "track of the entry (default: the smallest that the text fits into)"
    check.add_argument("--track", choices=list(TRACKS), metavar="TRACK", help=what)

    example = "collect results/lstm --track strict-small -o submission.json"
    collect = add("collect", "collect predictions into a submission", _COLLECT, example, _collect)
    collect.add_argument("results", metavar="RESULTS", help="the pipeline's folder for a model: results/NAME")
    collect.add_argument("-o", "--output", required=True, metavar="FILE", help="the submission, a new JSON file")
    collect.add_argument("--track", choices=list(TRACKS), required=True, metavar="TRACK", help="track of the entry")
    what = "causal, mlm or mntp, as the pipeline was called with (default: the one that has results)"
    collect.add_argument("--backend", metavar="NAME", help=what)
    collect.add_argument("--fast-data", metavar="FOLDER", help="the pipeline's evaluation_data/fast_eval")
    what = "the last checkpoint, such as chck_20M, of a model that was trained for less than the whole budget"
    collect.add_argument("--last", metavar="CHCK", help=what)


class _Verbs:
    """Adds the verbs of the command, each with its help and an example."""

    def __init__(self, verbs: argparse._SubParsersAction[argparse.ArgumentParser]):
        self.verbs = verbs

    def __call__(
        self, name: str, summary: str, description: str, example: str, carry_out: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        verb = self.verbs.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example:\n  foundry babylm {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(carry_out=carry_out)
        return verb


def execute(options: argparse.Namespace) -> None:
    options.carry_out(options)


def _init(options: argparse.Namespace) -> None:
    from foundry_babylm.entry import write_yaml

    write_yaml(TRACKS[options.track], options.architecture, options.name, options.output)


def _check(options: argparse.Namespace) -> None:
    from foundry_babylm.findings import report

    report(options.run, TRACKS.get(options.track))


def _collect(options: argparse.Namespace) -> None:
    from foundry_babylm.submission import Results

    results = Results(options.results, TRACKS[options.track], options.backend, options.last)
    results.write(options.output, options.fast_data)
