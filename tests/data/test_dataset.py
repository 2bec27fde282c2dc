from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tclx.data import dataset as module
from tclx.data.batch import Batch, normalise
from tclx.data.dataset import (
    open_evaluation_set,
    train_batches,
    training_captions,
)
from tclx.data.order import Block, Draw, KeyedOrder, keyed_generator
from tclx.data.tokenizer import CaptionTokenizer, train_wordpiece
from tclx.errors import InputError, MachineError, RunFailed
from tclx.spec.data import NormalizationSpec
from tests.data.small import encoded, equal, experiment, files_source, photograph


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return train_wordpiece(training_captions(experiment().data), vocab_size=300)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve JPEGs of different sizes, `0.jpg` to `11.jpg`."""
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(photograph(40 + number, 50 - number, seed=number)))
    return tmp_path


def photo_rows(num_captions: int = 2) -> list[dict[str, Any]]:
    return [{"image": f"{n}.jpg", "caption": [f"photo {n} says {k}" for k in range(num_captions)]} for n in range(12)]


def on_photos(folder: Path, rows: Any = None, *, policy: str = "refuse", **data: Any) -> dict[str, Any]:
    """A data section over the photos, one batch of six."""
    source = files_source(folder, rows or photo_rows(), form=data.pop("form", "pretrain"))
    return {"train": source.model_dump(mode="json"), "bad_images": {"policy": policy, "max_pixels": 10_000}, **data}


def take(count: int, batches: Iterator[Batch]) -> list[Batch]:
    taken = list(islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(map(equal, first, second))


def test_the_stream_depends_on_neither_workers_nor_start(tokenizer: CaptionTokenizer) -> None:
    stream = take(12, train_batches(experiment(), tokenizer=tokenizer))
    with_workers = experiment(data={"num_workers": 2})
    assert same(stream, take(12, train_batches(with_workers, tokenizer=tokenizer)))
    for start in (1, 7, 9):  # an epoch has 8 micro-steps
        for spec in (experiment(), with_workers):
            resumed = take(12 - start, train_batches(spec, tokenizer=tokenizer, start_micro_step=start))
            assert same(stream[start:], resumed)


def test_the_stream_of_photographs_depends_on_neither_workers_nor_start(tokenizer: CaptionTokenizer, photos: Path) -> None:
    stream = take(5, train_batches(experiment(data=on_photos(photos)), tokenizer=tokenizer))
    other = experiment(data=on_photos(photos, num_workers=2))
    assert same(stream[2:], take(3, train_batches(other, tokenizer=tokenizer, start_micro_step=2)))


def test_batches_have_the_promised_shapes_and_types(tokenizer: CaptionTokenizer) -> None:
    (batch,) = take(1, train_batches(experiment(), tokenizer=tokenizer))
    length = batch.input_ids.shape[1]
    assert batch.images_second is not None
    assert batch.masked_input_ids is not None
    assert batch.mlm_positions is not None
    assert batch.mlm_labels is not None
    for images in (batch.images, batch.images_second):
        assert (images.shape, images.dtype) == ((6, 3, 32, 32), torch.uint8)
    assert (batch.attention_mask.shape, batch.attention_mask.dtype) == ((6, length), torch.bool)
    assert all(ids.dtype == torch.int64 for ids in (batch.input_ids, batch.image_index, batch.row, batch.mlm_labels))
    assert (batch.input_ids[:, 0] == tokenizer.cls_id).all()
    assert torch.equal(batch.input_ids == tokenizer.pad_id, ~batch.attention_mask)
    assert batch.attention_mask.sum(dim=1).max() == length
    assert torch.equal(batch.input_ids.flatten()[batch.mlm_positions], batch.mlm_labels)
    changed = torch.nonzero((batch.input_ids != batch.masked_input_ids).flatten()).flatten()
    assert set(changed.tolist()) <= set(batch.mlm_positions.tolist())
    assert len(changed) > 0


def test_terms_that_are_off_cost_nothing(tokenizer: CaptionTokenizer) -> None:
    (batch,) = take(1, train_batches(experiment(objectives={"imc": None, "mlm": None}), tokenizer=tokenizer))
    assert batch.images_second is batch.masked_input_ids is batch.mlm_positions is batch.mlm_labels is None


def test_switching_a_term_off_changes_nothing_else(tokenizer: CaptionTokenizer) -> None:
    (all_on,) = take(1, train_batches(experiment(), tokenizer=tokenizer))
    (some_on,) = take(1, train_batches(experiment(objectives={"imc": None, "mlm": None}), tokenizer=tokenizer))
    assert torch.equal(all_on.images, some_on.images)
    assert torch.equal(all_on.input_ids, some_on.input_ids)


def test_the_two_views_differ_and_so_do_epochs_and_seeds(tokenizer: CaptionTokenizer) -> None:
    first, *_, later = take(9, train_batches(experiment(), tokenizer=tokenizer))
    (other_seed,) = take(1, train_batches(experiment(seed=4), tokenizer=tokenizer))
    assert first.images_second is not None
    assert ((first.images != first.images_second).flatten(1).any(dim=1)).all()
    assert not torch.equal(first.row, later.row)
    assert not torch.equal(first.row, other_seed.row)


def order(**changes: int) -> KeyedOrder:
    numbers = {
        "batch_size": 3,
        "accumulation_steps": 2,
        "seed": 0,
        "rank": 0,
        "world_size": 1,
        "start_micro_step": 0,
    }
    return KeyedOrder(blocks=(Block(0, 50, 50),), **{**numbers, **changes})


def test_processes_partition_each_global_batch_and_an_epoch_repeats_no_row() -> None:
    ranks = [list(islice(order(rank=rank, world_size=2), 16)) for rank in range(2)]
    whole = list(islice(order(batch_size=6), 16))
    for left, right, both in zip(*ranks, whole, strict=True):
        assert np.concatenate([left.rows, right.rows]).tolist() == both.rows.tolist()
    for epoch in (0, 1):
        rows = np.concatenate([part.rows for part in whole if part.passes[0] == epoch])
        assert len(rows) == 48 == len(set(rows.tolist()))  # 50 rows: four optimizer steps of 12, two rows dropped


def test_an_epoch_is_a_whole_number_of_optimizer_steps() -> None:
    assert order().micro_steps_per_epoch == 16
    assert order(accumulation_steps=5).micro_steps_per_epoch == 15
    assert order(accumulation_steps=17).micro_steps_per_epoch == 0


def test_the_order_changes_with_epoch_and_seed_and_covers_everything_in_time() -> None:
    epochs = {epoch: [part.rows.tolist() for part in islice(order(), 32) if part.passes[0] == epoch] for epoch in (0, 1)}
    assert epochs[0] != epochs[1]
    assert next(iter(order(seed=1))).rows.tolist() != epochs[0][0]
    assert {row for part in islice(order(), 160) for row in part.rows.tolist()} == set(range(50))


def test_streams_are_keyed_by_every_argument() -> None:
    keys = [{"seed": 1, "epoch": 2, "row": 3}, {"seed": 2, "epoch": 1, "row": 3}, {"seed": 1, "epoch": 3, "row": 2}]
    drawn = [keyed_generator(draw, **key).random() for key in keys for draw in Draw]
    assert len(set(drawn)) == len(drawn)
    assert drawn[0] == keyed_generator(Draw.ORDER, seed=1, epoch=2, row=3).random()


def test_captions_of_a_row_take_turns_over_epochs(photos: Path) -> None:
    spec = experiment(data=on_photos(photos, photo_rows(5)))
    tokenizer = train_wordpiece(training_captions(spec.data), vocab_size=300)
    batches = take(40, train_batches(spec, tokenizer=tokenizer))
    seen = {tokenizer.decode(ids.tolist()) for batch in batches for ids in batch.input_ids}
    assert len(seen) > 0.8 * 12 * 5  # 20 draws from 5 captions each miss one with probability 0.01


def test_equal_images_share_an_index_unless_the_official_pretraining_is_asked_for(
    tokenizer: CaptionTokenizer, photos: Path
) -> None:
    rows = [{"image": f"{number // 2}.jpg", "caption": str(number)} for number in range(12)]
    for compat, same in ((None, [number // 2 for number in range(12)]), ("official", list(range(12)))):
        batches = take(2, train_batches(experiment(data=on_photos(photos, rows), compat=compat), tokenizer=tokenizer))
        indices = {int(row): int(index) for batch in batches for row, index in zip(batch.row, batch.image_index, strict=True)}
        assert [indices[row] for row in range(12)] == same


def test_random_words_are_never_special_tokens_unless_official(tokenizer: CaptionTokenizer) -> None:
    for compat, expected in ((None, False), ("official", True)):
        spec = experiment(compat=compat, objectives={"mlm": {"mask_probability": 0.9}})
        found: Counter[int] = Counter()
        for batch in take(60, train_batches(spec, tokenizer=tokenizer)):
            assert batch.masked_input_ids is not None
            changed = batch.masked_input_ids[batch.masked_input_ids != batch.input_ids]
            found.update(changed.tolist())
        specials = set(tokenizer.special_ids) - {tokenizer.mask_id}
        assert bool(specials & set(found)) == expected


def test_an_empty_caption_is_cls_alone(tokenizer: CaptionTokenizer, photos: Path) -> None:
    rows = [{"image": f"{number}.jpg", "caption": "..."} for number in range(12)]
    (batch,) = take(1, train_batches(experiment(data=on_photos(photos, rows)), tokenizer=tokenizer))
    assert batch.input_ids.tolist() == [[tokenizer.cls_id]] * 6
    assert batch.mlm_positions is not None
    assert batch.mlm_positions.shape == (0,)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_puts_the_next_good_row_in_a_bad_ones_place_and_counts(
    tokenizer: CaptionTokenizer, photos: Path, num_workers: int
) -> None:
    (photos / "3.jpg").write_text("text")
    (photos / "4.jpg").unlink()
    (photos / "11.jpg").write_bytes(b"")
    data = on_photos(photos, policy="skip", num_workers=num_workers)
    epoch = take(2, train_batches(experiment(data=data), tokenizer=tokenizer))
    rows = Counter(int(row) for batch in epoch for row in batch.row)
    assert rows == Counter({0: 2, 5: 3, **dict.fromkeys((1, 2, 6, 7, 8, 9, 10), 1)})
    assert sum(batch.num_bad_images for batch in epoch) == 3


def test_a_replacement_is_another_view_than_the_row_itself(tokenizer: CaptionTokenizer, photos: Path) -> None:
    (photos / "3.jpg").unlink()
    spec = experiment(data=on_photos(photos, policy="skip"), training={"batch_size_per_gpu": 12, "accumulation_steps": 1})
    (batch,) = take(1, train_batches(spec, tokenizer=tokenizer))
    one, other = batch.images[batch.row == 4]
    assert not torch.equal(one, other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_refuse_ends_the_run_when_a_image_turns_bad_later(tokenizer: CaptionTokenizer, photos: Path, num_workers: int) -> None:
    (photos / "3.jpg").unlink()
    batches = train_batches(experiment(data=on_photos(photos, num_workers=num_workers)), tokenizer=tokenizer)
    with pytest.raises(RunFailed, match=r"3.jpg: does not exist.*data.bad_images.policy to skip"):
        take(2, batches)


def test_skip_gives_up_when_the_folder_is_gone(
    tokenizer: CaptionTokenizer, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BAD_IN_A_ROW", 5)
    data = on_photos(photos, policy="skip")
    data["train"]["image_root"] = str(photos / "gone")
    with pytest.raises(RunFailed, match="5 successive rows have no readable image"):
        next(train_batches(experiment(data=data), tokenizer=tokenizer))


def test_fewer_rows_than_a_step_are_refused(tokenizer: CaptionTokenizer) -> None:
    with pytest.raises(InputError, match=r"one optimizer step takes 64 rows, data\.train has 50"):
        train_batches(experiment(training={"batch_size_per_gpu": 8}), tokenizer=tokenizer, world_size=4)


def test_shared_memory_that_is_too_small_for_all_batches_is_refused_with_the_figures(
    tokenizer: CaptionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two views of a batch of images, two batches ahead, two loader processes."""
    spec = experiment(data={"num_workers": 2})
    batch = spec.training.batch_size_per_gpu * 2 * 3 * spec.model.image_encoder.image_size**2
    free = {"blocks": 2 * 2 * batch}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free["blocks"], f_frsize=1))
    take(1, train_batches(spec, tokenizer=tokenizer))
    free["blocks"] -= 1
    with pytest.raises(MachineError, match=r"MiB of shared memory are needed .* 2 data\.num_workers x 1 .*--shm-size"):
        train_batches(spec, tokenizer=tokenizer)
    take(1, train_batches(experiment(data={"num_workers": 0}), tokenizer=tokenizer))


