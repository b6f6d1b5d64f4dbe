"""A small server that speaks the part of the Hub's API that downloads need, faults included."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890" * 4
OLD_COMMIT = "abcdef0123" * 4
LARGE = (".safetensors", ".bin")  # kept outside git, with a sha256


@dataclass
class Hub:
    """Files of the one repository `org/m` by revision, and what goes wrong with it."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    old_files: dict[str, bytes] = field(default_factory=dict)  # at OLD_COMMIT
    token: str = ""  # demanded if not empty
    gated: bool = False
    # file or "api" -> what happens to its next GETs: a status, "cut" (half, then the connection
    # ends) or "corrupt" (one wrong byte)
    faults: dict[str, list[int | str]] = field(default_factory=lambda: defaultdict(list))
    log: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.revisions.get(revision, revision)
        known = {COMMIT: self.files, OLD_COMMIT: self.old_files}
        return (commit, known[commit]) if commit in known else None

    def asked(self, method: str, name: str) -> list[str]:
        """Range header of each request for a file."""
        return [span for m, path, span in self.log if m == method and path.endswith(f"/{name}")]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, object]:
    sha256 = hashlib.sha256(content).hexdigest()
    lfs = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 1}
    facts = {"size": len(content), "blobId": git_sha1(content), "oid": git_sha1(content)}
    return {**facts, **({"lfs": lfs} if name.endswith(LARGE) else {})}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.refuse(401, "RepoNotFound")
        elif match := re.fullmatch(r"/api/models/org/m(?:/(revision|tree)/([^/]+))?", path):
            self.api(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/org/m/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[2])
        else:
            self.refuse(404, "RepoNotFound")

    def fault(self, name: str) -> int | str | None:
        waiting = self.hub.faults.get(name, [])
        return waiting.pop(0) if waiting and self.command == "GET" else None

    def api(self, kind: str | None, revision: str) -> None:
        fault, found = self.fault("api"), self.hub.at(revision)
        if isinstance(fault, int):
            return self.refuse(fault, "")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        if kind == "tree":
            body: object = [
                {"type": "file", "path": name, **entry(name, content)}
                for name, content in files.items()
            ]
        else:
            siblings = [{"rfilename": name, **entry(name, c)} for name, c in files.items()]
            body = {"_id": "1", "id": "org/m", "sha": commit, "siblings": siblings}
        self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, revision: str, name: str) -> None:
        found = self.hub.at(revision)
        if self.hub.gated:
            return self.refuse(403, "GatedRepo")
        if found is None or name not in found[1]:
            return self.refuse(404, "EntryNotFound")
        commit, content = found[0], found[1][name]
        sha = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)
        headers = {"ETag": f'"{sha}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        fault = self.fault(name)
        if isinstance(fault, int):
            return self.refuse(fault, "")
        status, start = 200, 0
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send(status, body, headers, cut=fault == "cut")

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of this machine."""
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
