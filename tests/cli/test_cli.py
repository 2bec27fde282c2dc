"""Promises of the command line: light, plain where it is piped, every mistake in words, every exit code in its meaning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tclx import __version__
from tclx.cli.app import app
from tests.launch.toy import SPEC, write_spec

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = [
    ["run"], ["plan"], ["eval"], ["results"], ["report"], ["schema"], ["doctor"], ["sync"], ["dashboard"],
    ["tensorboard"], ["sweep"],
    ["sweep", "run"], ["sweep", "plan"], ["sweep", "status"], ["sweep", "best"], ["sweep", "table"], ["sweep", "report"],
    ["sweep", "cancel"],
    ["data"], ["data", "write"], ["data", "check"], ["data", "import"],
    ["embed"], ["search"], ["export"], ["du"], ["rm"], ["fetch"],
    ["weights"], ["weights", "import"], ["weights", "export"], ["repro"],
]  # fmt: skip


class Ended:
    """What a command left: exit code and both streams."""

    def __init__(self, *arguments: str | Path) -> None:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="tclx")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr


def run_process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, piped."""
    return subprocess.run(
        [sys.executable, "-m", "tclx.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real run, trained through the command line."""
    folder = tmp_path_factory.mktemp("trained")
    ended = run_process("run", write_spec(folder), "--runs-dir", folder / "runs")
    assert ended.returncode == 0, ended.stderr
    assert "T2I R@1" in ended.stdout
    return folder / "runs"


@pytest.fixture
def trained(runs_dir: Path) -> Path:
    return next(runs_dir.glob("toy-s0-*"))


# ------------------------------------------------------------------------------------------------------------------- manner


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example_of_itself(command: list[str]) -> None:
    ended = Ended(*command, "--help")
    assert ended.code == 0
    last = " ".join(ended.out.strip().rpartition("\n\n")[2].split())  # a long one is broken into lines
    assert re.search(rf"Example: tclx {' '.join(command)} ", last)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, tclx.cli; sys.argv = ['tclx', '--help']\n"
        "try: tclx.cli.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'pydantic', 'rich', 'ruamel') if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["status"], ["torch", "numpy", "tclx.spec.experiment", "ruamel.yaml", "tclx.plan"]),
        (["results"], ["torch", "numpy", "ruamel.yaml"]),
        (["plan", "toy.yaml", "--quick"], ["torch", "numpy", "tclx.spec.sweep", "optuna", "submitit"]),
    ],
)
def test_a_command_loads_no_more_than_it_needs(tmp_path: Path, command: list[str], heavy: list[str]) -> None:
    write_spec(tmp_path)
    where = [] if command[0] == "plan" else ["--runs-dir", str(tmp_path)]
    code = (
        "import sys, tclx.cli\n"
        "try: tclx.cli.main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, "-c", code, *command, *where],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.splitlines()[-1] == "[]", ended.stderr


def test_version() -> None:
    assert Ended("--version").out.strip() == __version__


def test_an_unknown_command_suggests_the_nearest() -> None:
    ended = Ended("resluts")
    assert ended.code == 2
    assert "results" in ended.err


@pytest.mark.parametrize(
    ("word", "command"),
    [("trian", "run"), ("train", "run"), ("pln", "plan"), ("evaluate", "eval"), ("tune", "sweep"), ("stop", "cancel")],
)
def test_what_other_tools_call_a_command_leads_to_ours(word: str, command: str) -> None:
    ended = Ended(word, "spec.yaml")
    assert ended.code == 2
    assert f"there is no command `{word}` (did you mean `tclx {command}`?)" in ended.err


@pytest.mark.parametrize("command", [["run"], ["sweep"]])
def test_a_dry_run_is_a_plan(command: list[str], tmp_path: Path) -> None:
    ended = Ended(*command, write_spec(tmp_path), "--dry-run")
    assert ended.code == 2
    assert ended.err.startswith("error: --dry-run: is no option here (`tclx plan SPEC`")
    assert "dry" not in Ended(*command, "--help").out


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """It is gone before the first letter is written, so that not even a pipe's own 64 KiB take what it is sent; one command
    writes more than Python keeps, the other leaves all of it to the end."""
    for command in (["schema"], ["status", "--json", "--runs-dir", str(tmp_path)]):
        reading, writing = os.pipe()
        os.close(reading)
        ended = subprocess.run(
            [sys.executable, "-m", "tclx.cli", *command],
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": ""},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writing)
        assert ended.stderr == "", command
        assert ended.returncode in (0, 1)


def test_piped_output_has_no_colour(runs_dir: Path) -> None:
    ended = run_process("results", "--runs-dir", runs_dir)
    assert "\033" not in ended.stdout + ended.stderr


# --------------------------------------------------------------------------------------------------------------- run and plan


def test_a_finished_run_is_reported_and_not_repeated(runs_dir: Path, trained: Path) -> None:
    before = (trained / "events.jsonl").read_bytes()
    ended = Ended("run", runs_dir.parent / "toy.yaml", "--runs-dir", runs_dir)
    assert ended.code == 0
    assert "finished earlier" in ended.err
    assert "T2I R@1" in ended.out
    assert (trained / "events.jsonl").read_bytes() == before


def test_a_failed_run_ends_with_its_reason_and_code(tmp_path: Path) -> None:
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    spec = write_spec(tmp_path, init={"checkpoint": "foreign.pth"})
    ended = run_process("run", spec, "--runs-dir", tmp_path / "runs")
    assert ended.returncode == 2
    assert re.search(r"^failed: init\.checkpoint: .*foreign\.pth", ended.stderr, re.MULTILINE)
    assert ended.stderr.count("init.checkpoint") == 1  # the worker's own words are in its log
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_wrong_specs_print_every_problem_with_its_place(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, trainnig={}, optim={"learning_rate": "fast"})
    for command in ("run", "plan"):
        ended = Ended(command, spec)
        assert ended.code == 2
        assert ended.out == ""
        lines = ended.err.splitlines()
        assert all(re.match(r"error: \S+toy\.yaml:\d+:\d+: ", line) for line in lines)
        assert any("trainnig" in line and "training" in line for line in lines)
        assert any("optim.learning_rate" in line for line in lines)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "name: [", "name: a\nname: b\n", "extends: bad.yaml\n"])
