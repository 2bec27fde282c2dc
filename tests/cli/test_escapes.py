"""Promises of what is printed: nothing in other people's files steers the terminal, whatever command shows it."""

from __future__ import annotations

import ast
import json
import os
import pty
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tclx.runs import RunFolder, RunState, Status
from tests.cli.test_cli import Ended
from tests.conftest import PROJECT
from tests.launch.toy import write_spec
from tests.report.test_results import make_run
from tests.test_terminal import steers

PAYLOADS = {
    "colour": "\x1b[31m", "title": "\x1b]0;owned\x07", "clipboard": "\x1b]52;c;b3duZWQ=\x07", "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\", "c1-csi": "\x9b31m", "c1-osc": "\x9d0;owned\x9c", "bell": "\x07",
    "return": "\rerror: none", "backspace": "\x08\x08\x08\x08fine", "delete": "\x7f", "next-line": "\x85finished",
    "override": "\u202egnp.exe", "isolate": "\u2066a\u2069", "mark": "\u200f", "no-width": "a\u200bb", "bom": "\ufeff",
    "line": "\u2028finished", "half": "\ud83d", "tags": "\U000e0041\U000e0042",
}  # fmt: skip
"""What a file may hold where a name, a path or a reason is expected."""

MARKUP = "[red]not a colour[/red]"


def _run(folder: Path, payload: str, status: Status = "failed") -> RunFolder:
    """A run folder that somebody else wrote."""
    run = make_run(folder / "runs", name=f"MARK{payload.replace('/', '')}" if _is_a_name(payload) else "MARK", r_mean=1.0)
    _write(run.state, RunState(status, step=1, total_steps=2, reason=f"MARK{payload}").__dict__)
    _write(run.spec, {**json.loads(run.spec.read_text()), "name": f"MARK{payload}"})
    (run.path / "logs").mkdir()
    run.log(0).write_bytes(f"MARK{payload}\n".encode(errors="surrogatepass"))
    run.metrics.write_text(json.dumps({"step": 1, f"MARK{payload}": 1.0}) + "\n")
    return run


def _is_a_name(payload: str) -> bool:
    """Whether a file can be called so: half a pair has no bytes."""
    try:
        os.fsencode(payload)
    except UnicodeEncodeError:
        return False
    return True


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value))


def _of_a_run(*command: str, named: bool = False, status: Status = "failed") -> Callable[[Path, str], list[str | Path]]:
    def arguments(folder: Path, payload: str) -> list[str | Path]:
        run = _run(folder, payload, status)
        return [*command, *([run.path] if named else []), "--runs-dir", folder / "runs"]

    return arguments


def _rows(folder: Path, *rows: dict[str, str]) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows))
    data = {"train": {"source": "files", "form": "pretrain", "files": ["rows.json"], "image_root": "."}}
    return write_spec(folder, data=data, evaluation={})


def _image(folder: Path, payload: str) -> list[str | Path]:
    return ["data", "check", _rows(folder, {"image": f"MARK{payload}.png", "caption": "a dog"})]


def _key(folder: Path, payload: str) -> list[str | Path]:
    return ["plan", "--quick", _rows(folder, {f"MARK{payload}": "x.png", "caption": "a dog"})]


def _tensor(folder: Path, payload: str) -> list[str | Path]:
    import torch  # seconds; only here is it needed

    torch.save({"model": {f"MARK{payload}": torch.zeros(1)}}, folder / "weights.pth")
    return ["weights", "import", folder / "weights.pth", folder / "out.safetensors"]


def _spec_key(folder: Path, payload: str) -> list[str | Path]:
    (folder / "bad.yaml").write_text(f"{json.dumps(f'MARK{payload}')}: 1\n")
    return ["plan", "--quick", folder / "bad.yaml"]


COMMANDS: dict[str, Callable[[Path, str], list[str | Path]]] = {
    "status": _of_a_run("status"),
    "status RUN": _of_a_run("status", named=True),
    "status --json": _of_a_run("status", "--json"),
    "results": _of_a_run("results", status="finished"),
    "results --json": _of_a_run("results", "--json", status="finished"),
    "logs": _of_a_run("logs", named=True),
    "data check": _image,
    "plan, a key of the annotations": _key,
    "plan, a key of the spec": _spec_key,
    "weights import": _tensor,
}

CAMPAIGN = [(command, payload) for command in COMMANDS for payload in PAYLOADS]


def shown(command: str, payload: str, folder: Path) -> str:
    """What the command prints of a file with the payload in it."""
    ended = Ended(*COMMANDS[command](folder, payload))
    return ended.out + ended.err


def check(command: str, payload: str, folder: Path) -> None:
    text = shown(command, PAYLOADS[payload], folder)
    assert any(said in text for said in ("MARK", "the control character U+", "half a character")), text  # shown, or named
    assert [hex(ord(character)) for character in text if steers(character)] == []


@pytest.mark.parametrize(("command", "payload"), random.Random(0).sample(CAMPAIGN, 30))
def test_nothing_in_a_file_steers_the_terminal(command: str, payload: str, tmp_path: Path) -> None:
    check(command, payload, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(("command", "payload"), CAMPAIGN)
def test_two_hundred_files_and_none_steers_the_terminal(command: str, payload: str, tmp_path: Path) -> None:
    check(command, payload, tmp_path)


def on_a_terminal(*arguments: str | Path) -> str:
    """What a real terminal gets."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color", "COLUMNS": "160"}
    command = [sys.executable, "-m", "tclx.cli", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave):
        os.close(slave)
        read = bytearray()
        while True:
            try:
                read += os.read(master, 65536)
            except OSError:  # Linux's word for the end of a terminal
                break
    os.close(master)
    return read.decode()


def test_on_a_real_terminal_colours_are_ours_and_markup_is_text(tmp_path: Path) -> None:
    name = f"{PAYLOADS['title']}{MARKUP}"
    failed = _run(tmp_path / "failed", name)
    _run(tmp_path, name, "finished")
    table, status = on_a_terminal("results", "--runs-dir", tmp_path / "runs"), on_a_terminal("status", failed.path)
    for text in (table, status):
        assert MARKUP in text
        assert "\x1b]" not in text
        assert "\\u001b]0;owned\\u0007" in text
    assert "\x1b[1m" in table  # the best is bold: it is a terminal


def test_only_the_console_module_prints() -> None:
    """Whoever prints elsewhere in this room prints what nobody has looked through."""
    found = [
        f"{path.name}: {ast.unparse(node)}"
        for path in sorted((PROJECT / "tclx" / "cli").glob("*.py"))
        if path.name not in ("console.py", "__init__.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write")
    ]
    assert found == ["app.py: typer.echo(__version__)"]
