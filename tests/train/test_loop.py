"""What a run does on its way, seen from outside: short real runs, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tclx.runs import RunFolder
from tclx.track.jsonl import read
from tclx.train import checkpoint, loop, session
from tests.train.toy import NUM_SCENES, REFUSED, kill, outcome, prepare, run, start, start_with, toy_spec, wait, wait_until

CONSTANT = {"optim.schedule": {"name": "constant"}}
NO_EVALUATION = {"evaluation": {}}


def trained(path: Path, **changes: Any) -> RunFolder:
    return run(prepare(path, toy_spec(**changes)))


def weights(folder: RunFolder, step: int) -> dict[str, Tensor]:
    return checkpoint.read_weights(checkpoint.place(folder.checkpoints, step))


def state_of(folder: RunFolder) -> Any:
    state = folder.read_state()
    assert state is not None
    return state


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("finished") / "run")


def test_rows_have_every_metric_by_its_name(finished: RunFolder) -> None:
    both_ways = {"cma": ("image_to_text", "text_to_image"), "imc": ("image", "text"), "lmi": ("image", "text")}
    parts = {f"{term}_{way}" for term, ways in both_ways.items() for way in ways}
    expected = {
        *("step", "epoch", "learning_rate", "gradient_norm", "soft_labels/weight", "temperature/shared", "data/bad_images"),
        *("speed/images_per_second", "speed/share_waiting_for_data", "speed/cpu_percent", "memory/machine_percent"),
        *(f"loss/{name}" for name in ("total", "cma", "imc", "lmi", "itm", "mlm", *parts)),
        *(f"mi_bound/{part}" for part in parts if not part.startswith("lmi")),
        *(f"health/{name}" for name in ("alignment", "uniformity_image", "uniformity_text", "modality_gap", "queue_fill")),
    }
    row = read(finished.metrics)[0]
    assert set(row) >= expected
    assert "nonfinite" not in row


def test_the_total_is_the_weighted_sum_of_the_terms(finished: RunFolder) -> None:
    for row in read(finished.metrics):
        if "loss/total" in row:
            contrastive = (row["loss/cma"] + row["loss/imc"] + row["loss/lmi"]) / 3
            assert row["loss/total"] == pytest.approx(contrastive + row["loss/itm"] + row["loss/mlm"], rel=1e-5)


def test_the_state_and_the_events_tell_the_story(finished: RunFolder) -> None:
    state = state_of(finished)
    assert (state.status, state.step, state.total_steps, state.reason) == ("finished", 12, 12, None)
    events = [(event["event"], event.get("step")) for event in map(json.loads, finished.events.read_text().splitlines())]
    assert events == [("started", None), ("saved", 3), ("saved", 6), ("saved", 9), ("saved", 12), ("finished", 12)]


def test_the_newest_and_the_best_checkpoints_are_kept(finished: RunFolder) -> None:
    best = finished.read_json(finished.best)["step"]
    kept = [checkpoint.step_of(folder) for folder in checkpoint.complete(finished.checkpoints)]
    assert kept == sorted({12, 9, best}, reverse=True)


def test_the_end_is_evaluated_with_the_best_weights(finished: RunFolder) -> None:
    record = finished.read_json(finished.evaluated("retrieval", "test"))
    assert record["step"] == finished.read_json(finished.best)["step"]
    assert record["checkpoint"] == f"step-{record['step']:08d}"
    assert all(name.startswith("retrieval/test/") for name in record["metrics"])


def test_a_run_of_no_steps_evaluates_what_it_starts_from(tmp_path: Path, finished: RunFolder) -> None:
    """Starting from a run means its best weights, so its figures come out again."""
    changes = {"training.steps": 0, "optim.schedule": {"name": "constant"}, "init": {"checkpoint": str(finished.path)}}
    folder = trained(tmp_path / "run", **changes, **{"evaluation.during_training": None, "evaluation.every_steps": None})
    metrics = folder.read_json(folder.evaluated("retrieval", "test"))["metrics"]
    assert metrics == finished.read_json(finished.evaluated("retrieval", "test"))["metrics"]


def test_starting_from_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    empty = prepare(tmp_path / "empty", toy_spec())
    folder = prepare(tmp_path / "run", toy_spec(init={"checkpoint": str(empty.path)}))
    assert wait(start(folder)) == [REFUSED]
    assert state_of(folder).status == "failed"
    assert "has no checkpoint yet" in state_of(folder).reason


def test_another_number_of_processes_than_planned_is_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", toy_spec())
    assert wait(start(folder, num_processes=2)) == [REFUSED, REFUSED]
    assert "launch.num_processes: the run is planned for 1 processes, and 2" in (folder.path / "stderr1.txt").read_text()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_term_alone_has_the_whole_gradient(tmp_path: Path, num_processes: int) -> None:
    changes = {
        "objectives": {"cma": {"weight": 0.5}},
        "training.steps": 2,
        "tracking.term_gradient_norms_every_steps": 1,
        "launch.num_processes": num_processes,
    }
    folder = trained(tmp_path / "run", **changes, **CONSTANT, **NO_EVALUATION)
    rows = read(folder.metrics)
    assert len(rows) == 2
    for row in rows:
        assert 0.5 * row["gradient_norm/cma"] == pytest.approx(row["gradient_norm"], rel=1e-4)


def test_terms_are_measured_on_demand_only(finished: RunFolder) -> None:
    assert not any(name.startswith("gradient_norm/") for row in read(finished.metrics) for name in row)


def test_clipping_bounds_the_update_but_not_the_norm_that_is_logged(tmp_path: Path) -> None:
    """Under plain Adam scaling the gradient changes nothing, so the second moment tells: it is that of the clipped gradient."""
    limit = 1e-3
    changes = {"training.steps": 1, "optim.clip_gradient_norm": limit, **CONSTANT, **NO_EVALUATION}
    folder = trained(tmp_path / "run", **changes)
    moments = checkpoint._read_tensors(checkpoint.place(folder.checkpoints, 1) / "optimizer.safetensors")
    squared = sum(moment.double().sum() for name, moment in moments.items() if name.startswith("exp_avg_sq/"))
    assert float(squared) == pytest.approx((1 - 0.999) * limit**2, rel=1e-3)
    assert read(folder.metrics)[0]["gradient_norm"] > 1


def test_momentum_encoders_follow_after_the_update_and_officially_before_it(tmp_path: Path) -> None:
    changes = {"training.steps": 1, **CONSTANT, **NO_EVALUATION}
    here = weights(trained(tmp_path / "here", **changes), 1)
    official = weights(trained(tmp_path / "official", **changes, compat="official"), 1)
    names = [name.removeprefix("momentum.") for name in here if name.startswith("momentum.") and here[name].is_floating_point()]
    moved = 0
    for name in names:
        start_value = official[f"momentum.{name}"]  # equal to the online encoders when it was averaged with them
        expected = 0.9 * start_value + 0.1 * here[f"online.{name}"]
        assert torch.allclose(here[f"momentum.{name}"], expected, atol=1e-7), name
        moved += not torch.equal(start_value, here[f"online.{name}"])
    assert moved > len(names) / 2


def test_the_queue_takes_the_batches_in_their_order(tmp_path: Path) -> None:
    """24 slots, 8 pairs a pass, two passes a step: one step leaves 8 slots free, two wrap around."""
    changes = {"training.steps": 2, "training.accumulation_steps": 2, "training.checkpoints": {"every_steps": 1}}
    folder = trained(tmp_path / "run", **changes, **CONSTANT, **NO_EVALUATION)
    after_one, after_two = weights(folder, 1), weights(folder, 2)
    assert (int(after_one["queue.pointer"]), int(after_one["queue.filled"])) == (16, 16)
    assert (int(after_two["queue.pointer"]), int(after_two["queue.filled"])) == (8, 24)
    assert torch.equal(after_one["queue.image"][8:16], after_two["queue.image"][8:16])
    assert len(set(after_two["queue.image_index"].tolist())) == 24  # a first epoch has no image twice


def test_a_term_that_is_off_leaves_no_trace(tmp_path: Path) -> None:
    changes = {"objectives": {"cma": {}, "soft_labels": None}, "training.steps": 1, **CONSTANT, **NO_EVALUATION}
    folder = trained(tmp_path / "run", **changes)
    assert not [
        name for row in read(folder.metrics) for name in row if any(term in name for term in ("imc", "lmi", "itm", "mlm"))
    ]
    assert not [name for name in weights(folder, 1) if "fusion" in name or "mlm" in name or "itm" in name]


def write_images(folder: Path, *, num_missing: int) -> dict[str, Any]:
    """A data source of 64 rows whose first images are missing."""
    folder.mkdir()
    rows = [{"image": f"{number}.png", "caption": f"image {number} of many"} for number in range(NUM_SCENES)]
    for number, row in enumerate(rows[num_missing:]):
        Image.new("RGB", (40, 40), (number, 255 - number, 128)).save(folder / row["image"])
    (folder / "rows.json").write_text(json.dumps(rows))
    return {"source": "files", "form": "pretrain", "files": [str(folder / "rows.json")], "image_root": str(folder)}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_bad_images_are_counted_and_limited_by_epoch(tmp_path: Path, num_processes: int) -> None:
    """One bad image of 64 in each of two epochs: 0.0156 an epoch, and a resumed run counts on."""
    bad = {"policy": "skip", "limit": 0.02}
    source = write_images(tmp_path / "pictures", num_missing=1)
    changes = {"data.train": source, "data.bad_images": bad, "training.steps": 16 // num_processes, **NO_EVALUATION}
    spec = toy_spec(**changes, **{"launch.num_processes": num_processes, "training.checkpoints": {"every_steps": 2}})
    folder = run(prepare(tmp_path / "run", spec))
    assert read(folder.metrics)[-1]["data/bad_images"] == 2
    stopped = prepare(tmp_path / "stopped", spec)
    processes = start(stopped)
    wait_until(lambda: bool(checkpoint.complete(stopped.checkpoints)), processes)
    kill(processes)
    assert outcome(run(stopped)) == outcome(folder)


def test_too_many_bad_images_end_the_run(tmp_path: Path) -> None:
    source = write_images(tmp_path / "pictures", num_missing=4)
    changes = {"data.train": source, "data.bad_images": {"policy": "skip", "limit": 0.02}, **NO_EVALUATION}
    folder = prepare(tmp_path / "run", toy_spec(**changes))
    assert wait(start(folder)) == [REFUSED]
    assert "of the 64 images of this epoch could not be read, and data.bad_images.limit is 0.02" in state_of(folder).reason


def in_fp16(device: str, *, first_scale: float = 2.0**6) -> None:
    """torch computes fp16 on a CPU, too, only so slowly that a spec may not ask for it: let the process that trains do it."""
    session.gradient_scaler = lambda _, device: torch.amp.GradScaler(device.type, init_scale=first_scale)
    if device == "cpu":
        loop.autocast = lambda _, device: torch.autocast(device.type, dtype=torch.float16)


def overflowing(device: str) -> None:
    """As above, where every gradient overflows."""
    in_fp16(device, first_scale=2.0**126)


def prepared_for_fp16(path: Path, device: torch.device) -> RunFolder:
    changes = {
        "training.device": device.type,
        "training.precision": "fp16" if device.type == "cuda" else "fp32",
        "training.steps": 3,
        "training.checkpoints": {"every_steps": 1, "keep_last": 9},
    }
    return prepare(path, toy_spec(**changes, **CONSTANT, **NO_EVALUATION))


def scale_and_good_steps(folder: RunFolder, step: int) -> tuple[float, int]:
    saved = json.loads((checkpoint.place(folder.checkpoints, step) / "state.json").read_text())["scaler"]
    return saved["scale"], saved["_growth_tracker"]


def test_fp16_keeps_its_gradient_scale_and_its_count_of_good_steps_through_a_kill(tmp_path: Path, device: torch.device) -> None:
    """torch's GradScaler counts the steps without overflow, and grows after 2,000 of them."""
    folder = prepared_for_fp16(tmp_path / "run", device)
    process = start_with(in_fp16, folder)
    wait_until(lambda: bool(checkpoint.complete(folder.checkpoints)), [process])
    kill([process])
    assert wait([start_with(in_fp16, folder)]) == [0]
    assert [scale_and_good_steps(folder, step) for step in (1, 2, 3)] == [(2.0**6, 1), (2.0**6, 2), (2.0**6, 3)]
    assert [row["step"] for row in read(folder.metrics)][-1] == 3


