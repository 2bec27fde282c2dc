from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tclx.data.augment import (
    BLUR_SIGMA,
    OPERATIONS,
    SIGNED_RANGES,
    Crop,
    Operation,
    ViewParameters,
    apply_operation,
    apply_view,
    draw_view,
    operation_argument,
    resize_for_evaluation,
)
from tclx.data.images import Decoder
from tclx.spec.data import AugmentationSpec
from tests.data.small import photograph

NOTHING = AugmentationSpec.model_validate_json(
    json.dumps({"crop_scale": [1, 1], "color_jitter": 0, "grayscale": 0, "blur": 0, "flip": 0, "random_ops": 0})
)
both = pytest.mark.parametrize("decoder", ["fast", "pil"])


def plain(height: int, width: int) -> ViewParameters:
    """The whole image, unvaried."""
    return ViewParameters(Crop(0, 0, height, width), jitter=(), grayscale=False, blur_sigma=None, flip=False, operations=())


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second).mean())


@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_every_crop_lies_inside_its_image(seed: int, height: int, width: int) -> None:
    crop = draw_view(np.random.default_rng(seed), AugmentationSpec(), height=height, width=width).crop
    assert crop.height >= 1
    assert crop.width >= 1
    assert crop.top >= 0
    assert crop.top + crop.height <= height
    assert crop.left >= 0
    assert crop.left + crop.width <= width


def test_crops_keep_to_their_share_of_the_area_and_their_ratio() -> None:
    rng = np.random.default_rng(0)
    crops = [draw_view(rng, AugmentationSpec(), height=400, width=500).crop for _ in range(500)]
    shares = np.array([crop.height * crop.width / 200_000 for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.19 < shares.min() < 0.25
    assert 0.9 < shares.max() <= 1.0
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35


def test_a_panorama_falls_back_to_a_central_crop_of_ratio_four_thirds() -> None:
    scale = AugmentationSpec.model_validate_json('{"crop_scale": [1, 1]}')
    assert draw_view(np.random.default_rng(0), scale, height=90, width=1000).crop == Crop(0, 440, 90, 120)
    assert draw_view(np.random.default_rng(0), scale, height=1000, width=90).crop == Crop(440, 0, 120, 90)


def test_probabilities_and_ranges_are_the_specs() -> None:
    rng = np.random.default_rng(1)
    views = [draw_view(rng, AugmentationSpec(), height=64, width=64) for _ in range(3000)]
    rates = np.mean([[bool(view.jitter), view.grayscale, view.blur_sigma is not None, view.flip] for view in views], axis=0)
    assert rates == pytest.approx([0.8, 0.2, 0.5, 0.5], abs=0.03)  # three standard deviations
    sigmas = [view.blur_sigma for view in views if view.blur_sigma is not None]
    assert BLUR_SIGMA[0] <= min(sigmas)
    assert max(sigmas) <= BLUR_SIGMA[1]
    assert np.mean([len(view.operations) for view in views]) == pytest.approx(1.0, abs=0.05)  # two drawn, half applied
    factors = {name: [dict(view.jitter)[name] for view in views if view.jitter] for name in ("brightness", "hue")}
    assert (min(factors["brightness"]), max(factors["brightness"])) == pytest.approx((0.6, 1.4), abs=0.01)
    assert (min(factors["hue"]), max(factors["hue"])) == pytest.approx((-0.1, 0.1), abs=0.01)


def test_every_operation_is_drawn_and_signed_ones_in_both_directions() -> None:
    rng = np.random.default_rng(2)
    drawn = {operation for _ in range(600) for operation in draw_view(rng, AugmentationSpec(), height=64, width=64).operations}
    expected = {(name, operation_argument(name, magnitude=7)) for name in OPERATIONS}
    assert drawn == expected | {(name, -operation_argument(name, magnitude=7)) for name in SIGNED_RANGES}


def test_operations_are_those_of_the_type() -> None:
    assert set(OPERATIONS) == set(get_args(Operation))


@both
def test_a_spec_of_zeros_varies_nothing(decoder: Decoder) -> None:
    image = photograph(48, 48)
    view = draw_view(np.random.default_rng(0), NOTHING, height=48, width=48)
    assert view == plain(48, 48)
    assert np.array_equal(apply_view(image, view, image_size=48, decoder=decoder), image)


@both
def test_a_flip_mirrors_left_and_right(decoder: Decoder) -> None:
    image = photograph(48, 48)
    flipped = apply_view(image, replace(plain(48, 48), flip=True), image_size=48, decoder=decoder)
    assert np.array_equal(flipped, image[:, ::-1])


@both
def test_grayscale_leaves_one_value_per_pixel(decoder: Decoder) -> None:
    gray = apply_view(photograph(), replace(plain(60, 80), grayscale=True), image_size=32, decoder=decoder)
    assert (gray == gray[..., :1]).all()


@both
def test_the_crop_is_what_is_seen(decoder: Decoder) -> None:
    image = photograph(96, 96)
    view = replace(plain(96, 96), crop=Crop(top=10, left=20, height=32, width=32))
    assert np.array_equal(apply_view(image, view, image_size=32, decoder=decoder), image[10:42, 20:52])


@both
def test_images_are_not_changed_in_place(decoder: Decoder) -> None:
    image = photograph()
    image.setflags(write=False)
    for seed in range(20):
        view = draw_view(np.random.default_rng(seed), AugmentationSpec(), height=60, width=80)
        assert apply_view(image, view, image_size=32, decoder=decoder).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "factor", "tolerance"),
    [("brightness", 0.6, 0.6), ("brightness", 1.4, 0.6), ("contrast", 0.7, 1), ("contrast", 1.4, 1), ("saturation", 0.6, 1),
     ("saturation", 1.4, 1), ("hue", -0.1, 3), ("hue", 0.08, 3)],
)  # fmt: skip
def test_fast_colour_jitter_is_pillows_up_to_rounding(name: str, factor: float, tolerance: float) -> None:
    image = photograph(64, 64, seed=4)
    view = replace(plain(64, 64), jitter=((name, factor),))
    fast, pil = (apply_view(image, view, image_size=64, decoder=decoder) for decoder in get_args(Decoder))
    assert distance(fast, pil) < tolerance
    assert distance(pil, image) > 2  # it does something


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_fast_blur_is_close_to_pillows(sigma: float) -> None:
    image = photograph(64, 64, seed=5)
    view = replace(plain(64, 64), blur_sigma=sigma)
    fast, pil = (apply_view(image, view, image_size=64, decoder=decoder) for decoder in get_args(Decoder))
    assert distance(fast, pil) < 1.0


