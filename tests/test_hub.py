"""Is what a spec asks the model hub for here, or to be had? A cache folder and a server of our own stand for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub.constants
import pytest

from tclx import hub
from tclx.cli.fetch import fetch
from tclx.data.tokenizer import build_tokenizer
from tclx.doctor.machine import check_hub_for
from tclx.errors import MachineError
from tclx.hub import HubFiles, in_cache, require, text_files
from tclx.launch.downloads import check_downloads
from tclx.launch.order import PlannedRun
from tclx.launch.prepare import check_beginnings
from tclx.model.downloads import ask_no_hub
from tclx.model.downloads import hub_files as hub_files_of
from tclx.model.text import text_config
from tclx.model.vision import ImageEncoder, hub_files
from tclx.runs import RunFolder, RunState
from tclx.spec.data import HubTokenizer
from tclx.spec.experiment import ExperimentSpec, InitSpec
from tclx.spec.model import ImageEncoderSpec, TextEncoderSpec
from tests.model.tiny import tiny_spec

NOWHERE = "http://127.0.0.1:9"  # the port of a service that nobody runs: refused at once
WEIGHTS = HubFiles("model.text_encoder.weights", "someone/bert", (("config.json",), ("model.safetensors", "pytorch_model.bin")))


def at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does for a process that starts with it."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    at(monkeypatch, NOWHERE)
    return tmp_path / "hub"


def cached(cache: Path, repository: str, **files: str) -> None:
    """Put files into a cache as the hub's client does; `__` stands for a dot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("abc")
    for name, content in files.items():
        (folder / "snapshots" / "abc" / name.replace("__", ".")).write_text(content)


class Hub(BaseHTTPRequestHandler):
    """Has `someone/bert`, asks for consent for `gated/bert`, and never answers for `slow/bert`."""

    def do_HEAD(self) -> None:
        if self.path.startswith("/slow/"):
            time.sleep(3)
        here = self.path.startswith("/someone/bert/") and self.path.endswith(("config.json", "pytorch_model.bin"))
        self.send_response(200 if here else 401 if self.path.startswith("/gated/") else 404)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_what_is_in_the_cache_needs_no_hub(cache: Path) -> None:
    cached(cache, "someone/bert", config__json="{}", pytorch_model__bin="x")
    assert in_cache(WEIGHTS)
    require(WEIGHTS)


def test_half_of_it_in_the_cache_is_not_enough(cache: Path) -> None:
    cached(cache, "someone/bert", config__json="{}")
    assert not in_cache(WEIGHTS)
    message = r"model\.text_encoder\.weights: model\.safetensors of someone/bert is not in this machine's cache"
    with pytest.raises(MachineError, match=rf"(?s){message}.*cannot be reached.*`hf download someone/bert`.*HF_HOME"):
        require(WEIGHTS)


def test_of_a_sharded_model_every_shard_counts(cache: Path) -> None:
    wanted = HubFiles("key", "someone/bert", (("model.safetensors", "model.safetensors.index.json"),))
    index = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    cached(cache, "someone/bert", model__safetensors__index__json=index, one__safetensors="x")
    assert not in_cache(wanted)
    cached(cache, "someone/bert", two__safetensors="x")
    assert in_cache(wanted)


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        require(WEIGHTS)


@pytest.mark.usefixtures("server")
def test_what_the_hub_has_will_be_fetched() -> None:
    require(WEIGHTS)


