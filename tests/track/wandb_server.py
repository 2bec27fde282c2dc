"""A server on loopback that speaks as much of W&B's protocol as an unmodified client needs for a run.

It keeps what it is sent, answers resumes and the public API's reads, and can be told to fail. A request that it does not know
is recorded in `unknown`, which tests expect to be empty: a client with another protocol then fails loudly. It proves that the
client and this project fit together, not how wandb.ai behaves.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

API_KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "lab"
SILENCE = "silence"
"""A fault: the request is read and never answered."""
DROP = "drop"
"""A fault: the connection is closed."""

Json = dict[str, Any]
_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


@dataclass
class ReceivedRun:
    """What the server has of one run."""

    name: str
    project: str
    history: list[Json] = field(default_factory=list)
    num_overwritten: int = 0
    """Rows that came again at a place that was taken."""
    summary: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    facts: Json = field(default_factory=dict)
    """Group, job type, tags, notes and display name, under the protocol's names."""
    num_events: int = 0
    event_names: set[str] = field(default_factory=set)
    """Of what the client's monitor records."""
    artifacts: list[Json] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    was_preempted: bool = False

    @property
    def rows(self) -> list[Json]:
        """The history without the client's own columns."""
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in self.history]

    @property
    def steps(self) -> list[int]:
        """W&B's own numbers of the rows."""
        return [row["_step"] for row in self.history]

    def artifacts_of(self, kind: str) -> list[Json]:
        """Of one type: checkpoints are `model`, the tables of a run `run_table`."""
        return [artifact for artifact in self.artifacts if artifact["given"]["artifactTypeName"] == kind]

    def node(self) -> Json:
        """As the public API sees it."""
        last = self.history[-1]["_step"] if self.history else -1
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.facts.get("displayName"),
            "sweepName": None,
            "state": "running" if self.exit_code is None else "finished" if self.exit_code == 0 else "failed",
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "group": self.facts.get("groupName"),
            "jobType": self.facts.get("jobType"),
            "tags": self.facts.get("tags", []),
            "notes": "",
            "description": "",
            "commit": None,
            "readOnly": False,
            "projectId": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "user": {"name": ENTITY, "username": ENTITY},
            "historyLineCount": len(self.history),
            "historyKeys": {"lastStep": last, "sets": [], "keys": {}},
        }

    def bucket(self) -> Json:
        """As the uploading client sees it."""
        project = {"id": "project", "name": self.project, "entity": {"id": "entity", "name": ENTITY}}
        return {**self.node(), "project": project}


