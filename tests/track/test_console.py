from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tclx.track.console import Clock, Progress, fitted, watch, watch_each

ROW = {"step": 5, "loss/total": 4.25, "loss/cma": 2.5, "loss/cma_image_to_text": 9.0, "speed/images_per_second": 123.4}
EVALUATION = {"step": 5, "retrieval/val/r_mean": 31.25, "retrieval/val/dual/r_mean": 7.0}


def shown(*, terminal: bool, quiet: bool = False, environment: dict[str, str] | None = None) -> str:
    file = io.StringIO()
    variables = environment or {"TERM": "xterm-256color"}
    console = Console(file=file, force_terminal=terminal, width=160, quiet=quiet, _environ=variables)
    with watch(console, title="toy", first_step=0, total_steps=10) as watcher:
        watcher.say("a [message] with brackets")
        watcher.step(5)
        watcher.row(ROW)
        watcher.row(EVALUATION)
    return file.getvalue()


def test_piped_output_is_one_plain_line_a_row() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "a [message] with brackets"
    assert lines[1].startswith("step 5/10  total 4.250  cma 2.500  123 images/s  ETA ")
    assert lines[2].startswith("step 5/10  val: r_mean 31.250  ETA ")
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_with_progress_losses_and_speed() -> None:
    text = shown(terminal=True)
    for part in ("toy", "5/10", "ETA", "total 4.250", "123 images/s", "a [message] with brackets", "val: r_mean 31.250"):
        assert part in text


def test_no_color_is_respected() -> None:
    colours = [f"\x1b[{code}" for code in range(30, 38)]
    text = shown(terminal=True, environment={"NO_COLOR": "1", "TERM": "xterm-256color"})
    assert not any(colour in text for colour in colours)


def test_ranks_that_do_not_speak_show_nothing() -> None:
    assert shown(terminal=False, quiet=True) == ""


def test_a_loss_that_is_not_finite_is_shown_as_such() -> None:
    file = io.StringIO()
    with watch(Console(file=file), title="toy", first_step=0, total_steps=10) as watcher:
        watcher.row({"step": 1, "loss/total": None, "nonfinite": ["loss/total"]})
    assert "total not finite" in file.getvalue()


TERMS = ["total 12.273", "cma 4.352", "imc 3.866", "lmi 8.452", "itm 0.746", "mlm 5.725"]
RUN = "quickstart-s11-bf8b1234"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 150, 200])
@pytest.mark.parametrize(("steps", "eta"), [("3/80", "ETA 0:01:14"), ("1234567/5000000", "ETA 12 days, 3:04:05")])
def test_step_and_eta_never_give_way_to_anything(width: int, steps: str, eta: str) -> None:
    known = Progress(RUN, steps, 0.25, "0:00:07", eta)
    line = fitted(known, TERMS, "134 images/s", width=width).plain
    needed = len(steps) + len(eta) + 2
    assert steps in line
    assert eta in line
    assert len(line) < max(width, needed + 1)
    shown = [term for term in TERMS if term in line]
    assert shown == TERMS[: len(shown)]  # dropped from the right
    assert not re.search(r"\d…|images…", line)  # no number and no word is cut


def test_what_is_shown_grows_with_the_terminal() -> None:
    known = Progress(RUN, "30/80", 0.25, "0:00:07", "ETA 0:01:14")
    lines = {width: fitted(known, TERMS, "134 images/s", width=width).plain for width in range(20, 201)}
    assert "quickstart-s11-…" in lines[60]
    assert "total 12.273" in lines[60]
    assert "134 images/s" in lines[80]
    assert len(re.findall("[━─]", lines[100])) == 10
    assert RUN in lines[150]
    assert all(term in lines[150] for term in TERMS)
    assert len(re.findall("[━─]", lines[200])) == 24
    assert lines[200].count("━") == 6
    counts = [sum(term in lines[width] for term in TERMS) for width in lines]
    assert counts == sorted(counts)


def test_a_plain_terminal_gets_plain_characters() -> None:
    known = Progress(RUN, "30/80", 0.25, "0:00:07", "ETA 0:01:14")
    assert fitted(known, TERMS, "134 images/s", width=100, ascii_only=True).plain.isascii()


def test_the_eta_counts_the_steps_of_this_process_and_not_those_before_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock(first_step=900, total_steps=1000)
    assert clock.remaining() == "-"
    now += 60.0  # start-up and compilation
    clock.note(901)
    assert clock.remaining() == "1:39:00"  # nothing better is known
    for step in range(902, 951):
        now += 2.0
        clock.note(step)
    assert clock.remaining() == "0:01:40"  # 50 steps of 2 s
    assert clock.elapsed() == "0:02:38"


def test_piped_lines_have_that_eta_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    file = io.StringIO()
    with watch(Console(file=file), title="toy", first_step=900, total_steps=1000) as watcher:
        for step in (901, 902, 903):
            now += 5.0
            watcher.row({**ROW, "step": step})
    assert file.getvalue().splitlines()[-1].endswith("ETA 0:08:05")


def test_several_consoles_are_each_told_everything() -> None:
    terminal, log = io.StringIO(), io.StringIO()
    consoles = [Console(file=terminal, force_terminal=True, width=160, _environ={"TERM": "xterm-256color"}), Console(file=log)]
    with watch_each(consoles, title="toy", first_step=0, total_steps=10) as watcher:
        watcher.say("hello")
        watcher.row(ROW)
        watcher.step(7)
    assert [line.split("  ETA")[0] for line in log.getvalue().splitlines()] == [
        "hello",
        "step 5/10  total 4.250  cma 2.500  123 images/s",
    ]
    assert all(part in terminal.getvalue() for part in ("hello", "total 4.250", "7/10"))


def test_an_evaluations_line_fits_into_80_columns() -> None:
    file = io.StringIO()
    row = {"step": 12345} | {f"retrieval/test/{name}": 100.0 for name in ("text_to_image/r1", "image_to_text/r1", "r_mean")}
    with watch(Console(file=file), title="toy", first_step=0, total_steps=20000) as watcher:
        watcher.row(row)
    assert "test: T2I R@1 100.000  I2T R@1 100.000  r_mean 100.000" in file.getvalue()
    assert len(file.getvalue().split("  ETA")[0]) <= 80
