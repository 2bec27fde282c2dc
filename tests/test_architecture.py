"""docs/architecture.md names every room, and imports go round in no circle, those within functions included."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PROJECT = Path(__file__).resolve().parents[1]


def test_imports_form_no_circle() -> None:
    graph = grimp.build_graph("tclx", exclude_type_checking_imports=True, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 150
    TopologicalSorter(imported).prepare()  # raises CycleError with the circle


def test_every_room_is_on_the_map() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (PROJECT / "tclx").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in page] == []
