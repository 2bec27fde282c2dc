"""Promises of the table for a paper: nothing in it is read as a command, and it compiles where there is a LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.report.latex import Cell, escape, latex_table
from tests.report.test_results import R1, RIGHT, WRONG, make_ranked

HOSTILE = r"a_b {50%} $x^2$ & #1 ~ \input{secret} [2mm] *<b>|c|\"d\" -- ± ``x''"


def table() -> str:
    body = [
        [Cell(HOSTILE), Cell("34.1 [30.2, 37.7]", marked=True)],
        [Cell("[2mm]"), Cell("-2.0 ± 1.1")],
        [Cell("*"), Cell("-")],
    ]
    return latex_table(
        [[Cell("experiment"), Cell("R@1")], *body], said="retrieval on test", foot=[[Cell("chance"), Cell("0.4")]]
    )


def test_what_latex_would_read_is_escaped() -> None:
    shown = escape(HOSTILE)
    bare = re.sub(r"\\[{}$&#%_]|\\text[a-z]+\{\}|\$\\pm\$", "", shown)
    assert not re.search(r"[\\$&#%_~^<>|\"]", bare)
    assert not re.search(r"(?<!\{)[\[\]*]|--", bare)
    assert bare.count("{") == bare.count("}")
    assert escape("x-2 and -2.5") == "x-2 and $-$2.5"


def test_every_line_has_a_cell_for_each_column_and_marks_are_bold() -> None:
    lines = [line for line in table().splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {1}
    assert not any(line.lstrip().startswith(("[", "*")) for line in lines)
    assert r"\textbf{34.1 {[}30.2, 37.7{]}}" in lines[1]
    assert table().count(r"\midrule") == 2


def test_the_table_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no LaTeX on this machine")
    packages = r"\usepackage{booktabs}\usepackage[T1]{fontenc}"
    page = f"\\documentclass{{article}}{packages}\\begin{{document}}\n{table()}\n\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_results_print_it_and_nothing_else(tmp_path: Path) -> None:
    make_ranked(tmp_path, RIGHT, variant="a_1")
    make_ranked(tmp_path, WRONG, variant="b")
    options = ["--metric", R1[0], "--runs-dir", str(tmp_path)]
    ended = CliRunner().invoke(app, ["results", "--latex", *options])
    assert ended.exit_code == 0
    lines = ended.stdout.splitlines()
    assert lines[2] == r"\begin{tabular}{lrr}"
    assert lines[-1] == r"\end{tabular}"
    assert r"toy a\_1 & 1 & \textbf{90.0 {[}" in ended.stdout
    assert r"toy b & 1 & 20.0 {[}" in ended.stdout  # not bold
    both = CliRunner().invoke(app, ["results", "--latex", "--json", *options])
    assert (both.exit_code, both.stdout) == (2, "")