def test_an_fp16_step_that_overflows_is_skipped_and_halves_the_scale(tmp_path: Path, device: torch.device) -> None:
    folder = prepared_for_fp16(tmp_path / "run", device)
    assert wait([start_with(overflowing, folder)]) == [0]
    assert [scale_and_good_steps(folder, step) for step in (1, 3)] == [(2.0**125, 0), (2.0**123, 0)]
    first, last = weights(folder, 1), weights(folder, 3)
    learned = [name for name in first if name.startswith("online.") and first[name].is_floating_point()]
    assert len(learned) > 20
    assert all(torch.equal(first[name], last[name]) for name in learned)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_keeps_its_gradient_scale(tmp_path: Path) -> None:
    changes = {"training.device": "cuda", "training.precision": "fp16", "training.steps": 3, **CONSTANT, **NO_EVALUATION}
    folder = trained(tmp_path / "run", **changes)
    state = json.loads((checkpoint.place(folder.checkpoints, 3) / "state.json").read_text())
    assert state["scaler"]["scale"] > 0
    assert len(outcome(folder).rows) == 3


def test_old_checkpoints_go_with_every_save_also_where_nothing_is_evaluated(tmp_path: Path) -> None:
    changes = {"evaluation.during_training": None, "evaluation.every_steps": None, "evaluation.at_end": None}
    spec = toy_spec(**changes, **{"training.steps": 3, "training.checkpoints": {"every_steps": 1, "keep_last": 1}})
    folder = run(prepare(tmp_path / "run", spec))
    assert [checkpoint.step_of(one) for one in checkpoint.named(folder.checkpoints)] == [3]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_initial_weights_that_are_damaged_are_refused(finished: RunFolder, tmp_path: Path, file: str) -> None:
    source = RunFolder(tmp_path / "source")
    shutil.copytree(finished.path, source.path)
    best = source.read_best()
    assert best is not None
    path = checkpoint.place(source.checkpoints, best.step) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    folder = prepare(tmp_path / "run", toy_spec(init={"checkpoint": str(source.path)}))
    assert wait(start(folder)) == [REFUSED]
    assert (
        f"the checkpoint {path.parent} is damaged: the checksum of {file} is wrong" in (folder.path / "stderr0.txt").read_text()
    )


def test_what_killed_processes_left_unfinished_is_cleared_by_whoever_trains(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "run", toy_spec(**{"training.steps": 3, "evaluation.every_steps": 3}))
    for name in (".environment.json.123.tmp", ".metrics.jsonl.123.tmp", ".cancel.json.123.tmp", ".wandb.json.99.tmp"):
        (folder.path / name).touch()
    (folder.path / ".tokenizer.123.tmp").mkdir()
    os.utime(folder.path / ".wandb.json.99.tmp", (0, 0))
    run(folder)
    assert [path.name for path in folder.path.glob(".*.tmp")] == [".cancel.json.123.tmp"]  # somebody may be writing it
