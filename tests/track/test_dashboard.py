"""Promises of the workspace: a section for every question, no panel for a term that is off, and one workspace however often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tclx.track.dashboard import build_workspace, save, serialised
from tests.cli.test_cli import Ended
from tests.launch.toy import write_spec
from tests.track.wandb_server import WandbServer
from tests.train.toy import toy_spec

# wandb-workspaces 0.4 is written in pydantic's old manner.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

TRACKING = {"tracking.wandb": {"project": "tests", "entity": "lab"}}


def panels(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    """Section -> its panels, as they would be sent."""
    parameters = changes.pop("parameters", ())
    text = serialised(build_workspace(toy_spec(**TRACKING, **changes), entity="lab", parameters=parameters))
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


def test_a_sweep_has_parallel_coordinates_and_importances() -> None:
    kinds = [panel["viewType"] for panel in panels(parameters=["objectives.imc.weight"])["Sweep"]]
    assert kinds == ["Parallel Coordinates Plot", "Parameter Importance"]


def test_saving_twice_updates_one_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = save(build_workspace(toy_spec(**TRACKING), entity="lab"))
        changed = build_workspace(toy_spec(**TRACKING, objectives={"cma": {}}), entity="lab")
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
