"""From what `--suite` names to items: finds the suite or format, its files, and reads them."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from foundry_core.corpus.files import refuse, shown, suffix_of
from foundry_core.corpus.search import visible_files
from foundry_core.errors import DataError, UsageError, did_you_mean, warn
from foundry_core.evaluation.suites.core_suites import READERS, RECOGNISERS
from foundry_core.evaluation.suites.formulas import check_formula
from foundry_core.evaluation.suites.items import SuiteItem
from foundry_core.evaluation.suites.pairs_files import stem
from foundry_core.registry.isolation import failing_as, isolated
from foundry_core.registry.loading import import_string
from foundry_core.registry.suite import Suite
from foundry_core.registry.suite_offers import Offered, offered_suites, suites_of_packages

_ABOUT = ("readme", "license", "licence", "citation", "changelog")
"""Names of files in a folder that are about a suite and not of it."""


@dataclass(frozen=True)
class LoadedSuite:
    """A suite that has been read.

    Attributes:
        name: Short, and usable as the name of a file.
        kind: Name of the descriptor that read it.
        items: In the order of the sorted files. Paradigm and name are unique, a paradigm has one phenomenon.
        digest: The sha256 (hex) of the items, without their places, and of name, version and package of the descriptor:
            another text, another reading or another scorer is another suite; moved or compressed files are the same.
        files: What was read.
        descriptor: That of the kind; its `scorer` may say how the items are scored.
    """

    name: str
    kind: str
    items: list[SuiteItem]
    digest: str
    files: tuple[Path, ...]
    descriptor: Suite


def read_suite(spec: str, plugins: Sequence[ModuleType] = (), *, installed: bool = False) -> LoadedSuite:
    """Read what a user names as a suite.

    Args:
        spec: The name of a suite that a package ships; the path of a file or folder, or a glob; or `KIND=PATH`, which
            says how the files are to be read (`KIND=` with nothing behind it is the suite of that name), and
            `NAME=KIND=PATH`, which says how the suite is called, too.
        plugins: Modules whose offers count, besides core's: those active in the run, and files of `--plugin`.
        installed: Whether a name that these do not have may be that of a suite of another installed package, whose
            light module is then imported: where a person names it, not where a YAML does.

    Raises:
        UsageError: Nothing has that name, or several kinds of suites could be meant; says what to write.
        DataError: A file is not of its kind; names file and line.
        PluginError: A plugin offers something impossible, or its reader fails.
    """
    kinds = offered_suites(plugins)
    forced, equals, rest = spec.partition("=")
    if "=" in rest and not _exists(spec):
        everything = kinds | (suites_of_packages() if installed else {})
        if forced not in everything and rest.partition("=")[0] in everything:
            return replace(read_suite(rest, plugins, installed=installed), name=_short(forced))
    if equals and not _exists(spec):
        offered = _named(
            forced, kinds, installed, f"there is no suite or format '{forced}', and no file {shown(Path(spec))}"
        )
        return _loaded(offered, rest) if rest else _shipped(offered)
    if not _exists(spec) and (spec in kinds or ("/" not in spec and not Path(spec).suffix)):
        return _shipped(_named(spec, kinds, installed, f"there is no suite, file or folder '{spec}'"))
    if spec in kinds and kinds[spec].suite.data is not None:
        raise UsageError(f"'{spec}' is a suite of {kinds[spec].owner} and a path here: write {spec}= or ./{spec}")
    return _loaded(None, spec, kinds)


def _named(name: str, kinds: dict[str, Offered], installed: bool, problem: str) -> Offered:
    """Return what has a name; `installed`: also in packages that are not active. Raises UsageError if nothing has."""
    if name in kinds:
        return kinds[name]
    everything = kinds | (suites_of_packages() if installed else {})
    if name in everything:
        return everything[name]
    shipped = {each for each, offered in everything.items() if offered.suite.data is not None}
    known = f"Suites: {', '.join(sorted(shipped)) or 'none'}; formats: {', '.join(sorted({*everything} - shipped))}."
    raise UsageError(f"{problem}.{did_you_mean(name, everything)} {known}")


def _shipped(offered: Offered) -> LoadedSuite:
    """Read the files that a package ships for a suite."""
    suite = offered.suite
    if suite.data is None:
        raise UsageError(f"'{suite.name}' is a format, without files of its own: write {suite.name}=PATH")
    path = offered.folder / suite.data
    if not path.exists():
        raise DataError(f"the suite '{suite.name}' of {offered.owner}: its data are missing, {shown(path)}")
    return replace(_loaded(offered, str(path)), name=_short(suite.name))


def _loaded(offered: Offered | None, spec: str, kinds: dict[str, Offered] | None = None) -> LoadedSuite:
    """Read the files of a path; `kinds` are what to choose from where no kind is given."""
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - leaves ~nobody as it is
    found = _found(path)
    if offered is None:
        files, offered = _recognised(path, found, kinds or {})
    elif found == [path] or not offered.suite.suffixes:
        files = found
    else:
        files = [each for each in found if suffix_of(each) in offered.suite.suffixes and not _is_about(each)]
        if not files:
            refuse(path, f"has no file of the format {offered.suite.name}: {', '.join(offered.suite.suffixes)}.")
    _warn_of_unread(path, found, files)
    items = list(_items(offered, files))
    _refuse_double(items)
    name = stem(files[0]) if len(files) == 1 else Path(os.path.abspath(_parent(path))).name  # noqa: PTH100
    kind = offered.suite.name
    return LoadedSuite(
        _short(kind if name == kind else f"{kind}-{name}"),
        kind,
        items,
        _digest(items, offered),
        tuple(files),
        offered.suite,
    )


def _exists(spec: str) -> bool:
    path = Path(os.path.expanduser(spec))  # noqa: PTH111
    return os.path.lexists(path) or bool(glob.has_magic(spec) and _globbed(path))


def _globbed(path: Path) -> list[Path]:
    return sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - skips hidden files


def _parent(path: Path) -> Path:
    """Return the folder of a glob, or the path."""
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return path


def _found(path: Path) -> list[Path]:
    """Return the files of a path in sorted order: itself, those in a folder, or what a glob matches."""
    if os.path.lexists(path):
        found = sorted(visible_files(path)) if path.is_dir() else [path]
    else:
        matches = _globbed(path) if glob.has_magic(str(path)) else []
        if not matches:
            refuse(path, f"no such file or folder; check the path, relative to {shown(Path.cwd())}.")
        found = sorted({each for match in matches for each in (visible_files(match) if match.is_dir() else [match])})
    if not found:
        refuse(path, "the folder has no files.")
    return found


def _is_about(path: Path) -> bool:
    return path.name.lower().startswith(_ABOUT)


def _recognised(path: Path, found: list[Path], kinds: dict[str, Offered]) -> tuple[list[Path], Offered]:
    """Return the files of a suite and the one kind that they are of. Raises UsageError if that is not clear."""
    by_kind: dict[str, list[Path]] = {}
    for each in found:
        by_suffix = {} if _is_about(each) and len(found) > 1 else _by_suffix(each, kinds)
        names = [name for name, offered in by_suffix.items() if len(by_suffix) == 1 or _recognises(offered, each)]
        if by_suffix and len(names) != 1:
            may_be = ", ".join(names or by_suffix)
            problem = "could be of several formats" if names else "is not recognised as one of its formats"
            first = (names or list(by_suffix))[0]
            raise UsageError(f"{shown(each)} {problem}, {may_be}: write {first}={shown(path)}, if it is that")
        for name in names:
            by_kind.setdefault(name, []).append(each)
    if not by_kind:
        known = ", ".join(sorted({suffix for offered in kinds.values() for suffix in offered.suite.suffixes}))
        raise UsageError(
            f"{shown(path)} has no file of a suite ({known}): write KIND={shown(path)}, such as tsv={path}"
        )
    if len(by_kind) > 1:
        counts = ", ".join(f"{name} ({len(files)}, {shown(files[0])})" for name, files in by_kind.items())
        raise UsageError(f"{shown(path)} has files of several formats, {counts}: name one folder, or KIND=PATH")
    ((name, files),) = by_kind.items()
    return files, kinds[name]


def _by_suffix(path: Path, kinds: dict[str, Offered]) -> dict[str, Offered]:
    """Return the formats with the suffix of a file. A suite with files of its own is not a format of others."""
    formats = {name: offered for name, offered in kinds.items() if offered.suite.data is None}
    return {name: offered for name, offered in formats.items() if suffix_of(path) in offered.suite.suffixes}


def _recognises(offered: Offered, path: Path) -> bool:
    suite = offered.suite
    if suite.recognise is not None:
        function = import_string(suite.recognise)
        with failing_as(f"recognising {shown(path)} by the suite '{suite.name}' of {offered.owner}"), isolated():
            return bool(function(path))
    return RECOGNISERS[suite.name](path) if suite.name in RECOGNISERS and offered.is_core else True


def _warn_of_unread(path: Path, found: Iterable[Path], files: Sequence[Path]) -> None:
    """Name what is in a folder and not read, but for texts about the suite and files that belong to one that is."""
    beside = {(each.parent, stem(each)) for each in files}
    unread = [each for each in found if not _is_about(each) and (each.parent, stem(each)) not in beside]
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        warn(f"{shown(path)}: not read: {shown(unread[0])}{more}")


def _items(offered: Offered, files: Sequence[Path]) -> Iterator[SuiteItem]:
    """Yield the items of files. A paradigm that has the name of its file gets the folder, too, if several files do."""
    by_file = {path: list(_read(offered, path)) for path in files}
    of_files = [stem(path) for path, items in by_file.items() if any(each.paradigm == stem(path) for each in items)]
    shared = {name for name in of_files if of_files.count(name) > 1}
    root = Path(os.path.commonpath([path.parent for path in files]))
    for path, items in by_file.items():
        name = stem(path)
        if name in shared:
            longer = shown(path.relative_to(root).with_name(name))
            items = [replace(each, paradigm=longer) if each.paradigm == name else each for each in items]
        yield from items


def _read(offered: Offered, path: Path) -> Iterator[SuiteItem]:
    suite = offered.suite
    named = suite.name if offered.is_core else str(suite.reader)
    if named in READERS:
        items = list(READERS[named](path))
    else:
        reader = import_string(named)
        with failing_as(f"the reader of the suite '{suite.name}' of {offered.owner}, on {shown(path)},"), isolated():
            try:
                items = list(reader(path))
            except UnicodeDecodeError as error:
                _refuse_bytes(path, error)
    if not items:
        refuse(path, "does not contain an item.")
    for item in items:
        try:
            _check(item)
        except ValueError as error:
            refuse(Path(getattr(item, "place", path)), f"{error}.", error)
    yield from items


def _refuse_bytes(path: Path, error: UnicodeDecodeError) -> NoReturn:
    """Refuse a file for a byte that is not UTF-8, with its line where the whole file was decoded at once."""
    whole = len(error.object) == path.stat().st_size
    place = f"{path}:{error.object[: error.start].count(10) + 1}" if whole else str(path)
    refuse(Path(place), f"byte 0x{error.object[error.start]:02x} is not UTF-8: {error.reason}.", error)


def _check(item: SuiteItem) -> None:
    """Raise ValueError for an item that cannot be scored."""
    if not isinstance(item, SuiteItem):
        raise ValueError(f"the reader yields a {type(item).__name__}, not a SuiteItem")
    if not item.predictions:
        raise ValueError(f"item {item.name}: without a prediction")
    for condition, regions in item.sentences.items():
        if not any(region and not region.isspace() for region in regions):
            raise ValueError(f"item {item.name}: the sentence of {condition} is empty")
    for formula in item.predictions:
        check_formula(formula, item.sentences)


def _refuse_double(items: Iterable[SuiteItem]) -> None:
    """Refuse two items of one paradigm with the same name, and a paradigm of two phenomena."""
    seen: dict[tuple[str, str], SuiteItem] = {}
    phenomena: dict[str, SuiteItem] = {}
    for item in items:
        first = seen.setdefault((item.paradigm, item.name), item)
        if first is not item:
            refuse(Path(item.place), f"the item {item.name} of {item.paradigm} is there twice, first at {first.place}.")
        other = phenomena.setdefault(item.paradigm, item)
        if other.phenomenon != item.phenomenon:
            both = f"{item.phenomenon or 'none'}, and {other.phenomenon or 'none'} at {other.place}"
            refuse(Path(item.place), f"the phenomenon of {item.paradigm} is {both}.")


def _digest(items: Iterable[SuiteItem], offered: Offered) -> str:
    suite = offered.suite
    total = hashlib.sha256(repr(("foundry suite 1", suite.name, suite.version, offered.owner)).encode())
    for item in items:
        sentences = sorted(item.sentences.items())
        facts = (item.paradigm, item.name, item.phenomenon, item.join, sentences, item.predictions)
        total.update(repr(facts).encode())
    return total.hexdigest()


def _short(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "suite"
