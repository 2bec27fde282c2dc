"""docs/scale.md says what its arithmetic gives, and that arithmetic counts the bytes that real processes receive."""

from __future__ import annotations

import pytest

from benchmarks import wire
from benchmarks.scale import _between, _cluster, received_bytes
from tests.conftest import PROJECT
from tests.train.toy import toy_spec


@pytest.mark.slow
def test_the_bytes_between_real_processes_are_those_of_the_formula() -> None:
    counted = wire.received_bytes(16, 4)
    spec = toy_spec(**wire.ENCODERS, **{"training.batch_size_per_gpu": 16})
    expected = received_bytes(spec, 4, num_patches=64, width=64, num_trained=0, half=False)
    # which rows are hard, and so how many of them lie elsewhere, is drawn
    assert counted == pytest.approx(expected.features, rel=0.25)


def test_what_is_gathered_grows_with_the_processes_and_what_is_fetched_hardly() -> None:
    spec = toy_spec(**wire.ENCODERS)
    few, many = (received_bytes(spec, world, num_patches=64, width=64, num_trained=10**6, half=True) for world in (8, 64))
    assert many.embeddings == 9 * few.embeddings
    assert many.locals == 9 * few.locals
    assert few.negatives < many.negatives < 1.15 * few.negatives
    assert few.gradients < many.gradients < 8e6


def test_the_page_is_what_the_arithmetic_gives_today() -> None:
    page = (PROJECT / "docs" / "scale.md").read_text(encoding="utf-8")
    for line in (*_between(), *_cluster()):
        assert line in page, "python -m benchmarks.scale > docs/scale.md"
