"""Tests of what plugins offer by name, every kind by the same rules; and the commands that packages add."""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry_core import (
    Capabilities,
    CorpusStep,
    ExperimentConfig,
    Objective,
    Optimizer,
    Suite,
    TokenizerType,
    get_data_collator,
    hookimpl,
    load_config,
    run,
)
from foundry_core.cli import VERBS, main
from foundry_core.errors import ConfigError, FoundryError, PluginError
from foundry_core.registry.hooks import hook_manager, offers
from foundry_core.registry.schedule import CORE_SCHEDULES, LearningRateSchedule
from foundry_core.tokenization.training import train_tokenizer
from tests.each import each

Distribution = Callable[..., Path]

PREFIX_LM = """\
from foundry_core import Objective, hookimpl

@hookimpl
def foundry_objectives():
    return [Objective("prefix_lm", "of a test", True, "overlap", "no:where"{like})]
"""


def module_with(called: str = "mine", **functions: Callable[..., object]) -> types.ModuleType:
    module = types.ModuleType(called)
    for name, function in functions.items():
        setattr(module, name, hookimpl(function))
    return module


def package(distribution: Distribution, name: str, text: str) -> str:
    """A package whose one module has hooks; gives the module's name."""
    module = name.replace("-", "_")
    distribution(name, {"foundry.plugins": {module: module}}, {f"{module}.py": text})
    return module


TRANSFORMER = {
    "transformer": {
        "layers": 1,
        "embedding_size": 8,
        "hidden_size": 8,
        "intermediate_hidden_size": 8,
        "attention_heads": 2,
    }
}
SIZES: dict[str, Any] = {
    "gpt2": TRANSFORMER,
    "bert": TRANSFORMER,
    "lstm": {"rnn": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1}},
}


def settings(model: str, *plugins: str, **training: Any) -> dict[str, Any]:
    return {
        "experiment_name": "trial",
        "data": {"training_corpus": "corpora/train.txt"},
        "model": {"architecture": model, **SIZES.get(model, {})},
        "training": {"output_dir": "runs/trial", "train_steps": 10, **training},
        "plugins": list(plugins),
    }


# What is offered.

OFFERS: dict[str, tuple[str, Callable[..., Any], Callable[..., dict[str, Any]], str]] = {
    "objective": (
        "foundry_objectives",
        lambda name: Objective(name, "of a test", True, "overlap", "no:where"),
        attrgetter("objectives"),
        "causal_lm",
    ),
    "optimizer": (
        "foundry_optimizers",
        lambda name: Optimizer(name, "of a test", "no:where"),
        attrgetter("optimizers"),
        "sgd",
    ),
    "schedule": (
        "foundry_schedules",
        lambda name: LearningRateSchedule(name, "of a test", "no:where"),
        attrgetter("schedules"),
        "cosine",
    ),
    "tokenizer type": (
        "foundry_tokenizer_types",
        lambda name: TokenizerType(name, "of a test", "no:where"),
        attrgetter("tokenizer_types"),
        "bpe",
    ),
    "corpus step": (
        "foundry_corpus_steps",
        lambda name: CorpusStep(name, "of a test", "no:where"),
        attrgetter("corpus_steps"),
        "drop",
    ),
    "suite": (
        "foundry_suites",
        lambda name: Suite(name, "of a test", "no:where"),
        attrgetter("suites"),
        "blimp",
    ),
}


@pytest.mark.parametrize("kind", OFFERS)
def test_each_name_that_is_offered_has_one_owner(kind: str) -> None:
    hook, descriptor, available, of_core = OFFERS[kind]
    one, two = (module_with(called, **{hook: lambda: [descriptor("mine")]}) for called in ("one", "two"))
    assert set(available(offers(hook_manager([one])))) == {*available(offers(hook_manager([]))), "mine"}
    with pytest.raises(PluginError, match=f"^two plugins offer the {kind} 'mine', one and two: one of them must go"):
        offers(hook_manager([one, two]))
    claiming = module_with("three", **{hook: lambda: [descriptor(of_core)]})
    with pytest.raises(PluginError, match=f"^two plugins offer the {kind} '{of_core}', model-foundry and three: "):
        offers(hook_manager([claiming]))


