"""The documentation: the reference lacks nothing, every link leads somewhere, and what its examples show is valid."""

from __future__ import annotations

import argparse
import doctest
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import foundry_core
from docs.generator import facts, keys
from docs.generator.api import hooks
from docs.generator.keys import Reader
from docs.generator.links import broken
from docs.generator.pages import DOCS, made_pages, relinked, write_pages
from docs.generator.verbs import below, parser_of
from foundry_core import ExperimentConfig, load_config
from foundry_core.cli import VERBS, main
from foundry_core.cli.quickstart import quickstart
from foundry_core.registry.core_steps import CORE_CORPUS_STEPS
from foundry_core.registry.loading import available_architectures, get_architecture
from foundry_core.schema import ConfigSection, NotValid, Values
from foundry_core.study.definition import StudySection, read_study
from foundry_core.testing.toy_language import write_corpus

pytestmark = pytest.mark.long

ROOT = DOCS.parent


@cache
def pages() -> dict[str, str]:
    """Return every page by its place below docs/, the made ones too, with links as they are on the site."""
    written = {str(path.relative_to(DOCS)): path for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    found = dict(made_pages())
    for place, path in written.items():
        if place not in found:
            found[place] = relinked(path.read_text(encoding="utf-8"), f"docs/{place}", place)
    return found


def own_pages() -> dict[str, str]:
    return {place: text for place, text in pages().items() if place not in made_pages()}


def sections_of(kind: Any) -> Iterator[type[ConfigSection]]:
    if isinstance(kind, type) and issubclass(kind, ConfigSection):
        yield kind
    for inner in get_args(getattr(kind, "__value__", kind)):
        yield from sections_of(inner)


def keys_of(section: type[ConfigSection], place: str = "") -> Iterator[tuple[str, type[ConfigSection], str]]:
    """Yield the dotted name, the section and the last part of the name of each key, from pydantic's fields."""
    for name, field in section.model_fields.items():
        dotted = f"{place}.{name}".removeprefix(".")
        yield dotted, section, name
        for inner in sections_of(field.annotation):
            if inner.model_fields:
                mapping = "dict" in str(field.annotation) and inner.__name__ == "CorpusShare"
                yield from keys_of(inner, f"{dotted}.NAME" if mapping else dotted)


def all_keys() -> dict[str, tuple[type[ConfigSection], str]]:
    found = [each for each in keys_of(ExperimentConfig) if each[0].partition(".")[0] != "model"]
    for name in available_architectures():
        found += keys_of(get_architecture(name).config_class, "model")
    for step in CORE_CORPUS_STEPS.values():
        found += keys_of(step.schema, f"data.steps.{step.name}")
    return {dotted: (section, name) for dotted, section, name in [*found, *keys_of(StudySection)]}


def test_every_key_of_a_yaml_is_in_the_reference() -> None:
    text = pages()["reference/keys.md"] + pages()["reference/models.md"]
    sections = {dotted.rpartition(".")[0] for dotted in all_keys()} | {"model"}
    missing = [
        dotted
        for dotted in all_keys()
        if f"### `{dotted}`\n" not in text and dotted not in {*sections, "model.architecture"}
    ]
    assert len(all_keys()) > 150
    assert missing == []
    assert "### `model.architecture`\n" in text


def test_every_key_has_a_description_and_a_valid_example() -> None:
    reader = Reader({"$defs": {}})
    wrong = []
    for dotted, (section, name) in all_keys().items():
        field = section.model_fields[name]
        default = None if field.is_required() else field.default
        example = reader.example(dotted, {}, default if not isinstance(default, ConfigSection) else {})
        if not field.description and not list(sections_of(field.annotation)):
            wrong.append(f"{dotted}: no description")
        if example is None and dotted != "model.architecture" and not list(sections_of(field.annotation)):
            wrong.append(f"{dotted}: no example")
        if example is not None and "_settings" not in name and name not in ("steps", "of"):
            try:
                getattr(Values(section, {name: example}), name)
            except NotValid:
                wrong.append(f"{dotted}: {example!r} is not valid")
    assert wrong == []


def test_every_verb_is_in_the_reference_with_its_options() -> None:
    text = pages()["reference/verbs.md"]
    waiting = [(f"foundry {verb}", parser_of(verb)) for verb in VERBS]
    missing = []
    while waiting:
        name, parser = waiting.pop()
        waiting += [(f"{name} {inner}", under) for inner, under in below(parser).items()]
        part = re.split(rf"(?m)^##+ `{re.escape(name)}`\n", text)
        if len(part) != 2:
            missing.append(name)
            continue
        described = re.split(r"(?m)^##", part[1])[0]
        options = [option for action in parser._actions if action.dest != "help" for option in action.option_strings]
        missing += [f"{name} {option}" for option in options if option not in described]
    assert missing == []


def test_every_hook_and_public_name_is_in_the_reference() -> None:
    names = {*foundry_core.__all__} - {"__version__"}
    assert {name for name in names if f"## `{name}`\n" not in pages()["reference/api.md"]} == set()
    assert {name for name in hooks() if f"## `{name}`\n" not in pages()["reference/hooks.md"]} == set()


def kinds_of_error() -> dict[str, int]:
    """Return each kind of error and its exit code, as Python knows them."""
    found, waiting = {}, [foundry_core.FoundryError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind.exit_code
        waiting += [each for each in kind.__subclasses__() if each.__module__.startswith("foundry_core")]
    return {name: code for name, code in found.items() if not name.startswith("_")}


def test_every_kind_of_error_has_its_causes_and_its_exit_code() -> None:
    import foundry_core.checkpoints.checkpoint
    import foundry_core.storage.files  # noqa: F401 - defines one

    described = {name: code for name, (code, _) in facts.kinds().items()}
    assert kinds_of_error().items() <= described.items()
    assert described.keys() == facts.CAUSES.keys()
    assert all(causes for causes in facts.CAUSES.values())
    assert sum(map(len, facts.messages().values())) > 250


def test_every_environment_variable_is_in_the_reference() -> None:
    of_the_kit = {"GLOO_SOCKET_IFNAME", "PYTHONHASHSEED"}
    assert facts.variables_in_the_code() - of_the_kit <= facts.VARIABLES.keys()


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as MyST makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    found: set[str] = set()
    for title in re.findall(r"(?m)^#+ (.*)$", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower().replace(" ", "-"))
        count = sum(each == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", each) is not None for each in found)
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def broken_links(known: Mapping[str, str]) -> Iterator[str]:
    for place, text in known.items():
        for target, anchor in re.findall(r"\]\(([^)\s:#]*)(?:#([^)\s]*))?\)", re.sub(r"(?ms)^```.*?^```", "", text)):
            page = os.path.normpath(Path(place).parent / target) if target else place
            if target.endswith(".png") and (DOCS / page).exists():
                continue
            if page != "llms.txt" and (page not in known or (anchor and anchor not in anchors(known[page]))):
                yield f"{place}: {target}#{anchor}"


def test_every_link_leads_to_a_page_and_a_heading() -> None:
    assert list(broken_links(pages())) == []


def test_a_link_to_nothing_is_found() -> None:
    page = "# A `b`: c\n[v](b.md) [w](#a-b-c) [x](#c) [y](https://example.org)\n```\n[z](c.md)\n```\n"
    assert list(broken_links({"a.md": page})) == ["a.md: b.md#", "a.md: #c"]


def test_a_broken_link_of_the_built_site_is_found(tmp_path: Path) -> None:
    head = '<link href="style.css"><script src="https://example.org/a.js"></script><h1 id="a-b">A</h1>'
    links = ["#a-b", "#c", "deep/", "deep/index.html#x", "gone.html", "../outside.html", "https://example.org/gone"]
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "outside.html").write_text("")
    (tmp_path / "site" / "deep" / "index.html").write_text('<a href="../index.html#a-b">up</a>')
    (tmp_path / "site" / "index.html").write_text(head + "".join(f'<a href="{link}">a</a>' for link in links))
    wrong = ["#c", "deep/index.html#x", "gone.html", "../outside.html", "style.css", "https://example.org/a.js"]
    assert list(broken(tmp_path / "site")) == [f"index.html: {link}" for link in wrong]


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(broken(tmp_path)) == []
    for place in pages():
        text = (tmp_path / place).with_suffix(".html").read_text(encoding="utf-8")
        assert len(re.findall(r"<h1>", text)) == 1, place
        assert len(re.findall(r'<meta name="description" content="[^"]{12,}"', text)) == 1, place


def test_every_page_is_in_the_overview_that_models_read(tmp_path: Path) -> None:
    for place, text in own_pages().items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    write_pages(tmp_path)
    lines = (tmp_path / "llms.txt").read_text().splitlines()
    shown = {place for line in lines for place in re.findall(r"^- \[.+\]\((.+)\.html\): .{10,}$", line)}
    apart = {"index", *(place.removesuffix(".md") for place in pages() if place.startswith("decisions/0"))}
    assert shown | apart == {place.removesuffix(".md") for place in pages()}
    assert sum(line.startswith("- ") for line in lines) == len(shown)


def blocks(text: str, *languages: str) -> list[str]:
    return [code for name, code in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text) if name in languages]


def test_examples_with_prompts_print_what_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for place, text in pages().items():
        examples = blocks(text, "pycon")
        assert sum(block.count(">>> ") for block in examples) == len(re.findall(r"(?m)^\s*>>> ", text)), place
        for block in examples:
            runner.run(parser.get_doctest(block, {}, place, None, None))
    assert runner.tries > 5
    assert runner.failures == 0


def test_the_python_of_every_page_is_valid() -> None:
    checked, wrong = 0, []
    for place, text in pages().items():
        for block in blocks(text, "python"):
            if place == "reference/api.md" or re.fullmatch(r"def \w+\(.*\) -> .*[^:]\n", block):
                continue  # signatures without bodies
            checked += 1
            try:
                compile(block, place, "exec")
            except SyntaxError as error:
                wrong.append(f"{place}: {error}")
    assert checked > 40
    assert wrong == []


BASE: dict[str, Any] = {
    "experiment_name": "page",
    "data": {"training_corpus": "train.txt"},
    "model": {"architecture": "lstm", "rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
    "training": {"output_dir": "runs/page"},
}
BUDGETS = {"epochs", "train_steps", "train_tokens", "train_words", "train_bytes"}
OF_PACKAGES = ("foundry_mine",)


def experiment_with(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the smallest experiment that has the keys of an example."""
    training = {**BASE["training"], **given.get("training", {})}
    if not BUDGETS & training.keys():
        training["epochs"] = 1
    if "validation_corpus" in given.get("data", {}) or {"evaluate_at", "evaluate_every_steps"} & training.keys():
        given = {**given, "data": {"test_corpus": "test.txt", **given.get("data", {})}}
    if training.get("lr_scheduler") == "plateau" or "restore_best" in training:
        training.setdefault("evaluate_every_steps", 1)
        given = {**given, "data": {"test_corpus": "test.txt", **given.get("data", {})}}
    return {**BASE, **given, "data": {**BASE["data"], **given.get("data", {})}, "training": training}


def test_every_yaml_of_a_page_of_the_site_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked, wrong = 0, []
    for place, text in own_pages().items():
        if place.split("/")[0] in ("training", "evaluation"):
            continue  # pages with tests of their own
        for block in blocks(text, "yaml"):
            given = yaml.safe_load(block)
            if "architecture: conv" in block:
                continue  # the tutorial that writes it has a test of its own
            checked += 1
            try:
                if "grid" in given:
                    base = given["base"] if isinstance(given["base"], Mapping) else {}
                    whole = {key: value for key, value in experiment_with(base).items() if key != "experiment_name"}
                    Path("study.yaml").write_text(yaml.safe_dump({**given, "base": whole}, sort_keys=False))
                    assert read_study("study.yaml").cells
                else:
                    load_config(experiment_with(given))
            except foundry_core.FoundryError as error:
                wrong.append(f"{place}: {error}\n{block}")
    assert checked > 12
    assert wrong == []


def test_every_key_that_a_page_names_exists() -> None:
    found = {*all_keys(), *(dotted.rpartition(".")[0] for dotted in all_keys()), "model.architecture"}
    of_core = ("explanation/reliability.md", "explanation/inside.md")  # which name modules
    named, wrong = 0, []
    for place, text in {**pages(), "README.md": (ROOT / "README.md").read_text()}.items():
        if place in of_core or place.startswith(("reference/", "changelog")):
            continue
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text)):
            key = re.match(r"((?:data|tokenizer|training|logging|model|seeds|match)(?:\.[a-z_]+)+)(?:$|[:=])", code)
            if (
                key
                and not code.endswith((".json", ".py", ".safetensors"))
                and not code.startswith("model.transformers.")
            ):
                named += 1
                wrong += [f"{place}: {code}"] if key.group(1) not in found else []
    assert named > 150
    assert wrong == []


def commands(text: str) -> Iterator[str]:
    """Yield the command lines of a page that start foundry."""
    for block in blocks(text, "", "bash", "console", "sh", "text"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            found = re.search(r"(?:^|\| )(foundry [a-z-]+(?: .*)?$)", line.strip())
            if found:
                yield re.split(r"\s+#|\s{3,}", found.group(1))[0]


def test_every_command_line_of_a_page_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    checked, wrong = 0, []
    every = {**pages(), "README.md": (ROOT / "README.md").read_text()}
    for place, text in every.items():
        for line in commands(text):
            words = shlex.split(line.partition(" > ")[0])[1:]
            if words[0] not in VERBS or re.search(r"\[|\.\.\.|<", line):
                continue  # the usage of a verb, or prose
            checked += 1
            try:
                options, rest = parser_of(words[0]).parse_known_args([word for word in words[1:] if word != "--debug"])
            except SystemExit as error:
                if error.code != 0:
                    wrong.append(f"{place}: {line}: {capsys.readouterr().err.splitlines()[-1]}")
                continue
            assert isinstance(options, argparse.Namespace)
            if [word for word in rest if word.startswith("-") or not hasattr(options, "overrides")]:
                wrong.append(f"{place}: {line}: {rest}")
    assert checked > 150
    assert wrong == []


def test_the_tutorial_has_the_settings_of_its_recipe() -> None:
    (block,) = blocks(pages()["tutorials/gulordava_lstm.md"], "yaml")
    recipe = load_config(ROOT / "configs" / "recipes" / "gulordava-2018.yaml").resolved()
    for section, given in yaml.safe_load(block).items():
        mine = load_config(experiment_with({section: given})).resolved()[section]
        assert {key: mine[key] for key in given} == {key: recipe[section][key] for key in given}


@pytest.mark.long
def test_the_python_of_the_page_on_notebooks_runs(
    experiment, corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    budget = {"output_dir": "runs/lstm", "train_steps": None, "epochs": 1, "evaluate_every_steps": 100}
    made = experiment("lstm", tmp_path, data={"test_corpus": str(corpus.test)}, training=budget)
    Path("lstm.yaml").write_text(yaml.safe_dump(made.resolved()))
    names: dict[str, Any] = {}
    for block in blocks(pages()["how-to/notebooks.md"], "python"):
        exec(block, names)
    assert names["state"].step == 200
    assert type(names["model"]).__name__ == "RNNLanguageModel"
    assert names["opened"].evaluations()["step"].tolist()[-1] == 200


def test_python_that_opens_checkpoints_runs(experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for architecture, page in (("lstm", "start/your_text.md"), ("bert", "plugins/foundry-bert.md")):
        foundry_core.run(
            experiment(architecture, tmp_path, training={"output_dir": f"runs/{architecture}"}), quiet=True
        )
        (last,) = Path("runs", architecture).glob("checkpoint-*[1-9]*")
        last.rename(last.with_name("checkpoint-1000"))
        names: dict[str, Any] = {}
        (block,) = blocks(pages()[page], "python")
        exec(block, names)
        assert names["model"]
    assert len(names["vectors"]) == 2


def test_keys_are_shown_as_they_are_written_in_a_yaml() -> None:
    values = [{"a": [1, 0.5, "10M"]}, "corpora/train.txt", "<eos>", True, None, r"\bif\b"]
    assert [yaml.safe_load(keys.flow(value)) for value in values] == values


def carry_out(page: str, *left_out: str, **further: list[str]) -> None:
    """Carry out the command lines of a page in the current folder, in their order.

    Args:
        page: The page.
        left_out: Verbs, or lines without `foundry`, that are not carried out.
        further: Settings that are added to the lines of a verb.
    """
    for line in commands(pages()[page]):
        words = shlex.split(line)[1:]
        if words[0] not in left_out and line.removeprefix("foundry ") not in left_out:
            assert main([*words, *further.get(words[0], [])]) == 0, line


@pytest.mark.slow
def test_the_page_on_the_quickstart_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart("my-first-models", share=0.05)
    carry_out("start/quickstart.md", "quickstart")
    assert Path("surprisal.tsv").exists()
    assert Path("comparison.html").exists()
    assert json.loads(Path("runs/wider/run.json").read_text())["parameters"] > 300_000


@pytest.mark.slow
def test_the_page_on_your_own_text_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(1)
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(12_000)]
    for name, lines in (("train", 4_000), ("dev", 100)):
        Path("corpora").mkdir(exist_ok=True)
        text = (" ".join(chance.choices(words, k=10)) for _ in range(lines))
        Path("corpora", f"{name}.txt").write_text("".join(f"{line}\n" for line in text))
    Path("blimp/data").mkdir(parents=True)
    Path("blimp/data/order.jsonl").write_text('{"sentence_good": "ba de fi", "sentence_bad": "fi ba de"}\n')
    Path("stimuli.txt").write_text("ba de fi\n")
    (shown,) = map(yaml.safe_load, blocks(pages()["start/your_text.md"], "yaml"))
    shown["data"]["max_sequence_length"] = 10
    shown["training"] |= {"epochs": None, "train_steps": 1000}
    Path("lstm.yaml").write_text(yaml.safe_dump(shown))
    carry_out("start/your_text.md", "init", "train lstm.yaml --resume")
    names: dict[str, Any] = {}
    exec(blocks(pages()["start/your_text.md"], "python")[0], names)
    assert names["model"].config.vocab_size == len(names["tokenizer"]) == 8000


@pytest.mark.slow
def test_the_tutorial_of_gulordavas_lstm_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    corpus = write_corpus(Path("corpora/gulordava"), train_sentences=4_000, test_sentences=300, seed=1)
    corpus.test.rename("corpora/gulordava/valid.txt")
    write_corpus(Path("other"), train_sentences=300, test_sentences=9, seed=2).train.rename(corpus.test)
    header = "pattern\tconstr_id\tsent_id\tcorrect_number\tform\tclass\ttype\tprefix\n"
    row = "V\t1\t1\tplur\t{}\t{}\t{}\tthe keys\n"
    items = [("are", "correct"), ("is", "wrong")]
    rows = [row.format(*item, kind) for kind in ("original", "generated") for item in items]
    Path("generated.tab").write_text(header + "".join(rows))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the keys to the cabinet are\n")))
    whole = "train configs/recipes/gulordava-2018.yaml"
    less = ["training.epochs=2", "training.evaluate_at={milestones: {epochs: [1, 2]}}"]
    less += ["training.checkpoints={milestones: {epochs: [1]}}"]
    carry_out("tutorials/gulordava_lstm.md", "plan", whole, train=less)
    assert "cabinet" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tutorial_of_a_first_study_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("first/corpus"), train_sentences=8_000, test_sentences=300, seed=1)
    (study,) = blocks(pages()["tutorials/first_study.md"], "yaml")
    Path("study.yaml").write_text(study)
    carry_out("tutorials/first_study.md", "quickstart")
    names: dict[str, Any] = {}
    for block in blocks(pages()["tutorials/first_study.md"], "python"):
        exec(block, names)
    assert names["run"].evaluations()["loss"].iloc[-1] < 2.4
    assert Path("comparison.html").exists()
    assert abs(names["run"].parameters - 110_000) <= 1_100


def last_column(printed: str) -> list[str]:
    """Return the last cell of each row of the last table."""
    return [row.split()[-1] for row in printed.rpartition("---\n")[2].splitlines()]


@pytest.mark.slow
def test_the_tutorial_of_an_ablation_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("corpus"), train_sentences=2_000, test_sentences=200, seed=1)
    lines = corpus.train.read_text().splitlines()
    corpus.train.write_text("".join(f"{'if ' if at % 5 == 0 else ''}{line}\n" for at, line in enumerate(lines)))
    drop, _, given, study = map(yaml.safe_load, blocks(pages()["tutorials/corpus_ablation.md"], "yaml"))
    base = experiment_with({"training": {"output_dir": "runs/base", "train_steps": 30}})
    base["data"] = {"training_corpus": str(corpus.train), "test_corpus": str(corpus.test), "max_sequence_length": 24}
    base["tokenizer"] = {"tokenizer_type": "word", "vocab_size": 200}
    Path("base.yaml").write_text(yaml.safe_dump(base))
    Path("ablation.yaml").write_text(yaml.safe_dump({**base, "data": base["data"] | drop["data"]}))
    Path("conditionals.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    carry_out("tutorials/corpus_ablation.md", "study", "compare", "seen")
    Path("base.yaml").write_text(yaml.safe_dump({**base, **given}))
    carry_out("tutorials/corpus_ablation.md", "data", "tokenizer")
    assert set(last_column(capsys.readouterr().out)) == {"0"}
    assert main(["seen", "studies/conditionals/whole-seed1", "--grep", r"\bif\b"]) == 0
    assert int(last_column(capsys.readouterr().out)[-1].replace(",", "")) > 100
    assert main(["study", "conditionals.yaml", "--check"]) == 0
    assert re.search(r"(?m)^tokenizer +equal", capsys.readouterr().out)


@pytest.mark.slow
def test_the_tutorial_of_an_entry_to_babylm_can_be_followed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "toy", train_sentences=125, test_sentences=5, seed=1)
    for file, place in (corpus.train, "train_10M/toy.train"), (corpus.test, "dev/toy.dev"):
        (tmp_path / "corpora" / place).parent.mkdir(parents=True)
        file.rename(tmp_path / "corpora" / place)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number, block in enumerate(blocks(pages()["tutorials/babylm.md"], "bash")):
        ended = subprocess.run(
            ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        if number == 0:  # a ten-thousandth of the words, a small model, three checkpoints
            path = tmp_path / "lstm.yaml"
            text = re.sub(r'"?\b(\d+)M\b"?', r"\g<1>00", path.read_text()).replace("sentencepiece", "word")
            for key, value in ("hidden_size", 8), ("embedding_size", 8), ("max_sequence_length", 16), ("batch_size", 4):
                text = re.sub(rf"(?m)^( +{key}:) \d+", rf"\1 {value}", text)
            path.write_text(re.sub(r" words: \[.*?\]", " words: [100, 200, 10000]", text))
    assert (tmp_path / "entry" / "main" / "lstm" / "modeling_foundry.py").exists()
    assert len(list((tmp_path / "entry").glob("chck_*/lstm/config.json"))) == 3


@pytest.mark.slow
def test_the_tutorial_of_ones_own_architecture_can_be_followed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "first" / "corpus", train_sentences=8_000, test_sentences=300, seed=1)
    page = pages()["tutorials/own_architecture.md"]
    model, opening = blocks(page, "python")
    (tmp_path / "conv.py").write_text(model)
    (tmp_path / "compare.yaml").write_text(*blocks(page, "yaml"))

    def python(*arguments: str) -> str:
        result = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    for line in commands(page):
        if "quickstart" not in line:
            printed = python("-m", "foundry_core.cli", *shlex.split(line)[1:])
    assert {"conv", "lstm"} <= {row.split()[0] for row in printed.splitlines() if row}
    assert python("-c", f"{opening}print(type(model).__name__)") == "ConvLanguageModel\n"
    (tmp_path / "ahead.py").write_text(model.replace("(convolution.kernel_size[0] - 1, 0)", "(1, 1)"))
    ahead = [sys.executable, "-m", "foundry_core.cli", "check", "conv", "--plugin", "ahead.py", "--only", "causal-leak"]
    assert subprocess.run(ahead, cwd=tmp_path, capture_output=True, check=False).returncode == 9


@pytest.mark.slow
def test_the_tutorial_of_reading_times_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("statsmodels.formula.api")
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("first/corpus"), train_sentences=8_000, test_sentences=60, seed=1)
    page = pages()["tutorials/reading_times.md"]
    Path("reader.yaml").write_text(*blocks(page, "yaml"))
    rows = enumerate(corpus.test.read_text().splitlines(), start=1)
    Path("stimuli.tsv").write_text("item\tsentence\n" + "".join(f"{number}\t{line}\n" for number, line in rows))
    carry_out("tutorials/reading_times.md", "quickstart")
    words = pd.read_csv("surprisal.tsv", sep="\t", keep_default_na=False)
    last, chance = words[words["step"] == 400], random.Random(1)
    with Path("times.tsv").open("w") as file:
        file.write("subject\tdocument\tword\ttime\n")
        for subject in range(6):
            own = chance.gauss(300, 20)
            for document, word, bits in zip(last["document"], last["word"], last["surprisal"], strict=True):
                file.write(f"s{subject}\t{document}\t{word}\t{own + 10 * bits + chance.gauss(0, 3):.1f}\n")
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(block, names)
    assert names["model"].params["surprisal"] == pytest.approx(10, abs=0.2)
    assert list(names["gains"]) == [0, 50, 100, 200, 400]
    assert max(names["gains"], key=names["gains"].get) == 400
