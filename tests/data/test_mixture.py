"""Promises of `source: mixture`: stated shares to the row, evenly over each source, whatever the processes, from any step."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.data.dataset import train_batches, training_captions
from tclx.data.facts import examine
from tclx.data.order import Block, KeyedOrder, MicroBatch
from tclx.data.shards.packing import PackSettings, pack
from tclx.data.sources.mixture import apportioned
from tclx.data.sources.opening import open_source
from tclx.data.tokenizer import train_wordpiece
from tclx.errors import InputError
from tclx.spec.data import MixtureSource
from tclx.spec.load import load_experiments
from tests.data.small import SCENES, data_section, encoded, equal, experiment, photograph

SMALL, LARGE = Block(0, 7, 24), Block(7, 50, 12)


def scenes(count: int, *, seed: int = 0, **fields: Any) -> dict[str, Any]:
    return {"source": "scenes", "num_images": count, "split": "train", "seed": seed, **fields}


def mixture(*, rows_per_epoch: int | None = None, **sources: dict[str, Any]) -> dict[str, Any]:
    return {"source": "mixture", "sources": sources, **({"rows_per_epoch": rows_per_epoch} if rows_per_epoch else {})}


def order(**changes: Any) -> KeyedOrder:
    common = {"batch_size": 3, "accumulation_steps": 1, "seed": 0, "rank": 0, "world_size": 1, "start_micro_step": 0}
    return KeyedOrder(**{"blocks": (SMALL, LARGE), **common, **changes})


def drawn(micro_batches: list[MicroBatch]) -> list[tuple[int, int]]:
    return [each for micro_batch in micro_batches for each in micro_batch]


def test_an_epoch_draws_of_each_source_what_its_share_says() -> None:
    for epoch in range(5):
        rows = [row for row, _ in drawn(list(islice(order(start_micro_step=12 * epoch), 12)))]
        assert (sum(row < 7 for row in rows), sum(row >= 7 for row in rows)) == (24, 12)


def test_no_row_is_drawn_again_before_all_of_its_source_were() -> None:
    """In passes: after any number of whole epochs the counts of a source's rows differ by one at most."""
    for epochs in range(1, 9):
        counts = Counter(row for row, _ in drawn(list(islice(order(), 12 * epochs))))
        for block in (SMALL, LARGE):
            own = [counts[row] for row in range(block.start, block.start + block.num_rows)]
            assert max(own) - min(own) <= 1
            assert sum(own) == epochs * block.rows_per_epoch


def test_a_row_has_each_pass_once() -> None:
    """(seed, pass, row) keys the draws of a sample: were one repeated, two samples would be the same."""
    keys = drawn(list(islice(order(), 240)))
    assert len(set(keys)) == len(keys)
    assert {one_pass for row, one_pass in keys if row < 7} == set(range(69))


def test_sources_are_mixed_within_an_epoch_and_anew_in_the_next() -> None:
    first, second = (list(islice(order(start_micro_step=start), 12)) for start in (0, 12))
    of_small = [[int((part.rows < 7).sum()) for part in epoch] for epoch in (first, second)]
    assert of_small[0] != of_small[1]
    assert all(0 < sum(epoch[:4]) < 12 for epoch in of_small)


def test_processes_share_the_same_global_batches_and_any_step_can_be_begun_at() -> None:
    whole = list(islice(order(batch_size=6), 30))
    for start in (0, 5, 17):
        ranks = [list(islice(order(rank=rank, world_size=2, start_micro_step=start), 10)) for rank in range(2)]
        for left, right, both in zip(*ranks, whole[start:], strict=False):
            assert np.concatenate([left.rows, right.rows]).tolist() == both.rows.tolist()
            assert np.concatenate([left.passes, right.passes]).tolist() == both.passes.tolist()


def test_one_source_alone_is_learned_from_as_without_the_mixture() -> None:
    plain = experiment()
    mixed = experiment(data={"train": mixture(all={"data": SCENES})})
    tokenizer = train_wordpiece(training_captions(plain.data), vocab_size=200)
    assert list(training_captions(plain.data)) == list(training_captions(mixed.data))
    streams = [train_batches(spec, tokenizer=tokenizer) for spec in (plain, mixed)]
    for _ in range(12):
        assert equal(*(next(stream) for stream in streams))  # type: ignore[arg-type]
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]