@pytest.mark.parametrize("size", [(375, 500), (224, 224), (300, 90), (100, 120), (60, 700)])
@pytest.mark.parametrize("image_size", [64, 128, 224, 256])
def test_fast_resizing_is_close_to_pillows_bicubic(size: tuple[int, int], image_size: int) -> None:
    image = photograph(*size, seed=6)
    fast, pil = (resize_for_evaluation(image, image_size=image_size, decoder=decoder) for decoder in get_args(Decoder))
    assert fast.shape == pil.shape == (image_size, image_size, 3)
    assert distance(fast, pil) < 2.0


@both
def test_a_image_of_the_right_size_is_evaluated_untouched(decoder: Decoder) -> None:
    image = photograph(64, 64)
    assert resize_for_evaluation(image, image_size=64, decoder=decoder) is image


def test_whole_views_agree_between_the_decoders() -> None:
    image = photograph(240, 320, seed=7)
    spec = AugmentationSpec(random_ops=0)
    views = [draw_view(np.random.default_rng(seed), spec, height=240, width=320) for seed in range(30)]
    apart = [
        distance(*(apply_view(image, view, image_size=96, decoder=decoder) for decoder in get_args(Decoder))) for view in views
    ]
    assert np.median(apart) < 2.0
    assert max(apart) < 5.0


def test_the_magnitude_sets_the_arguments() -> None:
    assert [operation_argument(name, magnitude=10) for name in ("ShearX", "TranslateY", "Rotate")] == [0.3, 10, 30]
    assert [operation_argument(name, magnitude=0) for name in ("ShearX", "Brightness", "Equalize")] == [0, 0.1, 0]


def test_sharpness_saturates_by_default_and_overflows_officially() -> None:
    image = np.full((9, 9, 3), 10, np.uint8)
    image[4, 4] = 250  # sharpening pushes it above 255
    assert apply_operation(image, "Sharpness", 1.9)[4, 4].tolist() == [255] * 3
    # Around 250: smooth 102 (8 neighbours of 10, itself 5 times, over 13, rounded); 102 + 1.9 * 148 = 383 = 127 modulo 256.
    assert apply_operation(image, "Sharpness", 1.9, official=True)[4, 4].tolist() == [127] * 3


def test_autocontrast_spans_the_whole_range_and_equalize_flattens() -> None:
    image = (photograph(64, 64) // 4 + 60).astype(np.uint8)
    stretched = apply_operation(image, "AutoContrast", 0)
    assert stretched.min(axis=(0, 1)).tolist() == [0] * 3
    assert stretched.max(axis=(0, 1)).min() >= 254  # cut off, not rounded
    equalized = apply_operation(image, "Equalize", 0)
    assert np.quantile(equalized, [0.25, 0.5, 0.75]) == pytest.approx([64, 128, 191], abs=12)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_a_image_of_one_colour_stays_as_it_is(name: Operation) -> None:
    image = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(apply_operation(image, name, 0), image)


def test_translation_moves_by_whole_pixels_and_fills_with_gray() -> None:
    image = photograph(32, 32)
    moved = apply_operation(image, "TranslateX", 5)
    assert np.array_equal(moved[:, 5:], image[:, :-5]) or np.array_equal(moved[:, :-5], image[:, 5:])
    assert (moved == 128).all(axis=(0, 2)).sum() == 5


def test_pillow_evaluation_is_pillows_own_bicubic() -> None:
    image = photograph(60, 90)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_for_evaluation(image, image_size=32, decoder="pil"), expected)


@pytest.mark.parametrize(
    ("name", "argument", "place"),
    [
        ("TranslateX", 3.0, lambda x, y: (x + 3, y)),
        ("TranslateY", -2.0, lambda x, y: (x, y - 2)),
        ("ShearX", 1.0, lambda x, y: (x - y, y)),
        ("ShearY", 1.0, lambda x, y: (x, y - x)),
        ("Rotate", 180.0, lambda x, y: (8 - x, 8 - y)),
        ("Identity", 0.0, lambda x, y: (x, y)),
    ],
)
def test_geometry_takes_each_pixel_from_where_the_official_matrices_say(name: str, argument: float, place: Any) -> None:
    image = photograph(8, 8)
    moved = apply_operation(image, name, argument, official=False)
    for y in range(8):
        for x in range(8):
            from_x, from_y = place(x, y)
            if 0 <= from_x < 8 and 0 <= from_y < 8:
                assert (moved[y, x] == image[from_y, from_x]).all(), (x, y)
