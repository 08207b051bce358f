"""Finding the files of a path, a folder or a glob: those that are read, and those that are not."""

from __future__ import annotations

import glob
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from foundry_core.corpus.files import KINDS, kind_of, refuse, shown, stamp_of, suffix_of
from foundry_core.errors import DataError, warn

_SPLITS = {".train", ".dev", ".test"}
# What the datasets library writes next to the data of a Dataset and of a DatasetDict.
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


@dataclass(frozen=True)
class Found:
    """The files that a path, a folder or a glob stands for, in order; those of it that are not read; fingerprints."""

    files: tuple[Path, ...]
    unread: tuple[Path, ...] = ()
    """Visible files of other kinds, linked folders, what the pattern leaves out, and hidden files of kinds to read."""
    fingerprints: tuple[tuple[Path, str], ...] = ()
    """Folders that the datasets library has saved, with its fingerprint of their content."""

    @cached_property
    def unread_bytes(self) -> int:
        """The bytes on the disk of what is not read, those in linked folders included."""
        return sum(map(_size, self.unread))

    def unread_by_suffix(self) -> dict[str, list[str]]:
        """Return the names of the unread files by suffix, the most frequent suffix first."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.unread:
            found["linked" if path.is_dir() else path.suffix or "no suffix"].append(shown(Path(path.name)))
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def unread_line(self) -> str:
        """Return number, bytes and examples of what is not read, for a message."""
        examples = [f"{len(names)} {suffix} ({names[0]})" for suffix, names in self.unread_by_suffix().items()]
        more = ", ..." if len(examples) > 4 else ""
        number = f"{len(self.unread)} file{'s' * (len(self.unread) > 1)}"
        return f"{number}, {self.unread_bytes:,} bytes: {', '.join(examples[:4])}{more}"


def search(path: Path, name: str, pattern: str | None) -> Found:
    """Find what a path, a folder or a glob stands for, and warn of what is not read.

    A folder is searched recursively, without hidden files; linked folders in it are not entered. A glob finds what a
    search of each match would.

    Args:
        path: The path.
        name: The name of the corpus in messages.
        pattern: Restricts a folder to files whose name or path in it matches, as `*.train`.

    Raises:
        DataError: There is no such path, or it is not of a kind that is read; less than half of the bytes of a folder
            are read and no pattern says which; it contains several splits of a dataset.
    """
    if path.is_dir():
        root, found = path, _walk(path)
    elif not os.path.lexists(path) and glob.has_magic(str(path)):
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches: Iterable[Path] = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - skips hidden files
        if "**" in path.parts:  # glob enters linked folders there, a search of the folder does not
            matches = (_linked_above(match, root) or match for match in matches)
        found = sorted({each for match in matches for each in (_walk(match) if _is_entered(match) else [match])})
    else:
        stamp_of(path)  # a missing file is reported as missing, not as one of an unknown kind
        if kind_of(path) is None:
            refuse(path, f"not a {name} file: rename or convert it. These can be read: {KINDS}.")
        return Found((path,))
    datasets = {folder: _saved_dataset(folder) for folder in dict.fromkeys(each.parent for each in found)}
    files, unread = list[Path](), list[Path]()
    for each in found:
        state = datasets[each.parent]
        if each.name == _DICT or (state and each.name in (_STATE, _INFO)):
            continue
        belongs = state is None or each.name in state["files"]
        chosen = pattern is None or _matches(each.relative_to(root), pattern)
        visible = not each.name.startswith(".")
        (files if chosen and belongs and visible and kind_of(each) else unread).append(each)
    fingerprints = [(folder, state["fingerprint"]) for folder, state in datasets.items() if state]
    result = Found(tuple(files), tuple(unread), tuple(fingerprints))
    if files and pattern is None:
        _check_unrestricted(path, name, result, [each.parent for each in found if each.name == _DICT])
    if files and unread:
        warn(f"{name}: not read in {shown(path)}: {result.unread_line()}")
    return result


def _check_unrestricted(path: Path, name: str, found: Found, dicts: list[Path]) -> None:
    """Check a folder whose files were not chosen by a pattern."""
    read = sum(map(_size, found.files))
    # What is of a kind that is read, and is not read, is the cache of a saved dataset: its text once more.
    if read < sum(_size(each) for each in found.unread if kind_of(each) is None):
        problem = f"only {read:,} bytes of {shown(path)} can be read as a corpus, not read are {found.unread_line()}"
        way_out = f'say which files are meant, as in data.files: "*{found.files[0].suffix}", or name them by a glob'
        raise DataError(f"{name}: {problem}: {way_out}.")
    for folder in dicts:
        splits = {each.relative_to(folder).parts[0] for each in found.files if each.is_relative_to(folder)}
        if len(splits) > 1:
            problem = f"contains {len(splits)} splits, {', '.join(sorted(splits))}"
            refuse(folder, f"{problem}, which would be one text: name one, as in {shown(folder / min(splits))}.")
    splits = _SPLITS & {suffix_of(each) for each in found.files}
    if len(splits) > 1:
        line = f'all its {", ".join(sorted(splits))} files are read; data.files: "*.train" leaves the others out'
        warn(f"{name}: {shown(path)}: {line}")


def _matches(relative: Path, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (relative.name, str(relative), f"/{relative}"))


def _linked_above(path: Path, root: Path) -> Path | None:
    """Return the topmost linked folder below the root in which a path lies."""
    below = [parent for parent in path.parents if root in parent.parents]
    return next((parent for parent in reversed(below) if parent.is_symlink()), None)


def _is_entered(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _walk(folder: Path) -> list[Path]:
    """Return the files of a folder in sorted order; linked folders are listed, not entered, and hidden ones skipped.

    Of hidden files those are listed that would be read under another name.
    """

    def stop(error: OSError) -> NoReturn:
        refuse(Path(error.filename), f"cannot be searched: {error.strerror}.", error)

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [one for one in folders if not one.startswith(".")]
        links = [one for one in folders if Path(parent, one).is_symlink()]
        listed = [Path(parent, one) for one in [*names, *links]]
        found += [path for path in listed if not path.name.startswith(".") or kind_of(path)]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _size(path: Path) -> int:
    """Return the size of a file, or of all visible files in a linked folder; 0 for what cannot be looked at."""
    total = 0
    for each in visible_files(path) if path.is_dir() else (path,):
        with suppress(OSError):
            total += each.stat().st_size
    return total


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in those below it, without hidden ones; linked folders are not entered."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".")]
        yield from (Path(parent, one) for one in names if not one.startswith("."))


def _saved_dataset(folder: Path) -> dict[str, Any] | None:
    """Return files and fingerprint of a dataset that the datasets library has saved in a folder; None if there is none.

    Other .arrow files in such a folder are its caches, which hold the same text again.
    """
    if not (folder / _STATE).is_file() or not (folder / _INFO).is_file():
        return None
    try:
        state = json.loads((folder / _STATE).read_bytes())
        files, fingerprint = [str(each["filename"]) for each in state["_data_files"]], str(state["_fingerprint"])
        chosen_by_indices = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse(folder / _STATE, f"is damaged ({type(error).__name__}); save the dataset again.", error)
    if chosen_by_indices:
        refuse(folder, "holds only some rows of its files, by indices; save it again with a newer datasets.")
    for file in files:
        stamp_of(folder / file)
    return {"files": files, "fingerprint": fingerprint}