def test_a_file_that_is_no_spec_is_bad_input(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    ended = Ended("plan", tmp_path / "bad.yaml", "--quick")
    assert ended.code == 2
    assert ended.err.startswith("error: ")


def test_a_path_that_is_no_text_in_the_locale_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "dä ta"
    folder.mkdir()
    files = {"source": "files", "form": "pretrain", "files": ["a.json"], "image_root": "."}
    spec = write_spec(folder, data={**SPEC["data"], "train": files})
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = run_process("plan", "--quick", spec, **plain)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the path '")
    assert line.endswith("is no text in this locale (export PYTHONUTF8=1, or LC_ALL=C.UTF-8)")
    again = run_process("plan", "--quick", spec, **{**plain, "PYTHONUTF8": "1"})
    assert "does not exist" in again.stderr


def test_a_missing_file_and_a_wrong_set_are_bad_input(tmp_path: Path) -> None:
    assert Ended("plan", tmp_path / "none.yaml").code == 2
    ended = Ended("plan", write_spec(tmp_path), "--quick", "--set", "optim.learning_rat=1")
    assert ended.code == 2
    assert "learning_rate" in ended.err


def test_plan_json_is_the_whole_plan(tmp_path: Path) -> None:
    (run,) = json.loads(Ended("plan", write_spec(tmp_path), "--json", "--quick").out)
    assert run["run_id"].startswith("toy-s0-")
    assert run["total_steps"] == 2
    assert run["starts_from"] is None


def test_plan_knows_the_cost_of_each_run(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, variants={"cma": {"objectives": {**dict.fromkeys(SPEC["objectives"]), "cma": {}}}, "tcl": {}})
    cma, tcl = json.loads(Ended("plan", spec, "--json").out)
    assert 0 < cma["cost"]["parameters_trainable"] < tcl["cost"]["parameters_trainable"]
    assert cma["expected"]["seconds"] > 0
    out = Ended("plan", spec).out
    same, table, expected = (part.splitlines() for part in out.split("\n\n"))
    assert "total_steps" in "".join(same)  # once, not for each run
    assert len(table) == 3
    assert "parameters_total" in table[0]
    assert expected[0].split() == ["expected", "each", "all", "2"]
    assert expected[-1].startswith("time from 50% of this machine's")


def test_what_will_be_taken_fits_80_columns(tmp_path: Path) -> None:
    out = Ended("plan", write_spec(tmp_path, variants={"a": {}, "b": {}}, seeds=[0, 1])).out
    assert max(map(len, out.splitlines())) <= 80


def test_plan_needs_the_same_id_as_run_uses(runs_dir: Path, trained: Path) -> None:
    (run,) = json.loads(Ended("plan", runs_dir.parent / "toy.yaml", "--json", "--quick").out)
    assert run["run_id"] == trained.name


# ---------------------------------------------------------------------------------------------------- eval, results, weights


def test_eval_of_a_run_repeats_the_figures_of_its_training(trained: Path) -> None:
    recorded = json.loads((trained / "evaluation" / "retrieval-test.json").read_text())
    evaluation = json.loads(Ended("eval", trained, "--json").out)
    assert recorded["metrics"].items() <= evaluation["metrics"].items()
    assert evaluation["step"] == recorded["step"]


def test_eval_of_a_checkpoint_writes_nothing_into_the_run(trained: Path) -> None:
    before = (trained / "evaluation" / "retrieval-test.json").read_bytes()
    checkpoint = next((trained / "checkpoints").glob("step-*"))
    ended = Ended("eval", checkpoint, "--split", "val")
    assert ended.code == 0
    assert re.search(r"^retrieval/val/r_mean +\d+\.\d\d$", ended.out, re.MULTILINE)
    assert not (trained / "evaluation" / "retrieval-val.json").exists()
    assert (trained / "evaluation" / "retrieval-test.json").read_bytes() == before


def test_eval_on_another_spec_interpolates_to_its_images(runs_dir: Path, trained: Path, tmp_path: Path) -> None:
    model = json.loads(json.dumps(SPEC["model"]))
    model["image_encoder"]["image_size"] = 32
    ended = Ended("eval", trained, "--spec", write_spec(tmp_path, model=model), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["metrics"]["retrieval/test/num_images"] == 8


def test_eval_of_weights_round_tripped_through_the_official_form(trained: Path, runs_dir: Path, tmp_path: Path) -> None:
    official, ours = tmp_path / "tcl.pth", tmp_path / "tcl.safetensors"
    assert Ended("weights", "export", trained, official, "--form", "pretrain").code == 0
    assert Ended("weights", "import", official, ours).code == 0
    figures = json.loads((trained / "evaluation" / "retrieval-test.json").read_text())["metrics"]
    for file in (official, ours):
        ended = Ended("eval", file, "--spec", runs_dir.parent / "toy.yaml", "--json")
        assert figures.items() <= json.loads(ended.out)["metrics"].items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "no run at /nowhere"),
        (["{run}", "--checkpoint", "7"], "steps: 1, 2"),
        (["{run}", "--set", "seed=1"], "--spec"),
        (["{file}"], "name a spec"),
        (["{file}", "--spec", "{spec}"], "weights.pth"),
    ],
)
def test_eval_says_what_it_cannot_evaluate(
    trained: Path, runs_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    places = {"run": trained, "file": tmp_path / "weights.pth", "spec": runs_dir.parent / "toy.yaml"}
    ended = Ended("eval", *(argument.format(**places) for argument in arguments))
    assert ended.code == 2
    assert message in ended.err


def test_results_of_real_runs_in_every_form(runs_dir: Path, trained: Path, tmp_path: Path) -> None:
    text = Ended("results", "--runs-dir", runs_dir)
    assert re.search(r"^toy +1 +\d", text.out, re.MULTILINE)
    ended = Ended("results", trained, "--json", "--metric", "retrieval/test/r_mean", "--csv", tmp_path / "out.csv")
    recorded = json.loads((trained / "evaluation" / "retrieval-test.json").read_text())["metrics"]["retrieval/test/r_mean"]
    assert json.loads(ended.out)["rows"][0]["metrics"]["r_mean"]["mean"] == recorded
    assert str(recorded) in (tmp_path / "out.csv").read_text()


def test_results_without_runs_say_so(tmp_path: Path) -> None:
    ended = Ended("results", "--runs-dir", tmp_path)
    assert (ended.code, ended.out) == (0, "")
    assert "--runs-dir" in ended.err
    assert Ended("results", "nothing", "--runs-dir", tmp_path).code == 2


def test_importing_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {tmp_path}/owned",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    ended = Ended("weights", "import", tmp_path / "evil.pth", tmp_path / "out.safetensors")
    assert ended.code == 2
    assert not (tmp_path / "owned").exists()


# -------------------------------------------------------------------------------------------------------------- schema, data


def test_schema_goes_to_stdout_or_to_a_file(tmp_path: Path) -> None:
    schema = json.loads(Ended("schema").out)
    assert "objectives" in schema["properties"]
    assert Ended("schema", "experiment", "-o", tmp_path / "schema.json").out == ""
    assert json.loads((tmp_path / "schema.json").read_text()) == schema


def test_data_write_makes_a_set_that_plans_and_checks(tmp_path: Path) -> None:
    assert Ended("data", "write", write_spec(tmp_path), tmp_path / "scenes").code == 0
    data = {
        "train": {"source": "files", "form": "pretrain", "files": ["scenes/pretrain.json"], "image_root": "scenes"},
        "test": {"source": "files", "form": "retrieval", "files": ["scenes/test.json"], "image_root": "scenes"},
    }
    spec = write_spec(tmp_path, "files", data=data, evaluation={})
    assert Ended("plan", spec, "--quick").code == 0
    ended = Ended("data", "check", spec)
    assert (ended.code, ended.out) == (0, "")
    assert "40 images" in ended.err


def test_data_check_lists_bad_images_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("a text file named .jpg")
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "broken.jpg", "caption": "a dog"}]))
    data = {"train": {"source": "files", "form": "pretrain", "files": ["rows.json"], "image_root": "."}}
    ended = Ended("data", "check", write_spec(tmp_path, data=data, evaluation={}))
    assert ended.code == 2
    assert "broken.jpg: " in ended.out
    (tree,) = json.loads(Ended("data", "check", tmp_path / "toy.yaml", "--json").out)
    (bad,) = tree["bad"]
    assert (tree["num_images"], bad["key"]) == (1, "data.train")
    assert bad["path"].endswith("broken.jpg")
    assert bad["reason"]


