"""Tests of what `foundry plugins list`, `show` and `doctor` say of every state that an installed plugin can be in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_core import __version__, register_architecture
from foundry_core.cli import main
from foundry_core.errors import PluginError, did_you_mean
from foundry_core.models.base import BaseLanguageModel
from foundry_core.registry.discovery import declared, misnamed_in_environment, read_packages
from foundry_core.registry.doctor import examine
from foundry_core.registry.loading import active_modules, available_architectures, get_architecture
from foundry_core.schema import ModelConfig

Install = Callable[..., None]

MAMBA = """\
from pydantic import Field
from foundry_core import Architecture, Capabilities, ConfigSection, ModelConfig, hookimpl


class Section(ConfigSection):
    state_size: int = Field(16, ge=1, description="numbers of state for each channel")
    kernel: str = Field("scan", description="how the recurrence is computed")


class ZebraConfig(ModelConfig):
    zebra: Section = Field(Section(), description="sizes")


zebra = Architecture(
    name="zebra",
    summary="state spaces of a test",
    config_class=ZebraConfig,
    model_class="zebra_model:Model",
    capabilities=lambda config: Capabilities(objectives=("causal_lm", "masked_lm")[: config.zebra.state_size]),
    default_tokenizer="bpe",
    examples={"tiny": {"zebra": {"state_size": 1}}},
)


@hookimpl
def foundry_run_ended(step):
    pass