@pytest.mark.parametrize(
    ("repository", "why"),
    [
        ("someone/other", "the hub has no config.json there"),
        ("gated/bert", r"no public repository of that name \(it answered 401; .* HF_TOKEN"),
        ("slow/bert", "gave no answer|timed out"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_the_hub_does_not_give_is_refused_soon(repository: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 1.0)
    since = time.monotonic()
    with pytest.raises(MachineError, match=why):
        require(text_files(repository, key="model.text_encoder.name", weights=True))
    assert time.monotonic() - since < 3


def test_a_name_that_no_repository_can_have_is_refused() -> None:
    with pytest.raises(MachineError, match=r"'a/b/c' is no name of the model hub"):
        require(WEIGHTS._replace(repository="a/b/c"))


def test_every_encoder_and_tokenizer_asks_in_time() -> None:
    """Through the code that a run goes through: no retries with growing pauses before the refusal."""
    since = time.monotonic()
    with pytest.raises(MachineError, match=r"model\.image_encoder\.weights: model\.safetensors of timm/test_vit\.\w+ is not"):
        ImageEncoder(ImageEncoderSpec(name="test_vit", image_size=64, weights="hub"))
    with pytest.raises(MachineError, match=r"model\.text_encoder\.name: config\.json of someone/bert is not"):
        text_config(TextEncoderSpec(name="someone/bert", num_layers=1), num_layers=1, vocab_size=9, pad_token_id=0)
    with pytest.raises(MachineError, match=r"(?s)data\.tokenizer\.name: tokenizer\.json of someone/bert.*source: captions"):
        build_tokenizer(HubTokenizer(source="pretrained", name="someone/bert"), [])
    assert time.monotonic() - since < 10


def hub_spec(**launch: object) -> ExperimentSpec:
    """An experiment that takes both encoders and the tokenizer from the hub."""
    text = {"name": "someone/bert", "num_layers": 1, "weights": "hub"}
    image = {"name": "test_vit", "image_size": 64, "weights": "hub"}
    spec = tiny_spec(image_encoder=image, text_encoder=text)
    tokenizer = {"source": "pretrained", "name": "someone/bert"}
    written = spec.model_dump(mode="json", exclude_defaults=True)
    changes = {"data": {**written["data"], "tokenizer": tokenizer}, "launch": launch or {"backend": "local"}}
    return ExperimentSpec.model_validate(written | changes)


SLURM = {"backend": "slurm", "time_limit_minutes": 60}


def test_a_plan_is_refused_with_all_that_cannot_be_had() -> None:
    with pytest.raises(MachineError) as refused:
        check_downloads([hub_spec(), hub_spec()], with_image=True)
    for key in ("data.tokenizer.name", "model.text_encoder.weights", "model.image_encoder.weights"):
        assert str(refused.value).count(f"{key}: ") == 1
    with pytest.raises(MachineError, match=r"data\.tokenizer\.name") as refused:
        check_downloads([hub_spec()], with_image=False)
    assert "image_encoder" not in str(refused.value)


@pytest.mark.usefixtures("server")
def test_what_a_slurm_job_would_download_is_warned_of_and_what_this_machine_would_is_not(cache: Path) -> None:
    cached(cache, "someone/bert", tokenizer__json="{}")
    assert check_downloads([hub_spec()], with_image=False) == []
    (warning,) = check_downloads([hub_spec(**SLURM)], with_image=False)
    assert warning.startswith("model.text_encoder.weights: someone/bert is not in this machine's cache, and compute nodes")
    assert "`hf download someone/bert`" in warning
    cached(cache, "someone/bert", config__json="{}", pytorch_model__bin="x")
    assert check_downloads([hub_spec(**SLURM)], with_image=False) == []


def test_a_run_that_begins_is_refused_before_it_is_submitted_and_one_that_has_begun_is_not_asked(tmp_path: Path) -> None:
    run = PlannedRun(hub_spec(**SLURM), SimpleNamespace(run_id="hub-s0-abc"), None, asked_for=True)  # type: ignore[arg-type]
    with pytest.raises(MachineError, match=r"model\.image_encoder\.weights"):
        check_beginnings([run], runs_dir=tmp_path, again=False, say=pytest.fail)
    folder = tmp_path / "hub-s0-abc"
    folder.mkdir()
    RunFolder(folder).write_state(RunState("interrupted", step=3, total_steps=9))
    check_beginnings([run], runs_dir=tmp_path, again=False, say=pytest.fail)
    with pytest.raises(MachineError, match=r"model\.image_encoder\.weights"):
        check_beginnings([run], runs_dir=tmp_path, again=True, say=pytest.fail)


def test_a_run_that_starts_from_another_needs_no_first_weights() -> None:
    spec = hub_spec().model_copy(update={"init": InitSpec(checkpoint="/elsewhere")})
    assert [needed.key for needed in hub_files_of(spec, with_image=True)] == ["data.tokenizer.name"]


def test_doctor_says_of_each_whether_it_is_here(cache: Path) -> None:
    cached(cache, "someone/bert", tokenizer__json="{}")
    tokenizer, text = check_hub_for([hub_spec(), hub_spec()], with_image=False)
    assert (tokenizer.verdict, tokenizer.found) == ("ok", "someone/bert is in the cache (data.tokenizer.name)")
    assert text.verdict == "problem"
    assert "hf download someone/bert" in str(text.advice)


def test_the_command_refuses_within_seconds_and_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "hub.json").write_text(hub_spec().model_dump_json(exclude_defaults=True))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": NOWHERE}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "tclx.cli", "plan", str(tmp_path / "hub.json"), "--quick"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert ended.returncode == 3, ended.stderr
    assert f"is not in this machine's cache ({tmp_path}/hf/hub)" in ended.stderr
    assert "Retrying" not in ended.stderr


def test_an_image_encoder_in_the_cache_is_found(cache: Path) -> None:
    needed = hub_files("test_vit")
    assert needed is not None
    assert not in_cache(needed)
    cached(cache, needed.repository, model__safetensors="x")
    assert in_cache(needed)


# ------------------------------------------------------------------------------------------------------------------- fetching

SHA = "0123456789abcdef0123456789abcdef01234567"


class Whole(BaseHTTPRequestHandler):
    """Has `someone/bert` with all its files, as the hub answers for them; counts what it is asked."""

    files: ClassVar[dict[str, bytes]] = {
        "config.json": b"{}", "pytorch_model.bin": b"w" * 5000, "vocab.txt": b"[PAD]", "README.md": b"much",
        "onnx/model.onnx": b"x",
    }  # fmt: skip
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/someone/bert"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in self.files.items()]
            content: bytes | None = json.dumps(tree if "/tree/" in self.path else {"id": "someone/bert", "sha": SHA}).encode()
        else:
            content = self.files.get(self.path.partition("/resolve/main/")[2].partition("?")[0])
        self.send_response(404 if content is None else 200)
        if content is not None:
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET" and content is not None:
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Whole]]:
    Whole.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Whole) as server:
        at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Whole
        server.shutdown()