def test_plan_and_data_check_warn_of_images_that_are_trained_on(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(json.dumps([{"image": "a.png", "caption": str(number)} for number in range(8)]))
    (tmp_path / "val.json").write_text('[{"image": "a.png", "caption": ["x", "y"]}]')
    data = {
        split: {"source": "files", "form": "pretrain", "files": [f"{split}.json"], "image_root": "."}
        for split in ("train", "val")
    }
    spec = write_spec(tmp_path, data=data, evaluation={})
    warning = "warning: 1 of 1 images of data.val are in data.train as well: a.png."
    ended = Ended("plan", spec, "--quick", "--json")
    assert ended.code == 0
    assert warning in ended.err
    assert any("are in data.train as well" in one for one in json.loads(ended.out)[0]["warnings"])
    checked = Ended("data", "check", spec)
    assert checked.code == 0
    assert warning in checked.err


def test_data_check_writes_a_page_and_a_cleaned_list_that_is_all_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.new("RGB", (24, 20), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps([{"image": name, "caption": "x"} for name in ("a.png", "b.png")]))
    data = {"train": {"source": "files", "files": ["rows.json"], "image_root": "."}}
    spec = write_spec(tmp_path, data=data, evaluation={})
    refused = Ended("data", "check", spec, "--min-side", "3")
    assert refused.code == 2
    assert "give --clean FOLDER" in refused.err
    ended = Ended("data", "check", spec, "--html", tmp_path / "page.html", "--clean", tmp_path / "clean")
    assert ended.code == 0, ended.err
    assert "1 images, 1 captions; left out: 1 unreadable" in ended.err
    assert "b.png" in (tmp_path / "page.html").read_text()
    key, _, source = ended.out.splitlines()[-1].partition(": ")
    assert key == "data.train"
    cleaned = write_spec(tmp_path, "cleaned", data={"train": json.loads(source)}, evaluation={})
    assert Ended("data", "check", cleaned).code == 0


def test_data_write_of_files_has_nothing_to_generate(tmp_path: Path) -> None:
    data = {"train": {"source": "files", "form": "pretrain", "files": ["rows.json"], "image_root": "."}}
    assert Ended("data", "write", write_spec(tmp_path, data=data, evaluation={}), tmp_path).code == 2