@each("kind", OFFERS)
@each(
    ("offered", "said"),
    [
        (lambda descriptor: None, "fails: TypeError: 'NoneType' object is not iterable"),
        (lambda descriptor: [descriptor.name], "returned a str, not "),
        (lambda descriptor: {descriptor.name: descriptor}, "returned a str, not "),
    ],
)
def test_what_is_no_list_of_descriptors_is_refused(kind: str, offered: Callable[..., Any], said: str) -> None:
    hook, descriptor, _, _ = OFFERS[kind]
    with pytest.raises(PluginError) as raised:
        offers(hook_manager([module_with("mine", **{hook: lambda: offered(descriptor("mine"))})]))
    assert str(raised.value).startswith(f"the hook {hook} of mine {said}")


def test_two_packages_that_offer_one_name_are_both_named(distribution: Distribution) -> None:
    modules = [package(distribution, name, PREFIX_LM.format(like="")) for name in ("foundry-one", "foundry-two")]
    with pytest.raises(ConfigError) as raised:
        load_config(settings("gpt2", *modules))
    assert str(raised.value) == (
        "configuration:1: plugins: two plugins offer the objective 'prefix_lm', foundry-one 1.0 and foundry-two 1.0: "
        "one of them must go, or be renamed"
    )


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ("maskd_lm", "names 'maskd_lm' as its interface, but there is no such objective. Did you mean 'masked_lm'?"),
        ("masked_lm", "names 'masked_lm' as its interface, but only one of them is causal"),
    ],
)
def test_an_interface_exists_and_is_causal_alike(like: str, said: str) -> None:
    """Otherwise a model of both directions could be trained on what it sees."""
    objective = Objective("sly", "of a test", True, "overlap", "no:where", same_interface_as=like)
    with pytest.raises(PluginError) as raised:
        offers(hook_manager([module_with(foundry_objectives=lambda: [objective])]))
    assert str(raised.value) == f"the objective 'sly' of mine {said}"


def test_a_bidirectional_model_is_not_trained_causally(distribution: Distribution) -> None:
    module = package(distribution, "foundry-prefix", PREFIX_LM.format(like=", same_interface_as='causal_lm'"))
    lstm = settings("lstm", module, objective="prefix_lm")
    assert load_config(lstm).objective.same_interface_as == "causal_lm"
    with pytest.raises(ConfigError, match=r"lstm with these settings cannot .* prefix_lm; it accepts masked_lm$"):
        load_config(lstm, ["model.rnn.bidirectional=true"])
    with pytest.raises(ConfigError, match=r"bert with these settings cannot .* causal_lm; it accepts masked_lm$"):
        load_config(settings("bert", module, objective="causal_lm"))


def test_an_objective_without_interface_must_be_named(distribution: Distribution) -> None:
    module = package(distribution, "foundry-prefix", PREFIX_LM.format(like=""))
    with pytest.raises(ConfigError, match=r"gpt2 with these settings cannot .* prefix_lm; it accepts causal_lm$"):
        load_config(settings("gpt2", module, objective="prefix_lm"))


def test_an_unmarked_hook_of_an_active_module_is_refused(distribution: Distribution) -> None:
    module = package(distribution, "foundry-mine", PREFIX_LM.format(like="").replace("@hookimpl\n", ""))
    with pytest.raises(ConfigError) as raised:
        load_config(settings("gpt2", module))
    (problem,) = raised.value.problems
    assert problem.message == (
        "the hook foundry_objectives of foundry-mine 1.0 is not marked, and would never be called: put @hookimpl of "
        "foundry_core before foundry_mine.foundry_objectives, or give it another name"
    )


