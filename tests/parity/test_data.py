"""Captions, tokens and RandAugment against what the official code gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tclx.data.augment import SIGNED_RANGES, apply_operation, operation_argument
from tclx.data.captions import clean_caption
from tclx.data.tokenizer import CaptionTokenizer


@pytest.fixture(scope="module")
def extras(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "parity" / "extras.json").read_text())


@pytest.fixture(scope="module")
def images(shared: Path) -> dict[str, np.ndarray]:
    return load_file(shared / "parity" / "extras.safetensors")


def test_captions_are_cleaned_as_officially(extras: dict[str, Any]) -> None:
    recorded = extras["pre_caption_30"]
    assert {caption: clean_caption(caption, max_words=30) for caption in recorded} == recorded


def test_tokens_are_the_official_ones(extras: dict[str, Any], tmp_path: Path) -> None:
    recorded = extras["tokenizer"]
    (tmp_path / "vocab.txt").write_text("\n".join(recorded["vocab"]))
    tokenizer = CaptionTokenizer.load(tmp_path)
    longest = tokenizer.encode(recorded["texts"], max_tokens=7)
    assert longest.input_ids.tolist() == recorded["longest_trunc7"]
    assert longest.attention_mask.astype(int).tolist() == recorded["longest_trunc7_mask"]
    fixed = tokenizer.encode(recorded["texts"], max_tokens=9, fixed_length=True)
    assert fixed.input_ids.tolist() == recorded["max_length9"]


def test_randaugment_operations_are_the_official_ones_pixel_for_pixel(
    extras: dict[str, Any], images: dict[str, np.ndarray]
) -> None:
    recorded = extras["randaug_args_level7"]
    assert len(recorded) == 20
    for name, arguments in recorded.items():
        operation, sign = name[:-1], -1 if name.endswith("-") and name[:-1] in SIGNED_RANGES else 1
        argument = sign * operation_argument(operation, magnitude=7)
        assert arguments == [] or arguments[0] == argument
        varied = apply_operation(images["randaug/input"], operation, argument, official=True)
        assert np.array_equal(varied, images[f"randaug/{name}"]), name


def test_only_sharpness_differs_without_compat(extras: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    different = {
        name
        for name, arguments in extras["randaug_args_level7"].items()
        if not np.array_equal(
            apply_operation(images["randaug/input"], name[:-1], arguments[0] if arguments else 0), images[f"randaug/{name}"]
        )
    }
    assert different == {"Sharpness+", "Sharpness-"}
