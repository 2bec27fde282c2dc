"""Promises of `tclx data pack`: what goes in comes out, whatever interrupts it; what is wrong is counted or refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from tclx.data.images import decode_image
from tclx.data.shards.packing import PackSettings, pack
from tclx.data.sources.opening import open_source
from tclx.errors import InputError, MachineError
from tclx.files import holding
from tests.data.packing import contents, on_shards, packed, photographs, reading
from tests.data.small import encoded, experiment, photograph


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_independent_reader_finds_every_file_and_its_captions(tmp_path: Path, num_processes: int) -> None:
    (images := tmp_path / "images").mkdir()
    rows = photographs(images)
    found = packed(reading(images, rows), tmp_path / "shards", num_processes=num_processes)
    assert (found.num_images, found.num_rows, found.num_shards, found.lost) == (10, 11, 4, {})
    seen = {}
    for shard in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, content in members.items():
            stem, _, suffix = name.partition(".")
            if suffix != "json":
                about = json.loads(members[f"{stem}.json"])
                seen[about["image"]] = about["caption"]
                assert content == (images / about["image"]).read_bytes()
    expected = {row["image"]: row["caption"] for row in rows[:10]}
    expected[rows[1]["image"]] = [*rows[1]["caption"], "the second again"]
    assert seen == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the tars open
def test_webdataset_reads_what_is_packed(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed; tarfile reads them above")
    found = packed(reading(tmp_path, photographs(tmp_path)), tmp_path / "shards")
    urls = [str(path) for path in sorted(found.folder.glob("*.tar"))]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == found.num_images


def test_rows_captions_identities_and_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    spec = reading(tmp_path, photographs(tmp_path))
    packed(spec, tmp_path / "shards")
    files = open_source(spec.data.train, key="data.train")
    shards = open_source(on_shards(spec, tmp_path / "shards").data.train, key="data.train")
    assert (shards.size, list(shards.captions())) == (files.size, list(files.captions()))
    one, other = files.rows(spec), shards.rows(spec)
    assert one.image_index.tolist() == other.image_index.tolist()
    for row in range(one.num_rows):
        assert list(one.captions(row)) == list(other.captions(row))
        assert np.array_equal(one.image(row), other.image(row))


def test_rows_of_one_image_id_stay_one_image_in_the_retrieval_form(tmp_path: Path) -> None:
    photographs(tmp_path)
    rows = [{"image": f"{n // 2}.{'jpeg' if n < 2 else 'png'}", "image_id": n // 4, "caption": str(n)} for n in range(4)]
    spec = reading(tmp_path, rows, form="retrieval")
    assert packed(spec, tmp_path / "shards").form == "retrieval"
    shards = open_source(on_shards(spec, tmp_path / "shards", form="retrieval").data.train, key="data.train")
    assert shards.rows(spec).image_index.tolist() == [0, 0, 0, 0]
    assert any("image ids stand for different images" in line for line in shards.warnings())
    with pytest.raises(InputError, match=r"data\.train\.form: .* holds rows of `form: retrieval`"):
        assert open_source(on_shards(spec, tmp_path / "shards").data.train, key="data.train").size


def test_scenes_are_packed_without_loss(tmp_path: Path) -> None:
    spec = experiment()
    packed(spec, tmp_path / "shards")
    one = open_source(spec.data.train, key="data.train").rows(spec)
    other = open_source(on_shards(spec, tmp_path / "shards", form="captions").data.train, key="data.train").rows(spec)
    assert all(np.array_equal(one.image(row), other.image(row)) for row in range(50))
    assert [list(one.captions(row)) for row in range(50)] == [list(other.captions(row)) for row in range(50)]


def test_shards_can_be_packed_again_smaller(tmp_path: Path) -> None:
    for n, size in enumerate([(60, 80), (20, 90), (15, 10)]):
        (tmp_path / f"{n}.png").write_bytes(encoded(photograph(*size, seed=n), "PNG"))
    spec = reading(tmp_path, [{"image": f"{n}.png", "caption": "x"} for n in range(3)])
    packed(spec, tmp_path / "whole")
    again = on_shards(spec, tmp_path / "whole")
    packed(again, tmp_path / "small", resize=20, quality=100)
    rows = open_source(on_shards(spec, tmp_path / "small").data.train, key="data.train").rows(spec)
    assert [rows.image(row).shape[:2] for row in range(3)] == [(20, 27), (20, 90), (15, 10)]
    blocks = photograph(seed=0).reshape(20, 3, 80, 3).mean(axis=1)  # in height the scale is exactly 3
    assert abs(rows.image(0).astype(float).mean() - blocks.mean()) < 0.5
    packed(again, tmp_path / "coded", resize=20, quality=80)
    with tarfile.open(tmp_path / "coded" / "train-000000.tar") as tar:
        assert [name for name in tar.getnames() if "json" not in name] == ["000000000.jpg", "000000001.png", "000000002.png"]


COMMAND = """
import sys
from tclx.data.shards import packing
from tests.data.packing import LARGE
packing._BESIDE_IMAGE = LARGE
packing.num_cpus = lambda: 2
sys.argv = ["tclx", "data", "pack", sys.argv[1], "-o", sys.argv[2], "--split", "train", "--shard-mib", "1"]
from tclx.cli import main
main()
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL when it begins, after so many shards that chance decides, when all are there, and a little later."""
    (images := tmp_path / "images").mkdir()
    spec = reading(images, photographs(images, 60))
    tree = {key: value for key, value in spec.model_dump(mode="json").items() if key != "variant"}
    (tmp_path / "spec.yaml").write_text(json.dumps(tree))  # JSON is YAML
    num_shards = packed(spec, tmp_path / "whole").num_shards
    draw = random.Random(int(os.environ.get("TCLX_SEED", "0")))
    out, num_kills = tmp_path / "out", 0
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "spec.yaml"), str(out)]
    for num_done in (0, *sorted(draw.sample(range(1, num_shards), 2)), num_shards):
        (out / "train" / ".lock").unlink(missing_ok=True)  # of the one before
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "train" / ".lock").exists() and len(list((out / "train").glob("*.part"))) >= num_done:
                break
            time.sleep(0.0002)
        time.sleep(draw.uniform(0.0, 0.003))
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        num_kills += process.returncode != 0
    assert num_kills >= 2
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    assert contents(out / "train") == contents(tmp_path / "whole")


def test_no_packing_process_outlives_the_one_that_began_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from tclx.data.shards import packing\n"
        "from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context\n"
        "pool = ProcessPoolExecutor(2, get_context('fork'), initializer=packing._begin_worker, initargs=(None, os.getpid()))\n"
        "print(*{pool.submit(os.getpid).result() for _ in range(4)}, *pool._processes, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_packed_once_it_says_so_and_other_data_are_refused(tmp_path: Path) -> None:
    (images := tmp_path / "images").mkdir()
    rows = photographs(images)
    assert not packed(reading(images, rows), tmp_path / "shards").was_there
    before = contents(tmp_path / "shards")
    assert packed(reading(images, rows), tmp_path / "shards").was_there
    with pytest.raises(InputError, match="packed from other rows"):
        packed(reading(images, rows[:-1]), tmp_path / "shards")
    with pytest.raises(InputError, match="packed with other options"):
        packed(reading(images, rows), tmp_path / "shards", resize=20)
    (images / "0.jpeg").write_bytes(encoded(photograph(seed=77)))
    with pytest.raises(InputError, match="packed from other images"):
        packed(reading(images, rows), tmp_path / "shards")
    assert contents(tmp_path / "shards") == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (images := tmp_path / "images").mkdir()
    spec = reading(images, photographs(images))
    for name in ("thesis.tex", "train-000000.tar"):
        (folder := tmp_path / name.partition(".")[0]).mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(InputError, match=f"holds other files: {name}"):
            packed(spec, folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_two_do_not_pack_into_one_folder(tmp_path: Path) -> None:
    spec = reading(tmp_path, photographs(tmp_path))
    (tmp_path / "shards").mkdir()
    with holding(tmp_path / "shards" / ".lock"), pytest.raises(MachineError, match="another process is packing"):
        packed(spec, tmp_path / "shards")


def spoil(folder: Path) -> None:
    """One image of each cause."""
    (folder / "0.jpeg").unlink()
    (folder / "4.jpeg").write_bytes(encoded(photograph())[:-800])
    (folder / "5.png").write_bytes(encoded(np.zeros((200, 200, 3), np.uint8), "PNG"))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_refuse_stops_with_the_list_and_mended_it_goes_on(tmp_path: Path, num_processes: int) -> None:
    (images := tmp_path / "images").mkdir()
    spec = reading(images, photographs(images), bad_images={"max_pixels": 10_000})
    packed(spec, tmp_path / "whole")
    good = {path.name: path.read_bytes() for path in images.iterdir()}
    spoil(images)
    with pytest.raises(InputError, match=r"data\.train: 0\.jpeg: does not exist") as caught:
        packed(spec, tmp_path / "shards", num_processes=num_processes)
    assert "3 of 10 images cannot be used" in str(caught.value)
    report = json.loads((tmp_path / "shards" / "report.json").read_text())
    assert report["lost"] == {"decoding": 1, "missing": 1, "size": 1}
    assert [one["image"] for one in report["lost_images"]] == ["0.jpeg", "4.jpeg", "5.png"]
    assert not any(path.name.endswith(".tmp") for path in (tmp_path / "shards").iterdir())
    with pytest.raises(InputError, match="is not packed to the end"):
        assert open_source(on_shards(spec, tmp_path / "shards").data.train, key="data.train").size
    for name, content in good.items():
        (images / name).write_bytes(content)
    packed(spec, tmp_path / "shards", num_processes=num_processes)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_skip_leaves_them_out_counted(tmp_path: Path) -> None:
    policy = {"policy": "skip", "limit": 0.3, "max_pixels": 10_000}
    spec = reading(tmp_path, photographs(tmp_path), bad_images=policy)
    spoil(tmp_path)
    found = packed(spec, tmp_path / "shards")
    assert found.lost == {"decoding": 1, "missing": 1, "size": 1}
    assert (found.num_images, found.num_rows) == (7, 8)
    source = open_source(on_shards(spec, tmp_path / "shards").data.train, key="data.train")
    rows = source.rows(spec)
    assert rows.image_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert [rows.captions(row)[0] for row in (0, 7)] == ["photograph 1", "the second again"]
    assert np.array_equal(rows.image(0), decode_image((tmp_path / "1.png").read_bytes(), "", decoder="fast", max_pixels=10_000))
    assert list(source.warnings()) == ["data.train: 3 samples without a usable image are left out"]


def test_more_lost_images_than_the_limit_are_refused(tmp_path: Path) -> None:
    spec = reading(tmp_path, photographs(tmp_path), bad_images={"policy": "skip", "max_pixels": 10_000})
    spoil(tmp_path)
    with pytest.raises(InputError, match=r"data\.bad_images\.limit: 3 of 10 images cannot be used, more than 1\.00%"):
        packed(spec, tmp_path / "shards")


def test_nothing_is_left_out_of_what_is_evaluated_on(tmp_path: Path) -> None:
    spec = reading(tmp_path, photographs(tmp_path), bad_images={"policy": "skip", "limit": 1.0, "max_pixels": 10_000})
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"val": spec.data.train})})
    spoil(tmp_path)
    with pytest.raises(InputError, match="3 of 10 images cannot be used"):
        pack(spec, "val", tmp_path / "shards", settings=PackSettings())


def test_rows_of_another_task_are_refused_by_name(tmp_path: Path) -> None:
    scenes = {"source": "scenes", "num_images": 4, "split": "val", "form": "vqa"}
    with pytest.raises(InputError, match=r"data\.val\.form: is vqa, and only rows of captions are packed"):
        pack(experiment(data={"val": scenes}), "val", tmp_path / "shards", settings=PackSettings())
