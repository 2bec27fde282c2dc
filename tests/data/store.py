"""Stores on this machine: a web server that answers range requests, and what of S3 its clients ask for when they read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class Store(ThreadingHTTPServer):
    """A folder's files, at `http://127.0.0.1:PORT/` and, below a bucket's name, for S3.

    Attributes:
        folder: of the files.
        num_bytes: sent of each file.
        failing: answers with 503 before one more request is served.
        ranges: whether parts are sent; else whole files.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.failing, self.ranges = folder, 0, True
        self.num_bytes: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        path = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if self.server.failing > 0 or not path.is_file():
            self.server.failing -= self.server.failing > 0
            self.send_response(503 if path.is_file() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        first = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else len(content), len(content))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.end_headers()
        if with_content:
            self.server.num_bytes[path.name] += end - first
            self.wfile.write(content[first:end])

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test says what it wants to know."""


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """A store of a folder for as long as the block runs."""
    with Store(folder) as store:
        Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield store
        finally:
            store.shutdown()
