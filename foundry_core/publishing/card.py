"""The text about a published run, README.md of its repository, from what the run itself has recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foundry_core.analysis.figures import FIGURES, LOSSES, figures_of, last_evaluation, last_scores, suites_of
from foundry_core.analysis.intervals import Estimate
from foundry_core.analysis.runs import Run
from foundry_core.analysis.tables import shown
from foundry_core.config.sections import BUDGETS
from foundry_core.config.settings import flat
from foundry_core.data.preparation import TEST_DATA, TOKENIZER_DATA, TRAINING_DATA, VALIDATION_DATA
from foundry_core.data.token_file import stored_tokens
from foundry_core.publishing.licences import LICENCES
from foundry_core.publishing.loading import loading_text
from foundry_core.publishing.revisions import MAIN, Revision
from foundry_core.run_folder import GENERATION_CONFIG, MODEL_CONFIG, TOKENIZER, TOKENS
from foundry_core.storage.manifest import parse_json, read_plain_file

_CORPORA = {
    "training_corpus": ("training", TRAINING_DATA),
    "validation_corpus": ("validation", VALIDATION_DATA),
    "test_corpus": ("test", TEST_DATA),
}
_SETTINGS = (
    "objective",
    "mlm_probability",
    "masking",
    "optimizer",
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "restore_best",
    "start_from",
)
"""Settings of training that a reader asks for first; the whole configuration is at the end of the card."""


@dataclass(frozen=True)
class Card:
    """Everything that the cards of a run say.

    Attributes:
        run: The run.
        repository: Where it is published, `namespace/name`.
        revisions: Its revisions by step.
        licence: An identifier of `LICENCES`.
        languages: Codes of the languages of the text, such as `en`.
    """

    run: Run
    repository: str
    revisions: Sequence[Revision]
    licence: str
    languages: Sequence[str] = ()

    def of(self, revision: Revision, name: str) -> str:
        """Return the card of a revision under one of its names: the whole one for `main`, for others a short one."""
        parts = self._whole() if name == MAIN else self._short(revision, name)
        return "\n\n".join([self._metadata(), *parts]) + "\n"

    def _metadata(self) -> str:
        causal = not self._model_config["architectures"][0].endswith("MaskedLM")
        facts: dict[str, Any] = {"license": self.licence}
        if self.languages:
            facts["language"] = list(self.languages)
        facts |= {"library_name": "transformers", "pipeline_tag": "text-generation" if causal else "fill-mask"}
        milestones = any(name.startswith("chck_") for each in self.revisions for name in each.names)
        facts["tags"] = ["foundry", self.run.architecture, self.run.objective, *(["babylm"] if milestones else [])]
        return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"

    def _short(self, revision: Revision, name: str) -> Iterator[str]:
        yield f"# {_plain(self.run.name)}, revision {name}"
        seen = self._seen(revision)
        amount = f", {seen['words_seen']:,} words" if seen.get("words_seen") is not None else ""
        yield (
            f"The model after {revision.step:,} steps of training{amount}. The main branch of "
            f"[{self.repository}](https://huggingface.co/{self.repository}) describes the whole run and its scores."
        )
        yield self._loading(name)

    def _whole(self) -> Iterator[str]:
        run = self.run
        yield f"# {_plain(run.name)}"
        size = f" with {run.parameters:,} parameters" if run.parameters is not None else ""
        begun = "from scratch" if run.config["training"].get("start_from") is None else "from weights that were there"
        yield (
            f"A language model of the architecture `{run.architecture}`{size}, trained {begun} with the objective "
            f"`{run.objective}` by [foundry](https://pypi.org/project/model-foundry/). This text is written from the "
            "record that the run keeps."
        )
        if not run.finished:
            yield f"The run has not come to the end of its plan: it is at step {run.step:,}."
        yield f"## How to load it\n\n{self._loading(MAIN)}"
        yield f"## Revisions\n\n{self._revisions()}"
        yield f"## Scores\n\n{self._scores()}"
        yield f"## Training data\n\n{self._data()}"
        yield f"## Budget\n\n{self._budget()}"
        yield f"## Architecture\n\n{self._architecture()}"
        yield f"## Training\n\n{self._training()}"
        yield f"## Conditions\n\n{self._conditions()}"
        licence = f"{LICENCES[self.licence]} (`{self.licence}`)"
        yield f"## Licence\n\n{licence}. The training text has licences of its own."
        yield f"## Citation\n\n{self._citation()}"
        yield f"## Configuration\n\n{self._configuration()}"

    @property
    def _model_config(self) -> Mapping[str, Any]:
        path = self.revisions[-1].folder / MODEL_CONFIG
        content: Mapping[str, Any] = parse_json(path, read_plain_file(path))
        return content

    def _seen(self, revision: Revision) -> Mapping[str, Any]:
        return next((row for row in self.run.saved if row["step"] == revision.step), {})

    def _loading(self, name: str) -> str:
        generates = GENERATION_CONFIG in self.revisions[-1].manifest["files"]
        return loading_text(self._model_config, self.repository, name, generates=generates)

    def _revisions(self) -> str:
        rows = []
        for each in self.revisions:
            seen = self._seen(each)
            names = ", ".join(f"`{name}`" for name in each.names)
            amounts = [_number(seen.get(f"{unit}_seen")) for unit in ("words", "tokens")]
            rows.append([names, f"{each.step:,}", *amounts, f"`{each.weights[:12]}`"])
        head = (
            "Each is a branch of this repository: pass its name as `revision`. No two rows have the same weights.\n\n"
        )
        return head + _table(["name", "step", "words seen", "tokens seen", "sha256 of the weights"], rows)

    def _scores(self) -> str:
        run, suites = self.run, suites_of([self.run])
        figures, last, scored = figures_of([run], suites), last_evaluation(run), last_scores(run)
        rows = [
            [f"{FIGURES[name]} on the {last['corpus']} text", *_measured(name, figures[name]), f"{last['step']:,}"]
            for name in LOSSES
            if name in figures
        ]
        for suite in suites:
            for name, title in suite.figures.items():
                if name in figures:
                    label = title if title.startswith(suite.name) else f"{suite.name}: {title}"
                    rows.append([_plain(label), *_measured(name, figures[name]), f"{scored[name]['step']:,}"])
        if not rows:
            return "The run has not been evaluated."
        text = _table(["measure", "value", "95 % interval", "at step"], rows)
        notes = []
        if any(name in figures for name in LOSSES):
            notes.append("The loss is in nats per predicted token; a loss of one run has no interval.")
        if suites:
            notes.append("Accuracies are in percent, their intervals over the items of the suite (bootstrap).")
            measures = {row["measure"] for row in run.scored if row["measure"]}
            notes.append(f"A sentence is scored by the {' or '.join(sorted(measures))} of its log-probabilities.")
        return f"{text}\n\n{' '.join(notes)}"

    def _data(self) -> str:
        rows, skipped = [], []
        for key, facts in dict(self.run.record.get("corpora") or {}).items():
            title, digest_name = _CORPORA.get(key, (key, ""))
            account = self._account(digest_name)
            names = ", ".join(f"`{_plain(str(Path(name).name))}`" for name in list(facts.get("names") or ())[:5])
            files = f"{facts.get('files', 0):,}: {names}" + (" ..." if facts.get("files", 0) > 5 else "")
            counts = [_number(account.get(name)) for name in ("documents", "words", "bytes_text", "bytes_skipped")]
            rows.append([title, files, *counts, f"`{str(facts.get('digest'))[:12]}`"])
            skipped += [f"* {title}: {reason}: {count:,}" for reason, count in (account.get("skipped") or {}).items()]
            if shared := (facts.get("also_in_training") or {}).get("shared"):
                skipped.append(f"* {title}: {shared:,} of its documents are in the training text, too")
        header = ["text", "files", "documents", "words", "bytes of text", "bytes skipped", "sha256"]
        text = _table(header, rows) if rows else "The run has not recorded its corpora."
        steps = self.run.config["data"].get("steps") or []
        if steps:
            skipped.append(f"* steps that changed the text: {len(steps)}, see `data.steps` in the configuration")
        return "\n\n".join([text, *(["Left out, changed or shared:\n\n" + "\n".join(skipped)] if skipped else [])])

    def _account(self, digest_name: str) -> Mapping[str, Any]:
        """Return the counts of a text, from its token file; empty if that is gone."""
        digests = dict(self.run.state.get("data") or {})
        given = self.run.config.get("tokenizer", {}).get("output_dir")
        folders = [self.run.folder / TOKENIZER / TOKENS, self.run.folder / TOKENS]
        folders += [Path(given) / TOKENS] if given else []
        tokens = stored_tokens(folders, str(digests.get(digest_name)), str(digests.get(TOKENIZER_DATA)))
        return tokens.info.account if tokens is not None else {}

    def _budget(self) -> str:
        training, plan = self.run.config["training"], dict(self.run.record.get("plan") or {})
        asked = next(((key, training[key]) for key in BUDGETS if training.get(key) is not None), None)
        budget = dict(plan.get("budget") or {})
        rows = [[unit, _number(value)] for unit, value in budget.items()]
        text = f"Asked for: `training.{asked[0]}: {asked[1]:,}`. " if asked else ""
        text += f"Trained so far: {self.run.step:,} steps, {self.run.words:,} words, {self.run.tokens:,} tokens"
        flops = self.run.flops
        text += f", {flops:.2e} floating-point operations." if flops else "."
        return f"{text}\n\n{_table(['planned', 'amount'], rows)}" if rows else text

    def _architecture(self) -> str:
        model = self.run.config["model"]
        rows = [[f"`{key}`", _value(value)] for key, value in flat(model).items() if value is not None]
        rows.append(["parameters", _number(self.run.parameters)])
        tokenizer = self.run.config.get("tokenizer", {})
        kind = tokenizer.get("tokenizer_type") if tokenizer.get("path") is None else "given"
        rows.append(["tokenizer", f"{kind}, {self._model_config['vocab_size']:,} tokens"])
        rows.append(["longest row", f"{_number(self.run.config['data'].get('max_sequence_length'))} tokens"])
        return _table(["setting", "value"], rows)

    def _training(self) -> str:
        training = self.run.config["training"]
        masked = self._model_config["architectures"][0].endswith("MaskedLM")
        keys = [key for key in _SETTINGS if masked or key not in ("mlm_probability", "masking")]
        rows = [[f"`training.{key}`", _value(training[key])] for key in keys if training.get(key) is not None]
        rows.append(["`data.batch_size`", _value(self.run.config["data"].get("batch_size"))])
        rows += [[f"`{key}`", _value(value)] for key, value in self.run.seeds.items()]
        return _table(["setting", "value"], rows)

    def _conditions(self) -> str:
        record = self.run.record
        names = ("device", "threads", "processes", "precision", "compile", "kernels", "started")
        rows = [[name, _value(record[name])] for name in names if record.get(name) is not None]
        rows += [[name, _value(version)] for name, version in dict(record.get("versions") or {}).items()]
        plugin = dict(dict(self._model_config.get("foundry") or {}).get("plugin") or {})
        if plugin.get("distribution"):
            rows.append([plugin["distribution"], _value(plugin.get("version"))])
        return _table(["", "value"], rows)

    def _citation(self) -> str:
        year = str(self.run.record.get("started") or "")[:4]
        owner, _, name = self.repository.partition("/")
        version = dict(self.run.record.get("versions") or {}).get("model-foundry", "")
        model = _bibtex(
            name,
            {
                "title": f"{{{self.run.name}}}: a language model ({self.run.architecture})",
                "author": f"{{{owner}}}",
                "year": year,
                "url": f"https://huggingface.co/{self.repository}",
            },
        )
        software = _bibtex(
            "foundry",
            {
                "title": "{foundry}: small language models of any architecture under equal conditions",
                "author": "{the foundry developers}",
                "note": f"version {version}",
                "url": "https://pypi.org/project/model-foundry/",
            },
        )
        return f"The model, and the software that trained it:\n\n```bibtex\n{model}\n\n{software}\n```"

    def _configuration(self) -> str:
        text = yaml.safe_dump(dict(self.run.config), sort_keys=False, allow_unicode=True).replace("```", "` ` `")
        return (
            "Every setting, defaults included. `foundry train` repeats the run from it, if the text is at hand.\n\n"
            f"<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"
        )


def _measured(name: str, estimate: Estimate) -> list[str]:
    value, _ = shown(name, estimate)
    if estimate.low is None or estimate.high is None:
        return [value, "–"]
    return [value, " to ".join(shown(name, Estimate(end))[0] for end in (estimate.low, estimate.high))]


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown: figures to the right."""
    header, rows = list(header), [list(row) for row in rows]
    figures = [all(re.fullmatch(r"[\d,.:e+–-]+", row[at]) for row in rows) for at in range(len(header))]
    rule = ["--:" if figure and at else "---" for at, figure in enumerate(figures)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{round(value, 3):,}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return str(value)
    return _plain(str(value)) if re.search(r"[`|\s]", str(value)) else f"`{value}`"


def _plain(text: str) -> str:
    """Return text of a run in one line that Markdown and HTML show as it is."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\|`*_[]" else c for c in escaped)


def _bibtex(key: str, facts: Mapping[str, str]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in facts.items() if value)
    return f"@misc{{{key},\n{lines}\n}}"