def test_what_only_has_the_name_of_a_hook_is_let_be() -> None:
    """A function from elsewhere, one with a name of its own, and what is no function."""
    module = types.ModuleType("mine")
    vars(module).update(foundry_run_started=lambda run: None, foundry_run_ended="no function", foundry_run_paused=print)
    own = types.FunctionType((lambda: None).__code__, {"__name__": "mine"})
    assert own.__module__ == "mine"
    module.foundry_helper = own  # type: ignore[attr-defined]
    hook_manager([module])
    module.foundry_run_ended = own  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="foundry_run_ended of mine is not marked"):
        hook_manager([module])


def test_what_is_offered_may_be_yielded() -> None:
    def some() -> Iterator[Optimizer]:
        yield Optimizer("mine", "of a test", "no:where")

    assert "mine" in offers(hook_manager([module_with(foundry_optimizers=some)])).optimizers


OBJECTIVE = {
    "name": "mine",
    "summary": "of a test",
    "causal": True,
    "layout": "overlap",
    "collator": "no:where",
}
OPTIMIZER = {"name": "mine", "summary": "of a test", "builder": "no:where"}
TOKENIZER = {"name": "mine", "summary": "of a test", "trainer": "no:where"}


@each(
    ("descriptor", "whole", "wrong", "problem"),
    [
        (Objective, OBJECTIVE, {"name": ""}, "the objective '': its name is '', not a name in printable text"),
        (Objective, OBJECTIVE, {"layout": "nosuch"}, "its layout is 'nosuch', not one of overlap, framed"),
        (Objective, OBJECTIVE, {"collator": "no.where"}, "its collator is 'no.where', not an import string such as "),
        (Objective, OBJECTIVE, {"required_tokens": "mask_token"}, "its required_tokens is 'mask_token', not a tuple"),
        (Optimizer, OPTIMIZER, {"builder": 5}, "the optimizer 'mine': its builder is 5, not an import string such as "),
        (TokenizerType, TOKENIZER, {"trainer": 5}, "the tokenizer type 'mine': its trainer is 5, not an import string"),
        (Capabilities, {}, {"objectives": ("masked_lm")}, "Capabilities: objectives is 'masked_lm', not a tuple of na"),
    ],
)
def test_a_mistake_is_named_where_the_descriptor_is_made(
    descriptor: type[Any], whole: dict[str, Any], wrong: dict[str, Any], problem: str
) -> None:
    descriptor(**whole)
    with pytest.raises(PluginError) as raised:
        descriptor(**{**whole, **wrong})
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


ANT = """\
from foundry_core import Architecture, Capabilities, ModelConfig

ant = Architecture(
    name="ant",
    summary="of a test",
    config_class=ModelConfig,
    model_class="foundry_ant:Model",
    capabilities=lambda config: Capabilities(objectives=("masked_lm")),
)
"""
TEXT = "Capabilities: objectives is 'masked_lm', not a tuple of names such as (\"causal_lm\",)"


