"""Promises of the table of sinks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tclx.spec.tracking import TrackingSpec
from tclx.track import sinks
from tclx.track.jsonl import Row
from tclx.track.sink import Sink, TrackedRun
from tclx.track.sinks import SINKS, open_sinks
from tests.train.toy import prepare, toy_spec

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_has_a_key_docs_and_is_off_unless_asked_for(tmp_path: Path, name: str) -> None:
    assert name in TrackingSpec.model_fields
    assert f"{name}:" in DOCS.read_text(encoding="utf-8")
    folder = prepare(tmp_path / "run", toy_spec())
    tracked = TrackedRun(folder, toy_spec(), (), say=pytest.fail, in_a_hurry=lambda: False)
    assert SINKS[name](tracked) is None


def test_every_sink_is_told_the_rows_that_metrics_jsonl_has_and_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []

    class Told(Sink):
        def row(self, row: Row) -> None:
            told.append(("row", row["step"]))

    @contextmanager
    def telling(run: TrackedRun) -> Iterator[Sink]:
        told.append(("opened", [row["step"] for row in run.rows]))
        yield Told()
        told.append(("closed", None))

    monkeypatch.setattr(sinks, "SINKS", {"one": telling, "none": lambda run: None, "two": telling})
    tracked = TrackedRun(prepare(tmp_path / "run", toy_spec()), toy_spec(), [{"step": 1}], say=print, in_a_hurry=bool)
    with open_sinks(tracked) as sink:
        sink.row({"step": 2})
    assert told == [("opened", [1])] * 2 + [("row", 2)] * 2 + [("closed", None)] * 2
