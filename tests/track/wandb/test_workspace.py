"""Promises of the workspace: a section for every question, no panel for a term that is off, and one workspace however often."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tclx.track.jsonl import numbers, read
from tclx.track.wandb.media import final_media, media_of_row
from tclx.track.wandb.process import summary_of
from tclx.track.wandb.workspace import Study, build_workspace, save, serialised
from tests.cli.test_cli import Ended
from tests.launch.toy import write_spec
from tests.sweep.toy import write_sweep
from tests.track.wandb_server import WandbServer
from tests.train.toy import prepare, run, toy_spec

# wandb-workspaces 0.4 is written in pydantic's old manner.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

TRACKING = {"tracking.wandb": {"project": "tests", "entity": "lab"}}


def panels(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    """Section -> its panels, as they would be sent."""
    study = changes.pop("study", None)
    return panels_in(serialised(build_workspace([toy_spec(**TRACKING, **changes)], entity="lab", study=study)))


def panels_in(text: str) -> dict[str, list[dict[str, Any]]]:
    inside = json.loads(text)["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in inside}


def metrics(section: list[dict[str, Any]]) -> set[str]:
    return {name for panel in section for name in panel["config"].get("metrics", [])}


def test_every_question_has_its_section_and_terms_stand_side_by_side() -> None:
    found = panels()
    assert [panel["config"]["chartTitle"] for panel in found["Contrastive terms"]] == ["CMA", "IMC", "LMI"]
    assert metrics(found["Contrastive terms"]) >= {"loss/cma_image_to_text", "loss/imc_text", "loss/lmi_image"}
    assert metrics(found["Mutual information bounds (nats)"]) >= {"mi_bound/cma_text_to_image", "mi_bound/imc_image"}
    assert "health/modality_gap" in metrics(found["Representation health"])
    assert "retrieval/val/text_to_image/r1" in metrics(found["Retrieval"])
    assert "speed/images_per_second" in metrics(found["Systems"])
    assert "Sweep" not in found


def test_a_term_that_is_off_has_no_panel() -> None:
    found = panels(objectives={"cma": {}})
    names = {name for section in found.values() for name in metrics(section)}
    assert "loss/cma_image_to_text" in names
    assert not [name for name in names if "imc" in name or "lmi" in name or "itm" in name or "mlm" in name]


def test_a_term_that_one_variant_has_on_or_a_sweep_switches_has_its_panels() -> None:
    without, whole = (toy_spec(**TRACKING, objectives=objectives) for objectives in ({"cma": {}}, {"cma": {}, "imc": {}}))
    both = panels_in(serialised(build_workspace([without, whole], entity="lab")))
    switched = panels(objectives={"cma": {}}, study=Study((), switches=("objectives.imc",)))
    for found in (both, switched):
        assert [panel["config"]["chartTitle"] for panel in found["Contrastive terms"]] == ["CMA", "IMC"]


def test_a_sweep_has_parallel_coordinates_and_importances() -> None:
    study = Study(("objectives.imc.weight",), goals=("retrieval/val/r_mean", "loss/total"))
    coordinates, *importances, trials = panels(study=study)["Sweep"]
    assert coordinates["viewType"] == "Parallel Coordinates Plot"
    assert [column["accessor"] for column in coordinates["config"]["columns"]] == [
        "config:objectives.value.imc.weight",
        "summary:best/retrieval/val/r_mean",
        "summary:loss/total",
    ]
    assert [panel["viewType"] for panel in importances] == ["Parameter Importance"] * 2
    assert "trials" in json.dumps(trials)


def test_every_number_that_a_panel_names_is_logged_and_every_loss_has_a_panel(tmp_path: Path) -> None:
    """Against the rows of a real run; media and the monitor's names are W&B's and not in them."""
    own = {
        "objectives.imc": {"temperature": {"initial": 0.1}},
        "tracking.term_gradient_norms_every_steps": 2,
        "tracking.term_gradients_every_steps": 2,
    }
    folder = run(prepare(tmp_path / "run", toy_spec(**own, **{"training.steps": 6})))
    logged = {name for row in read(folder.metrics) for name in numbers(row)} | set(summary_of(folder))
    named = {name for section in panels(**own).values() for name in metrics(section)}
    assert {name for name in named if not name.startswith("system/")} <= logged
    shown_in_parts = {"loss/", "mi_bound/", "health/", "temperature/", "speed/", "memory/", "data/"}
    assert {name for name in logged - named if name.startswith(tuple(shown_in_parts))} == set()


def test_every_image_table_and_histogram_that_is_logged_has_a_panel(tmp_path: Path) -> None:
    scenes = {"source": "scenes", "attribute": "color", "num_images": 8}
    both = {"evaluation.classification": {"val": scenes, "test": scenes}}
    folder = run(prepare(tmp_path / "run", toy_spec(**both)))
    logged = {name for row in read(folder.metrics) for name in media_of_row(folder, row)} | set(final_media(folder))
    assert {"examples/val/classification", "examples/test/classification"} < logged
    table = final_media(folder)["examples/test/classification"]
    kept = folder.read_json(folder.examples("classification", "test"))
    assert [row[2] for row in table.data] == [item["right"][0] for item in kept["items"]]
    assert table.data[0][3] == f"{kept['items'][0]['answers'][0]['text']} (cos {kept['items'][0]['answers'][0]['score']:.2f})"
    shown = json.dumps(panels(**both))
    assert {name for name in logged if json.dumps(name) not in shown} == set()
    assert {name.split("/")[0] for name in logged} == {"similarity", "examples", "attention"}


def test_images_tables_and_histograms_of_every_split_have_panels() -> None:
    found = panels()
    media = [panel["config"]["mediaKeys"] for panel in found["Attention"]]
    assert media == [["attention/val"], ["attention/test"]]
    histograms = [
        panel["config"]["mediaKeys"] for panel in found["Representation health"] if panel["viewType"] == "Media Browser"
    ]
    assert ["similarity/val/matched", "similarity/val/unmatched"] in histograms
    tables = [panel["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] for panel in found["Retrieval examples"]]
    assert tables == [f"examples/{split}/{way}" for split in ("val", "test") for way in ("text_to_image", "image_to_text")]
    without = panels(evaluation={})
    assert not without.keys() & {"Attention", "Retrieval examples", "Retrieval"}


def test_gpus_have_panels_where_a_run_has_gpus() -> None:
    assert not [name for name in metrics(panels()["Systems"]) if name.startswith("system/gpu")]
    slurm = {"training.device": "cuda", "launch": {"backend": "slurm", "gpus_per_node": 2}}
    assert {"system/gpu.0.gpu", "system/gpu.1.memoryAllocated"} <= metrics(panels(**slurm)["Systems"])


@pytest.mark.parametrize(
    ("launch", "num_shown"),
    [
        ({"backend": "slurm", "gpus_per_node": 3, "num_nodes": 4}, 3),  # W&B sees rank 0's node alone
        ({"backend": "slurm", "gpus_per_node": 16}, 8),
        ({"backend": "local", "num_processes": 2}, 2),
    ],
)
def test_a_panel_has_a_line_for_each_gpu_of_a_node_up_to_eight(launch: dict[str, Any], num_shown: int) -> None:
    shown = metrics(panels(**{"training.device": "cuda", "launch": launch})["Systems"])
    assert {name for name in shown if name.endswith(".gpu")} == {f"system/gpu.{index}.gpu" for index in range(num_shown)}


def test_saving_twice_updates_one_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = save(build_workspace([toy_spec(**TRACKING)], entity="lab"))
        changed = build_workspace([toy_spec(**TRACKING, objectives={"cma": {}})], entity="lab")
        assert save(changed) == url
        (view,) = server.views.values()
        assert json.loads(view["spec"]) == json.loads(serialised(changed))
        assert view["displayName"] == "tclx toy"
        assert server.unknown == []


def test_the_command_writes_a_file_without_a_server(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tracking={"wandb": {"project": "p", "entity": "lab"}})
    ended = Ended("dashboard", spec, "--out", tmp_path / "workspace.json")
    assert ended.code == 0, ended.err
    assert "retrieval/val/r_mean" in (tmp_path / "workspace.json").read_text()


@pytest.mark.parametrize("wandb", [None, {"project": "p"}])
def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: dict[str, Any] | None) -> None:
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    ended = Ended("dashboard", write_spec(tmp_path, tracking={"wandb": wandb}))
    assert ended.code == 2
    assert "tracking.wandb" in ended.err


# ------------------------------------------------------------------------------------------------------- whose workspace it is


def workspace(*arguments: str | Path) -> dict[str, Any]:
    """What the command writes, with its panels under `panels` and the group that it shows."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "workspace.json"
        ended = Ended("dashboard", *arguments, "--out", out)
        assert ended.code == 0, ended.err
        text = out.read_text()
    (group,) = re.findall(r'"name": "group".*?"value": "([^"]*)"', " ".join(text.split()))
    return {"group": group, "panels": panels_in(text)}