@pytest.mark.parametrize("verb", ["validate", "init", "doctor"])
def test_the_plugin_whose_capabilities_make_no_sense_is_named(
    verb: str, distribution: Distribution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution("foundry-ant", {"foundry.architectures": {"ant": "foundry_ant:ant"}}, {"foundry_ant.py": ANT})
    yaml = tmp_path / "ant.yaml"
    yaml.write_text(json.dumps(settings("ant")))
    arguments = {"validate": ["validate", str(yaml)], "init": ["init", "ant"], "doctor": ["plugins", "doctor"]}[verb]
    assert main(arguments) in (2, 3)
    problems = [line for line in capsys.readouterr().err.splitlines() if TEXT in line]
    assert len(problems) == 1
    assert "foundry-ant 1.0: the function for the capabilities of 'ant'" in problems[0]


def test_a_file_whose_capabilities_make_no_sense_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "antfile.py"
    file.write_text(
        "from foundry_core import Capabilities, ModelConfig, register_architecture\n"
        "register_architecture('ant', config=ModelConfig, capabilities=Capabilities(objectives=('masked_lm')))\n"
    )
    assert main(["plugins", "show", "ant", "--plugin", str(file)]) == 3
    assert capsys.readouterr().err == f"error: --plugin {file}: {TEXT}\n"


COLLATING = """\
from foundry_core import Objective, hookimpl

@hookimpl
def foundry_objectives():
    return [
        Objective(
            "mine", "of a test", True, "overlap", "foundry_mine:make",
            same_interface_as="causal_lm",
        )
    ]

def make(config, tokenizer):
    import random
    import numpy as np
    import torch
    from foundry_core import CausalLMDataCollator
    pad = CausalLMDataCollator(tokenizer)

    def changed(change):
        def collate(rows):
            batch = pad(rows)
            return {**batch, **(change(batch) or {})}
        return collate

    BODY
"""
MINE = "the collator of the objective mine of foundry-mine 1.0, foundry_mine:make,"
CHANCE = (
    "draws from the global generator of {}, so that the number of workers would change batches: draw what a row needs "
    'from numpy.random.default_rng([config.seed("masking"), row["epoch"], row["row"]])'
)
BATCH = "input_ids, attention_mask, labels"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "is a NoneType, not a function of rows"),
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("return lambda rows: None", "returned a NoneType, not a batch"),
        ("return lambda rows: rows[99]", "fails: IndexError: list index out of range"),
        (
            "return lambda rows: {'input_ids': __import__('torch').ones(4, 3)}",
            "returned a batch whose attention_mask is not a tensor of 4 rows",
        ),
        ("return changed(lambda batch: torch.rand(3) is None)", CHANCE.format("torch")),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_collator_that_breaks_a_rule_is_named_with_its_package(
    body: str,
    said: str,
    workers: int,
    distribution: Distribution,
    experiment: Callable[..., ExperimentConfig],
    tmp_path: Path,
) -> None:
    module = package(distribution, "foundry-mine", COLLATING.replace("BODY", body))
    training = {"objective": "mine", "num_workers": workers}
    config = experiment("lstm", tmp_path, plugins=[module], training=training)
    with pytest.raises(FoundryError) as raised:
        run(config, quiet=True)
    assert str(raised.value).removeprefix("a data worker failed: ") == f"{MINE} {said}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("dict.fromkeys(batch, torch.zeros(4, 0))", "whose input_ids is not a tensor of 4 rows"),
        (
            "{'labels': batch['labels'][:, 1:]}",
            "whose tensors differ in shape: input_ids (4, 16), attention_mask (4, 16), labels (4, 15)",
        ),
        (
            "{'attention_mask': batch['attention_mask'][:, 1:]}",
            "whose tensors differ in shape: input_ids (4, 16), attention_mask (4, 15), labels (4, 16)",
        ),
        ("{'weights': batch['labels'], 'n': 3}", f"with 'weights', 'n', which a model does not take: it takes {BATCH}"),
        ("{'input_ids': batch['input_ids'].int()}", "whose input_ids are torch.int32, not torch.int64"),
        ("{'labels': batch['labels'].float()}", "whose labels are torch.float32, not torch.int64"),
        ("{'input_ids': batch['labels'].clone().fill_(32)}", "whose input_ids contain 32: a token is from 0 to 31"),
        ("{'input_ids': batch['labels'] - 101}", "whose input_ids contain -96: a token is from 0 to 31"),
        (
            "{'labels': batch['labels'].fill_(-1)}",
            "whose labels contain -1: a token is from 0 to 31, or -100 where nothing is predicted",
        ),
        (
            "{'labels': batch['labels'] + 27}",
            "whose labels contain 32: a token is from 0 to 31, or -100 where nothing is predicted",
        ),
    ],
)
def test_a_batch_that_no_model_takes_is_the_collators(
    change: str, problem: str, distribution: Distribution, letters: Any
) -> None:
    collate = collator_of(distribution, letters, f"return changed(lambda batch: {change})")
    assert len(letters) == 32
    with pytest.raises(PluginError) as raised:
        collate(features(4))
    assert str(raised.value) == f"{MINE} returned a batch {problem}"


@pytest.mark.parametrize(
    "body", ["pass", "{'labels': batch['labels'].fill_(-100)}", "{'labels': batch['labels'] + 26}"]
)
def test_a_batch_at_the_bounds_is_taken(body: str, distribution: Distribution, letters: Any) -> None:
    body = "return pad" if body == "pass" else f"return changed(lambda batch: {body})"
    assert ", ".join(collator_of(distribution, letters, body)(features(4))) == BATCH