def test_without_shares_every_row_comes_once_an_epoch_whatever_its_source() -> None:
    spec = experiment(
        data={"train": mixture(few={"data": scenes(6)}, many={"data": scenes(18, seed=1)})},
        training={"batch_size_per_gpu": 6, "accumulation_steps": 1},
    )
    tokenizer = train_wordpiece(training_captions(spec.data), vocab_size=200)
    stream = train_batches(spec, tokenizer=tokenizer)
    for _ in range(3):
        rows = [row for batch in islice(stream, 4) for row in batch.row.tolist()]
        assert sorted(rows) == list(range(24))
    stream.close()  # type: ignore[attr-defined]


def test_a_row_that_is_drawn_twice_has_other_views() -> None:
    spec = experiment(
        data={"train": mixture(rows_per_epoch=12, few={"share": 5, "data": scenes(2)}, many={"share": 1, "data": scenes(9)})},
        training={"batch_size_per_gpu": 12, "accumulation_steps": 1},
    )
    tokenizer = train_wordpiece(training_captions(spec.data), vocab_size=200)
    (batch,) = islice(train_batches(spec, tokenizer=tokenizer), 1)
    assert Counter(row for row in batch.row.tolist() if row < 2) == {0: 5, 1: 5}
    views = [batch.images[number] for number, row in enumerate(batch.row.tolist()) if row == 0]
    assert all((one != other).any() for place, one in enumerate(views) for other in views[:place])
    assert batch.image_index[batch.row == 0].unique().numel() == 1  # one image: no negative of itself


