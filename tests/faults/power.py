"""Tests of what a disk may hold after the power failed, from the operations that a run asked of it.

The model, weaker than journalling file systems are, so that no luck is counted on:

* Data are on the disk for certain when their file has been synced. Until then a file may hold what it held at its last
  sync, half of what came since, all of it, or as many zeros.
* An entry of a folder (something made, renamed, removed) is on the disk for certain when its folder has been synced;
  syncing the file does not do that. Until then any subset of the changes may have happened, each of them whole: a
  rename within a folder leaves one of its two names, never both or neither.
* Whatever was synced stays.

`Model.states` gives every combination at a moment. Should there be more than `EXHAUSTIVE`, which only a mutant brings
about, it gives those where everything in doubt happened, or nothing, but for one or two things. What is hidden does not
tell two states apart, because no loader looks there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

from tests.faults.harness import Operation

EXHAUSTIVE = 4096

Tree: TypeAlias = frozenset[tuple[str, bytes | None]]
"""Relative path and content of each file, None for a folder."""


class File:
    """safe: what is on the disk for certain. now: what the kernel has."""

    def __init__(self, content: bytes = b""):
        self.safe = self.now = content

    def doubts(self) -> list[bytes]:
        if self.now == self.safe:
            return [self.now]
        kept = self.safe if self.now.startswith(self.safe) else b""
        new = self.now[len(kept) :]
        return list(dict.fromkeys([self.safe, kept + bytes(len(new)), kept + new[: len(new) // 2], self.now]))


class Folder:
    """safe and now: the entries. changes: what was done to them since the last sync, None for an entry that went."""

    def __init__(self) -> None:
        self.safe: dict[str, File | Folder] = {}
        self.now: dict[str, File | Folder] = {}
        self.changes: list[dict[str, File | Folder | None]] = []

    def change(self, entries: Mapping[str, File | Folder | None]) -> None:
        self.changes.append(dict(entries))
        self.now = applied(self.now, entries)

    def sync(self) -> None:
        self.safe, self.changes = dict(self.now), []


Node: TypeAlias = File | Folder


def applied(entries: Mapping[str, Node], change: Mapping[str, Node | None]) -> dict[str, Node]:
    return {name: node for name, node in {**entries, **change}.items() if node is not None}


class Model:
    """The disk as far as a folder goes, which is all safe when the first operation comes, or not there yet."""

    def __init__(self, folder: Path):
        self.above, self.root = folder.parent, Folder()
        self.root.now = {folder.name: self._read(folder)} if folder.exists() else {}
        self.root.sync()
        self.exhaustive = True

    def _read(self, path: Path) -> Node:
        if path.is_file():
            return File(path.read_bytes())
        folder = Folder()
        folder.now = {inside.name: self._read(inside) for inside in path.iterdir()}
        folder.sync()
        return folder

    def _folder(self, path: Path) -> Folder:
        folder = self.root
        for name in path.relative_to(self.above).parts:
            inside = folder.now[name]
            assert isinstance(inside, Folder), path
            folder = inside
        return folder

    def follow(self, operation: Operation) -> None:
        """Let an operation happen."""
        kind, path = operation.kind, operation.path
        if kind == "sync_folder":
            self._folder(path).sync()
            return
        parent = self._folder(path.parent)
        node = parent.now.get(path.name)
        if kind == "rename":
            assert operation.to is not None, operation
            assert operation.to.parent == path.parent, operation
            parent.change({path.name: None, operation.to.name: node})
        elif kind in ("remove_file", "remove_folder"):
            parent.change({path.name: None})
        elif kind in ("make_folder", "create", "append_to") and node is None:
            parent.change({path.name: Folder() if kind == "make_folder" else File()})
        elif kind in ("create", "empty", "write", "sync"):
            assert isinstance(node, File), operation
            if kind == "sync":
                node.safe = node.now
            else:
                node.now = node.now + operation.data if kind == "write" else b""
        else:
            assert kind in ("make_folder", "append_to"), f"the model does not know what '{kind}' does to a disk"

    def states(self) -> Iterator[Tree]:
        """Return what may be found if the power fails now."""
        doubts: list[tuple[Node, int]] = []  # an unsafe file, or a folder and the number of one of its changes
        self._gather(self.root, doubts, set())
        choices: list[list[Any]] = [[False, True] if isinstance(node, Folder) else node.doubts() for node, _ in doubts]
        combined: Iterable[Sequence[Any]]
        if prod(map(len, choices)) <= EXHAUSTIVE:
            combined = product(*choices)
        else:
            self.exhaustive = False
            combined = self._few(choices)
        for choice in combined:
            yield frozenset(self._tree(self.root, dict(zip(doubts, choice, strict=True)), ""))

    def _gather(self, node: Node, doubts: list[tuple[Node, int]], seen: set[int]) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, File):
            if len(node.doubts()) > 1:
                doubts.append((node, 0))
            return
        every: list[Mapping[str, Node | None]] = [node.safe, *node.changes]
        for entries in every:
            for name, inside in entries.items():
                if inside is not None and not name.startswith("."):
                    self._gather(inside, doubts, seen)
        doubts += [
            (node, number)
            for number, change in enumerate(node.changes)
            if not all(name.startswith(".") for name in change)
        ]

    @staticmethod
    def _few(choices: list[list[Any]]) -> Iterator[list[Any]]:
        for ground in ([choice[0] for choice in choices], [choice[-1] for choice in choices]):
            for odd in combinations(range(len(choices)), 2):
                for values in product(*(choices[index] for index in odd)):
                    state = list(ground)
                    for index, value in zip(odd, values, strict=True):
                        state[index] = value
                    yield state

    def _tree(
        self, node: Folder, choice: Mapping[tuple[Node, int], Any], prefix: str
    ) -> Iterator[tuple[str, bytes | None]]:
        entries = node.safe
        for number, change in enumerate(node.changes):
            if choice.get((node, number), True):
                entries = applied(entries, change)
        for name, inside in entries.items():
            if name.startswith("."):
                continue
            if isinstance(inside, File):
                yield prefix + name, choice.get((inside, 0), inside.now)
            else:
                yield prefix + name, None
                yield from self._tree(inside, choice, f"{prefix}{name}/")


def put(tree: Tree, folder: Path) -> None:
    """Make the disk hold a state of that folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in sorted(tree, key=lambda entry: entry[0]):
        if content is None:
            (folder.parent / name).mkdir()
        else:
            (folder.parent / name).write_bytes(content)
