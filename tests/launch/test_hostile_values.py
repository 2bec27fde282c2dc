"""Whatever one key of a spec holds, `tclx plan` ends within seconds and 2 GB, with a plan or a refusal.

The campaign (`just faults`) tries 400 pairs of a key and a value, `just check` a dozen. Each is planned, cost included, in a
process of its own that is forked from this one, which has torch loaded: what is measured is planning, not importing. What
`tclx.launch.costs` allows an estimate is never needed here: the bounds of the spec suffice.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tclx.errors import TclxError
from tclx.launch.costs import _question, answer
from tclx.launch.order import plan_runs
from tclx.spec.fields import key_paths
from tests.launch.toy import write_spec

SECONDS = 10
BYTES = 2 << 30
TRACEBACK = 70
VALUES = [
    0, -1, 1, 2, 7, 100, 101, 1000, 1024, 2048, 65_536, 262_144, 10**6, 10**7, 10**8, 10**9, 2**62, 9 * 10**18, -(2**62),
    0.5, 1.0, 1e-5, 1e-300, 1e300, -1e300, -0.0, True, False, None, "", "x", "null", "\u202e", "a" * 5000, "../..", "package:x",
    [], {}, [1e300], [0.5, 0.5], ["x"], {"x": 1}, [[]], [0, 0, 0],
]  # fmt: skip


class Ended(NamedTuple):
    """What became of one plan."""

    what: str
    seconds: float
    bytes: int


def planned(spec: Path, override: str, runs_dir: Path) -> Ended:
    """Plan with one key changed, in a process that may take a little more than what is promised."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads; the child only plans
        child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
        signal.alarm(20 * SECONDS)  # one that waits for ever uses no processor time
        os._exit(_plan(spec, override, runs_dir))
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    what = {0: "planned", 2: "refused", 3: "machine", TRACEBACK: "traceback"}.get(code, f"ended with {code}")
    return Ended(what, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _plan(spec: Path, override: str, runs_dir: Path) -> int:
    try:
        (run,) = plan_runs([spec], [override], runs_dir=runs_dir, without_data=True)
        found = answer(_question(run))
        return 0 if "cost" in found else 2 if "problems" in found else 3
    except TclxError as error:
        return error.exit_code if str(error).strip() else TRACEBACK
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return TRACEBACK


def pairs(number: int, seed: int) -> list[tuple[str, str]]:
    every = [(key, json.dumps(value)) for key in key_paths() for value in VALUES]
    return random.Random(seed).sample(every, number)


def campaign(folder: Path, tried: list[tuple[str, str]]) -> Counter[str]:
    import tclx.train.cost  # noqa: F401  (each child has it)

    spec = write_spec(folder)
    outcomes: Counter[str] = Counter()
    slowest, largest = ("", 0.0), ("", 0)
    for key, value in tried:
        ended = planned(spec, f"{key}={value}", folder)
        outcomes[ended.what] += 1
        assert ended.what in ("planned", "refused", "machine"), f"{key}={value}: {ended}"
        assert ended.seconds < SECONDS, f"{key}={value}: {ended}"
        assert ended.bytes < BYTES, f"{key}={value}: {ended}"
        slowest = max(slowest, (f"{key}={value[:40]}", ended.seconds), key=lambda one: one[1])
        largest = max(largest, (f"{key}={value[:40]}", ended.bytes), key=lambda one: one[1])
    print(f"{len(tried)} values: {dict(outcomes)}; slowest {slowest[1]:.1f} s ({slowest[0]})")
    print(f"largest {largest[1] / 2**30:.2f} GiB ({largest[0]})")
    return outcomes


LARGEST_SIZES = [
    ("model.image_encoder.depth", "100"),
    ("model.text_encoder.num_layers", "100"),
    ("model.fusion_encoder.num_layers", "100"),
    ("model.image_encoder", "{name: vit_tiny_patch16_224, image_size: 2048, patch_size: 1, width: 16, depth: 2, num_heads: 1}"),
    ("model.queue_size", "100000000"),
    ("training.batch_size_per_gpu", "1000000"),
]
"""The most that the bounds let through: what takes longest."""


def test_a_dozen_of_values_are_planned_or_refused_in_time(tmp_path: Path) -> None:
    campaign(tmp_path, [*LARGEST_SIZES[:2], *pairs(10, seed=1)])


@pytest.mark.faults
def test_hundreds_of_values_are_planned_or_refused_in_time(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, [*LARGEST_SIZES, *pairs(400 - len(LARGEST_SIZES), seed=2)])
    assert min(outcomes["planned"], outcomes["refused"]) > 20
