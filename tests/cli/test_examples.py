"""Promises of the examples: every command that a help text or a page of the docs prints runs as printed, every YAML plans.

They run in a folder that looks like a clone whose quickstart has been trained. What cannot run here, or not in seconds, is in
`INSTEAD`: with the reason, and with what is run in its place. An example that is new runs, or fails this test.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from tclx.cli.app import app
from tests.cli.test_cli import Ended, run_process
from tests.conftest import PROJECT
from tests.data.test_formats import photos
from tests.launch.toy import SPEC, write_spec

TUTORIAL = PROJECT / "docs" / "tutorial.md"
"""Its commands follow from one another: tests/cli/test_tutorial.py."""
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_RUN_ID = re.compile(r"\bquickstart-s0-[0-9a-f]{8}\b")

INSTEAD: dict[str, tuple[str, str | None]] = {
    # an example's beginning: why it does not run here as printed, and the command that runs in its place
    "tclx run experiments/quickstart.yaml": ("trains for minutes", "plan --quick"),
    "tclx init": ("needs images: tests/cli/test_init.py", "init --help"),
    "tclx examples --copy quickstart my-experiments": ("writes once: tests/spec/test_shipped.py", "examples"),
    "tclx run mine/quickstart.yaml --smoke": ("a minute: tests/launch/test_smoke.py", "run --help"),
    "tclx examples --copy quickstart mine": ("writes once: tests/spec/test_shipped.py", "examples"),
    "tclx plan mine/quickstart.yaml --resolved": ("of the file written above", "plan --resolved experiments/quickstart.yaml"),
    "tclx run my.yaml": ("needs a SLURM cluster: tests/slurm", "plan --quick"),
    "tclx sweep sweeps/": ("trains for minutes", "sweep plan"),
    "tclx sweep run sweeps/": ("trains for minutes", "sweep plan"),
    "tclx sweep status loss-weights": ("needs a study: tests/sweep/test_sweeps.py", "sweep status --help"),
    "tclx sweep best scenes-ablation-tuned": ("needs a study: tests/sweep/test_ablation.py", "sweep best --help"),
    "tclx sweep report scenes-ablation-tuned": ("needs a study: tests/sweep/test_ablation.py", "sweep report --help"),
    "tclx sweep best loss-weights": ("needs a study: tests/sweep/test_sweeps.py", "sweep best --help"),
    "tclx sweep table scenes-ablation-tuned": ("needs a study: tests/sweep/test_ablation.py", "sweep table --help"),
    "tclx sweep report loss-weights": ("needs a study: tests/sweep/test_sweeps.py", "sweep report --help"),
    "tclx sweep cancel loss-weights": ("needs a study: tests/sweep/test_sweeps.py", "sweep cancel --help"),
    "tclx results loss-weights": ("needs a study: tests/test_found.py", "results --csv trials.csv"),
    "tclx status loss-weights": ("needs a study: tests/test_found.py", "status"),
    "tclx sync": ("needs W&B: tests/cli/test_sync.py", "sync --help"),
    "tclx dashboard experiments/quickstart.yaml --set tracking.wandb.project=tcl": ("needs W&B", "dashboard --help"),
    "tclx dashboard my-": ("needs runs with W&B: tests/track/wandb/test_workspace.py", "dashboard --help"),
    "tclx data write experiments/quickstart.yaml": ("writes 5,768 images", "data write scenes scenes --num-images 2"),
    "tclx data check mine.yaml --clean": ("needs images: tests/data/test_checking.py", "data check --help"),
    "tclx compare": ("needs two trained variants: tests/report/test_comparison.py", "compare --help"),
    "tclx report experiments/ablation/scenes.yaml": ("needs twelve trained runs", "report quickstart -o ablation.html"),
    "tclx doctor --deep": ("seconds of torch: tests/doctor/test_machine.py", "doctor"),
    "python3.11 -m venv": ("installs everything: .ci/run and the README's own test", None),
    "pip install": ("installs", None),
    "optuna-dashboard": ("another program", None),
    "PGPASSWORD=": ("another program", None),
    "tensorboard --logdir": ("another program, which serves for ever", None),
}


def _groups(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _groups(inner)


def printed_by_help() -> list[str]:
    """The example of every command and group of commands."""
    return [command.epilog for command in _groups(typer.main.get_command(app))]


def printed_in_docs() -> list[str]:
    """Every command in a fenced block, without its comment."""
    blocks = [
        body
        for page in PAGES
        for language, body in _FENCED.findall(page.read_text(encoding="utf-8"))
        if language in ("", "bash") and page != TUTORIAL
    ]
    lines = [re.sub(r"\s+#.*", "", line).strip() for body in blocks for line in body.splitlines()]
    return [line for line in lines if re.match(r"(?:\w+=\S+ )?(?:tclx|python|pip|optuna-dashboard|tensorboard)\S* ", line)]


def examples() -> list[str]:
    of_help = [(example or "").removeprefix("Example:").strip() for example in printed_by_help()]
    return list(dict.fromkeys([*of_help, *printed_in_docs()]))


def _fragments() -> list[tuple[str, str]]:
    """Every YAML block of README and docs, with the page that it is on."""
    return [
        (page.name, body)
        for page in PAGES
        for language, body in _FENCED.findall(page.read_text(encoding="utf-8"))
        if language == "yaml"
    ]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone's in which something small has been trained under the quickstart's name."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("experiments", "sweeps", "docs/tables"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copy(PROJECT / "docs" / "results.md", folder / "docs")
    image_encoder = {**SPEC["model"]["image_encoder"], "image_size": 16}
    model = {**SPEC["model"], "image_encoder": image_encoder}
    spec = write_spec(folder, "quickstart", model=model)
    ended = run_process("run", spec, "--runs-dir", folder / "runs")
    assert ended.returncode == 0, ended.stderr
    spec.unlink()
    (run,) = (folder / "runs").glob("quickstart-s0-*")
    exported = Ended("weights", "export", run, folder / "TCL_4M.pth", "--form", "pretrain")
    assert exported.code == 0, exported.err
    (folder / "photos").mkdir()
    for number, name in enumerate("abc"):
        Image.new("RGB", (24, 20), (80 * number, 40, 160)).save(folder / "photos" / f"{name}.png")
    (folder / "photos" / "captions.txt").write_text("a red circle\nblue\n")
    launch = "launch: {backend: slurm, partition: gpu, gpus_per_node: 1}"
    for own in (folder, folder / "experiments"):  # what docs/data.md calls them
        photos(own, [f"photos/{number}.jpg" for number in range(300)])
        rows = "".join(f"{number}.jpg,photo {number}\n" for number in range(300))
        (own / "captions.csv").write_text(f"image,caption\n{rows}")
        for number in range(300):
            (own / f"photos/{number}.txt").write_text(f"photo {number}")
    (folder / "experiments" / "shards" / "web").mkdir(parents=True)
    with tarfile.open(folder / "experiments" / "shards" / "web" / "0.tar", "w") as tar:
        for name in ("0.jpg", "0.txt"):
            tar.add(folder / "photos" / name, name)
    (folder / "experiments" / "eccv.json").write_text("{}")
    (folder / "my.yaml").write_text(f"extends: experiments/quickstart.yaml\nname: my\n{launch}\n")
    return folder


@pytest.fixture
def here(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(clone)
    monkeypatch.delenv("TCLX_RUNS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(clone / "cache"))
    monkeypatch.delenv("TCLX_DATA", raising=False)
    return clone


def as_run_here(example: str, run_id: str) -> list[str] | None:
    """The arguments of `tclx`, or None for another program."""
    example = _RUN_ID.sub(run_id, example.partition(" && ")[0])
    beginning = max((key for key in INSTEAD if example.startswith(key)), key=len, default=None)
    if beginning is None:
        return shlex.split(example)[1:]
    instead = INSTEAD[beginning][1]
    if instead is None:
        return None
    if "plan" not in instead or "--resolved" in instead:
        return shlex.split(instead)
    kept = [word for word in shlex.split(example)[1:] if word not in ("run", "sweep", "--follow", "--detach")]
    return [*instead.split(), *kept]


@pytest.mark.parametrize("example", examples())
def test_an_example_runs_as_printed(example: str, here: Path) -> None:
    (run,) = (here / "runs").glob("quickstart-s0-*")
    arguments = as_run_here(example, run.name)
    if arguments is None:
        return
    ended = Ended(*arguments)
    assert ended.code == 0, ended.err


def test_every_command_and_group_has_an_example_of_itself() -> None:
    for command in _groups(typer.main.get_command(app)):
        assert re.match(r"Example:  tclx \S", command.epilog or ""), command.name


def test_nothing_is_excused_that_is_not_printed() -> None:
    unused = [beginning for beginning in INSTEAD if not any(example.startswith(beginning) for example in examples())]
    assert unused == []


def test_the_run_that_the_help_names_is_the_quickstarts_own(here: Path) -> None:
    (planned,) = json.loads(Ended("plan", "--quick", "experiments/quickstart.yaml", "--json").out)
    named = {found for example in examples() for found in _RUN_ID.findall(example)}
    assert named == {planned["run_id"]}


@pytest.mark.parametrize(("page", "text"), _fragments())
def test_a_block_of_yaml_is_valid_where_it_belongs(page: str, text: str, here: Path) -> None:
    """A whole spec beside those that it extends, a sweep in its folder, a section in a spec that is large enough for it."""
    if re.search(r"^experiment:", text, re.MULTILINE):
        file, arguments = here / "sweeps" / "printed.yaml", ["sweep", "plan"]
    elif text.startswith("name:"):
        file, arguments = here / "experiments" / "printed.yaml", ["plan", "--quick"]
    else:
        file, arguments = here / "experiments" / "printed.yaml", ["plan", "--quick"]
        larger = "model: {queue_size: 65536}\n" + ("" if "data:" in text else "data: {train: {num_images: 20000}}")
        text = f"extends: quickstart.yaml\nname: printed\n{larger}\n{text}"
    file.write_text(text)
    ended = Ended(*arguments, file)
    assert ended.code == 0, f"{page}: {ended.err}"


PEOPLES_FILES = {
    "refs(unc).p": pickle.dumps([], protocol=0).decode(),  # tests/tasks/grounding/test_refcoco.py has some
    "instances.json": '{"images": [], "annotations": []}',
    "captions_val2014.json": '{"annotations": [{"image_id": 7, "id": 1, "caption": "a dog"}]}',
    "coco_test.json": '[{"image": "COCO_val2014_000000000007.jpg", "caption": ["a  dog"]}]',
    "eccv_caption/__init__.py": "",
    "eccv_caption/data/eccv_image_to_caption.json": '{"7": [1]}',
    "eccv_caption/data/eccv_caption_to_image.json": '{"1": [7]}',
    "res101_coco_minus_refer_notime_dets.json": "[]",
}
"""What the docs' converters read."""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # open() in a line
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: page.name)
def test_python_in_the_docs_runs(page: Path, tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name != "use.md":  # which uses the trained model
        monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in PEOPLES_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for language, body in _FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body, str(page), "exec"), {})


def test_the_exit_codes_are_those_of_the_page() -> None:
    from tclx.errors import InputError, Interrupted, MachineError, RunFailed
    from tclx.worker import HELD_BY_ANOTHER, INTERRUPTED_AND_SAVED

    text = (PROJECT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == [
        0, RunFailed.exit_code, InputError.exit_code, MachineError.exit_code, Interrupted.exit_code,
    ]  # fmt: skip
    assert f"{INTERRUPTED_AND_SAVED}, stopped" in text
    assert f"{HELD_BY_ANOTHER}, another" in text
    assert re.search(r"Exit codes: 0 .* 1 .* 2 .* 3 .*\s130 ", Ended("--help").out, re.DOTALL)