class WandbServer:
    """Runs from `with` to its end; `environment` points a client at it."""

    def __init__(self) -> None:
        self.runs: dict[str, ReceivedRun] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.fault: int | str | None = None
        """A status code, SILENCE or DROP, for every request from now on that `fault_matches`."""
        self.fault_matches = "."
        self.api_key = API_KEY
        self.views: dict[str, Json] = {}
        """Workspaces by their name."""
        self._artifacts: dict[str, Json] = {}
        self._client_ids: dict[str, str] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    @property
    def only_run(self) -> ReceivedRun:
        (run,) = self.runs.values()
        return run

    # ---------------------------------------------------------------------------------------------------------- requests

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and content for one request; the status 0 closes the connection."""
        request, operation = {}, path
        if path == "/graphql":
            request = json.loads(body)
            found = _OPERATION.search(request["query"])
            operation = found[1] if found else "unnamed"
        elif path.endswith("/file_stream"):
            request, operation = json.loads(body), "file_stream"
        elif path.startswith("/storage/"):
            operation = f"storage {method}"
        self.requests.append(operation)
        if self.fault is not None and re.search(self.fault_matches, operation):
            if self.fault == SILENCE:
                self._ended.wait()
            return (self.fault, {"errors": [{"message": "injected"}]}) if isinstance(self.fault, int) else (0, None)
        if not operation.startswith("storage") and _key_of(headers) != self.api_key:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        with self._lock:
            if path == "/graphql":
                return self._graphql(operation, request.get("variables") or {})
            if operation == "file_stream":
                return 200, self._file_stream(unquote(path.split("/")[4]), request)
            if operation == "storage PUT":
                _, _, kind, *rest = unquote(path).split("/", 4)
                if kind == "run":
                    self.runs[rest[0]].files[rest[1]] = body
                elif kind == "manifest":
                    self._artifacts[rest[0]]["contents"] = json.loads(body)["contents"]
                return 200, {}
        self.unknown.append(f"{method} {path}")
        return 404, {}

    def _file_stream(self, name: str, request: Json) -> Json:
        run = self.runs[name]
        for file, chunk in (request.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith((".jsonl", ".json")) else []
            if file == "wandb-history.jsonl":
                for place, row in enumerate(lines, chunk["offset"]):
                    run.num_overwritten += place < len(run.history)
                    run.history[place : place + 1] = [row]
            elif file == "wandb-summary.json":
                run.summary = lines[-1]  # the whole of it every time, without what is None
            elif file == "wandb-events.jsonl":
                run.num_events += len(lines)
                run.event_names.update(*lines)
        run.was_preempted |= bool(request.get("preempting"))
        if request.get("complete"):
            run.exit_code = request.get("exitcode")
        return {"limits": {}}

    def _graphql(self, operation: str, variables: Json) -> tuple[int, Any]:
        known: dict[str, Callable[[Json], Json]] = {
            "ServerFeaturesQuery": lambda v: {"serverInfo": {"features": []}},
            "Viewer": self._viewer,
            "GetDefaultEntity": self._viewer,
            "OrganizationCoreWeaveOrganizationID": lambda v: {"entity": {"organization": None}},
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert,
            "RunStoppedStatus": lambda v: {"project": {"run": {"stopped": False}}},
            "CreateRunFiles": self._create_files,
            "Run": self._run,
            "RunHistoryKeys": self._run,
            "ArtifactType": lambda v: {"project": {"artifact": None}},
            "CreateArtifact": self._create_artifact,
            "CreateArtifactFiles": self._create_artifact_files,
            "CreateArtifactManifest": self._create_manifest,
            "CommitArtifact": self._commit,
            "ClientIDMapping": lambda v: {"clientIDMapping": {"serverID": self._client_ids[v["clientID"]]}},
            "ArtifactByID": self._artifact,
            "View": self._view,
            "UpsertView2": self._upsert_view,
        }
        if operation not in known:
            self.unknown.append(operation)
            return 200, {"errors": [{"message": f"unknown operation {operation}"}], "data": None}
        return 200, {"data": known[operation](variables)}

    # ------------------------------------------------------------------------------------------------------------- runs

    def _viewer(self, variables: Json) -> Json:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}}

    def _resume_status(self, variables: Json) -> Json:
        model = {"id": "model", "name": variables["project"], "entity": {"id": "entity", "name": ENTITY}}
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {**model, "bucket": None}}
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        more = {"historyTail": tail, "eventsTail": "[]", "logLineCount": 0, "eventsLineCount": run.num_events}
        more |= {"wandbConfig": json.dumps({"t": 1}), "tags": [], "notes": ""}
        return {"model": {**model, "bucket": {**run.bucket(), **more}}}

    def _upsert(self, variables: Json) -> Json:
        is_new = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], ReceivedRun(variables["name"], variables["project"]))
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        names = ("groupName", "jobType", "displayName", "notes", "tags")
        run.facts |= {name: variables[name] for name in names if variables.get(name) is not None}
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": is_new}}

    def _create_files(self, variables: Json) -> Json:
        base = f"{self.url}/storage/run/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}

    def _run(self, variables: Json) -> Json:
        run = self.runs.get(variables["name"])
        return {"project": {"run": run.node() if run is not None else None}}

    # -------------------------------------------------------------------------------------------------------- artifacts

    def _create_artifact(self, variables: Json) -> Json:
        given = variables.get("input", variables)
        name = f"artifact{len(self._artifacts)}"
        names = given.get("artifactCollectionNames") or [given.get("artifactCollectionName")]
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        artifact = {"id": name, "name": names[0], "aliases": aliases, "files": [], "contents": {}, "given": given}
        artifact["state"] = "PENDING"
        self._artifacts[name] = artifact
        self._client_ids[given["clientID"]] = name
        self.runs[given["runName"]].artifacts.append(artifact)
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}}}

    def _create_artifact_files(self, variables: Json) -> Json:
        edges = []
        for file in variables.get("input", variables)["artifactFiles"]:
            place = f"artifact/{file['artifactID']}/{file['name']}"
            self._artifacts[file["artifactID"]]["files"].append(file["name"])
            node = {"storagePath": place, "uploadUrl": f"{self.url}/storage/{place}", "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _create_manifest(self, variables: Json) -> Json:
        place = f"manifest/{variables['artifactID']}/m"
        file = {"id": place, "uploadUrl": f"{self.url}/storage/{place}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}

    def _commit(self, variables: Json) -> Json:
        artifact = self._artifacts[variables["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["given"].get("digest", "")}}}

    def _artifact(self, variables: Json) -> Json:
        artifact = self._artifacts[variables["id"]]
        given = artifact["given"]
        project = {"id": "project", "internalId": "1", "name": given["projectName"], "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": artifact["name"], "project": project}
        facts = {
            "__typename": "Artifact",
            "id": artifact["id"],
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"name": given["artifactTypeName"]},
            "description": None,
            "metadata": given.get("metadata"),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "aliases": [],
            "state": artifact["state"],
            "size": 1,
            "digest": given.get("digest", ""),
            "commitHash": "c",
            "digestAlgorithm": "MANIFEST_MD5",
            "fileCount": len(artifact["files"]),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        return {"artifact": facts}

    # ------------------------------------------------------------------------------------------------------- workspaces

    def _view(self, variables: Json) -> Json:
        view = self.views.get(variables["viewName"])
        return {"project": {"allViews": {"edges": [{"node": view}] if view is not None else []}}}

    def _upsert_view(self, variables: Json) -> Json:
        name = variables["name"]
        is_new = name not in self.views
        if is_new != (not variables.get("id")):
            raise ValueError("a view that is there is changed by its id, and a new one has none")
        view = {"id": f"id-of-{name}", "name": name, "displayName": variables["displayName"], "spec": variables["spec"]}
        self.views[name] = view
        return {"upsertView": {"view": view, "inserted": is_new}}


def _key_of(headers: Any) -> str:
    kind, _, value = (headers.get("Authorization") or "").partition(" ")
    return base64.b64decode(value).decode().partition(":")[2] if kind == "Basic" else ""


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status, content = server.answer(self.command, urlsplit(self.path).path, self.headers, body)
            if status == 0:
                self.close_connection = True
                return
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"x"')
            self.end_headers()
            self.wfile.write(data)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = _any

    return Handler


PATIENCE = 180.0
"""The uploading process is nice: where other tests have the cores, it may take half a minute to begin."""


def wait_for(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fails when it does not within `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.01)