@pytest.mark.parametrize(
    ("draw", "whose"),
    [
        ("torch.rand(3)", "torch"),
        ("torch.manual_seed(rows[0]['row'])", "torch"),
        ("np.random.rand()", "numpy"),
        ("np.random.seed(3)", "numpy"),
        ("np.random.bytes(4 * 624)", "numpy"),  # once round, to where it stood
        ("np.random.standard_normal()", "numpy"),
        ("random.random()", "Python's random"),
    ],
)
def test_a_collator_drawing_from_a_global_generator_is_refused(
    draw: str, whose: str, distribution: Distribution, letters: Any
) -> None:
    collate = collator_of(distribution, letters, f"return lambda rows: ({draw}, pad(rows))[1]")
    np.random.seed(1)
    np.random.standard_normal()  # one more is kept for the next call, which changes that alone
    with pytest.raises(PluginError) as raised:
        collate(features(4))
    assert str(raised.value) == f"{MINE} {CHANCE.format(whose)}"


def test_rows_without_a_place_may_be_collated_by_chance(distribution: Distribution, letters: Any) -> None:
    """Rows of a caller: core's collators hide tokens by torch's generator then."""
    collate = collator_of(distribution, letters, "return lambda rows: (torch.rand(3), pad(rows))[1]")
    assert len(collate([{"input_ids": row["input_ids"]} for row in features(4)])) == 3


def test_a_collator_draws_chance_from_seed_epoch_and_row(distribution: Distribution, letters: Any) -> None:
    body = """
    def hidden(row):
        return np.random.default_rng([config.seed("masking"), row["epoch"], row["row"]]).random() < 0.5
    def collate(rows):
        batch = pad(rows)
        batch["labels"][torch.tensor([hidden(row) for row in rows])] = -100
        return batch
    return collate"""
    labels = collator_of(distribution, letters, body)(features(40))["labels"]
    assert 0 < int((labels == -100).all(dim=1).sum()) < 40


def collator_of(distribution: Distribution, tokenizer: Any, body: str) -> Any:
    module = package(distribution, "foundry-mine", COLLATING.replace("BODY", body))
    return get_data_collator(load_config(settings("lstm", module), ["training.objective=mine"]), tokenizer)


