"""Promises of `tclx sync`: it uploads what is missing, says what has arrived, and its exit code means it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tclx.runs import RunFolder, RunState
from tests.cli.test_cli import Ended
from tests.track.wandb.test_upload import events, expected, prepared, received, write_rows
from tests.track.wandb_server import API_KEY, WandbServer
from tests.train.toy import prepare, toy_spec


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that was trained offline."""
    folder = prepared(tmp_path, mode="offline")
    write_rows(folder, 1, 20)
    folder.write_state(RunState("finished", step=20, total_steps=20))
    return folder


def sync(folder: RunFolder, *options: str) -> Ended:
    return Ended("sync", *options, "--runs-dir", folder.path.parent)


def test_what_is_missing_is_uploaded_once_and_said(folder: RunFolder, server: WandbServer) -> None:
    prepare(folder.path.parent / "without-wandb", toy_spec())
    ended = sync(folder)
    assert ended.code == 0, ended.err
    assert f"{folder.run_id}  20 rows  {server.url}/lab/tests/runs/" in ended.out
    assert ended.out.endswith("complete\n")
    assert "uploading 20 of 20 rows" in ended.err
    assert received(server.only_run) == expected(folder)
    assert API_KEY not in ended.out + ended.err

    num_requests = len(server.requests)
    again = sync(folder, folder.run_id, "--json")
    assert (again.code, json.loads(again.out)[0]["outcome"]) == (0, "was complete")
    assert len(server.requests) == num_requests


def test_a_wrong_key_ends_with_3_and_a_later_call_uploads(
    folder: RunFolder, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb sync` ends with 0 here."""
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    ended = sync(folder)
    assert ended.code == 3
    assert "lacks 20 of 20 rows" in ended.out
    assert "wandb login" in ended.err
    assert "f" * 40 not in ended.out + ended.err
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    assert sync(folder).code == 0


@pytest.mark.slow
def test_rows_that_do_not_arrive_are_missed(folder: RunFolder, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that acknowledges and forgets."""
    monkeypatch.setattr(server, "_file_stream", lambda name, request: {"limits": {}})
    ended = sync(folder)
    assert ended.code == 1
    assert "20 of 20 rows have not arrived" in ended.err
    assert "lacks 20 of 20 rows" in ended.out


def test_a_run_that_is_uploaded_by_its_own_process_is_left_alone(folder: RunFolder, server: WandbServer) -> None:
    with folder.lock("wandb.lock"):
        ended = sync(folder)
    assert ended.code == 0
    assert "uploads itself" in ended.out
    assert server.requests == []


def test_a_run_that_never_meant_to_use_wandb_is_refused_by_name(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "toy-s3-1a2b3c4d", toy_spec())
    ended = sync(folder, folder.run_id)
    assert ended.code == 2
    assert "tracking.wandb" in ended.err
    assert sync(folder).code == 0
    assert not events(folder, "wandb_complete")
