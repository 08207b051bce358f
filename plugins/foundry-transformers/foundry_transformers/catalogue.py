"""The model types of the installed transformers library and the keys of their configurations. Light.

Importing a configuration class of transformers imports torch, which takes seconds. So this module reads the library's
source without running it: the tables of the auto classes, the annotated fields of a configuration class, and the
signature of a model class.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Union

_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
POSITIONS = ("max_position_embeddings", "max_seq_len", "context_length")
"""Names for the longest row in configuration classes."""
_DIRECTIONS = ("is_decoder", "causal")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "ffn_dim", "decoder_ffn_dim")
"""Names for widths, layers and heads. The library's defaults are those of one published model, so not neutral."""


@dataclass(frozen=True)
class Setting:
    """A key of a configuration class.

    Attributes:
        annotation: The type of its value in a YAML.
        default: The library's default.
        opaque: The default is an expression that only the class can evaluate; `default` is then None.
        written: The annotation as the class writes it.
    """

    annotation: Any
    default: Any
    opaque: bool
    written: str


@dataclass(frozen=True)
class ModelType:
    """One model type.

    Attributes:
        causal_class, masked_class: Its language models; None if it has no model of that kind.
        settings: The keys of its configuration class.
        aliases: Common names of keys, mapped to the names that this class uses.
    """

    name: str
    config_class: str
    causal_class: str | None
    masked_class: str | None
    settings: Mapping[str, Setting]
    aliases: Mapping[str, str]

    @property
    def vocabulary(self) -> str:
        """The key for the size of the vocabulary."""
        return self.aliases.get("vocab_size", "vocab_size")

    @property
    def positions(self) -> str | None:
        """The key for the longest row; None if the model has no positions."""
        names = (self.aliases.get(name, name) for name in POSITIONS)
        return next((name for name in names if name in self.settings), None)

    @property
    def sizes(self) -> frozenset[str]:
        """The keys for widths, layers and heads, without those whose default follows from other keys."""
        names = [self.aliases.get(name, name) for name in _SIZES]
        decoders = [name.replace("encoder", "decoder") for name in names]
        names = [two if two in self.settings else one for one, two in zip(names, decoders, strict=True)]
        return frozenset(name for name in names if name in self.settings and type(self.settings[name].default) is int)

    @property
    def direction(self) -> str | None:
        """The key that makes an encoder causal."""
        return next((name for name in _DIRECTIONS if name in self.settings), None)

    @cached_property
    def _classes(self) -> _Classes:
        name = self.causal_class or self.masked_class
        assert name is not None
        return _Classes(_tables().source("modeling", self.name, name))

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The names of the arguments of the language model's forward."""
        return self._classes.arguments(self.causal_class or self.masked_class, "forward")

    @property
    def gradient_checkpointing(self) -> bool:
        return self._classes.value(self.causal_class or self.masked_class, "supports_gradient_checkpointing") is True

    @property
    def stateful(self) -> bool:
        """True if it carries a recurrent state from token to token."""
        return self._classes.value(self.causal_class or self.masked_class, "_is_stateful") is True

    @property
    def hands_on_a_cache(self) -> bool:
        return not self.arguments.isdisjoint(("cache", "past_key_values"))

    @property
    def blanks_padding(self) -> bool:
        """True if padding is removed from the input of a recurrent state."""
        return "apply_mask_to_padding_states" in self._classes.functions

    @property
    def counts_from_padding(self) -> bool:
        """True if the first position is the one after the padding id, as in RoBERTa."""
        return "create_position_ids_from_input_ids" in self._classes.functions


def role(name: str) -> Literal["matrix", "embedding", "other"]:
    """Return what a parameter of several dimensions that is not the weight of a layer is for, from its name.

    Read off the 206 model types of transformers 5.24: stacks of experts' weights (`gate_up_proj`), attention weights
    (`q`, `r_kernel`) and mixing functions (`fn`) are matrices, positions and latents embeddings. The others are rates
    (`A_log`), mixes and scales.
    """
    last = name.rpartition(".")[2]
    if re.fullmatch(r"[qkvor]|(\w+_)?(weight|proj|kernel|fn)", last):
        return "matrix"
    return "embedding" if "emb" in name else "other"


def special_token(key: str) -> str | None:
    """Return the role, such as `pad_token`, of a key that contains the id of a special token; otherwise None."""
    match = re.fullmatch(r"(\w+)_token_id|(bos|eos|pad|unk|mask|cls|sep)_index", key)
    return f"{match[1] or match[2]}_token" if match else None


@cache
def model_type(name: str) -> ModelType | None:
    """Read a model type from the library's source; None if it has no language model that can be trained here."""
    tables = _tables()
    config_class = tables.configs.get(name)
    causal, masked = (_of_one_stack(table.get(name)) for table in (tables.causal, tables.masked))
    if config_class is None or (causal is None and masked is None):
        return None
    classes = _Classes(tables.source("configuration", name, config_class))
    settings = dict(classes.settings(config_class))
    described = ModelType(
        name, config_class, causal, masked, settings, classes.value(config_class, "attribute_map") or {}
    )
    # A composite (text and images) has its vocabulary in a nested configuration; its text part is a separate type.
    return described if described.vocabulary in settings else None