def features(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": np.full(16, 5), "epoch": 0, "row": row} for row in range(count)]


# Tokenizer types.


@pytest.mark.parametrize(
    ("heavy", "said"),
    [
        ("import kernels\n", "the import of {target} fails: ModuleNotFoundError: No module named 'kernels'"),
        ("def train(documents):\n    pass\n", "the trainer of the tokenizer type mine fails: TypeError"),
        ("def train(*order):\n    return 3\n", "{target}, returned a int, not a PreTrainedTokenizerFast"),
        (
            "from foundry_core.tokenization.training import train_tokenizer\n"
            "def train(documents, size, special):\n"
            "    return train_tokenizer('bpe', documents, size, {**special, 'pad_token': '<p>'})\n",
            "{target}, was asked for the pad_token '<pad>' and returned '<p>'",
        ),
        (
            "from foundry_core.tokenization.training import train_tokenizer\n"
            "def train(documents, size, special):\n"
            "    return train_tokenizer('bpe', documents, size + 1, special)\n",
            "{target}, returned 273 tokens where at most 272 were asked for",
        ),
    ],
    ids=["import", "arguments", "type", "special tokens", "size"],
)
def test_a_trainer_that_breaks_a_rule_is_named(heavy: str, said: str, distribution: Distribution) -> None:
    distribution("foundry-mine", {}, {"mine_heavy.py": heavy})
    kind = TokenizerType("mine", "of a test", "mine_heavy:train")
    texts = ["the dogs that saw the man see the cat"] * 9
    with pytest.raises(PluginError) as raised:
        train_tokenizer(kind, lambda: texts, 272, kind.tokens_by_role())
    assert said.format(target="mine_heavy:train") in str(raised.value)
    assert "\n" not in str(raised.value)


SHORT = """\
from foundry_core import TokenizerType, hookimpl

def short(roles):
    return [(role, f"{name!r} is too long") for role, name in roles.items() if len(name) > 6]

@hookimpl
def foundry_tokenizer_types():
    return [TokenizerType("mine", "of a test", "no:where", required_tokens=("bos_token",), problems=short)]
"""


def test_a_tokenizer_type_says_what_it_needs_of_special_tokens(distribution: Distribution) -> None:
    given = settings("gpt2", package(distribution, "foundry-mine", SHORT))
    load_config(given, ["tokenizer.tokenizer_type=mine"])
    for change, problem in (
        ("bos_token=null", "bos_token: a mine tokenizer needs a bos_token"),
        ("eos_token=<the-end>", "eos_token: '<the-end>' is too long"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_config(given, ["tokenizer.tokenizer_type=mine", f"tokenizer.special_tokens.{change}"])


# Commands.

COMMAND = """\
'''Says what it is told.'''

def configure(parser):
    parser.add_argument("what")
    parser.set_defaults(execute=execute)

def execute(options):
    {body}
"""


@pytest.fixture
def command(distribution: Distribution) -> Callable[..., None]:
    """`command(text, name="say", by="foundry-say")`: a package with a command, whose module holds this text."""

    def put(text: str, name: str = "say", by: str = "foundry-say") -> None:
        module = f"{by.replace('-', '_')}_command"
        distribution(by, {"foundry.commands": {name: module}}, {f"{module}.py": text})

    return put


def test_a_command_of_a_package_is_called_like_a_verb(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(COMMAND.format(body="print(options.what.upper())"))
    assert main(["say", "hello"]) == 0
    assert capsys.readouterr().out == "HELLO\n"
    with pytest.raises(SystemExit) as stop:
        main(["say", "hello", "--loud"])
    assert stop.value.code == 2
    assert "unknown argument: --loud" in capsys.readouterr().err


@each("arguments", [["--help"], [], ["--version"], ["plugins", "list"], ["sya"]])
def test_no_command_is_imported_that_is_not_called(
    arguments: list[str], command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("raise SystemExit(9)\n")
    with contextlib.suppress(SystemExit):
        main(arguments)
    assert "foundry_say_command" not in sys.modules
    if "--help" in arguments or not arguments:
        assert "of foundry-say 1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import kernels\n",
            "the import of foundry_say_command, the command 'say' of foundry-say 1.0, fails: ModuleNotFoundError: "
            "No module named 'kernels'",
        ),
        (
            "def execute(options):\n    pass\n",
            "the command 'say' of foundry-say 1.0: foundry_say_command does not define configure(parser)",
        ),
        (
            "def configure(parser):\n    1 / 0\n",
            "the plugin foundry-say 1.0 fails: ZeroDivisionError: division by zero",
        ),
        (
            "def configure(parser):\n    parser.add_argument('what')\n",
            "the command 'say' of foundry-say 1.0 does nothing: its configure(parser) must call",
        ),
        (
            COMMAND.format(body="raise ValueError('two\\nlines')"),
            "the plugin foundry-say 1.0 fails: ValueError: two lines",
        ),
    ],
    ids=["import", "no configure", "configure", "no execute", "execute"],
)
def test_a_command_that_fails_is_named_with_its_package(
    text: str, said: str, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(text)
    assert main(["say", "hello"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert main(["say", "hello", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["say", "foundry-say", "foundry_say_command"])
def test_a_command_that_is_switched_off_says_so(
    name: str, command: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command("raise SystemExit(9)\n")
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", name)
    assert main(["say", "hello"]) == 3
    assert capsys.readouterr().err == (
        f"error: the command 'say' is disabled: FOUNDRY_PLUGINS_DISABLE={name} switches foundry-say 1.0 off: "
        "take it out of that variable\n"
    )
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "foundry-say" not in capsys.readouterr().out


def test_one_of_two_owners_of_a_command_may_be_disabled(
    command: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for by in ("foundry-say", "foundry-tell"):
        command(COMMAND.format(body=f"print('{by}')"), by=by)
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "foundry-say")
    assert main(["say", "hello"]) == 0
    assert capsys.readouterr().out == "foundry-tell\n"


def test_a_command_may_have_an_option_debug_of_its_own(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    text = COMMAND.format(body="print(options.what, options.debug)")
    command(text.replace("parser.set", "parser.add_argument('--debug', type=int, default=0)\n    parser.set"))
    assert main(["say", "hello", "--debug", "3"]) == 0
    assert main(["say", "hello"]) == 0
    assert capsys.readouterr().out == "hello 3\nhello 0\n"


def test_how_a_command_ends_the_process_is_its_own_affair(command: Callable[..., None]) -> None:
    command(COMMAND.format(body="raise SystemExit(7)"))
    with pytest.raises(SystemExit) as stop:
        main(["say", "hello"])
    assert stop.value.code == 7


def test_an_error_of_core_in_a_command_is_that_error(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(COMMAND.format(body="import foundry_core; foundry_core.load_config(options.what)"))
    assert main(["say", "no.yaml"]) == 2
    assert capsys.readouterr().err.startswith("no.yaml:")


def test_a_verb_of_core_is_not_replaced(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(COMMAND.format(body="print('mine')"), name="validate")
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert output.count("\n    validate ") == 1
    assert VERBS["validate"] in output
    assert main(["validate", "no.yaml"]) == 2


def test_a_command_that_two_packages_claim_is_called_by_neither(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for by in ("foundry-say", "foundry-tell"):
        command(COMMAND.format(body="print('mine')"), by=by)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "of foundry-tell 1.0 and foundry-say 1.0" in capsys.readouterr().out
    assert main(["say", "hello"]) == 3
    assert capsys.readouterr().err == (
        "error: the command 'say' is claimed by foundry-tell 1.0 and foundry-say 1.0: uninstall one, "
        "pip uninstall foundry-tell, or switch it off, FOUNDRY_PLUGINS_DISABLE=foundry-tell\n"
    )


SIBLINGS = """\
def configure(parser):
    verbs = parser.add_subparsers()
    verbs.add_parser("whole", aliases=["w"]).set_defaults(execute=lambda options: print("carried out"))
    verbs.add_parser("empty")
    deep = verbs.add_parser("deep").add_subparsers()
    deep.add_parser("er").set_defaults(execute=lambda options: 1 / 0)
"""


def test_a_broken_subcommand_stops_no_other_one(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(SIBLINGS)
    for name in ("whole", "w"):
        assert main(["say", name]) == 0
        assert capsys.readouterr().out == "carried out\n"
    assert main(["say", "empty"]) == 3
    assert "its configure(parser) must call set_defaults" in capsys.readouterr().err
    assert main(["say", "deep", "er", "--debug"]) == 3
    assert "the plugin foundry-say 1.0 fails: ZeroDivisionError: " in capsys.readouterr().err


def test_a_command_with_any_version_leaves_the_help_whole(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(COMMAND.format(body="pass"), by="foundry-100%s", name="50%d")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "of foundry-100%s 1.0" in capsys.readouterr().out
    assert main(["50%d", "hello"]) == 0


def states(capsys: pytest.CaptureFixture[str], verb: str) -> dict[str, tuple[str, str | None]]:
    """State and problem of each command that is installed."""
    main(["plugins", verb, "--json"])
    rows = json.loads(capsys.readouterr().out)
    return {row["distribution"]: (row["state"], row["problem"]) for row in rows if row["kind"] == "command"}


@pytest.mark.parametrize("verb", ["list", "doctor"])
def test_commands_are_looked_at_without_being_imported(
    verb: str, command: Callable[..., None], distribution: Distribution, capsys: pytest.CaptureFixture[str]
) -> None:
    command("raise SystemExit(9)\n")
    command("", name="validate", by="foundry-verb")
    distribution("foundry-gone", {"foundry.commands": {"gone": "foundry_gone_command"}})
    way_out = "Upgrade or remove it: pip uninstall foundry-"
    assert states(capsys, verb) == {
        "foundry-babylm": ("fine", None),
        "foundry-say": ("fine", None),
        "foundry-verb": (
            "unusable",
            f"the plugin foundry-verb 1.0: the command 'validate' has the name of a verb of foundry. {way_out}verb",
        ),
        "foundry-gone": (
            "unusable",
            "the plugin foundry-gone 1.0: the module of its command, foundry_gone_command, fails: "
            f"ModuleNotFoundError: No module named 'foundry_gone_command'. {way_out}gone",
        ),
    }
    command("", by="foundry-tell")
    both = (
        "the command 'say' is claimed by foundry-tell 1.0 and foundry-say 1.0: uninstall one, "
        "pip uninstall foundry-tell, or switch it off, FOUNDRY_PLUGINS_DISABLE=foundry-tell"
    )
    found = states(capsys, verb)
    assert found["foundry-say"] == found["foundry-tell"] == ("unusable", both)


def test_a_command_can_be_switched_off_and_shown(
    command: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command("")
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["plugins", "show", "say"]) == 0
    assert "say = foundry_say_command\n" in capsys.readouterr().out
    monkeypatch.setenv("FOUNDRY_PLUGINS_DISABLE", "foundry-say")
    assert main(["plugins", "doctor"]) == 0
    assert main(["plugins", "list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("say ") and "switches" in line]
    assert line.split()[:4] == ["say", "foundry-say", "1.0", "disabled:"]


# The JSON schema.

RICH = """\
from pydantic import Field
from foundry_core import ConfigSection, LearningRateSchedule, Objective, Optimizer, TokenizerType, hookimpl

class Speed(ConfigSection):
    factor: int = Field(1, ge=1, description="how fast")

@hookimpl
def foundry_objectives():
    causal = dict(causal=True, layout="overlap", same_interface_as="causal_lm")
    return [Objective(name="rich_lm", summary="of a test", collator="no:where", **causal)]

@hookimpl
def foundry_optimizers():
    return [Optimizer("rich", "of a test", "no:where", settings=Speed)]

@hookimpl
def foundry_schedules():
    return [LearningRateSchedule("rich_rate", "of a test", "no:where", settings=Speed)]

@hookimpl
def foundry_tokenizer_types():
    return [TokenizerType("rich_type", "of a test", "no:where")]
"""


def test_the_schema_has_what_packages_offer_without_broken_ones(
    distribution: Distribution, capsys: pytest.CaptureFixture[str]
) -> None:
    package(distribution, "foundry-rich", RICH)
    package(distribution, "foundry-broken", "1 / 0\n")
    assert main(["schema"]) == 0
    printed, warned = capsys.readouterr()
    schema = json.loads(printed)
    training = schema["$defs"]["TrainingConfig"]["properties"]
    assert training["objective"]["enum"] == ["causal_lm", "masked_lm", "rich_lm", None]
    assert training["optimizer"]["enum"] == ["adamw", "asgd", "rich", "sgd"]
    assert training["lr_scheduler"]["enum"] == sorted([*CORE_SCHEDULES, "rich_rate"])
    assert training["schedule_settings"]["anyOf"] == training["optimizer_settings"]["anyOf"]
    assert "rich_type" in schema["$defs"]["TokenizerConfig"]["properties"]["tokenizer_type"]["enum"]
    (speed, null) = training["optimizer_settings"]["anyOf"]
    assert null == {"type": "null"}
    assert schema["$defs"][speed["$ref"].rpartition("/")[2]]["properties"]["factor"]["minimum"] == 1
    assert training["objective_settings"]["anyOf"] == [null]
    (line,) = warned.splitlines()
    assert line.startswith("warning: left out: the plugin foundry-broken 1.0 ")
    assert "fails to import: ZeroDivisionError: division by zero. " in line


def test_a_starting_yaml_names_the_settings_of_plugins(
    experiment: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "gpt2"]) == 0
    assert "# optimizer_settings: null" in capsys.readouterr().out
