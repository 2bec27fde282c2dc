"""Debian's chromium, driven over its debugging pipe: pages from files, at a width, light or dark.

Where it is missing and this is a Debian of root's, it is installed; where that fails, the tests skip and say why.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

INSTALL_SECONDS = 240.0
PATIENCE = 180.0
"""Seconds for an answer. Drawing thirty figures takes three; a machine with ten times as much to do takes a minute."""


class Browser:
    """One page of a headless chromium. Everything it complains about or asks the network for is kept."""

    def __init__(self, ask: int, answers: int) -> None:
        self._ask, self._answers = ask, answers
        self._buffer = b""
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file and wait until its script says that the figures are drawn."""
        phone = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.prefer(dark=dark)
        self.complaints.clear()
        self.requests.clear()
        self._call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.value("document.documentElement?.dataset.ready") != "yes":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page is not ready: {self.complaints}")
            time.sleep(0.05)

    def prefer(self, *, dark: bool) -> None:
        """The reader's colour scheme, also of a page that is open."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, or of its promise."""
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise AssertionError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        made = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(made["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
        raise AssertionError("unreachable")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._buffer:
                if not select.select([self._answers], [], [], PATIENCE)[0]:
                    raise TimeoutError("chromium does not answer")
                part = os.read(self._answers, 1 << 20)
                if not part:
                    raise RuntimeError("chromium has ended")
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(line)
            self._note(message.get("method"), message.get("params", {}))
            yield message

    def _note(self, method: str | None, facts: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"][:200])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(facts["exceptionDetails"])[:1000])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(facts["args"])[:1000])
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(facts["entry"]["text"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A headless chromium with a fresh profile; ends with the block.

    Network traffic of its own is switched off; what the page asks for is seen in `requests`.
    """
    program = find_or_install()
    ask_read, ask = os.pipe()
    answers, answers_write = os.pipe()

    def connect() -> None:  # chromium listens on descriptor 3 and answers on 4
        first, second = (fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (ask_read, answers_write))
        os.dup2(first, 3, inheritable=True)
        os.dup2(second, 4, inheritable=True)

    arguments = [
        program, "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--disable-sync", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
    ]  # fmt: skip
    process = subprocess.Popen(
        arguments, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(ask_read)
    os.close(answers_write)
    try:
        yield Browser(ask, answers)
    finally:
        os.close(ask)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers)


@cache
def find_or_install() -> str:
    """The program; skips where there is none and none can be had."""
    if found := shutil.which("chromium") or shutil.which("chromium-browser"):
        return found
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip("no chromium, and only root on Debian could install one")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    deadline = time.monotonic() + INSTALL_SECONDS
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        try:
            subprocess.run(
                [apt, *arguments], env=environment, check=True, capture_output=True, timeout=max(deadline - time.monotonic(), 1)
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"no chromium, and it could not be installed: {error}")
    return shutil.which("chromium") or pytest.skip("apt-get installed no chromium")
