"""What is told of nodes beside each other, and what one node finds on itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tclx.doctor.cluster import JOB_MINUTES, Node, _minutes, as_rows, judged


def facts(**changes: Any) -> dict[str, Any]:
    usual = {
        "clock_seconds": 0.01,
        "shared": {"mb_per_second": 400.0, "ms_per_file": 0.5},
        "scratch": {"folder": "/tmp", "free_gib": 800.0, "mb_per_second": 1500.0},
        "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.0, "tflops": 700.0}] * 8,
        "all_reduce_gb_per_second": 350.0,
        "errors": {},
    }
    return {**usual, **changes}


def told(*found: dict[str, Any]) -> list[Node]:
    nodes = [Node(f"n{number}", "ok", one, ()) for number, one in enumerate(found)]
    return judged(nodes, num_gpus=dict.fromkeys((node.name for node in nodes), 8))


def test_nodes_that_are_alike_are_well() -> None:
    nodes = told(facts(), facts(), facts(all_reduce_gb_per_second=300.0))
    assert [(node.verdict, node.remarks) for node in nodes] == [("ok", ())] * 3


def test_what_is_slower_than_the_others_is_named() -> None:
    slow = facts(gpus=[*facts()["gpus"][:7], {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.0, "tflops": 400.0}])
    nodes = told(facts(), slow, facts(all_reduce_gb_per_second=90.0), facts())
    assert [node.verdict for node in nodes] == ["ok", "warning", "warning", "ok"]
    assert nodes[1].remarks == ("TFLOP/s of the slowest GPU 400, where the others have 700",)
    assert nodes[2].remarks == ("all-reduce GB/s 90, where the others have 350",)


def test_what_runs_cannot_live_with_is_a_problem() -> None:
    nodes = told(
        facts(gpus=facts()["gpus"][:6]),
        facts(clock_seconds=-40.0),
        facts(errors={"gpus": "RuntimeError: CUDA error: uncorrectable ECC error"}),
        facts(scratch={"folder": "/tmp", "free_gib": 3.0, "mb_per_second": 1500.0}),
    )
    assert [node.verdict for node in nodes] == ["problem", "problem", "problem", "warning"]
    assert [node.remarks[0] for node in nodes] == [
        "torch sees 6 of 8 GPUs",
        "its clock is -40 s off",
        "gpus: RuntimeError: CUDA error: uncorrectable ECC error",
        "scratch has 3.0 GiB left",
    ]


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", JOB_MINUTES),
        ("2:00", 2),
        ("45", 45),
        ("12:00:00", 720),
        ("7-00:00:00", 10080),
        ("0:30", 1),
        ("n/a", JOB_MINUTES),
    ],
)
def test_a_partitions_limit_is_read_as_sinfo_writes_it(limit: str, minutes: int) -> None:
    assert _minutes(limit) == minutes


def test_a_line_a_node_within_80_columns() -> None:
    from tclx.cli.console import aligned

    table = aligned(as_rows([*told(facts(), facts()), Node("node-with-a-name", "info", None, ("busy",))]))
    assert max(map(len, table.splitlines())) <= 80
    assert "8 H100" in table


def test_a_node_looks_at_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tclx.doctor.node", "rank", str(tmp_path)]
    subprocess.run(command, check=True, env={"SLURMD_NODENAME": "n7", "PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": ""})
    found = json.loads((tmp_path / "n7.json").read_text())
    assert found["errors"] == {}
    assert found["gpus"] == []
    assert found["scratch"]["mb_per_second"] > 0
    assert found["shared"]["ms_per_file"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["n7.json"]
