"""The Hub on the loopback address: repositories with branches, commits, rights and files of git and of LFS.

It speaks as much of the Hub's HTTP interface as huggingface_hub, transformers and PEFT use to push and to load.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import transformers.utils.hub
from huggingface_hub import constants

TOKEN = "hf_PlantedTokenThatNobodyMaySee123"
READ_TOKEN = "hf_AnotherTokenThatMayOnlyReadX"
_LFS = (".safetensors", ".png", ".bin")


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository; `branches` lists the commits of each, the first one first."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    read_only: bool = False

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commit(revision).files

    def commit(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, revision: str, message: str, files: dict[str, bytes]) -> Commit:
        commits = self.branches.setdefault(revision, [])
        seed = f"{revision} {len(commits)} {message} {sorted(files)}".encode()
        commits.append(Commit(hashlib.sha1(seed).hexdigest(), message, files))
        return commits[-1]


@dataclass
class Hub:
    """What the server holds, and how it is to fail.

    Attributes:
        tokens: token -> its role.
        uploads: LFS objects that were sent, in their order.
        fails: where a request fails whose method and path match: pattern -> a status, or None to drop the connection.
        asked: method and path of each request.
        private: whether a new repository is private where the request does not say it, as an owner may set it.
    """

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=lambda: {TOKEN: "write", READ_TOKEN: "read"})
    organizations: dict[str, str] = field(default_factory=lambda: {"ours": "write", "theirs": "read"})
    uploads: list[str] = field(default_factory=list)
    fails: dict[str, int | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    private: bool = False

    def new(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private=private)
        repo.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})})
        return repo

    def take(self, name: str, folder: str | Path) -> Repo:
        """Makes a repository of a folder's files."""
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return self.new(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.asked.append(f"{self.command} {path}")
        try:
            for pattern, status in self.hub.fails.items():
                if re.search(pattern, f"{self.command} {path}"):
                    if status is None:
                        self.close_connection = True
                        self.connection.close()
                        return
                    raise _Refused(status, "as the test says")
            self._answer(path, body)
        except _Refused as refused:
            self._send(
                json.dumps({"error": refused.message}).encode(),
                refused.status,
                **({"X-Error-Code": refused.code} if refused.code else {}),
                **{"X-Error-Message": refused.message},
            )

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, **{"Content-Type": "application/json"})

    def _role(self) -> str | None:
        """The role of the request's token; None without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        role, repo = self._role(), self.hub.repos.get(name)
        if repo is None or (repo.private and role is None):
            raise _Refused(404 if role else 401, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(name.partition("/")[0], role)
            if repo.read_only:
                raise _Refused(403, f"You have no right to write to {name}")
        return repo

    def _may_write(self, owner: str, role: str | None) -> None:
        if role is None:
            raise _Refused(401, "Log in")
        if role != "write" or (owner != "me" and self.hub.organizations.get(owner) != "write"):
            raise _Refused(403, f"You have no right to write under {owner}")

    def _answer(self, path: str, body: bytes) -> None:
        if path == "/":
            return self._send(b"")
        if path == "/api/whoami-v2":
            if (role := self._role()) is None:
                raise _Refused(401, "Invalid username or password.")
            orgs = [{"name": name, "roleInOrg": right} for name, right in self.hub.organizations.items()]
            return self._json({"type": "user", "name": "me", "orgs": orgs, "auth": {"accessToken": {"role": role}}})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/_lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.hub.objects[found[1]] = body
            self.hub.uploads.append(found[1])
            return self._send(b"")
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._lfs(found[1], json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._of_repo(found[1], found[2] or "", body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3])
        raise _Refused(404, f"no such address: {path}")

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        self._may_write(name.partition("/")[0], self._role())
        made = {"url": f"{self.hub.address}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            return self._json({**made, "error": "You already created this model repo"}, 409)
        visibility = wanted.get("visibility") or {True: "private", False: "public"}.get(wanted.get("private"))
        self.hub.new(name, private=self.hub.private if visibility is None else visibility == "private")
        return self._json(made)

    def _lfs(self, name: str, wanted: dict[str, Any]) -> None:
        self._repo(name, write=True)
        objects = []
        for one in wanted["objects"]:
            known = one["oid"] in self.hub.objects
            upload = {"upload": {"href": f"{self.hub.address}/_lfs/{one['oid']}", "header": {}}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if known else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _of_repo(self, name: str, rest: str, body: bytes) -> None:
        kind, _, tail = rest.partition("/")
        repo = self._repo(name, write=kind in ("preupload", "commit", "branch") or rest == "auth-check/write")
        if kind in ("", "revision"):
            commit = repo.commit(tail or "main")
            files = [{"rfilename": path} for path in commit.files]
            return self._json(
                {"id": name, "modelId": name, "sha": commit.oid, "private": repo.private, "siblings": files, "tags": []}
            )
        if kind == "auth-check":
            return self._json({})
        if kind == "tree":
            revision, _, folder = tail.partition("/")
            return self._tree(repo, revision, folder)
        if kind == "refs":
            refs = [
                {"name": one, "ref": f"refs/heads/{one}", "targetCommit": repo.commit(one).oid} for one in repo.branches
            ]
            return self._json({"branches": refs, "tags": [], "converts": []})
        if kind == "branch":
            if tail in repo.branches:
                raise _Refused(409, "Reference already exists")
            repo.branches[tail] = [repo.commit("main")]
            return self._json({})
        if kind == "preupload":
            return self._preupload(repo, tail, json.loads(body))
        if kind == "commit":
            return self._commit(name, repo, tail, body)
        raise _Refused(404, f"no such address: {rest}")

    def _tree(self, repo: Repo, revision: str, folder: str) -> None:
        files = repo.files(revision)
        inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        self._json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
                for path, content in inside.items()
            ]
        )

    def _preupload(self, repo: Repo, revision: str, wanted: dict[str, Any]) -> None:
        there = repo.files(revision)
        self._json(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(_LFS) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(one["path"], there[one["path"]]) if one["path"] in there else None,
                    }
                    for one in wanted["files"]
                ]
            }
        )

    def _commit(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        files, message = dict(repo.files(revision)), ""
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, f"unknown operation {key}")
        commit = repo.add(revision, message, files)
        url = f"{self.hub.address}/{name}/commit/{commit.oid}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._repo(name).commit(revision)
        if path not in commit.files:
            self._send(b"", 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid})
            return
        content = commit.files[path]
        self._send(content, **{"X-Repo-Commit": commit.oid, "ETag": f'"{_oid(path, content)}"'})


def _oid(path: str, content: bytes) -> str:
    """What the Hub tells contents apart by: the hash of git, or that of LFS."""
    if path.endswith(_LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Runs a Hub."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def variables(hub: Hub, home: Path) -> dict[str, str]:
    """The environment of a process that is to use a Hub."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[Hub]:
    """A Hub that this process is logged in to, as if it had been started with its variables."""
    home = tmp_path_factory.mktemp("hf-home")
    with serve_hub() as served:
        for name, value in variables(served, home).items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "ENDPOINT": served.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", served.address)
        # It remembers the address that it has asked first.
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        yield served