def model_types() -> list[str]:
    """Return the model types that can be trained here."""
    tables = _tables()
    return [name for name in sorted({*tables.causal, *tables.masked}) if model_type(name) is not None]


def known_types() -> frozenset[str]:
    """Return every model type of the library, including those for other data than text."""
    return frozenset(_tables().configs)


def _of_one_stack(class_name: str | None) -> str | None:
    """Return the class name, or None for a class with an additional encoder or image tower."""
    return None if class_name is None or class_name.endswith("ForConditionalGeneration") else class_name


@dataclass(frozen=True)
class _Tables:
    """The tables of the auto classes: model type to class name, and to the folder of its source."""

    models: Path
    configs: Mapping[str, str]
    folders: Mapping[str, str]
    causal: Mapping[str, str]
    masked: Mapping[str, str]

    def source(self, kind: str, model_type: str, class_name: str) -> ast.Module:
        """Parse the file that defines a class of a model type; some types use the class of another one."""
        lenders = [name for table in (self.causal, self.masked) for name, each in table.items() if each == class_name]
        for name in (model_type, *lenders):
            folder = self.models / self.folders.get(name, name).replace("-", "_")
            for path in sorted(folder.glob(f"{kind}_*.py")):
                text = path.read_text(encoding="utf-8")
                if f"\nclass {class_name}(" in text:
                    return ast.parse(text)
        raise LookupError(f"transformers has no source of {class_name}")


@cache
def _tables() -> _Tables:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None  # model-foundry requires it
    assert spec.submodule_search_locations is not None
    models = Path(spec.submodule_search_locations[0]) / "models"
    names, auto = (
        ast.parse((models / "auto" / file).read_text(encoding="utf-8"))
        for file in ("auto_mappings.py", "modeling_auto.py")
    )
    return _Tables(
        models=models,
        configs=_table(names, "CONFIG_MAPPING_NAMES"),
        folders=_table(names, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"),
        causal=_table(auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
        masked=_table(auto, "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    )


def _table(tree: ast.Module, name: str) -> dict[str, str]:
    """Return `NAME = OrderedDict([("key", "value"), ...])` as a dictionary."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Call):
            return dict(ast.literal_eval(node.value.args[0]))
    raise LookupError(f"transformers has no table {name}")


class _Classes:
    """The classes of one source file. A class includes what it inherits from others in the same file."""

    def __init__(self, tree: ast.Module):
        self._by_name = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.functions = frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))

    def _bodies(self, name: str | None) -> Iterator[list[ast.stmt]]:
        node = self._by_name.get(name or "")
        if node is not None:
            yield node.body
            for base in node.bases:
                yield from self._bodies(ast.unparse(base))

    def arguments(self, name: str | None, method: str) -> frozenset[str]:
        for body in self._bodies(name):
            for item in body:
                if isinstance(item, ast.FunctionDef) and item.name == method:
                    return frozenset(each.arg for each in (*item.args.args, *item.args.kwonlyargs))
        return frozenset()

    def value(self, name: str | None, attribute: str) -> Any:
        """Return a class attribute that is a plain value, or None."""
        for body in self._bodies(name):
            for item in body:
                if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == attribute:
                    return ast.literal_eval(item.value)
        return None

    def settings(self, name: str) -> Iterator[tuple[str, Setting]]:
        """Yield the annotated fields of a configuration class, inherited ones first."""
        for body in reversed(list(self._bodies(name))):
            for item in body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    key, shown = item.target.id, ast.unparse(item.annotation)
                    if not key.startswith("_") and "ClassVar" not in shown:
                        yield key, _setting(item, shown)


def _setting(item: ast.AnnAssign, written: str) -> Setting:
    annotation, value = _annotation(item.annotation), item.value
    if isinstance(value, ast.Call):  # a field with a validator: `interval(min=0, max=1)(default=0.02)`
        value = next((each.value for each in value.keywords if each.arg == "default"), value)
    try:
        default = ast.literal_eval(value or ast.Name("required"))
    except ValueError:
        return Setting(annotation | None, None, True, written)
    return Setting(annotation, list(default) if isinstance(default, tuple) else default, False, written)


def _annotation(node: ast.expr) -> Any:
    """Return the type of a value in a YAML: a list for a tuple, anything for a nested configuration."""
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp):
        sides = [side for side in map(_annotation, (node.left, node.right)) if side is not Any]
        # A float may be written as an integer, so an integer in addition changes nothing.
        sides = [side for side in sides if not (side is int and float in sides)]
        return Union[tuple(sides)] if sides else Any  # noqa: UP007 - the members are values
    if isinstance(node, ast.Name):
        return list if node.id == "tuple" else _PLAIN.get(node.id, Any)
    if isinstance(node, ast.Subscript):
        name, inside = ast.unparse(node.value), node.slice
        members = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if name == "Literal":
            return Literal[tuple(ast.literal_eval(each) for each in members)]
        if name in ("list", "tuple"):
            parts = [_annotation(each) for each in members if ast.unparse(each) != "..."]
            return list[Union[tuple(parts)]]  # type: ignore[misc]  # noqa: UP007
        return _PLAIN.get(name, Any)
    return Any
