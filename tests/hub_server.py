"""A Hugging Face hub on 127.0.0.1: as much of its protocol as publishing, `from_pretrained` and `hf download` use.

HF_ENDPOINT leads the hub's own client here, so that nothing of it or of ours is replaced.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ROLES = {"hf_writes": "write", "hf_reads": "read"}
"""What the bearer of a token may do."""
_NAME = "([^/]+/[^/]+)"
_ROUTES: dict[str, Callable[..., Any]] = {}


class Refused(Exception):  # noqa: N818
    """An answer that is not 200: status, content and, if it has one, the code of the error."""


class Hub:
    """What is on the hub.

    Attributes:
        repositories: The files of each branch of each repository.
        large: The content of large files by sha256.
        commits: Repository, branch and number of changes of each commit, in order.
        collections: Each collection by its slug.
        failures: Requests that fail once: a pattern of `METHOD /path`, a status and a reason.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, str, int]] = []
        self.collections: dict[str, dict[str, Any]] = {}
        self.failures: list[tuple[str, int, str]] = []
        self.endpoint = ""

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Return the commit and the files of a branch, or of a commit."""
        for branch, files in self.repositories.get(name, {}).items():
            commit = sha1(repr(sorted(files.items())).encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        raise Refused(404, {"error": "Not found"}, "RevisionNotFound")


def route(pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function answer the requests of a pattern, given the hub, the body and the groups of the pattern."""
    return lambda function: _ROUTES.setdefault(pattern, function)


@route("POST /api/repos/create")
def create(hub: Hub, asked: Any) -> Any:
    name = f"{asked['organization']}/{asked['name']}"
    if asked["organization"] != "anna":
        reason = f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"'
        raise Refused(403, {"error": reason})
    if name in hub.repositories:
        raise Refused(409, {"url": f"{hub.endpoint}/{name}"})
    hub.repositories[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
    return {"url": f"{hub.endpoint}/{name}"}


@route(f"GET /api/models/{_NAME}/refs")
def refs(hub: Hub, asked: Any, name: str) -> Any:
    branches = [{"name": each, "ref": each, "targetCommit": ""} for each in hub.repositories[name]]
    return {"branches": branches, "converts": [], "tags": []}


@route(f"POST /api/models/{_NAME}/branch/(.+)")
def branch(hub: Hub, asked: Any, name: str, revision: str) -> Any:
    hub.repositories[name].setdefault(revision, dict(hub.repositories[name]["main"]))
    return {}


@route(f"GET /api/models/{_NAME}/tree/([^/]+)")
def tree(hub: Hub, asked: Any, name: str, revision: str) -> Any:
    found = []
    for path, content in hub.revision(name, revision)[1].items():
        large = {"lfs": {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
        blob = sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        facts = {"type": "file", "path": path, "size": len(content), "oid": blob}
        found.append(facts | (large if path.endswith(".safetensors") else {}))
    return found


@route("POST /api/validate-yaml")
def validate(hub: Hub, asked: Any) -> Any:
    if not asked["content"].startswith("---\nlicense: "):
        raise Refused(400, {"errors": [{"message": '"license" is required'}]})
    return {"errors": [], "warnings": []}


@route(f"POST /api/models/{_NAME}/preupload/.+")
def preupload(hub: Hub, asked: Any, name: str) -> Any:
    modes = {True: "lfs", False: "regular"}
    paths = [each["path"] for each in asked["files"]]
    return {
        "files": [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in paths]
    }


@route(f"POST /{_NAME}[.]git/info/lfs/objects/batch")
def batch(hub: Hub, asked: Any, name: str) -> Any:
    upload = {each["oid"]: {"upload": {"href": f"{hub.endpoint}/lfs/{each['oid']}"}} for each in asked["objects"]}
    objects = [
        each | ({} if each["oid"] in hub.large else {"actions": upload[each["oid"]]}) for each in asked["objects"]
    ]
    return {"transfer": "basic", "objects": objects}


@route("PUT /lfs/(.+)")
def upload(hub: Hub, content: bytes, oid: str) -> Any:
    assert sha256(content).hexdigest() == oid
    hub.large[oid] = content
    return {}


@route(f"POST /api/models/{_NAME}/commit/(.+)")
def commit(hub: Hub, body: bytes, name: str, revision: str) -> Any:
    files, (_, *changes) = hub.repositories[name][revision], map(json.loads, body.splitlines())
    for change in changes:
        path, value = change["value"]["path"], change["value"]
        if change["key"] == "deletedFile":
            del files[path]
        else:
            files[path] = hub.large[value["oid"]] if change["key"] == "lfsFile" else base64.b64decode(value["content"])
    hub.commits.append((name, revision, len(changes)))
    return {"commitUrl": f"{hub.endpoint}/{name}/commit/0", "commitOid": "0"}


@route(f"GET /api/models/{_NAME}(?:/revision/(.+))?")
def info(hub: Hub, asked: Any, name: str, revision: str | None) -> Any:
    sha, files = hub.revision(name, revision or "main")
    return {"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]}


@route("POST /api/collections")
def collect(hub: Hub, asked: Any) -> Any:
    slug, owner = f"{asked['namespace']}/{asked['title']}-0", {"name": asked["namespace"]}
    if slug in hub.collections:
        raise Refused(409, {"slug": slug})
    facts = {"lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "theme": "blue", "upvotes": 0}
    hub.collections[slug] = asked | facts | {"slug": slug, "owner": owner, "items": []}
    return hub.collections[slug]


@route(f"GET /api/collections/{_NAME}")
def collection(hub: Hub, asked: Any, slug: str) -> Any:
    return hub.collections[slug]


@route(f"POST /api/collections/{_NAME}/items")
def add(hub: Hub, asked: Any, slug: str) -> Any:
    items, name = hub.collections[slug]["items"], asked["item"]["id"]
    if any(each["id"] == name for each in items):
        raise Refused(409, {"error": "it is there"})
    items.append({"_id": name, "id": name, "type": "model", "position": len(items), "note": {"text": asked["note"]}})
    return hub.collections[slug]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def respond(self) -> None:
        """Answer a request of any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers = 200, dict[str, str]()
        try:
            content = self.found(unquote(urlsplit(self.path).path), body, headers)
        except Refused as refused:
            status, content, *code = refused.args
            headers = dict(zip(("X-Error-Code",), code, strict=False))
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815

    def found(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        request = f"{self.command} {path}"
        for failure in self.hub.failures:
            if re.fullmatch(failure[0], request):
                self.hub.failures.remove(failure)
                raise Refused(failure[1], {"error": failure[2]})
        role = ROLES.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if role is None and (path == "/api/whoami-v2" or self.command == "POST"):
            raise Refused(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "anna", "auth": {"accessToken": {"role": role}}}
        if match := re.fullmatch(f"/{_NAME}/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            commit, files = self.hub.revision(name, revision)
            if file not in files:
                raise Refused(404, {}, "EntryNotFound")
            headers |= {"X-Repo-Commit": commit, "ETag": f'"{sha256(files[file]).hexdigest()}"'}
            return files[file]
        is_json = "json" in (self.headers.get("Content-Type") or "") and "ndjson" not in self.headers["Content-Type"]
        for pattern, function in _ROUTES.items():
            if match := re.fullmatch(pattern, request):
                return function(self.hub, json.loads(body) if is_json else body, *match.groups())
        raise Refused(404, {"error": "Not found"})


@contextmanager
def served() -> Iterator[Hub]:
    """Serve a hub that is empty."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
