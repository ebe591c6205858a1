"""A model hub of a few data sets on this machine, for the real client.

Speaks the part of the hub's HTTP interface that ``huggingface_hub`` and
``datasets`` use to find a commit, list its files and read them, whole or in
ranges. Data sets are folders of files, one for each commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/datasets/(?P<id>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<commit>[^/]+)(?P<path>/.*)?)?"
)
FILE = re.compile(
    r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<commit>[^/]+)/(?P<path>.+)"
)


class LocalHub:
    """Serve commits of data sets; ``asked`` are the requests so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add_commit(
        self,
        hub_id: str,
        files: dict[str, str | bytes],
        commit: str | None = None,
    ) -> str:
        """A further commit of this data set, the newest now; its hash."""
        known = self.commits.setdefault(hub_id, [])
        made = hashlib.sha1(f"{hub_id} {len(known)}".encode()).hexdigest()
        commit = commit or made
        for name, text in files.items():
            path = self.folder / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = text.encode() if isinstance(text, str) else text
            path.write_bytes(data)
        known.append(commit)
        return commit

    def find(self, hub_id: str, commit: str) -> str | None:
        """The commit of that name; ``main`` is the newest."""
        known = self.commits.get(hub_id, [])
        if commit == "main":
            return known[-1] if known else None
        return commit if commit in known else None

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request of the hub's client."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Quiet; the requests are in ``asked``."""

    def do_GET(self) -> None:
        hub: LocalHub = self.server.hub
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.recursive = "recursive=true" in parts.query.lower()
        hub.asked.append(f"{self.command} {path}")
        if found := API.fullmatch(path):
            self._answer_api(hub, **found.groupdict())
        elif found := FILE.fullmatch(path):
            self._send_file(hub, **found.groupdict())
        else:
            self._refuse("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        self.asked_paths = form.get("paths", [])
        self.do_GET()

    def _answer_api(self, hub, id, what, commit, path) -> None:
        found = hub.find(id, commit or "main")
        if found is None:
            known = id in hub.commits
            self._refuse("RevisionNotFound" if known else "RepoNotFound")
            return
        root = hub.folder / found
        names = sorted(
            p.relative_to(root).as_posix()
            for p in root.rglob("*")
            if p.is_file()
        )
        if what == "paths-info":
            entries = [
                describe(root, n) for n in names if n in self.asked_paths
            ]
            self._send(json.dumps(entries))
            return
        if what == "tree":
            folder = root / (path or "").strip("/")
            found = folder.rglob("*") if self.recursive else folder.glob("*")
            entries = sorted(p.relative_to(root).as_posix() for p in found)
            self._send(json.dumps([describe(root, n) for n in entries]))
            return
        answer = {
            "id": id,
            "sha": found,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": n} for n in names],
        }
        self._send(json.dumps(answer))

    def _send_file(self, hub, id, commit, path) -> None:
        found = hub.find(id, commit)
        if found is None:
            known = id in hub.commits
            self._refuse("RevisionNotFound" if known else "RepoNotFound")
            return
        file = hub.folder / found / path
        if not file.is_file():
            self._refuse("EntryNotFound", {"X-Repo-Commit": found})
            return
        data = file.read_bytes()
        headers = {
            "X-Repo-Commit": found,
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(
            r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""
        )
        if not wanted:
            self._send(data, headers=headers)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(data[first : last + 1], 206, headers)

    def _refuse(self, code: str, headers: dict | None = None) -> None:
        headers = {"X-Error-Code": code, **(headers or {})}
        self._send("{}", 404, headers)

    def _send(
        self, body: str | bytes, status: int = 200, headers: dict | None = None
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def describe(root: Path, name: str) -> dict:
    """A file or folder of a commit, as the hub lists it."""
    if (root / name).is_dir():
        oid = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "path": name, "size": 0, "oid": oid}
    data = (root / name).read_bytes()
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}
