"""The text about a published run, README.md of its repository, from what the run itself has recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from foundry_core.analysis.runs import Run
from foundry_core.config.sections import BUDGETS
from foundry_core.config.settings import flat
from foundry_core.data.preparation import TEST_DATA, TOKENIZER_DATA, TRAINING_DATA, VALIDATION_DATA
from foundry_core.data.token_file import stored_tokens
from foundry_core.publishing.licences import LICENCES
from foundry_core.publishing.loading import loading_text
from foundry_core.publishing.markdown import NONE, bibtex, link, number, plain, setting, table
from foundry_core.publishing.revisions import MAIN, Revision
from foundry_core.publishing.scores import Scores
from foundry_core.publishing.study import Study
from foundry_core.run_folder import MODEL_CONFIG, TOKENIZER, TOKENS
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

_KINDS = {"causal_lm": "causal language model", "masked_lm": "masked language model"}


@dataclass(frozen=True)
class Statements:
    """Holds what the publisher states, because no run has recorded it.

    Attributes:
        licence: An identifier of `LICENCES`.
        languages: Codes of the languages of the text, such as `en`.
        datasets: Names of the text on the hub, `namespace/name`.
        authors: Whom to cite.
    """

    licence: str
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    authors: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """Everything that the cards of a run say.

    Attributes:
        run: The run.
        repository: Where it is published, `namespace/name`.
        revisions: Its revisions by step.
        files: What they have besides their weights.
        stated: What the run has not recorded.
        study: The runs that are published with it.
    """

    run: Run
    repository: str
    revisions: Sequence[Revision]
    files: Mapping[str, bytes]
    stated: Statements
    study: Study | None = None

    def of(self, revision: Revision, name: str) -> str:
        """Return the card of a revision under one of its names: the whole one for `main`, for others a short one."""
        parts = self._whole() if name == MAIN else self._short(revision, name)
        return "\n\n".join([self._metadata(name), *parts]) + "\n"

    def _metadata(self, name: str) -> str:
        causal = not self._model_config["architectures"][0].endswith("MaskedLM")
        task = "text-generation" if causal else "fill-mask"
        facts: dict[str, Any] = {"license": self.stated.licence}
        if self.stated.languages:
            facts["language"] = list(self.stated.languages)
        facts |= {"library_name": "transformers", "pipeline_tag": task}
        milestones = any(each.startswith("chck_") for revision in self.revisions for each in revision.names)
        facts["tags"] = ["foundry", self.run.architecture, self.run.objective, *(["babylm"] if milestones else [])]
        if self.stated.datasets:
            facts["datasets"] = list(self.stated.datasets)
        # The last scores are not those of other weights, as which the hub would list them.
        if name == MAIN and not self._is_of_another_step and (results := self._scores.model_index(self._name, task)):
            facts["model-index"] = results
        return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"

    @property
    def _name(self) -> str:
        return self.repository.partition("/")[2]

    @cached_property
    def _scores(self) -> Scores:
        return Scores(self.run)

    @property
    def _is_of_another_step(self) -> bool:
        """Check whether the last revision is older than the last step that the run has reported, as after a kill."""
        return self.revisions[-1].step != self.run.step

    def _short(self, revision: Revision, name: str) -> Iterator[str]:
        yield f"# {plain(self._name)}, revision {name}"
        yield (
            f"The model after {self._amount(revision)}. The main branch of {link(self.repository)} describes the whole "
            "run and its scores."
        )
        yield self._loading(name)

    def _amount(self, revision: Revision) -> str:
        words = self._seen(revision).get("words_seen")
        return f"{revision.step:,} steps of training" + (f", {words:,} words" if words is not None else "")

    def _whole(self) -> Iterator[str]:
        yield f"# {plain(self._name)}"
        yield self._introduction()
        if not self.run.finished:
            yield f"The run has not come to the end of its plan: it is at step {self.run.step:,}."
        if self._is_of_another_step:
            amount = self._amount(self.revisions[-1])
            yield f"**`main` is the model after {amount}.** All else on this page is about the whole run."
        yield f"## How to load it\n\n{self._loading(MAIN)}"
        yield f"## Scores\n\n{self._scores.text()}"
        if self.study is not None:
            yield f"## Published with it\n\n{self.study.text(self.run)}"
        yield f"## Revisions\n\n{self._revisions()}"
        yield f"## Training data\n\n{self._data()}"
        yield f"## Budget\n\n{self._budget()}"
        yield f"## Architecture\n\n{self._architecture()}"
        yield f"## Training\n\n{self._training()}"
        yield f"## Conditions\n\n{self._conditions()}"
        licence = self.stated.licence
        yield f"## Licence\n\n{LICENCES[licence]} (`{licence}`). The training text is licensed separately."
        yield f"## Citation\n\n{self._citation()}"
        yield f"## Configuration\n\n{self._configuration()}"

    def _introduction(self) -> str:
        run = self.run
        kind = _KINDS.get(run.objective, f"language model with the objective `{run.objective}`")
        size = f", {run.parameters:,} parameters" if run.parameters else ""
        begun = "from scratch" if run.config["training"].get("start_from") is None else "from weights that were there"
        epoch = dict(run.record.get("plan") or {}).get("words_per_epoch")
        times = f"{run.words / epoch:.3g}" if epoch and run.words else ""
        passes = f" ({times} {'pass' if times == '1' else 'passes'} over {epoch:,})" if times else ""
        scores = self._scores.summary()
        return (
            f"A {kind} (`{run.architecture}`{size}), trained {begun} on {run.words:,} words{passes} by "
            f"[foundry](https://pypi.org/project/model-foundry/){f'; {plain(scores)}' if scores else ''}. This text is "
            "written from the record that the run keeps."
        )

    @property
    def _model_config(self) -> Mapping[str, Any]:
        path = self.revisions[-1].folder / MODEL_CONFIG
        content: Mapping[str, Any] = parse_json(path, read_plain_file(path))
        return content

    def _seen(self, revision: Revision) -> Mapping[str, Any]:
        return next((row for row in self.run.saved if row["step"] == revision.step), {})

    def _loading(self, name: str) -> str:
        others = next((each.names[-1] for each in reversed(self.revisions[:-1])), "")
        return loading_text(self.files, self.repository, name, others if name == MAIN else "")

    def _revisions(self) -> str:
        curve, rows = self._scores.by_step(), []
        steps = {each.step for each in self.revisions}
        curve = {title: values for title, values in curve.items() if len(steps & set(values)) > 1}
        for each in self.revisions:
            seen = self._seen(each)
            names = ", ".join(f"`{name}`" for name in each.names)
            amounts = [number(seen.get(f"{unit}_seen")) for unit in ("words", "tokens")]
            scores = [values.get(each.step, NONE) for values in curve.values()]
            rows.append([names, f"{each.step:,}", *amounts, *scores, f"`{each.weights[:12]}`"])
        head = (
            "Each is a branch of this repository: pass its name as `revision`. No two rows have the same weights.\n\n"
        )
        return head + table(["name", "step", "words seen", "tokens seen", *curve, "sha256 of the weights"], rows)

    def _data(self) -> str:
        rows, skipped = [], []
        for key, facts in dict(self.run.record.get("corpora") or {}).items():
            title, digest_name = _CORPORA.get(key, (key, ""))
            account = self._account(digest_name)
            names = ", ".join(setting(Path(name).name) for name in list(facts.get("names") or ())[:5])
            files = f"{facts.get('files', 0):,}: {names}" + (" ..." if facts.get("files", 0) > 5 else "")
            counts = [number(account.get(name)) for name in ("documents", "words", "bytes_text", "bytes_skipped")]
            rows.append([title, files, *counts, f"`{str(facts.get('digest'))[:12]}`"])
            skipped += [f"* {title}: {reason}: {count:,}" for reason, count in (account.get("skipped") or {}).items()]
            if shared := (facts.get("also_in_training") or {}).get("shared"):
                skipped.append(f"* {title}: {shared:,} of its documents are in the training text, too")
        header = ["text", "files", "documents", "words", "bytes of text", "bytes skipped", "sha256"]
        text = table(header, rows) if rows else "The run has not recorded its corpora."
        if self.stated.datasets:
            there = [f"[{name}](https://huggingface.co/datasets/{name})" for name in self.stated.datasets]
            text = f"On the hub: {', '.join(there)}.\n\n{text}"
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
        run, training = self.run, self.run.config["training"]
        asked = next(((key, training[key]) for key in BUDGETS if training.get(key) is not None), None)
        planned = dict(dict(run.record.get("plan") or {}).get("budget") or {})
        trained = {"steps": run.step, "words": run.words, "tokens": run.tokens}
        units = dict.fromkeys([*trained, *planned])
        sentences = [f"Asked for: `training.{asked[0]}: {asked[1]:,}`."] if asked else []
        if run.seconds:
            flops = f", {run.flops:.2e} floating-point operations" if run.flops else ""
            time = f"{run.seconds:,.0f} s" if run.seconds < 3600 else f"{run.seconds / 3600:,.1f} h"
            sentences.append(f"Training took {time}{flops}.")
        rows = [[unit, number(planned.get(unit)), number(trained.get(unit))] for unit in units]
        return "\n\n".join([*filter(None, [" ".join(sentences)]), table(["unit", "planned", "trained"], rows)])

    def _architecture(self) -> str:
        model = self.run.config["model"]
        rows = [[f"`{key}`", setting(value)] for key, value in flat(model).items() if value is not None]
        rows.append(["parameters", number(self.run.parameters)])
        tokenizer = self.run.config.get("tokenizer", {})
        kind = tokenizer.get("tokenizer_type") if tokenizer.get("path") is None else "given"
        rows.append(["tokenizer", f"{kind}, {self._model_config['vocab_size']:,} tokens"])
        rows.append(["longest row", f"{number(self.run.config['data'].get('max_sequence_length'))} tokens"])
        return table(["setting", "value"], rows)

    def _training(self) -> str:
        training = self.run.config["training"]
        masked = self._model_config["architectures"][0].endswith("MaskedLM")
        keys = [key for key in _SETTINGS if masked or key not in ("mlm_probability", "masking")]
        rows = [[f"`training.{key}`", setting(training[key])] for key in keys if training.get(key) is not None]
        rows.append(["`data.batch_size`", setting(self.run.config["data"].get("batch_size"))])
        rows += [[f"`{key}`", setting(value)] for key, value in self.run.seeds.items()]
        return table(["setting", "value"], rows)

    def _conditions(self) -> str:
        record = self.run.record
        names = ("device", "threads", "processes", "precision", "compile", "kernels", "started")
        rows = [[name, setting(record[name])] for name in names if record.get(name) is not None]
        rows += [[name, setting(version)] for name, version in dict(record.get("versions") or {}).items()]
        plugin = dict(dict(self._model_config.get("foundry") or {}).get("plugin") or {})
        if plugin.get("distribution"):
            rows.append([plugin["distribution"], setting(plugin.get("version"))])
        return table(["", "value"], rows)

    def _citation(self) -> str:
        year = str(self.run.record.get("started") or "")[:4]
        owner, _, name = self.repository.partition("/")
        version = dict(self.run.record.get("versions") or {}).get("model-foundry", "")
        model = bibtex(
            name,
            {
                "title": f"{{{name}}}: a language model ({self.run.architecture})",
                "author": " and ".join(self.stated.authors) or f"{{{owner}}}",
                "year": year,
                "url": f"https://huggingface.co/{self.repository}",
            },
        )
        software = bibtex(
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
