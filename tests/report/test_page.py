"""Promises of the page: whole in itself, and nothing in it runs or is fetched that tclx did not put there."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path

import plotly.graph_objects as go
import pytest

from tclx.found import find
from tclx.report.markup import code, details, escaped, figure, jpeg, table, text
from tclx.report.page import COLORS, Page, styles
from tclx.report.write import write_report
from tclx.runs import RunFolder, RunState
from tests.report.conftest import Trained
from tests.report.reading import Reader, without_library

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">'\"&</title></style>"


def spoiled(trained: Trained, place: Path) -> Path:
    """Runs with hostile words wherever a user's words get into the page."""
    for number, original in enumerate(trained.all):
        run = RunFolder(Path(shutil.copytree(original.path, place / original.run_id)))
        spec = run.read_json(run.spec)
        spec["name"] = spec["variant"] = f"{HOSTILE}{number // 2}"
        spec["data"]["test"][HOSTILE] = HOSTILE * (1 + number // 2)
        run.write_json(run.spec, spec)
        kept = run.read_json(run.examples("retrieval", "test"))
        for query in kept["text_to_image"]:
            query["text"] = HOSTILE
        for query in kept["image_to_text"]:
            query["results"][0]["text"] = HOSTILE
        run.write_json(run.examples("retrieval", "test"), kept)
        environment = run.read_json(run.environment)
        run.write_json(run.environment, {**environment, "cpu": HOSTILE, "commit": HOSTILE, "packages": {"torch": HOSTILE}})
        rows = run.metrics.read_text().splitlines()
        run.metrics.write_text("".join(json.dumps({**json.loads(row), HOSTILE: len(row)}) + "\n" for row in rows))
    run.write_state(RunState("failed", step=1, total_steps=2, reason=HOSTILE))
    output = place / "report.html"
    write_report(find([str(place)], runs_dir=place).selection, output)
    return output


def test_nothing_is_fetched(page: Path) -> None:
    reader = Reader.of(page)
    assert all(address.startswith(("data:", "#")) for address in reader.addresses())
    rest = without_library(page.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", rest).replace("// ", ""))
    assert "default-src 'none'" in reader.policy
    assert "connect-src" not in reader.policy


def test_the_library_is_plotlys_own_and_the_policy_lets_it_and_the_pages_script_run(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    packed = re.search(r'id="plotly">([^<]*)<', content)
    assert packed is not None
    library = gzip.decompress(base64.b64decode(packed[1]))
    assert library == files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    script = content.rpartition("<script>")[2].partition("</script>")[0]
    allowed = re.findall(r"'sha256-([^']*)'", Reader.of(page).policy)
    assert sorted(allowed) == sorted(
        base64.b64encode(hashlib.sha256(one).digest()).decode() for one in (library, script.encode())
    )
    assert "unsafe-inline" not in Reader.of(page).policy.partition("script-src")[2].partition(";")[0]


def test_words_of_specs_captions_and_errors_are_never_markup(trained: Trained, tmp_path: Path) -> None:
    reader = Reader.of(spoiled(trained, tmp_path))
    kinds = [attrs.get("type", "script") for tag, attrs in reader.tags if tag == "script"]
    assert sorted(set(kinds)) == ["application/json", "script", "text/plain"]
    assert kinds.count("script") == 1
    assert not [attrs for _, attrs in reader.tags if any(name.startswith("on") for name in attrs)]
    assert all((attrs["src"] or "").startswith("data:") for tag, attrs in reader.tags if tag == "img")
    assert reader.text.count(HOSTILE) > 10


def test_what_stands_in_a_figure_cannot_end_its_script() -> None:
    plot = go.Figure().add_scatter(x=[1], y=[1], name=HOSTILE)
    reader = Reader(figure(plot, title="t"))
    assert reader.figures["t"]["data"][0]["name"] == HOSTILE
    assert [tag for tag, _ in reader.tags].count("script") == 1


@pytest.mark.parametrize("make", [escaped, text, code, details])
def test_the_functions_that_take_words_escape_them(make: object) -> None:
    assert [tag for tag, _ in Reader(make(HOSTILE)).tags if tag in ("script", "img")] == []  # type: ignore[operator]


def test_cells_are_escaped_but_for_markup() -> None:
    made = table([HOSTILE, "b"], [[HOSTILE, escaped("x")]])
    assert [tag for tag, _ in Reader(made).tags if tag in ("script", "img")] == []
    assert Reader(made).tables == [[[HOSTILE, "b"], [HOSTILE, "x"]]]


def test_a_image_that_is_no_base64_is_refused() -> None:
    with pytest.raises(ValueError, match="base64"):
        jpeg('"><script>', description="d")


def test_a_page_without_figures_carries_no_library(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    Page("Words").section("One", text("only words")).section("Left out").write(path)
    assert path.stat().st_size < 20_000
    assert "Left out" not in path.read_text()


def test_more_groups_than_colours_are_told_apart_by_dashes() -> None:
    made = styles([str(number) for number in range(3 * len(COLORS))])
    assert len(set(made.values())) == 3 * len(COLORS)
