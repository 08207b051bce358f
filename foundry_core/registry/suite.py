"""Descriptors of evaluation suites and of formats of their files: core's, and those of `foundry_suites`. Light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from foundry_core.registry.checks import check, check_import_string, check_name, check_names


@dataclass(frozen=True)
class Suite:
    """A suite of sentences, or a format that suites are written in. Raises PluginError for an invalid field.

    Attributes:
        name: What `--suite` takes: the name alone for a suite with `data`, `name=PATH` for files in its format.
        reader: Import string of a function of a path that yields the `SuiteItem`s of that file, and raises
            `FoundryError` with `file:line: problem` where the file is not what it should be; or the name of a format of
            core, such as "blimp". None: core's own.
        suffixes: Endings of the files that are read, such as (".jsonl",), in lower case; those of compressed files are
            left out (".gz", ".bz2", ".xz", ".zst").
        recognise: Import string of a function of a path that looks at the beginning of a file and returns whether it is
            in this format. It is called only where several formats have the suffix. None: every file is.
        data: A file or a folder inside the package, relative to it. None: a format, without files of its own.
        scorer: Import string of `f(model, tokenizer, items)` that returns for each item whether the model is right, and
            by how many nats. None: by the predictions of the items.
        version: Changes where the reader or the scorer gives other results for the same files, so that results which
            were kept are computed again.
    """

    name: str
    summary: str
    reader: str | None = None
    suffixes: tuple[str, ...] = ()
    recognise: str | None = None
    data: str | None = None
    scorer: str | None = None
    version: str = "1"

    def __post_init__(self) -> None:
        check_name("suite", self.name)
        field = f"the suite '{self.name}': its"
        check("=" not in self.name and "/" not in self.name, f"{field} name", self.name, "a name without = and /")
        if self.reader is not None and self.reader not in CORE_FORMATS:
            check_import_string(f"{field} reader", self.reader)
        for which in ("recognise", "scorer"):
            if (target := getattr(self, which)) is not None:
                check_import_string(f"{field} {which}", target)
        check_names(f"{field} suffixes", self.suffixes)
        for suffix in self.suffixes:
            check(suffix[:1] == "." and suffix == suffix.lower(), f"{field} suffixes", suffix, 'one such as ".jsonl"')
        if self.data is not None:
            place = PurePosixPath(self.data)
            inside = place.parts != () and not place.is_absolute() and ".." not in place.parts
            check(inside, f"{field} data", self.data, "a path inside the package")


CORE_FORMATS = {
    "blimp": ("minimal pairs as JSON lines, as BLiMP has them (Warstadt et al. 2020)", (".jsonl", ".ndjson")),
    "clams": ("lines of True or False, a tab and a sentence (Marvin and Linzen 2018; Mueller et al. 2020)", (".txt",)),
    "gulordava": ("a prefix and two forms, in tables (Linzen et al. 2016; Gulordava et al. 2018)", (".tab", ".gold")),
    "syntaxgym": ("regions and formulas, as SyntaxGym has them (Hu et al. 2020)", (".json",)),
    "tsv": ("a table of pairs or sets, with a line of column names", (".tsv",)),
    "zorro": ("lines in turn ungrammatical and grammatical (Huebner et al. 2021)", (".txt",)),
}

CORE_SUITES = {name: Suite(name, summary, suffixes=suffixes) for name, (summary, suffixes) in CORE_FORMATS.items()}
