"""Promises of `tclx.spec.schema`: editors accept every file that tclx accepts, and mark what it does not know."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest

from tclx.errors import Location
from tclx.spec.fields import ROOT, file_keys
from tclx.spec.schema import experiment_schema, table_schema
from tclx.spec.yaml import parse_yaml, read_yaml
from tests.conftest import PROJECT
from tests.spec.documents import GOOD

SHIPPED = sorted((PROJECT / "experiments").rglob("*.yaml"))

DESIGNED = """\
name: tcl-4m
extends: base/tcl.yaml
model:
  image_encoder: {name: vit_base_patch16_224, image_size: 256, weights: hub}
  text_encoder:  {name: bert-base-uncased, num_layers: 6, weights: hub}
  fusion_encoder: {num_layers: 6}
  embed_dim: 256
  momentum: 0.995
  queue_size: 65536
objectives:
  temperature: {initial: 0.07, learned: true, minimum: 0.001, maximum: 0.5}
  soft_labels: {weight: 0.4, ramp_epochs: 1}
  cma: {weight: 0.3333333333}
  imc: {weight: 0.3333333333}
  lmi: {weight: 0.3333333333}
  itm: {weight: 1.0}
  mlm: {weight: 1.0, mask_probability: 0.15}
init: {experiment: ../pretrain/tcl_4m.yaml}
launch: {num_processes: 8}
variants:
  cma: {objectives: {imc: null, lmi: null}}
  cma+imc: {objectives: {lmi: null}, data: {train: {num_images: 4}}}
  tcl: {}
seeds: [0, 1, 2]
"""


@cache
def validator() -> jsonschema.Draft202012Validator:
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def plain(text: str) -> Any:
    return parse_yaml(text, lambda line, column: Location("x", line, column)).plain()


@pytest.mark.parametrize("text", [GOOD, DESIGNED])
def test_good_files_fit_the_schema(text: str) -> None:
    validator().validate(plain(text))


def test_every_shipped_file_fits_the_schema() -> None:
    assert len(SHIPPED) >= 8
    for path in SHIPPED:
        document = read_yaml(path).plain()
        assert [error.message for error in validator().iter_errors(document)] == [], path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("name: a\nmodl: {}", []),
        ("name: a\nmodel: {queue: 1}", ["model"]),
        ("name: a\nmodel: {queue_size: -1}", ["model", "queue_size"]),
        ("name: a\noptim: {learning_rate: fast}", ["optim", "learning_rate"]),
        ("name: a\ndata: {train: {source: scene}}", ["data", "train"]),
        ("name: a\nvariants: {b: {name: c}}", ["variants", "b"]),
        ("name: a\nvariants: {b c: {}}", ["variants"]),
        ("name: a\nseeds: []", ["seeds"]),
        ("name: a\nseeds: [-1]", ["seeds", 0]),
    ],
)
def test_what_tclx_refuses_is_marked_in_the_editor(text: str, path: list[str | int]) -> None:
    assert [list(error.absolute_path) for error in validator().iter_errors(plain(text))] == [path]


def test_every_key_of_a_file_is_described() -> None:
    schema = experiment_schema()
    assert set(schema["properties"]) == set(file_keys())
    sections = [schema, *(schema["$defs"][name] for name in schema["$defs"] if name != "Variant")]
    bare = [key for section in sections for key, value in section.get("properties", {}).items() if "description" not in value]
    assert bare == []
    assert "seed" not in schema["$defs"]["Variant"]["properties"]
    assert set(schema["$defs"]["Variant"]["properties"]) < set(ROOT.known_keys())


def test_the_schema_of_tables_is_the_present_one_and_fits_those_that_are_shipped() -> None:
    folder = PROJECT / "docs" / "tables"
    assert json.loads((folder / "schema.json").read_text()) == table_schema(), "tclx schema table -o docs/tables/schema.json"
    schema = jsonschema.Draft202012Validator(table_schema())
    for path in folder.glob("*.yaml"):
        content = read_yaml(path).plain()
        assert not list(schema.iter_errors(content)), path
        assert list(schema.iter_errors({**content, "colums": []}))
