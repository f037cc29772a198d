"""A stand-in for the hub: an HTTP server on this machine whose repositories are folders.

It answers what ``huggingface_hub`` 2.4 asks: which commit a revision is, the list of files, the
headers of a file, the file, or the rest of it.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it has, by repository, and what it was asked."""

    folders: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)  # of files, other than they have
    breaks_after: int | None = None  # bytes of the next large file, once
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that takes it for the hub."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub while it answers."""

    class Handler(_Handler):
        asked_of = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked_of: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.asked_of, self.path.partition("?")[0]
        repo = next((name for name in hub.folders if f"/{name}/" in path), None)
        if repo is None:
            return self._refuse(401, "RepoNotFound")
        hub.asked.append(f"{self.command} {path}")
        if repo in hub.gated and "/resolve/" in path:
            return self._refuse(403, "GatedRepo")
        if "/tree/" in path:
            return self._json([_entry(file, hub) for file in _files(hub.folders[repo])])
        if "/api/" in path:
            return self._json({"id": repo, "sha": COMMIT, "siblings": []})
        file = hub.folders[repo] / path.rpartition("/")[2]
        return self._file(file) if file.is_file() else self._refuse(404, "EntryNotFound")

    def _file(self, file: Path) -> None:
        hub, content = self.asked_of, file.read_bytes()
        headers = {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT}
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        sent = rest if self.command == "GET" else b""
        if sent and hub.breaks_after is not None and len(rest) > hub.breaks_after:
            hub.asked.append(f"broke {file.name}")
            sent, hub.breaks_after = rest[: hub.breaks_after], None
            self.close_connection = True
        self._send(206 if start else 200, sent, headers, len(rest))

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code}, 0)

    def _json(self, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self._send(200, body, {"Content-Type": "application/json"}, len(body))

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(file: Path, hub: Hub) -> dict[str, Any]:
    size = hub.sizes.get(file.name, file.stat().st_size)
    return {"type": "file", "path": file.name, "size": size, "oid": _digest(file)}
