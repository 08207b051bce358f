"""What occurs in a text and how often, counted in memory that does not grow with the text.

A trainer of tokenizers needs to know which parts of words occur and how often, not the text. One streaming pass counts
the distinct parts, cut where no token reaches across: at white space for every kind, and for the subword kinds also at
punctuation. The trainer is given parts and counts, which for bpe and wordpiece makes exactly what the text would.

`COUNTED` bounds the counts, in characters; a distinct part costs `ENTRY` characters more than it has. When they grow
beyond it, the rarest parts are dropped until half is free. A part seen again later starts at zero. For words of 8
letters it holds a million of them.

Costs, measured on one shared core: words are counted at 25 MB/s, or 16 if all are new, in 140 MB of memory. The seeds
for sentencepiece take 1 s and 100 MB for 250,000 words, 8 s and 500 MB at worst: random text without white space.

Among parts equally frequent a checksum decides: a fair sample of the whole corpus, the same on every run.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

SPACE = "▁"  # how sentencepiece writes a space

BATCH = 1 << 21  # characters that are counted before they are cut further
COUNTED = 24 << 20
ENTRY = 16
_NEWLINE = 10

_CUT = re.compile(r"(?<=\S)(?=[ \n])")
UNIT = re.compile(r"\s*\S+(?:[^\S \n]\s*\S*)*|\s+")  # what lies between two such cuts; the matches spell the text


def blocks(text: str, size: int) -> Iterator[str]:
    """Cuts a text before a space or newline that follows a non-space, into blocks of about `size` characters."""
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _batches(texts: Iterable[str], parts: Callable[[str], Iterable[str]]) -> Iterator[Counter[str]]:
    """The parts of the texts, counted for a few megabytes at a time."""
    batch: Counter[str] = Counter()
    size = 0
    for text in texts:
        batch.update(parts(text))
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = Counter(), 0
    yield batch


def count(
    texts: Iterable[str], parts: Callable[[str], Iterable[str]], cut: Callable[[str], Iterable[str]]
) -> dict[str, int]:
    """How often each part occurs in the texts, in the order of first appearance; `COUNTED` drops the rarest.

    `parts` is quick and splits every text; `cut` splits further, once for each distinct result in a few megabytes.
    """
    counts: dict[str, int] = {}
    held = 0
    for batch in _batches(texts, parts):
        for text, times in batch.items():
            for part in cut(text):
                if part in counts:
                    counts[part] += times
                else:
                    counts[part] = times
                    held += len(part) + ENTRY
        if held > COUNTED:
            counts = most_frequent(counts, COUNTED // 2)
            held = sum(map(len, counts)) + ENTRY * len(counts)
    return counts


def most_frequent(counts: dict[str, int], room: int) -> dict[str, int]:
    """As many of the most frequent parts as there is room for; among equals those with the lowest checksum."""
    sizes: Counter[int] = Counter()
    for part, times in counts.items():
        sizes[times] += len(part) + ENTRY
    for least in sorted(sizes, reverse=True):
        if sizes[least] > room:
            break
        room -= sizes[least]
    else:
        return counts
    equals = [part for part, times in counts.items() if times == least]
    equals.sort(key=lambda part: zlib.crc32(part.encode()))
    kept = 0
    while kept < len(equals) and (room := room - len(equals[kept]) - ENTRY) >= 0:
        kept += 1
    chosen = set(equals[:kept])
    return {part: times for part, times in counts.items() if times > least or part in chosen}


def character_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def by_frequency(counts: Mapping[str, int]) -> list[str]:
    """The most frequent first, equal counts in the order of their code points."""
    return sorted(sorted(counts), key=counts.__getitem__, reverse=True)


def seeds(counts: Mapping[str, int], longest: int, limit: int) -> Iterator[str]:
    """Lines with the strings that may become pieces and how often they occur.

    `sentencepiece` would search the whole text for them. They are the strings that occur more than once and are not
    always followed by the same character, of two to `longest` characters, and at most `limit` of them, those that cover
    most of the text; single characters need no line.
    """
    text = "".join(f"{part}\n" for part in counts).replace(" ", SPACE)
    codes = np.frombuffer(text.encode("utf-32-le"), np.int32)
    lengths = np.fromiter((len(part) + 1 for part in counts), np.int64, len(counts))
    times = np.repeat(np.fromiter(counts.values(), np.int64, len(counts)), lengths)
    group = codes.copy()  # which string of the present length starts at a place
    starts = np.flatnonzero(codes != _NEWLINE)
    begin, total = starts[:0], starts[:0]
    found: list[np.ndarray] = []
    for length in range(2, longest + 2):
        starts = starts[codes[starts + length - 1] != _NEWLINE]
        keys = group[starts].astype(np.int64) << 21 | codes[starts + length - 1]
        order = np.argsort(keys, kind="stable")
        keys, starts = keys[order], starts[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes = np.diff(first, append=len(keys))
        longer = np.add.reduceat(times[starts], first)
        if length > 2:
            followed = np.zeros_like(total)
            np.maximum.at(followed, keys[first] >> 21, longer)
            kept = total > followed
            found.append(np.stack([begin[kept], np.full(kept.sum(), length - 1), total[kept]]))
        often = longer > 1
        group[starts] = np.repeat(np.cumsum(often) - 1, sizes)
        begin, total = starts[first[often]], longer[often]
        starts = starts[np.repeat(often, sizes)]
    place, length_of, total = np.concatenate(found, axis=1)
    for i in np.argsort(-total * length_of, kind="stable")[:limit]:
        yield f"{text[place[i] : place[i] + length_of[i]]}\t{total[i]}\n"