def test_a_sweep_shows_its_studys_group_and_its_parameters(tmp_path: Path) -> None:
    space = {"objectives.imc.weight": {"log_uniform": [0.1, 3.0]}, "objectives.lmi": {"on_or_off": True}}
    tracking = {"wandb": {"project": "p", "entity": "lab"}, "log_every_steps": 1}
    shown = workspace(write_sweep(tmp_path, experiment={"tracking": tracking}, space=space), "--runs-dir", tmp_path / "runs")
    assert shown["group"] == "toy-sweep"
    columns = [column["accessor"] for column in shown["panels"]["Sweep"][0]["config"]["columns"]]
    assert columns == ["config:objectives.value.imc.weight", "summary:best/retrieval/val/r_mean"]


def test_an_experiment_shows_its_own_group(tmp_path: Path) -> None:
    assert workspace(write_spec(tmp_path, tracking={"wandb": {"project": "p", "entity": "lab"}}))["group"] == "toy"


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Two runs of a group, one of another, one without W&B."""
    wandb = {"project": "p", "entity": "lab"}
    prepare(
        tmp_path / "toy-s1-00000001", toy_spec(**{"tracking.wandb": {**wandb, "group": "ablation"}, "objectives": {"cma": {}}})
    )
    prepare(tmp_path / "toy-s2-00000002", toy_spec(**{"tracking.wandb": {**wandb, "group": "ablation"}}))
    prepare(tmp_path / "other-s0-00000003", toy_spec(name="other", **{"tracking.wandb": wandb}))
    prepare(tmp_path / "plain-s0-00000004", toy_spec(name="plain"))
    return tmp_path


@pytest.mark.parametrize("named", ["ablation", "toy", "toy-s2-00000002"])
def test_a_group_a_name_or_a_run_is_looked_for_among_the_run_folders(runs_dir: Path, named: str) -> None:
    shown = workspace(named, "--runs-dir", runs_dir)
    assert shown["group"] == "ablation"
    assert [panel["config"]["chartTitle"] for panel in shown["panels"]["Contrastive terms"]] == ["CMA", "IMC", "LMI"]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("ablatoin", "did you mean ablation?"),
        ("plain", "plain does not use W&B"),
        ("nothing-like-it", "runs are looked for in"),
        ("missing.yaml", "missing.yaml"),
        (".", "several projects or groups on W&B: p/other, p/ablation"),
    ],
)
def test_what_cannot_be_shown_is_said(runs_dir: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str) -> None:
    monkeypatch.chdir(runs_dir)
    ended = Ended("dashboard", named, "--runs-dir", runs_dir)
    assert ended.code == 2
    assert said in ended.err
