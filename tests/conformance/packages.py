"""The package that `foundry new-plugin` writes, as an installer leaves it, and mutants of its metadata and modules."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry_core.cli.new_plugin import plugin_files
from foundry_core.testing.kit.case import Suite
from foundry_core.testing.kit.keys import write_keys
from foundry_core.testing.kit.run import chosen_checks, run_check
from foundry_core.testing.kit.surroundings import kept_surroundings

NAME = "packaged"
PACKAGE = f"foundry_{NAME}"

_FILES = plugin_files(NAME)
LIGHT = _FILES[f"{PACKAGE}/__init__.py"]
MODEL = _FILES[f"{PACKAGE}/model.py"]
HOOK = """
from foundry_core import hookimpl

@hookimpl
def foundry_run_ended(step):
    pass
"""
ALONE = LIGHT.replace("    plugin_api_version=1,\n", '    plugin_api_version=1,\n    standalone="alone.py",\n') + HOOK
STANDALONE = f"""
import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput

class {NAME.capitalize()}Config(PretrainedConfig):
    model_type = "{NAME}_standalone"

    def __init__(self, settings=None, vocab_size=0, **kwargs):
        super().__init__(**kwargs)
        self.settings, self.vocab_size = settings or {{}}, vocab_size
        self.hidden_size = self.settings.get("{NAME}", {{}}).get("hidden_size", 0)

class Block{MODEL.partition("class Block")[2].partition("class ")[0]}

class Opened(PreTrainedModel):
    config_class = {NAME.capitalize()}Config
    base_model_prefix = "model"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.02)
            if module.bias is not None:
                module.bias.data.zero_()

    def get_input_embeddings(self):
        return self.base_model.embedding

class {NAME.capitalize()}Model(Opened):
    def __init__(self, config):
        super().__init__(config)
        sizes = config.settings["{NAME}"]
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size, sizes["dropout"]) for _ in range(sizes["layers"]))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def states(self, input_ids, attention_mask, inputs_embeds):
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        real = torch.ones_like(x[..., :1]) if attention_mask is None else attention_mask.unsqueeze(-1).to(x)
        for block in self.blocks:
            x, _ = block(x, real, None)
        return self.norm(x)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, return_dict=None):
        return BaseModelOutput(self.states(input_ids, attention_mask, inputs_embeds))

class {NAME.capitalize()}ForCausalLM(Opened, GenerationMixin):
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        self.model = {NAME.capitalize()}Model(config)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            return {{"input_ids": input_ids, "attention_mask": attention_mask}}
        whole = torch.cat([inputs_embeds, self.model.embedding(input_ids)], dim=1)
        return {{"inputs_embeds": whole, "attention_mask": attention_mask}}

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, return_dict=None):
        logits = self.model.states(input_ids, attention_mask, inputs_embeds) @ self.model.embedding.weight.T
        if labels is not None:
            return CausalLMOutput(nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:]), logits)
        return CausalLMOutput(logits=logits)

class {NAME.capitalize()}ForSequenceClassification(Opened):
    def __init__(self, config):
        super().__init__(config)
        self.model = {NAME.capitalize()}Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        x = self.model.states(input_ids, attention_mask, None)
        places = torch.arange(x.shape[1]) * (1 if attention_mask is None else attention_mask)
        logits = self.score(x[torch.arange(len(x)), places.expand(x.shape[:2]).argmax(1)])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss, logits)
