"""Promises of the table of sources: whatever a spec may name is opened, documented, and answers everything that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tclx.data.sources.opening import open_source
from tclx.data.sources.source import Rows, Source
from tclx.spec.data import DataSource, SourceSection

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SECTIONS = {kind.model_fields["source"].annotation.__args__[0]: kind for kind in get_args(get_args(DataSource)[0])}


SAMPLES = {
    "files": {"form": "pretrain", "files": ("/x.json",), "image_root": "/x"},
    "scenes": {"num_images": 3, "split": "val"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_source_has_docs_and_answers_all_that_is_asked(name: str) -> None:
    assert f"source: {name}" in DOCS.read_text(encoding="utf-8")
    assert issubclass(SECTIONS[name], SourceSection)
    asked = {part for part in vars(Source) if not part.startswith("_")}
    assert asked <= set(dir(open_source(SECTIONS[name](source=name, **SAMPLES[name]), key="data.val")))


def test_rows_answer_all_that_is_asked() -> None:
    scenes = SECTIONS["scenes"](source="scenes", **SAMPLES["scenes"])
    rows = open_source(scenes, key="data.val").rows(None)  # type: ignore[arg-type]  # scenes are drawn, not decoded
    assert {part for part in vars(Rows) if not part.startswith("_")} <= set(dir(rows))
    assert (rows.num_rows, len(rows.captions(2)), rows.picture(2).shape) == (3, 5, (32, 32, 3))
