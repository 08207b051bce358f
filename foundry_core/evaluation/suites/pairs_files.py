"""Readers of minimal pairs: the formats of BLiMP, of Zorro, and of CLAMS and Marvin and Linzen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundry_core.corpus.files import file_blocks, refuse, shown, stamp_of, suffix_of
from foundry_core.corpus.json_texts import plain_text
from foundry_core.corpus.reader import placed_lines
from foundry_core.evaluation.suites.items import BETTER, SuiteItem

PAIR_FORMAT = 'one JSON object a line, {"sentence_good": "...", "sentence_bad": "..."}, in a .jsonl or .jsonl.gz file'


def stem(path: Path) -> str:
    """Return the name of a file without its suffix, nor that of compression, as one printable line."""
    name = path.name if path.suffix.lower() == suffix_of(path) else path.stem
    return shown(Path(Path(name).stem))


def pair(good: str, bad: str, name: str, paradigm: str, place: Path, phenomenon: str = "") -> SuiteItem:
    """Return a minimal pair as an item."""
    return SuiteItem(name, paradigm, {"good": (good,), "bad": (bad,)}, (BETTER,), shown(place), phenomenon)


def read_blimp(path: Path, paradigm: str | None = None) -> Iterator[SuiteItem]:
    """Yield minimal pairs in BLiMP's format: JSON objects with sentence_good, sentence_bad and perhaps more.

    The paradigm is the UID, the phenomenon linguistics_term or else field, the name pairID.

    Args:
        path: The file.
        paradigm: That of pairs without a UID; the name of the file by default.

    Raises:
        DataError: A line is not a minimal pair; names file and line. The text is read as strictly as a corpus.
    """
    found, of_file = 0, paradigm or stem(path)
    for place, line in placed_lines(path):
        if not line or line.isspace():
            continue
        found += 1
        try:
            yield _blimp_pair(line, of_file, place)
        except (ValueError, RecursionError) as error:
            refuse(place, f"not a minimal pair: {error}; expected {PAIR_FORMAT}.", error)
    if not found:
        refuse(path, f"does not contain a minimal pair: expected {PAIR_FORMAT}.")


def _blimp_pair(line: str, paradigm: str, place: Path) -> SuiteItem:
    record = json.loads(line, object_pairs_hook=object_with_unique_keys)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    good, bad = (_filled(record, key) for key in ("sentence_good", "sentence_bad"))
    phenomenon = _optional(record, "linguistics_term") or _optional(record, "field")
    uid, name = _optional(record, "UID"), _optional(record, "pairID")
    # A paradigm may be in several files, each with lines of these numbers.
    return pair(good, bad, name or place.name, uid or paradigm, place, phenomenon)


def _filled(record: Mapping[str, object], key: str) -> str:
    text = plain_text(record, key)
    if not text or text.isspace():
        raise ValueError(f'"{key}" is empty')
    return text


def _optional(record: Mapping[str, object], key: str) -> str:
    """Return a text that may be a whole number, or empty where it is missing or null."""
    value = record.get(key)
    if value is None:
        return ""
    return str(value) if type(value) is int else _filled(record, key)


def object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Of two equal keys, which are legal JSON, Python would silently keep the last."""
    counts = Counter(key for key, _ in pairs)
    for key, times in counts.items():
        if times > 1:
            raise ValueError(f"the key {key!a} occurs {times} times in one object")
    return dict(pairs)


def read_zorro(path: Path) -> Iterator[SuiteItem]:
    """Yield the pairs of Zorro: lines 1, 3, ... are ungrammatical, lines 2, 4, ... grammatical.

    The phenomenon is what precedes the first hyphen of the file's name.

    Raises:
        DataError: A line is empty, or the last one has no partner; names file and line.
    """
    lines = list(placed_lines(path))
    refuse_nothing(path, lines)
    for place, text in lines:
        if not text or text.isspace():
            refuse(place, "is empty: in the format zorro each line is a sentence, the odd ones ungrammatical.")
    if len(lines) % 2:
        refuse(lines[-1][0], "has no partner: in the format zorro lines are ungrammatical and grammatical in turn.")
    phenomenon, hyphen, _ = stem(path).partition("-")
    for number, ((place, bad), (_, good)) in enumerate(zip(lines[::2], lines[1::2], strict=True), 1):
        yield pair(good, bad, str(number), stem(path), place, phenomenon if hyphen else "")


def looks_like_zorro(path: Path) -> bool:
    """Check whether the first lines are pairs that share most words; those of a running text do not."""
    lines = [line.split() for line in _beginning(path) if "\t" not in line]
    pairs = zip(lines[::2], lines[1::2], strict=False)  # the last line shown may have its partner after it
    shares = [(Counter(one) & Counter(two)).total() / max(len(one), len(two), 1) for one, two in pairs]
    return bool(shares) and min(shares) >= 0.5


def read_clams(path: Path) -> Iterator[SuiteItem]:
    """Yield the pairs of CLAMS, also of Marvin and Linzen: lines of True, a tab and a sentence, each before its False.

    Raises:
        DataError: A line is not such a line or has no partner; names file and line.
    """
    lines = list(placed_lines(path))
    refuse_nothing(path, lines)
    expected = "in the format clams lines are True or False, a tab and a sentence, in turn"
    sentences = []
    for number, (place, line) in enumerate(lines):
        mark, tab, text = line.partition("\t")
        wanted = "False" if number % 2 else "True"
        if mark != wanted or not tab:
            refuse(place, f"begins with {mark[:20]!a}, not with {wanted} and a tab: {expected}.")
        if not text or text.isspace() or "\t" in text:
            refuse(place, f"{'has a second tab' if chr(9) in text else 'has no sentence'}: {expected}.")
        sentences.append((place, text))
    if len(sentences) % 2:
        refuse(sentences[-1][0], f"has no partner: {expected}.")
    for number, ((place, good), (_, bad)) in enumerate(zip(sentences[::2], sentences[1::2], strict=True), 1):
        yield pair(good, bad, str(number), stem(path), place)


def looks_like_clams(path: Path) -> bool:
    """Check whether a file begins with True or False and a tab."""
    return "".join(list(_beginning(path))[:1]).startswith(("True\t", "False\t"))


def looks_like_blimp(path: Path) -> bool:
    """Check whether a file begins with a minimal pair."""
    return '"sentence_good"' in "".join(list(_beginning(path))[:1])


def _beginning(path: Path) -> list[str]:
    """Return the first lines of a file, up to 20, whatever it contains."""
    block = next(iter(file_blocks(path, stamp_of(path))), b"")
    return block.decode("utf-8-sig", errors="replace").removesuffix("\n").split("\n")[:20]


def refuse_nothing(path: Path, lines: Sequence[object]) -> None:
    """Refuse a file without a line."""
    if not lines:
        refuse(path, "is empty.")