"""
"""A file that opens the model without foundry."""
_PROMPT = '"inputs_embeds": inputs_embeds'
_LESS = '    _keys_to_ignore_on_save = ["model.norm.weight"]\n    _is_stateful'


@dataclass(frozen=True)
class Package:
    """Files of the site folder. entry: name of the entry point. requires: its requirements. light, model: text of
    the modules. alone: text of the file that opens the model without foundry, if it is named. committed: the model's
    when its names were committed; None for a package without a list.
    """

    defect: str = ""
    caught_by: str = ""
    entry: str = NAME
    requires: tuple[str, ...] = ("model-foundry<0.2,>=0.1",)
    light: str = LIGHT + HOOK
    model: str = MODEL
    alone: str = STANDALONE
    committed: str | None = MODEL

    base = "package"

    def __str__(self) -> str:
        return f"package, {self.defect}"

    def but(self, **changes: Any) -> Package:
        """The same with changes."""
        return replace(self, **changes)


RIGHT = Package()


def _mutants() -> Iterator[Package]:
    def plant(defect: str, caught_by: str, **changes: Any) -> Package:
        return RIGHT.but(defect=defect, caught_by=caught_by, **changes)

    yield plant("no upper bound on model-foundry", "entry-point", requires=("model-foundry>=0.1",))
    yield plant("model-foundry not required", "entry-point", requires=("torch", "model-foundries<2"))
    yield plant("another model-foundry required", "entry-point", requires=("model-foundry<9,>=8",))
    yield plant("entry point of another name", "entry-point", entry="package")
    unstated = LIGHT.replace("    plugin_api_version=1,\n", "")
    yield plant("a plugin API that is not stated", "entry-point", light=unstated)
    yield plant("torch in the light module", "light-import", light=f"import torch\n{LIGHT}")
    yield plant("numpy in the light module", "light-import", light=f"import numpy\n{LIGHT}")
    busy = "import time\nwhile time.process_time() < 0.4: pass\n"
    yield plant("much work in the light module", "light-import", light=busy + LIGHT)
    unmarked = HOOK.replace("@hookimpl", "")
    yield plant("a hook that is not marked", "hooks", light=LIGHT + unmarked)
    yield plant(
        "a hook that is not marked, and misspelt", "hooks", light=LIGHT + unmarked.replace("foundry_", "fondry_")
    )
    unknown = unmarked.replace("run_ended", "epoch_ended")
    yield plant("a hook that there is not", "hooks", light=LIGHT + unknown)
    yield plant("an argument by keyword only", "hooks", light=LIGHT + HOOK.replace("(step)", "(*, step=None)"))
    yield plant("a misspelt hook", "hooks", light=LIGHT + HOOK.replace("run_ended", "run_endet"))
    yield plant(
        "a recipe with a key that there is not", "schema", light=LIGHT.replace("learning_rate", "lerning_rate") + HOOK
    )
    yield plant("no list of names", "keys", committed=None)
    yield plant("a weight renamed since", "keys", model=MODEL.replace("self.embedding", "self.table"))
    forgotten = MODEL.replace(f'register_auto_classes("{NAME}")', "")
    yield plant("the auto classes not told", "hugging-face", model=forgotten)
    for defect, right, wrong in (
        ("a standalone file that imports foundry", "import torch\n", "import torch\nimport foundry_core\n"),
        ("a standalone file without a configuration", "Config(Pre", "Settings(Pre"),
        ("a standalone file without the class of its objective", "ForCausalLM", "ForMaskedLM"),
        ("a standalone file with another name of a weight", "self.norm", "self.last_norm"),
        ("a standalone file that computes a little more", "block(x, real, None)", "block(x * 1.00001, real, None)"),
        ("a standalone file whose loss is of what it has read", "labels[:, 1:]", "labels[:, :-1]"),
        ("a standalone file that reads padding", "attention_mask is None else", "True else"),
        ("a standalone file that takes other embeddings", "None else inputs_embeds", "None else inputs_embeds * 2"),
        ("a standalone file that writes on from the prompt's vectors alone", '"inputs_embeds": whole', _PROMPT),
        ("a standalone file with other states before the head", "BaseModelOutput(", "BaseModelOutput(1.00001 * "),
        ("a standalone file whose head reads the first token", ".argmax(1)", ".argmin(1)"),
        ("a standalone file whose head has another name", "self.score", "self.classifier"),
        ("a standalone file whose head has a bias that nobody initialises", "module.bias.data.zero_()", "pass"),
        ("a standalone file that saves less", "    _is_stateful", _LESS),
        ("a standalone file of one precision", "return self.norm(x)", "return self.norm(x.float())"),
    ):
        assert right in STANDALONE, right
        yield plant(defect, "standalone", light=ALONE, alone=STANDALONE.replace(right, wrong))


PACKAGES = list(_mutants())


@contextmanager
def installed(package: Package, site: Path) -> Iterator[None]:
    """The package lies in a folder on the path, as an installer would have left it."""
    information = site / f"foundry_{NAME}-1.0.dist-info"
    information.mkdir(parents=True)
    requires = "".join(f"Requires-Dist: {each}\n" for each in package.requires)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: foundry-{NAME}\nVersion: 1.0\n{requires}")
    (information / "entry_points.txt").write_text(f"[foundry.architectures]\n{package.entry} = {PACKAGE}:{NAME}\n")
    sys.path.insert(0, str(site))
    before = set(sys.modules)
    try:
        if package.committed is not None and package.entry == NAME:
            _write_modules(site, RIGHT.but(model=package.committed))
            write_keys(Suite.of(NAME))
            _forget(before)
        _write_modules(site, package)
        yield
    finally:
        sys.path.remove(str(site))
        _forget(before)


def _write_modules(site: Path, package: Package) -> None:
    # Python takes bytecode for that of a file that has the same size and was written in the same second.
    shutil.rmtree(site / PACKAGE / "__pycache__", ignore_errors=True)
    (site / PACKAGE).mkdir(exist_ok=True)
    (site / PACKAGE / "__init__.py").write_text(package.light)
    (site / PACKAGE / "model.py").write_text(package.model)
    (site / PACKAGE / "alone.py").write_text(package.alone)
    importlib.invalidate_caches()


def _forget(before: set[str]) -> None:
    for name in {PACKAGE, f"{PACKAGE}.model"} & (set(sys.modules) - before):
        del sys.modules[name]


def failures(package: Package, site: Path, *checks: str) -> dict[str, str]:
    """The checks that fail, each with the reason. Raises PluginError where core refuses to load the package."""
    with kept_surroundings(), installed(package, site):
        suite = Suite.of(package.entry)
        results = [run_check(check, suite) for check in chosen_checks(checks)]
    return {result.check.name: result.reason for result in results if not result.good}
