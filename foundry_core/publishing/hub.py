"""Sending publications to the Hugging Face hub, or writing into a folder what would be sent."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_core.errors import FoundryError, UsageError, warn
from foundry_core.publishing.revisions import MAIN, ONLY_FOR_TRAINING, Files
from foundry_core.publishing.study import Collection
from foundry_core.storage.files import InPlaceFolder, write_file
from foundry_core.storage.manifest import file_digest, refuse_inside

COLLECTION = "collection.json"
_PIECE = 1 << 24
_NEW_TOKEN = "run `hf auth login` with a token that may write there, from https://huggingface.co/settings/tokens"
_GOES_ON = "nothing is lost: run the same command again, later"


@dataclass(frozen=True)
class Publication:
    """A repository as it will be.

    Attributes:
        repository: `namespace/name`.
        revisions: What returns the files of each branch, by its name: they may take memory.
    """

    repository: str
    revisions: Mapping[str, Callable[[], Files]]


def check_repository(name: str, what: str = "a repository", example: str = "anna/lstm") -> str:
    """Return the name of a repository, or of another thing on the hub.

    Raises:
        UsageError: It is not `namespace/name`, or the hub would refuse it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is documented there

    try:
        if name.count("/") != 1:
            raise UsageError(f"{name} is not the name of {what}: give NAMESPACE/NAME, such as {example}")
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name} is not the name of {what}: {' '.join(str(error).split())}") from error
    return name


def check_language(code: str) -> str:
    """Return the code of a language.

    Raises:
        UsageError: The hub would refuse it.
    """
    if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", code):
        raise UsageError(f"--language {code}: give the code of ISO 639, such as en, or multilingual")
    return code


def repository_of(prefix: str, name: str) -> str:
    """Return the repository of a run of a study: its name, as far as the hub takes it, after the prefix."""
    tame = re.sub(r"[^A-Za-z0-9_.]+|[.]{2,}", "-", name)
    return check_repository(f"{prefix}-{re.sub('-+', '-', tame).strip('-.')}")


def check_empty(folder: Path) -> None:
    """Raise UsageError if a folder to be written contains something, or lies in a checkpoint.

    What it contains would be taken for part of what is sent.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--dry-run {folder}: it is there and is not an empty folder: name another one")
    refuse_inside(folder)


def write_dry_run(folder: Path, publication: Publication, begin: Callable[[str], None]) -> None:
    """Write exactly what would be sent: a subfolder for each revision.

    Args:
        folder: Where to.
        publication: What.
        begin: Called with the name of each revision, for the progress.
    """
    for name, files in publication.revisions.items():
        begin(name)
        for file, content in files().items():
            InPlaceFolder(folder / name).write(file, content if isinstance(content, bytes) else _pieces(content))


def write_collection(folder: Path, collection: Collection, *, private: bool) -> None:
    """Write what would be asked of the hub for a collection."""
    items = [{"item_type": "model", "item_id": name, "note": note} for name, note in collection.items]
    content = {
        "title": collection.title,
        "namespace": collection.namespace,
        "description": collection.description,
        "private": private,
        "items": items,
    }
    write_file(folder / COLLECTION, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def logged_in() -> Any:
    """Return the hub as the user who is logged in sees it.

    Raises:
        UsageError: Nobody is logged in, or with a token that may not write.
        FoundryError: The hub does not accept the token, or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is documented there

    if get_token() is None:
        raise UsageError("nobody is logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _errors("logging in"):
        user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UsageError(f"the token of {user.get('name')} on the Hugging Face hub may only read: {_NEW_TOKEN}")
    disable_progress_bars()  # one for each file, through ours
    return api


def send(api: Any, publication: Publication, begin: Callable[[str], None], *, private: bool = False) -> list[str]:
    """Send the files of each revision that the hub does not have yet, `main` last.

    A branch whose files are all there is left alone, so that an upload that was interrupted goes on. Of one that
    changes, a state to go on from that is not sent again is removed. Other files that are there, and a repository that
    is public or private already, stay so.

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
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, sent = publication.repository, []
    with _errors(name):
        api.create_repo(name, private=private, exist_ok=True)
        branches = {each.name for each in api.list_repo_refs(name).branches}
    for revision, files_of in sorted(publication.revisions.items(), key=lambda item: item[0] == MAIN):
        begin(revision)
        files = files_of()
        with _errors(f"{name}, revision {revision}"):
            is_new = revision != MAIN and revision not in branches
            if is_new:
                api.create_branch(name, branch=revision, exist_ok=True)
            there = {each.path: each for each in api.list_repo_tree(name, revision=revision)}
            missing = {file: content for file, content in files.items() if not _same(there.get(file), content)}
            # A branch begins as a copy of main. There, too, a state to go on from does not outlive the files that its
            # manifest lists: with it a download would be taken for a damaged checkpoint.
            changes = is_new or bool(missing)
            surplus = [file for file in ONLY_FOR_TRAINING if changes and file in there and file not in files]
            if missing or surplus:
                added = [CommitOperationAdd(file, content) for file, content in missing.items()]
                operations = [*added, *(CommitOperationDelete(file) for file in surplus)]
                api.create_commit(name, operations, commit_message=f"Upload {revision}", revision=revision)
                sent.append(revision)
    return sent


def send_collection(api: Any, collection: Collection, *, private: bool = False) -> str:
    """Make a collection, or add to one of that title what it lacks; return its address."""
    with _errors(f"the collection {collection.title}"):
        made = api.create_collection(
            collection.title,
            namespace=collection.namespace,
            description=collection.description,
            private=private,
            exists_ok=True,
        )
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
    """Turn an error of the hub, or of the way to it, into one line with the way out; warnings, too.

    Raises:
        FoundryError: Instead of the error.
    """
    from huggingface_hub.errors import HfHubHTTPError

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except Exception as error:
            # The bases are the error of whichever library asks the hub, and OSError. A card that the hub refuses, or
            # an answer that is not its own, is a ValueError; the library that sends large files raises RuntimeErrors.
            if not isinstance(error, (*HfHubHTTPError.__bases__, ValueError, RuntimeError)):
                raise
            raise FoundryError(f"{what}: {_explained(error)}") from error
    for each in warned:
        if issubclass(each.category, UserWarning):
            warn(f"{what}: the Hugging Face hub: {' '.join(str(each.message).split())}")


def _explained(error: Exception) -> str:
    """Return what is wrong and what to do, by the status with which the hub has answered."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot read {error.filename}: {error.strerror}"
    reason = " ".join(str(getattr(error, "server_message", None) or error).split()) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, which forbids the Hugging Face hub: unset it"
    if status == 401:
        return f"the Hugging Face hub does not accept your token: {_NEW_TOKEN}"
    if status in (403, 404):
        return f"the Hugging Face hub refuses: {reason}: name a namespace that is yours, or {_NEW_TOKEN}"
    if status is not None and (status == 429 or status >= 500):
        return f"the Hugging Face hub fails with {status}: {reason}; {_GOES_ON}"
    if status is not None or isinstance(error, ValueError):
        return f"the Hugging Face hub refuses: {reason}"
    return f"cannot reach {constants.ENDPOINT}: {reason}; {_GOES_ON}"