def photos(folder: Path, names: dict[str, int]) -> dict[str, Any]:
    """A source of files with images by name, each drawn from a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in names.items():
        (folder / name).write_bytes(encoded(photograph(32, 32, seed=seed)))
    (folder / "rows.json").write_text(json.dumps([{"image": name, "caption": f"photo {seed}"} for name, seed in names.items()]))
    return {"source": "files", "files": [str(folder / "rows.json")], "image_root": str(folder)}


def test_sources_of_all_kinds_are_mixed_and_each_row_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(encoded(photograph(32, 32, seed=1)))
    (tmp_path / "folder" / "a.txt").write_text("from the folder")
    files = photos(tmp_path / "files", {"b.jpg": 2, "c.jpg": 3})
    pack(
        experiment(data={"train": photos(tmp_path / "packed", {"d.jpg": 4})}),
        "train",
        tmp_path / "shards",
        settings=PackSettings(),
    )
    data = mixture(
        made={"data": scenes(2)},
        files={"data": files},
        folder={"data": {"source": "folder", "folder": str(tmp_path / "folder")}},
        shards={"data": {"source": "shards", "folder": str(tmp_path / "shards")}},
    )
    spec = experiment(data={"train": data})
    rows = open_source(spec.data.train, key="data.train").rows(spec)
    assert rows.image_index.tolist() == list(range(6))
    assert [rows.captions(row)[0] for row in (2, 3, 4, 5)] == ["photo 2", "photo 3", "from the folder", "photo 4"]
    shown = [rows.image(row).astype(int) for row in (2, 3, 4, 5)]
    different = [[np.abs(pixels - photograph(32, 32, seed=seed)).mean() for seed in (1, 2, 3, 4)] for pixels in shown]
    assert np.argmin(different, axis=1).tolist() == [1, 2, 0, 3]


def test_what_two_sources_or_two_splits_share_is_said(tmp_path: Path) -> None:
    one, other = photos(tmp_path, {"a.jpg": 1, "b.jpg": 2}), photos(tmp_path / "inside", {"c.jpg": 3})
    again = {**other, "files": [str(tmp_path / "again.json")], "image_root": str(tmp_path)}
    (tmp_path / "again.json").write_text(json.dumps([{"image": "b.jpg", "caption": "again"}]))
    data = data_section(train=mixture(one={"data": one}, other={"data": other}, again={"data": again}), val=again)
    said = "\n".join(examine(data).warnings)
    assert (
        "1 of 1 images of data.train.sources.again.data are in data.train.sources.one.data as well: b.jpg. In a batch" in said
    )
    assert "1 of 1 images of data.val are in data.train.sources.one.data as well: b.jpg. They are trained on" in said
    assert "data.val reads files that data.train.sources.again.data reads" not in said


def test_what_is_planned_says_shares_and_passes() -> None:
    data = data_section(
        train=mixture(rows_per_epoch=40, few={"share": 3, "data": scenes(10)}, many={"share": 1, "data": scenes(100, seed=1)})
    )
    examined = examine(data)
    assert (examined.facts.num_train_rows, examined.facts.num_train_images) == (40, 110)
    (_, described) = examined.described[0]
    assert described.what == (
        "few (generated scenes): 75.0%, 3 passes an epoch; many (generated scenes): 25.0%, 0.1 passes an epoch"
    )


WRONG = {
    "one share missing": (
        mixture(a={"share": 1, "data": scenes(4)}, b={"data": scenes(4)}),
        "data.train.sources.b: `b` has no share, and others have one",
    ),
    "an epoch without shares": (
        mixture(rows_per_epoch=4, a={"data": scenes(4)}),
        "data.train.sources.a: `a` has no share, and `rows_per_epoch` is drawn by shares",
    ),
    "two forms": (
        mixture(a={"data": scenes(4)}, b={"data": scenes(4, form="vqa")}),
        "data.train.sources.b.data: `b` is of `form: vqa`, `a` of captions",
    ),
    "a mixture of mixtures": (
        mixture(a={"data": mixture(b={"data": scenes(4)})}),
        "data.train.sources.a.data.source: must be one of scenes, files, folder, datasets, shards, not `mixture`",
    ),
    "no source": (mixture(), "data.train.sources: must be a list of at least 1"),
    "a name with a dot": (mixture(**{"a.b": {"data": scenes(4)}}), "a name of small letters, digits and _"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mixture_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    train, message = WRONG[name]
    (tmp_path / "spec.json").write_text(json.dumps({"name": "mixed", "extends": "tclx:quickstart", "data": {"train": train}}))
    with pytest.raises(InputError) as refused:
        load_experiments(tmp_path / "spec.json")
    assert message in str(refused.value)


def planning(folder: Path) -> str:
    """What `tclx plan` says of a spec."""
    return CliRunner().invoke(app, ["plan", str(folder / "spec.json")]).output.replace("\n", " ")


def test_shares_are_keys_as_any_other(tmp_path: Path) -> None:
    train = mixture(a={"share": 1, "data": scenes(4)}, b={"share": 1, "data": scenes(4)})
    (tmp_path / "spec.json").write_text(json.dumps({"name": "mixed", "extends": "tclx:quickstart", "data": {"train": train}}))
    (found,) = load_experiments(tmp_path / "spec.json", ["data.train.sources.b.share=3"])
    assert isinstance(found.spec.data.train, MixtureSource)
    assert [one.share for one in found.spec.data.train.sources.values()] == [1, 3]
    with pytest.raises(InputError, match=r"unknown key `shre` \(did you mean `data.train.sources.b.share`\?\)"):
        load_experiments(tmp_path / "spec.json", ["data.train.sources.b.shre=3"])


def test_a_file_that_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    train = mixture(mine={"data": {"source": "folder", "folder": "gone"}})
    (tmp_path / "spec.json").write_text(json.dumps({"name": "mixed", "extends": "tclx:quickstart", "data": {"train": train}}))
    said = planning(tmp_path)
    assert f"data.train.sources.mine.data.folder: no such folder: {tmp_path}/gone" in said


def test_a_share_too_small_for_a_row_is_refused() -> None:
    data = data_section(train=mixture(a={"share": 1e6, "data": scenes(4)}, b={"share": 1, "data": scenes(4, seed=1)}))
    with pytest.raises(InputError, match=r"data\.train\.sources\.b\.share: of an epoch's 8 rows it would have none"):
        examine(data)


def test_evaluation_takes_no_shares(tmp_path: Path) -> None:
    val = mixture(a={"share": 1, "data": scenes(4)})
    (tmp_path / "spec.json").write_text(json.dumps({"name": "mixed", "extends": "tclx:quickstart", "data": {"val": val}}))
    assert "data.val.sources.a.share: what is evaluated is each row once" in planning(tmp_path)


@given(total=st.integers(1, 10**6), shares=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_counts_add_up_and_are_within_one_of_the_shares(total: int, shares: list[float]) -> None:
    counts = apportioned(total, shares)
    assert sum(counts) == total
    assert all(abs(count - total * share / sum(shares)) < 1 + 1e-6 for count, share in zip(counts, shares, strict=True))


def test_sections_with_names_of_the_users_own_are_equal_and_hashed_by_value() -> None:
    """Planning and VQA's answers keep what they have read by the spec; a mapping inside would end that in a TypeError."""
    one, other = {"share": 1, "data": scenes(4)}, {"share": 2, "data": scenes(5)}
    first, second = (data_section(train=mixture(**names)) for names in ({"a": one, "b": other}, {"b": other, "a": one}))
    assert hash(first) == hash(data_section(train=mixture(a=one, b=other)))
    assert (hash(first) == hash(second)) >= (first == second)
    slurm = experiment(launch={"backend": "slurm", "time_limit_minutes": 10, "sbatch_options": {"exclude": "bad"}})
    assert len({slurm, slurm.model_copy(), experiment()}) == 2
