from __future__ import annotations

import io

from rich.console import Console

from tclx.track.console import watch

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
    assert lines[2].startswith("step 5/10  val/r_mean 31.250  ETA ")
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_with_progress_losses_and_speed() -> None:
    text = shown(terminal=True)
    for part in ("toy", "5/10", "ETA", "total 4.250", "123 images/s", "a [message] with brackets", "val/r_mean 31.250"):
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