def test_the_global_random_state_is_left_alone(tokenizer: CaptionTokenizer) -> None:
    before = torch.get_rng_state()
    take(2, train_batches(experiment(data={"num_workers": 1}), tokenizer=tokenizer))
    take(2, train_batches(experiment(), tokenizer=tokenizer))
    assert torch.equal(torch.get_rng_state(), before)


# Evaluation


def test_scenes_are_evaluated_with_all_their_captions(tokenizer: CaptionTokenizer) -> None:
    images = open_evaluation_set(experiment(data={"val": {"source": "scenes", "num_images": 7, "split": "val"}}), "val")
    assert (images.num_images, images.num_captions) == (7, 35)
    assert images.image_of_caption.tolist() == [number for number in range(7) for _ in range(5)]
    batches = list(images.image_batches(batch_size=3))
    assert [batch.shape for batch in batches] == [(3, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32)]
    input_ids, attention_mask = images.encode_captions(tokenizer)
    assert input_ids.shape == attention_mask.shape == (35, int(attention_mask.sum(dim=1).max()))
    assert tokenizer.decode(input_ids[3].tolist()) == images.captions[3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_come_in_the_order_asked_for(photos: Path, num_workers: int) -> None:
    data = {"val": on_photos(photos)["train"], "num_workers": num_workers, "decoder": "pil"}
    images = open_evaluation_set(experiment(data=data), "val")
    numbers = [5, 0, 11, 5, 2, 3, 4, 1, 7]
    loaded = torch.cat(list(images.image_batches(numbers, batch_size=2)))
    for number, found in zip(numbers, loaded, strict=True):
        image = Image.open(photos / f"{number}.jpg").resize((32, 32), Image.Resampling.BICUBIC)
        apart = np.abs(np.asarray(image).astype(int) - found.permute(1, 2, 0).numpy())
        assert apart.max() == 0


def test_images_are_turned_as_their_file_says_and_as_stored_for_the_published_code(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    (photos / "0.jpg").write_bytes(encoded(photograph(40, 40), exif=exif))
    seen, stored = (
        open_evaluation_set(experiment(data={"val": on_photos(photos)["train"]}, compat=compat), "val").image(0)
        for compat in (None, "official")
    )
    assert np.abs(seen.astype(int) - stored[::-1, ::-1]).mean() < 2
    assert np.abs(seen.astype(int) - stored).mean() > 10


def test_training_rows_are_grouped_by_image_when_evaluated_on(photos: Path) -> None:
    rows = [{"image": f"{n % 3}.jpg", "image_id": n % 3, "caption": f"Caption {n}!"} for n in (2, 0, 1, 2, 0)]
    source = files_source(photos, rows, form="retrieval")
    images = open_evaluation_set(experiment(data={"test": source.model_dump(mode="json")}), "test")
    assert images.num_images == 3
    assert images.captions == ["caption 2", "caption 2", "caption 0", "caption 0", "caption 1"]
    assert images.image_of_caption.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_ends_an_evaluation_whatever_the_policy(photos: Path, num_workers: int) -> None:
    (photos / "6.jpg").write_text("text")
    data = {"val": on_photos(photos)["train"], "num_workers": num_workers, "bad_images": {"policy": "skip"}}
    with pytest.raises(RunFailed, match=r"an image to evaluate on cannot be read: .*6.jpg"):
        list(open_evaluation_set(experiment(data=data), "val").image_batches(batch_size=1))


def test_a_split_that_is_not_set_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.test: is not set"):
        open_evaluation_set(experiment(), "test")


# Batches


def test_normalising_follows_its_definition() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    spec = NormalizationSpec()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    torch.testing.assert_close(normalise(images, spec), (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.uint8


def test_a_batch_moves_as_a_whole(tokenizer: CaptionTokenizer) -> None:
    (batch,) = take(1, train_batches(experiment(objectives={"imc": None}), tokenizer=tokenizer))
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.mlm_labels is not None
    assert moved.mlm_labels.is_meta
    assert moved.images_second is None
    assert moved.num_bad_images == batch.num_bad_images
