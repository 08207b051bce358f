"""Sending publications to the Hugging Face hub, or writing into a folder what would be sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_core.errors import FoundryError, UsageError
from foundry_core.publishing.revisions import MAIN, Files
from foundry_core.storage.files import InPlaceFolder, write_file
from foundry_core.storage.manifest import file_digest

COLLECTION = "collection.json"
_PIECE = 1 << 24


@dataclass(frozen=True)
class Publication:
    """A repository as it will be.

    Attributes:
        repository: `namespace/name`.
        revisions: The files of each branch, by its name.
        note: A line about it, for a collection.
    """

    repository: str
    revisions: Mapping[str, Files]
    note: str = ""


@dataclass(frozen=True)
class Collection:
    """A list of repositories on the hub."""

    title: str
    namespace: str
    items: Sequence[tuple[str, str]]
    """Repository and note of each."""


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        UsageError: It is not `namespace/name`, or the hub would refuse it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is documented there

    try:
        if name.count("/") != 1:
            raise UsageError(f"{name} is not the name of a repository: give NAMESPACE/NAME, such as anna/lstm")
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name} is not the name of a repository: {' '.join(str(error).split())}") from error
    return name


def repository_of(prefix: str, name: str) -> str:
    """Return the repository of a run of a study: its name, as far as the hub takes it, after the prefix."""
    tame = re.sub(r"[^A-Za-z0-9_.]+|[.]{2,}", "-", name)
    return check_repository(f"{prefix}-{re.sub('-+', '-', tame).strip('-.')}")


def check_empty(folder: Path) -> None:
    """Raise UsageError if a folder to be written contains something: it would be taken for part of what is sent."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--dry-run {folder}: it is there and is not an empty folder: name another one")


def write_dry_run(folder: Path, publication: Publication, begin: Callable[[str], None]) -> None:
    """Write exactly what would be sent: a subfolder for each revision.

    Args:
        folder: Where to.
        publication: What.
        begin: Called with the name of each revision, for the progress.
    """
    for name, files in publication.revisions.items():
        begin(name)
        for file, content in files.items():
            InPlaceFolder(folder / name).write(file, content if isinstance(content, bytes) else _pieces(content))


def write_collection(folder: Path, collection: Collection, *, private: bool) -> None:
    """Write what would be asked of the hub for a collection."""
    items = [{"item_type": "model", "item_id": name, "note": note} for name, note in collection.items]
    content = {"title": collection.title, "namespace": collection.namespace, "private": private, "items": items}
    write_file(folder / COLLECTION, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def logged_in() -> Any:
    """Return the hub as the user who is logged in sees it.

    Raises:
        UsageError: Nobody is logged in.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UsageError("nobody is logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _errors("logging in"):
        api.whoami()
    return api


def send(api: Any, publication: Publication, begin: Callable[[str], None], *, private: bool = False) -> list[str]:
    """Send the files of each revision that the hub does not have yet, `main` last.

    A branch whose files are all there is left alone, so that an upload that was interrupted goes on. Other files that
    are there, and a repository that is public or private already, stay so.

    Args:
        api: An `HfApi`.
        publication: What to send.
        begin: Called with the name of each revision, for the progress.
        private: Make a repository that is new a private one.

    Returns:
        The names of the revisions of which something was sent.

    Raises:
        FoundryError: The hub refuses something, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd

    name, sent = publication.repository, []
    with _errors(name):
        api.create_repo(name, private=private, exist_ok=True)
        branches = {each.name for each in api.list_repo_refs(name).branches}
    for revision, files in sorted(publication.revisions.items(), key=lambda item: item[0] == MAIN):
        begin(revision)
        with _errors(f"{name}, revision {revision}"):
            if revision != MAIN and revision not in branches:
                api.create_branch(name, branch=revision, exist_ok=True)
            there = {each.path: each for each in api.list_repo_tree(name, revision=revision)}
            missing = {file: content for file, content in files.items() if not _same(there.get(file), content)}
            if missing:
                added = [CommitOperationAdd(file, content) for file, content in missing.items()]
                api.create_commit(name, added, commit_message=f"Upload {revision}", revision=revision)
                sent.append(revision)
    return sent


def send_collection(api: Any, collection: Collection, *, private: bool = False) -> str:
    """Make a collection, or add to one of that title what it lacks; return its address."""
    with _errors(f"the collection {collection.title}"):
        made = api.create_collection(collection.title, namespace=collection.namespace, private=private, exists_ok=True)
        for name, note in collection.items:
            api.add_collection_item(made.slug, name, "model", note=note, exists_ok=True)
    return str(made.url)


def _same(there: Any, content: Path | bytes) -> bool:
    """Check whether a file of the hub has this content: it lists the sha256 of large files, git's sha1 of others."""
    if there is None or not hasattr(there, "size"):  # a folder
        return False
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if there.size != size:
        return False
    if there.lfs is not None:
        digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_digest(content)
        return bool(there.lfs.sha256 == digest)
    sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for piece in (content,) if isinstance(content, bytes) else _pieces(content):
        sha1.update(piece)
    return bool(there.blob_id == sha1.hexdigest())


def _pieces(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn an error of the hub, or of the way to it, into one line."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        # The bases are the error of whichever library asks the hub, and OSError.
        if not isinstance(error, HfHubHTTPError.__bases__):
            raise
        reason = " ".join(str(error).split())
        hint = "; run the command again to go on" if not isinstance(error, HfHubHTTPError) else ""
        raise FoundryError(f"{what}: the Hugging Face hub: {type(error).__name__}: {reason}{hint}") from error
