"""Core's own readers by the names of their descriptors in `registry.suite`, and what recognises their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from foundry_core.evaluation.suites.items import SuiteItem
from foundry_core.evaluation.suites.pairs_files import (
    looks_like_blimp,
    looks_like_clams,
    looks_like_zorro,
    read_blimp,
    read_clams,
    read_zorro,
)
from foundry_core.evaluation.suites.syntaxgym import read_syntaxgym
from foundry_core.evaluation.suites.tables import read_gulordava, read_tsv

READERS: dict[str, Callable[[Path], Iterable[SuiteItem]]] = {
    "blimp": read_blimp,
    "clams": read_clams,
    "gulordava": read_gulordava,
    "syntaxgym": read_syntaxgym,
    "tsv": read_tsv,
    "zorro": read_zorro,
}

RECOGNISERS: dict[str, Callable[[Path], bool]] = {
    "blimp": looks_like_blimp,
    "clams": looks_like_clams,
    "zorro": looks_like_zorro,
}
"""Those of the formats that share their suffix with another, of core or of a package."""
