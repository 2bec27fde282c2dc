from __future__ import annotations

import json
from pathlib import Path

import torch

from tclx.runs import RunFolder
from tclx.train.environment import changes, describe, record

CPU = torch.device("cpu")


def test_first_record_is_json_and_no_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert record(folder, CPU) == {}
    recorded = folder.read_json(folder.environment)
    assert recorded["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert recorded["num_threads"] == torch.get_num_threads()
    assert not folder.events.exists()


def test_the_same_machine_again_is_no_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record(folder, CPU)
    assert record(folder, CPU) == {}


def test_a_change_that_can_move_the_last_bits_is_an_event(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record(folder, CPU)
    before = folder.read_json(folder.environment)
    folder.write_json(folder.environment, {**before, "world_size": 8, "host": "elsewhere"})
    assert record(folder, CPU) == {"world_size": [8, 1]}
    event = json.loads(folder.events.read_text())
    assert (event["event"], event["changed"]) == ("environment_changed", {"world_size": [8, 1]})


def test_what_cannot_move_bits_does_not_count() -> None:
    now = describe(CPU)
    assert changes({**now, "host": "elsewhere", "argv": [], "started_at": 0.0}, now) == {}
    assert changes({**now, "num_threads": 99}, now) == {"num_threads": [99, now["num_threads"]]}
