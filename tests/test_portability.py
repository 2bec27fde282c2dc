"""Promises of the platforms: what a Mac lacks is needed nowhere, and Windows is refused in a line. No Mac was at hand.

`tests/mac/sitecustomize.py` takes away from real processes what a Mac does not have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tclx import cli, system
from tests.conftest import PROJECT
from tests.launch.toy import SPEC, write_spec

_ELSEWHERE = re.compile(
    r"sched_getaffinity|/proc/|/dev/shm|ru_maxrss|memfd_|posix_fallocate|sys\.platform|get_context\(|[\"']fork[\"']"
    r"|\bprctl\b|O_TMPFILE|O_DIRECT\b|pidfd_|F_OFD|F_SETPIPE_SZ|signal\.(SIGPWR|SIGSTKFLT|SIGRTMIN)"
)
"""What not every system has."""


def on_a_mac(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in an environment that lacks what a Mac lacks."""
    path = os.pathsep.join([str(PROJECT / "tests" / "mac"), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_stand_in_for_a_mac_lacks_what_a_mac_lacks(tmp_path: Path) -> None:
    tried = ("os.sched_getaffinity(0)", "open('/proc/meminfo')", "Path('/proc/mounts').read_text()", "os.stat('/dev/shm')")
    code = "import os\nfrom multiprocessing import get_context\nfrom pathlib import Path\n" + "".join(
        f"try: {each}\nexcept (AttributeError, FileNotFoundError, RuntimeError) as error: print(type(error).__name__)\n"
        for each in (*tried, "get_context('fork').Process().start()")
    )
    done = on_a_mac("-c", code, cwd=tmp_path)
    expected = ["AttributeError", "FileNotFoundError", "FileNotFoundError", "FileNotFoundError", "RuntimeError"]
    assert done.stdout.split() == expected, done.stderr


def test_own_photos_are_checked_trained_on_and_evaluated(tmp_path: Path) -> None:
    """With images for more than one checking process, and a loader process."""
    rows = []
    for number in range(130):
        colour = np.full((20, 24, 3), number, np.uint8)
        Image.fromarray(colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"an image of grey number {number}"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "few.json").write_text(json.dumps(rows[:8]))
    files = {"source": "files", "form": "pretrain", "image_root": "."}
    data = {**SPEC["data"], "train": {**files, "files": ["rows.json"]}, "num_workers": 1}
    data = {**data, "val": None, "test": {**files, "files": ["few.json"]}}
    evaluation = {"retrieval": {"top_k": 4, "batch_size": 8}, "during_training": None, "at_end": "test"}
    spec = write_spec(tmp_path, data=data, evaluation=evaluation)
    done = on_a_mac("-m", "tclx.cli", "run", spec, "--runs-dir", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "T2I R@1" in done.stdout
    (metrics,) = tmp_path.glob("runs/*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    peaks = [row["memory/peak_gib"] for row in rows if "memory/peak_gib" in row]
    assert peaks
    assert max(peaks) < 0.01  # Linux's KiB taken for bytes: the unit of a Mac was used


def test_doctor_looks_at_everything(tmp_path: Path) -> None:
    done = on_a_mac("-m", "tclx.cli", "doctor", "--runs-dir", "runs", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    found = {line.split()[1]: line for line in done.stdout.splitlines() if len(line.split()) > 1}
    assert {"cpu", "memory", "disk"} <= set(found), done.stdout + done.stderr


def test_what_differs_between_systems_is_asked_in_one_place() -> None:
    asking = {
        f"{path.relative_to(PROJECT)}: {line.strip()}"
        for path in sorted((PROJECT / "tclx").rglob("*.py"))
        if path.name != "system.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if _ELSEWHERE.search(line.partition("  # ")[0])
    }
    allowed = (
        "get_context(START_METHOD)",
        'get_context("forkserver")',
        'sys.platform == "win32"',
        "shared memory (/dev/shm)",
        "self.get_context()",
        "/proc/{pid}/wchan",
        'Path("/dev/shm")',
    )  # asked only where they are
    assert [line for line in asking if not any(each in line for each in allowed)] == []


def test_cores_are_those_of_this_process() -> None:
    assert system.num_cpus() == len(os.sched_getaffinity(0))


def test_without_affinity_every_core_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(os, "process_cpu_count", os.cpu_count)
    assert system.num_cpus() == os.cpu_count()


def test_memory_is_the_machines() -> None:
    in_kib = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    found = system.memory()
    assert found.total == in_kib["MemTotal"] * 1024
    assert 0 < found.available <= found.total


def test_the_peak_is_at_least_what_is_resident_now() -> None:
    resident = psutil.Process().memory_info().rss
    assert 0.9 * resident < system.peak_memory_bytes() < 100 * resident  # a factor of 1024 either way is a wrong unit


def test_a_folders_file_system_is_found(tmp_path: Path) -> None:
    mount = system.mount_of(tmp_path.resolve(), system.mounts())
    assert Path(mount.place).stat().st_dev == tmp_path.stat().st_dev
    assert mount.kind != "unknown"


def test_a_system_that_does_not_tell_its_mounts_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: bool) -> None:
        raise PermissionError("/proc is hidden")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    assert system.mount_of(Path("/home/me"), system.mounts()) == system.UNKNOWN_MOUNT


def test_windows_is_led_to_wsl_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 3
    assert "WSL" in error
    assert len(error.splitlines()) == 1
