"""A hub on the loopback: the endpoints of huggingface.co that `huggingface_hub` 2.4 and `datasets` 5.2 ask when a data
set is streamed and a folder is uploaded (repositories, trees, files with ranges, pre-upload, LFS, commits).

Large files come by LFS, as with HF_HUB_DISABLE_XET=1; the protocol of Xet is not imitated. Clients read HF_ENDPOINT as
they are imported, so they run in a process of their own, with `Hub.environment`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
OWNER, READER = "hf_owner", "hf_reader"  # tokens: of who may write, and of who may only read what is public


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # "models/OWNER/NAME", "datasets/OWNER/NAME"
        self.large: dict[str, bytes] = {}  # LFS: by SHA-256
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path, token: str | None = OWNER) -> dict[str, str]:
        """For a process that asks this hub, and none else; `home` is its cache."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return kept | own | {"PYTHONPATH": str(Path(__file__).parents[1])} | ({"HF_TOKEN": token} if token else {})

    def add(self, name: str, folder: Path, private: bool = False) -> None:
        """A repository of the files below a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[name] = Repository(private, files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path, query = self._asked()
        if found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if repository := self._repository(found[1]):
                names = [{"rfilename": name} for name in repository.files]
                name = found[1].partition("/")[2]
                about = {"_id": SHA, "id": name, "sha": SHA, "private": repository.private, "siblings": names}
                self._answer(about | {"tags": [], "downloads": 0, "likes": 0, "gated": False})
        elif found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            if repository := self._repository(found[1]):
                self._answer(tree(repository, found[2], "true" in query.get("recursive", ["false"])[0].lower()))
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.*)", path):
            if repository := self._repository(f"{found[1] or 'models/'}{found[2]}"):
                self._file(repository, found[3])
        else:
            self._answer({"error": f"no {path}"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        hub, (path, _), body = self.server, self._asked(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            wrong = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, mit, ...]'}] * wrong
            self._answer({"error": "Bad request", "errors": errors, "warnings": []}, 400 if wrong else 200)
        elif found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/paths-info/[^/]+", path):
            if repository := self._repository(found[1]):
                wanted = parse_qs(body.decode()).get("paths", [])
                self._answer([entry for entry in tree(repository, "", True) if entry["path"] in wanted])
        elif found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/preupload/[^/]+", path):
            if self._may_write(found[1]):
                names = [file["path"] for file in json.loads(body)["files"]]
                large = {name: name.endswith(".safetensors") for name in names}
                modes = [{"path": n, "uploadMode": "lfs" if large[n] else "regular"} for n in names]
                self._answer({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            href = lambda one: {"upload": {"href": f"{hub.url}/large/{one['oid']}"}}  # noqa: E731
            self._answer({"transfer": "basic", "objects": [one | {"actions": href(one)} for one in wanted]})
        elif found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/commit/[^/]+", path):
            if self._may_write(found[1]):
                self._commit(hub.repositories[found[1]], body)
                place = f"{hub.url}/{found[1].partition('/')[2]}/commit/{SHA}"
                self._answer({"commitUrl": place, "commitOid": SHA, "pullRequestUrl": None})
        else:
            self._answer({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        path, _ = self._asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == path.rpartition("/")[2]
        self.server.large[path.rpartition("/")[2]] = content
        self._answer({})

    # ------------------------------------------------------------------------------------------------ parts

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        split = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {split.path}")
        return unquote(split.path), parse_qs(split.query)

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _repository(self, name: str) -> Repository | None:
        """None where it has been answered: there is none, or this token may not know of it."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and self._token != OWNER):
            status = 404 if self._token else 401  # as the hub: without a token it does not tell which of both
            self._answer({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _may_write(self, name: str) -> bool:
        if self._repository(name) and self._token != OWNER:
            self._answer({"error": "You don't have the rights"}, 403)
        return self._token == OWNER and name in self.server.repositories

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('type') or 'model'}s/{wanted['organization']}/{wanted['name']}"
        if self._token not in (OWNER, READER):
            self._answer({"error": "Invalid username or password."}, 401)
        elif self._token != OWNER:
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif name in self.server.repositories:
            there = {"url": f"{self.server.url}/{wanted['organization']}/{wanted['name']}"}
            self._answer({"error": "You already created this model repo"} | there, 409)
        else:
            self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
            self._answer({"url": f"{self.server.url}/{wanted['organization']}/{wanted['name']}"})

    def _commit(self, repository: Repository, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                repository.files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                repository.files.pop(line["value"]["path"])

    def _file(self, repository: Repository, name: str) -> None:
        content = repository.files.get(name)
        if content is None:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        more = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            more["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self._send(content[first : last + 1], 206, more)
        return self._send(content, 200, more)

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        message = {"X-Error-Message": content["error"]} if status >= 400 else {}
        more = {"Content-Type": "application/json"} | message | (headers or {})
        self._send(json.dumps(content).encode(), status, more)

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None: ...


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def tree(repository: Repository, under: str, recursive: bool) -> list[dict[str, Any]]:
    below = {name: content for name, content in repository.files.items() if not under or name.startswith(f"{under}/")}
    folders = {str(parent) for name in below for parent in Path(name).parents} - {".", under}
    entries = [{"type": "directory", "path": name, "size": 0, "oid": oid(name.encode())} for name in sorted(folders)]
    entries += [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in sorted(below.items())]
    return [entry for entry in entries if recursive or str(Path(entry["path"]).parent) == (under or ".")]
