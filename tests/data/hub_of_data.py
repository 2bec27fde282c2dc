"""A hub of the tests' own with one repository of data, as far as the real client asks it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "someone/Photos"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubOfData

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        prefix = f"/datasets/{NAME}/resolve/"
        if path.startswith(prefix):
            _, _, name = path.removeprefix(prefix).partition("/")
            content = self.hub.files.get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha256(content).hexdigest()
                self._send(200, content, {"X-Repo-Commit": self.hub.commit, "ETag": f'"{etag}"'})
        elif path.startswith(f"/api/datasets/{NAME}"):
            self._send(200, json.dumps(self._api(path.removeprefix(f"/api/datasets/{NAME}"))).encode(), {})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _api(self, path: str) -> Any:
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.hub.files.items()
        ]
        folders = sorted({name.rpartition("/")[0] for name in self.hub.files if "/" in name})
        entries = [*files, *({"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders)]
        if path.startswith("/tree/"):
            inside = "/".join(path.split("/")[3:])
            return [one for one in entries if not inside or str(one["path"]).startswith(f"{inside}/")]
        if path.startswith("/paths-info/"):
            asked = json.loads(self.body)["paths"]
            return [one for one in entries if one["path"] in asked]
        return {
            "id": NAME,
            "sha": self.hub.commit,
            "siblings": [{"rfilename": name} for name in self.hub.files],
            "private": False,
        }

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


class HubOfData:
    """What the hub has, and what it was asked.

    Attributes:
        address: for HF_ENDPOINT.
        files: of the repository, by path.
        commit: that all of them are of.
        asked: requests so far.
    """

    def __init__(self, files: dict[str, bytes], commit: str, address: str) -> None:
        self.files, self.commit, self.address = files, commit, address
        self.asked: list[str] = []


@contextmanager
def serving(folder: Path, commit: str) -> Iterator[HubOfData]:
    """Serve the files of a folder as the repository `NAME`."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub = HubOfData({".gitattributes": b"", **files}, commit, f"http://127.0.0.1:{server.server_port}")
        handler.hub = hub  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