def test_what_is_fetched_is_in_the_cache_with_what_describes_it_and_nothing_else(whole: type[Whole], cache: Path) -> None:
    assert not in_cache(WEIGHTS)
    assert hub.fetch(WEIGHTS) == 2 + 5000 + 5
    assert in_cache(WEIGHTS)
    there = {path.name for path in (cache / "models--someone--bert" / "snapshots" / SHA).iterdir()}
    assert there == {"config.json", "pytorch_model.bin", "vocab.txt"}


def test_what_the_hub_does_not_have_is_named(whole: type[Whole]) -> None:
    with pytest.raises(MachineError, match=r"other/bert is not in this machine's cache"):
        hub.fetch(WEIGHTS._replace(repository="other/bert"))


def test_the_command_fetches_once(
    whole: type[Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.json"
    tokenizer = {"source": "pretrained", "name": "someone/bert"}
    spec.write_text(json.dumps({"name": "far", "extends": "tclx:quickstart", "data": {"tokenizer": tokenizer}}))
    fetch([spec], None)
    assert "someone/bert: 0.0 MiB fetched (data.tokenizer.name)" in capsys.readouterr().err
    whole.asked.clear()
    fetch([spec], None)
    assert "someone/bert: is in the cache already" in capsys.readouterr().err
    assert whole.asked == []


def test_a_run_that_finds_everything_asks_nobody(whole: type[Whole], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    tokenizer = HubTokenizer(source="pretrained", name="someone/bert")
    tiny = tiny_spec()
    spec = tiny.model_copy(update={"data": tiny.data.model_copy(update={"tokenizer": tokenizer})})
    ask_no_hub(spec)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # something is still to be fetched
    hub.fetch(WEIGHTS)
    ask_no_hub(spec)
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