"""
WHOLE = {"zebra_light": MAMBA, "zebra_model": ""}
REMOVE = "Upgrade or remove it: pip uninstall foundry-zebra"
SWITCHES = ("FOUNDRY_PLUGINS", "FOUNDRY_PLUGINS_DISABLE")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def zebra(install: Install) -> Install:
    """Installs a package with the architecture `zebra`; what is given replaces a whole one."""

    def put(light: str = MAMBA, **given: Any) -> None:
        modules = {**WHOLE, "zebra_light": light}
        install("foundry-zebra", {"zebra": "zebra_light:zebra"}, **{"modules": modules, **given})

    return put


def found(name: str = "zebra") -> list[tuple[str, str | None]]:
    """State and problem of every plugin of a name; a problem is one line."""
    findings = [finding for finding in examine() if finding.point.name == name]
    assert not [finding for finding in findings if "\n" in (finding.problem or "")]
    return [(finding.state, finding.problem) for finding in findings]


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], list[str]]:
    """Lines on stdout and stderr of a command."""
    assert main(["plugins", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_a_whole_plugin_is_listed_with_what_it_says_of_itself(zebra: Install, capsys: Any) -> None:
    zebra()
    assert found() == [("fine", None)]
    out, err = said(capsys, "list")
    (line,) = [line for line in out if line.startswith("zebra")]
    assert line.split(maxsplit=3) == ["zebra", "foundry-zebra", "1.0", "state spaces of a test"]
    assert err == []


BROKEN = {
    "wrong schema": (
        MAMBA + "import dataclasses\nzebra = dataclasses.replace(zebra, config_class=dict)\n",
        "its config_class is <class 'dict'>, not a subclass of ModelConfig. Upgrade",
    ),
    "misspelt hook": (
        MAMBA.replace("run_ended", "run_endet"),
        "unknown hook 'foundry_run_endet' in plugin <module 'zebra_light' from ",
    ),
    "unmarked hook": (
        MAMBA.replace("@hookimpl\n", ""),
        "the hook foundry_run_ended of foundry-zebra 1.0 is not marked, and would never be called: put @hookimpl of ",
    ),
    "misspelt argument": (MAMBA.replace("(step)", "(stap)"), "for hook 'foundry_run_ended' hookimpl definition: "),
    "example": (
        MAMBA.replace('"state_size": 1', '"state_size": 0'),
        "the example 'tiny' of 'zebra' is not valid, zebra.state_size: Input should be greater than or equal to 1. Up",
    ),
    "capabilities": (
        MAMBA.replace("config.zebra.state_size", "config.mambo"),
        "the capabilities of 'zebra' with 'defaults' fails: AttributeError: ",
    ),
    "no model": (MAMBA.replace("zebra_model:", "zebra_modal:"), "No module named 'zebra_modal'"),
    "no package of the model": (MAMBA.replace("zebra_model:", "zebra.model:"), "the module of its model, zebra.model:"),
    "capabilities of another type": (
        MAMBA.replace("lambda config: Capabilities(", "lambda config: list(").replace("objectives=(", "("),
        "the capabilities of 'zebra' with 'defaults' are a list, not Capabilities. Upgrade",
    ),
    "summary": (
        MAMBA.replace('"state spaces of a test"', "5"),
        "the check of the plugin foundry-zebra 1.0 fails: Attrib",
    ),
    "model class": (
        MAMBA.replace('"zebra_model:Model"', "None"),
        'its model_class is None, not an import string such as "package.module:name". Upgrade',
    ),
    "default tokenizer": (
        MAMBA.replace('"bpe"', '"nosuch"'),
        "its default_tokenizer 'nosuch' is not a tokenizer type",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("state", BROKEN)
def test_an_unusable_plugin_is_one_line_with_the_way_out(state: str, zebra: Install, capsys: Any) -> None:
    light, reason = BROKEN[state]
    zebra(light)
    ((kind, problem),) = found()
    assert (kind, problem is not None and reason in problem) == ("unusable", True), problem
    assert problem is not None
    assert "the plugin foundry-zebra 1.0" in problem
    assert REMOVE in problem
    out, err = said(capsys, "list")
    assert next(line for line in out if line.startswith("zebra")).endswith(f"unusable: {problem}")
    assert err == []
    out, err = said(capsys, "doctor", code=3)
    assert err == [f"error: {problem}"]
    assert [line.split()[-1] for line in out if line.startswith(("zebra", "gpt2"))] == ["fine", "unusable"]


OFFERS = {
    "name of core's": (
        "Objective('causal_lm', '', True, 'overlap', 'zebra_model:f')",
        "two plugins offer the objective 'causal_lm', model-foundry and foundry-zebra 1.0: one of them must go, or be",
    ),
    "no list": (
        None,
        "the hook foundry_objectives of foundry-zebra 1.0 fails: TypeError: 'NoneType' object is not iter",
    ),
    "exit": ("exit(1)", "the hook foundry_objectives of foundry-zebra 1.0 fails: SystemExit: 1. Upgrade"),
    "another type": (
        "{}",
        "the hook foundry_objectives of foundry-zebra 1.0 returned a dict, not a list of Objective. Upgrade",
    ),
    "name": (
        "Objective(['x'], '', True, 'overlap', 'zebra_model:f')",
        "of foundry-zebra 1.0 fails: the objective ['x']: its name is ['x'], not a name in printable text. Upgrade",
    ),
    "no module": (
        "Objective('mine', '', True, 'overlap', 'zebra_model.part:f')",
        "the collator of its objective 'mine', zebra_model.part:f, fails: ModuleNotFoundError: ",
    ),
    "no collator": (
        "Objective('mine', '', True, 'overlap', None)",
        "its objective 'mine' does not name a collator. Upgrade",
    ),
    "no function": (
        "Objective('mine', '', True, 'overlap', 'zebra_light:collator')",
        "module 'zebra_light' has no attribute 'collator'. Upgrade",
    ),
}


@pytest.mark.parametrize("kind", ["architecture", "extension"])
@pytest.mark.parametrize("offer", OFFERS)
def test_what_a_plugin_offers_is_looked_at(
    offer: str, kind: str, zebra: Install, install: Install, tmp_path: Path, capsys: Any
) -> None:
    descriptor, reason = OFFERS[offer]
    offered = "None" if descriptor is None else f"[{descriptor}]"
    light = f"{MAMBA}from foundry_core import Objective\n@hookimpl\ndef foundry_objectives(): return {offered}\n"
    if kind == "architecture":
        zebra(light)
    else:
        modules = {**WHOLE, "zebra_light": light}
        install("foundry-zebra", {}, extensions={"zebra": "zebra_light"}, modules=modules)
    ((state, problem),) = found()
    assert (state, problem is not None and reason in problem) == ("unusable", True), problem
    _, err = said(capsys, "doctor", code=3)
    assert err == [f"error: {problem}"]


def test_a_heavy_module_is_looked_for_without_importing_it(zebra: Install, tmp_path: Path) -> None:
    zebra(MAMBA.replace("zebra_model:", "zebra_heavy.model:"))
    heavy = tmp_path / "site" / "zebra_heavy"
    heavy.mkdir()
    (heavy / "__init__.py").write_text("")
    assert "No module named 'zebra_heavy.model'" in str(found())
    (heavy / "model.py").write_text("raise SystemExit('imported')\n")
    assert found() == [("fine", None)]


def test_a_module_whose_getattr_raises_is_whole(zebra: Install, capsys: Any) -> None:
    zebra(MAMBA + "def __getattr__(name):\n    raise RuntimeError(name)\n")
    assert found() == [("fine", None)]
    said(capsys, "show", "zebra")


def test_what_a_plugin_prints_at_import_goes_to_stderr(zebra: Install, capsys: Any) -> None:
    zebra("import sys\nprint('hello')\nsys.stdout.buffer.write(b'bytes')\n" + MAMBA)
    assert main(["plugins", "list", "--json"]) == 0
    captured = capsys.readouterr()
    assert "zebra" in {row["name"] for row in json.loads(captured.out)}
    assert captured.err == "hello\nbytes"


SELF_SIMILAR = MAMBA.replace(
    'zebra: Section = Field(Section(), description="sizes")',
    'zebra: Section = Field(Section(), description="sizes")\n'
    '    within: "ZebraConfig | None" = Field(None, description="once more")',
).replace(
    'kernel: str = Field("scan"',
    'parts: "list[Section]" = Field([], description="parts")\n'
    '    twin: "Section" = Field(None, description="another")\n    kernel: str = Field("scan"',
)


def test_a_section_that_holds_its_like_is_shown_and_validated(zebra: Install, tmp_path: Path, capsys: Any) -> None:
    zebra(SELF_SIMILAR)
    assert found() == [("fine", None)]
    out, _ = said(capsys, "show", "zebra")
    keys = [line.partition(":")[0].strip() for line in out[out.index("model:") + 1 :]]
    assert keys == ["architecture", "zebra", "state_size", "parts", "# twin", "kernel", "# within"]
    path = tmp_path / "x.yaml"
    path.write_text("experiment_name: x\nmodel: {architecture: zebra, zzz: 1}\n")
    assert main(["validate", str(path)]) == 2
    assert f"{path}:2: model.zzz: unknown key. Known here: architecture, zebra, within." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("model-foundry<99,>=0.1", True),
        ("model-foundry", True),
        ("Model_Foundry>=99", False),
        ("model-foundry[plots]<0.1", False),
        ("model-foundry>=99; python_version < '3'", True),
        ("model-foundry>=99; extra == 'dev'", True),
        ("model-foundry-extras>=99", True),
        ("torch>=99", True),
    ],
)
def test_a_plugin_for_another_core_is_not_even_imported(requirement: str, met: bool, zebra: Install) -> None:
    zebra(MAMBA if met else "1 / 0\n", requires=["numpy", requirement])
    if met:
        assert found() == [("fine", None)]
        return
    bounds = requirement.partition("]")[2] or requirement.removeprefix("Model_Foundry")
    assert found() == [
        (
            "unusable",
            f"the plugin foundry-zebra 1.0 needs model-foundry{bounds}, this core is {__version__}: "
            "pip install --upgrade model-foundry foundry-zebra",
        )
    ]
    with pytest.raises(PluginError, match=f"needs model-foundry{bounds}, this core is"):
        get_architecture("zebra")


@pytest.mark.parametrize(("requirement", "state"), [("model-foundry>=0.1", "fine"), ("model-foundry<0.2", "unusable")])
def test_a_core_under_development_counts_as_what_it_will_be(
    requirement: str, state: str, zebra: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    zebra(requires=[requirement])
    monkeypatch.setattr("foundry_core.registry.discovery.__version__", "0.2.0.dev1")
    assert [each for each, _ in found()] == [state]


def test_a_schema_with_a_key_that_must_be_given_is_whole(zebra: Install, capsys: Any) -> None:
    zebra(MAMBA.replace("Field(16, ge=1", "Field(ge=1").replace("Section = Field(Section(), ", "Section = Field("))
    assert found() == [("fine", None)]
    out, _ = said(capsys, "show", "zebra", "--json")
    assert list(json.loads("".join(out))["capabilities"]) == ["tiny"]


def test_two_owners_of_a_name_are_unusable_until_one_is_disabled(
    zebra: Install, install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    zebra()
    install("zebra-fork", {"zebra": "zebra_fork:zebra"}, {"zebra_fork": MAMBA}, "2.1")
    (first, second) = found()
    assert first == second
    assert first[0] == "unusable"
    assert " and ".join(sorted(str(point) for point in declared()["zebra"])) == "foundry-zebra 1.0 and zebra-fork 2.1"
    _, err = said(capsys, "doctor", code=3)
    assert err == [f"error: {first[1]}"]
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "Zebra.Fork")
    assert sorted(state for state, _ in found()) == ["disabled", "fine"]
    assert get_architecture("zebra").summary == "state spaces of a test"
    monkeypatch.delenv("FOUNDRY_PLUGINS_DISABLE")
    assert [state for state, _ in found()] == ["unusable", "unusable"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("entry_points.txt", b"[console_scripts]\nhalf a line\n"), ("entry_points.txt", b"\xff"), ("METADATA", b"\xff")],
)
def test_a_damaged_package_is_named_and_hides_no_other(
    file: str, content: bytes, zebra: Install, tmp_path: Path, capsys: Any
) -> None:
    zebra()
    information = tmp_path / "site" / "foundry_zebra-1.0.dist-info"
    (information / file).write_bytes(content)
    read_packages.cache_clear()
    out, err = said(capsys, "list")
    assert [line.split()[0] for line in out if line.startswith(("zebra", "gpt2"))] == ["gpt2"]
    assert [line.partition(" (")[0] for line in err] == [f"warning: {information}: cannot read its metadata"]


# Switched off.


@pytest.mark.parametrize("name", ["zebra", "foundry-zebra", "zebra_light", " Foundry_Zebra ,, gpt2"])
def test_asking_for_a_disabled_plugin_names_the_variable(
    name: str, zebra: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    zebra("1 / 0\n", summary="of a package")
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", name)
    problem = f"FOUNDRY_PLUGINS_DISABLE={name} switches foundry-zebra 1.0 off: take it out of that variable"
    assert found() == [("disabled", problem)]
    assert "zebra" not in available_architectures()
    path = tmp_path / "x.yaml"
    path.write_text("experiment_name: x\nmodel: {architecture: zebra}\n")
    assert main(["validate", str(path)]) == 2
    line = f"{path}:2: model.architecture: the architecture 'zebra' is disabled: {problem}"
    assert line in capsys.readouterr().err.splitlines()
    out, err = said(capsys, "doctor")
    assert err == []
    assert out[-1] == f"{8 if 'gpt2' in name else 9} plugins are fine, {2 if 'gpt2' in name else 1} disabled"


def test_the_allow_list_leaves_out_whatever_it_does_not_name(
    zebra: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zebra()
    monkeypatch.setenv("FOUNDRY_PLUGINS", "foundry-rnn,zebra")
    assert available_architectures() == ["gru", "lstm", "rnn", "zebra"]
    with pytest.raises(PluginError) as raised:
        get_architecture("gpt2")
    assert str(raised.value) == (
        f"the architecture 'gpt2' is disabled: FOUNDRY_PLUGINS=foundry-rnn,zebra leaves foundry-gpt2 {__version__} "
        "out: add it to that variable"
    )
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "gru")
    assert available_architectures() == ["lstm", "rnn", "zebra"]
    for empty in ("", " , "):
        monkeypatch.setenv("FOUNDRY_PLUGINS", empty)
        assert "gpt2" in available_architectures()


@pytest.mark.parametrize("name", ["foundry-watch", "watch_plugin", "watch"])
def test_a_disabled_extension_is_neither_active_nor_shown(
    name: str, install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    install("foundry-watch", modules={"watch_plugin": "1 / 0\n"}, extensions={"watch": "watch_plugin"})
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", name)
    reason = f"is disabled: FOUNDRY_PLUGINS_DISABLE={name} switches foundry-watch 1.0 off: take it out of that variable"
    with pytest.raises(PluginError) as raised:
        active_modules(None, ["watch_plugin"])
    assert str(raised.value) == f"the module 'watch_plugin' {reason}"
    for asked in ("watch", "watch_plugin"):
        _, err = said(capsys, "show", asked, code=3)
        assert err == [f"error: the extension '{asked}' {reason}"]


def test_of_two_extensions_with_one_name_the_enabled_is_shown(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for number in ("one", "two"):
        install(f"foundry-{number}", None, {f"watch_{number}": HEARS}, extensions={"watch": f"watch_{number}"})
    for off, on in (("one", "two"), ("two", "one")):
        monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", f"foundry-{off}")
        out, _ = said(capsys, "show", "watch")
        assert out[1].split() == ["package", f"foundry-{on}", "1.0"]


def test_a_suggestion_is_spelt_as_the_name_that_there_is() -> None:
    assert did_you_mean("foundry_mamba", ["Foundry-Mamba", "Foundry-GPT"]) == " Did you mean 'Foundry-Mamba'?"
    assert did_you_mean("xylophone", ["Foundry-Mamba"]) == ""


def test_a_disabled_name_is_free_for_a_class_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "gpt2")
    mine = register_architecture("gpt2", config=ModelConfig)(type("Mine", (BaseLanguageModel,), {}))
    assert get_architecture("gpt2").model_class is mine


def test_a_variable_that_names_no_plugin_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert list(misnamed_in_environment()) == []
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "gtp2,bert,Foundry_Brt,foundry_rnn")
    line = "FOUNDRY_PLUGINS_DISABLE names '{}', but no installed plugin has that name. Did you mean '{}'?"
    _, err = said(capsys, "doctor", code=3)
    assert err == [f"error: {line.format('gtp2', 'gpt2')}", f"error: {line.format('Foundry_Brt', 'foundry_bert')}"]


def test_control_characters_do_not_reach_the_terminal(zebra: Install, install: Install, capsys: Any) -> None:
    name = "foundry-\x1b[2Jzebra"
    install(name, {"z\x1b[2J": "zebra_light:z"}, WHOLE, summary="clears \x1b[2J the screen")
    install("foundry-plain", None, {}, extensions={"plain": "zebra_light\n[foundry.commands]\nx\x1b[2J = zebra_light"})
    for arguments, code in ((["list"], 0), (["doctor"], 3), (["show", "plain"], 0)):
        out, err = said(capsys, *arguments, code=code)
        assert not any("\x1b" in line for line in out + err)
        assert any("\\x1b[2J" in line for line in out + err) or arguments[0] == "show"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\x1b" not in capsys.readouterr().out


# Extensions.

HEARS = "from foundry_core import hookimpl\n\n@hookimpl\ndef foundry_run_ended(step): ...\n"


def test_an_extension_is_listed_by_its_module(install: Install, capsys: Any) -> None:
    install("foundry-watch", None, {"watch_plugin": HEARS}, extensions={"watch": "watch_plugin"}, summary="looks on")
    install("foundry-wotch", None, {"wotch": HEARS.replace("ended", "endet")}, extensions={"wotch": "wotch"})
    out, _ = said(capsys, "list")
    (line,) = [line for line in out if line.startswith("watch_plugin")]
    assert line.split(maxsplit=3) == ["watch_plugin", "foundry-watch", "1.0", "looks on"]
    assert found("wotch")[0][0] == "unusable"
    out, _ = said(capsys, "show", "watch_plugin")
    assert out[-1].split() == ["hooks", "foundry_run_ended"]
    out, _ = said(capsys, "show", "watch", "--json")
    assert json.loads("".join(out))["kind"] == "extension"


def test_extensions_of_one_name_do_not_clash(install: Install) -> None:
    for number in ("one", "two"):
        install(f"foundry-{number}", None, {f"watch_{number}": HEARS}, extensions={"watch": f"watch_{number}"})
    assert found("watch") == [("fine", None), ("fine", None)]


IN_A_CLASS = "class Plugin:\n" + "".join(f"    {line}\n" for line in HEARS.splitlines()[2:])


@pytest.mark.parametrize(
    ("text", "target", "problem"),
    [
        (
            f"from foundry_core import hookimpl\n{IN_A_CLASS}",
            "watch_plugin:Plugin",
            "its entry point names watch_plugin:Plugin, but hooks are functions of a module: "
            'use watch = "watch_plugin"',
        ),
        ("x = 1\n", "watch_plugin", "watch_plugin does not have a hook: no function is marked with @hookimpl"),
        (
            HEARS.replace("@hookimpl\n", ""),
            "watch_plugin",
            "the hook foundry_run_ended of foundry-watch 1.0 is not marked, and would never be called: put @hookimpl "
            "of foundry_core before watch_plugin.foundry_run_ended, or give it another name",
        ),
    ],
    ids=["in a class", "none", "unmarked"],
)
def test_an_extension_without_usable_hooks_is_unusable(
    text: str, target: str, problem: str, install: Install, capsys: Any
) -> None:
    install("foundry-watch", None, {"watch_plugin": text}, extensions={"watch": target})
    line = f"the plugin foundry-watch 1.0: {problem}. Upgrade or remove it: pip uninstall foundry-watch"
    assert found("watch") == [("unusable", line)]
    _, err = said(capsys, "doctor", code=3)
    assert err == [f"error: {line}"]


# The verbs.


def test_the_list_for_programs_has_state_and_problem_of_each(
    zebra: Install, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    zebra("1 / 0\n")
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "bert")
    for verb, code in (("list", 0), ("doctor", 3)):
        assert main(["plugins", verb, "--json"]) == code
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert {name: row["state"] for name, row in rows.items()} == {
            "bert": "disabled",
            "zebra": "unusable",
            **dict.fromkeys(("babylm", "gpt2", "gru", "lstm", "mamba", "ngram", "rnn", "transformers"), "fine"),
        }
        assert "ZeroDivisionError" in rows["zebra"]["problem"]
        assert rows["lstm"] == {
            "name": "lstm",
            "kind": "architecture",
            "target": "foundry_rnn:lstm",
            "distribution": "foundry-rnn",
            "version": __version__,
            "state": "fine",
            "summary": get_architecture("lstm").summary,
            "problem": None,
        }


def test_everything_known_of_a_plugin_is_shown(zebra: Install, tmp_path: Path, capsys: Any) -> None:
    zebra(requires=["model-foundry>=0.1,<1"])
    out, err = said(capsys, "show", "zebra")
    assert err == []
    assert out == [
        "zebra: state spaces of a test",
        "  package            foundry-zebra 1.0",
        "  requires           model-foundry>=0.1,<1",
        f"  installed in       {tmp_path / 'site'}",
        "  entry point        zebra = zebra_light:zebra",
        "  model              zebra_model:Model",
        "  plugin API         not stated",
        "  objectives         causal_lm, masked_lm",
        "  default tokenizer  bpe",
        "  hooks              foundry_run_ended",
        "",
        "capabilities, with its example settings:",
        "  objectives              causal_lm, masked_lm (defaults); causal_lm (tiny)",
        "  generation              yes",
        "  stateful                no",
        "  left padding            no",
        "  gradient checkpointing  no",
        "  longest sequence        no limit",
        "  unbounded length        no",
        "  bidirectional           no",
        "  receptive field         no limit",
        "  tied embeddings         no",
        "  compile                 yes",
        "  isolates documents      no",
        "  trained by counting     no",
        "",
        "model:",
        "  architecture: zebra                   # name of an installed architecture: see `foundry plugins list`",
        "  zebra:                                # sizes",
        "    state_size: 16                      # numbers of state for each channel",
        "    kernel: scan                        # how the recurrence is computed",
    ]


def test_what_is_shown_for_programs_holds_the_schema(capsys: Any) -> None:
    out, _ = said(capsys, "show", "lstm", "--json")
    shown = json.loads("".join(out))
    assert shown["schema"] == get_architecture("lstm").config_class.model_json_schema()
    assert shown["capabilities"]["tiny_bidirectional"]["objectives"] == ["masked_lm"]
    assert (shown["distribution"], shown["editable"]) == ("foundry-rnn", declared()["lstm"][0].editable)


def test_an_architecture_of_a_file_is_shown_too(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "shown_arch.py").write_text(
        "from foundry_core import BaseLanguageModel, ModelConfig, register_architecture\n"
        "@register_architecture('shown', config=ModelConfig, summary='from a file')\n"
        "class Model(BaseLanguageModel): pass\n"
    )
    out, _ = said(capsys, "show", "shown", "--plugin", str(tmp_path / "shown_arch.py"))
    assert out[:2] == ["shown: from a file", "  package            none: registered in this process"]
    assert "  model              shown_arch:Model" in out


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "lstn",
            "Unknown architecture: 'lstn'. Did you mean 'lstm'? "
            "Available: bert, gpt2, gru, lstm, mamba, ngram, rnn, transformers, zebra.",
        ),
        ("zebra", "the plugin foundry-zebra 1.0 ('zebra' from zebra_light:zebra) fails to import: SystemExit: 9. "),
    ],
)
def test_what_cannot_be_shown_is_one_line(name: str, line: str, zebra: Install, capsys: Any) -> None:
    zebra("raise SystemExit(9)\n")
    out, err = said(capsys, "show", name, code=3)
    assert out == []
    assert len(err) == 1
    assert err[0].startswith(f"error: {line}")


@pytest.mark.long
def test_third_party_plugins_leave_the_light_verbs_light(zebra: Install, tmp_path: Path) -> None:
    zebra(MAMBA, modules={"zebra_light": MAMBA, "zebra_model": "import torch\n"})
    (tmp_path / "x.yaml").write_text(
        "experiment_name: x\ndata: {training_corpus: x.txt}\nmodel: {architecture: zebra}\n"
        "training: {output_dir: x, train_steps: 1}\n"
    )
    program = """
import sys
from foundry_core.cli import main
heavy = {"torch", "transformers", "numpy", "zebra_model"}
for line, also in (
    ("--help", {"pydantic"}),
    ("plugins list", set()),
    ("plugins show zebra", set()),
    ("plugins doctor", set()),
    ("validate x.yaml", set()),
):
    try:
        code = main(line.split())
    except SystemExit as exit:
        code = exit.code
    loaded = (heavy | also) & set(sys.modules)
    if code or loaded:
        sys.exit(f"{line} ended with {code} and loaded {loaded}")
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[1])]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
