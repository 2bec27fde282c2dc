"""What is missing on this machine? A list of checks, each with what was found and what to do; nothing is changed.

torch is asked for its version without being imported; `deep` imports it in a process of its own. What belongs to the cluster
is in `tclx.doctor.slurm`.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import netrc
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tclx import __version__, hub, system
from tclx.doctor.check import Check
from tclx.doctor.slurm import check_slurm
from tclx.launch.downloads import why_not
from tclx.model.downloads import hub_files
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.rules import missing_packages
from tclx.system import Mount
from tclx.track.wandb.process import wandb_mode

GIB = 2**30
FREE_DISK_GIB = 10.0
"""Three checkpoints of a full-size run: its newest two and its best, 3.3 GiB each."""

DEEP_SECONDS = 180
"""torch alone takes seconds to import from a network file system that has not seen it today."""

HOST_SECONDS = 4.0
"""How long a server may take to accept a connection."""

_LOCAL_LOCKS = ("nolock", "localflock", "local_lock=all", "local_lock=flock")
"""Mount options with which each machine has locks of its own."""


def examine(*, runs_dir: Path, deep: bool = False, specs: Sequence[ExperimentSpec] = ()) -> list[Check]:
    """Look at everything that a run needs.

    Args:
        runs_dir: where runs are kept; it need not exist yet.
        deep: also import torch, in a process of its own, and ask it for its GPUs.
        specs: runs that are meant to start from here: what W&B will do for them.
    """
    mount = system.mount_of(existing(runs_dir), system.mounts())
    return [
        *check_python(can_submit=shutil.which("sbatch") is not None),
        *check_gpus(),
        *(check_torch_deeply() if deep else ()),
        *check_machine(),
        *check_runs_dir(runs_dir, mount),
        *check_slurm(mount),
        *check_wandb_for(specs, os.environ),
        *check_tensorboard_for(specs),
        *check_hub(os.environ),
        *check_hub_for(specs, with_image=deep),
    ]


# ------------------------------------------------------------------------------------------------------------ Python and torch


def check_python(*, can_submit: bool) -> Iterator[Check]:
    """Interpreter, tclx and what it needs."""
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}, tclx {__version__}")
    if find_spec("torch") is None:
        advice = "install torch to train here" + ("; runs can be submitted without it" if can_submit else "")
        yield Check("torch", "warning" if can_submit else "problem", "not installed", advice)
    else:
        yield Check("torch", "ok", f"{_version('torch')} (not imported; --deep does)")
    try:
        missing = [name for name in required(metadata.requires("tclx") or ()) if name != "torch" and _version(name) is None]
    except metadata.PackageNotFoundError:
        yield Check("packages", "info", "tclx runs from its source without being installed: its requirements are not known")
        return
    if missing:
        yield Check("packages", "problem", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Check("packages", "ok", "everything that tclx requires is installed")


def required(requirements: Iterable[str]) -> list[str]:
    """Names of the packages that are required without an extra: `numpy>=2; extra == "x"` is not."""
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in requirements if "extra ==" not in line]
    return [found[0] for found in names if found]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_ASK_TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
if found["available"]:
    count = range(torch.cuda.device_count())
    found["gpus"] = [torch.cuda.get_device_name(index) for index in count]
    found["bf16"] = torch.cuda.is_bf16_supported()
    torch.ones(2, 2, device="cuda").matmul(torch.ones(2, 2, device="cuda")).sum().item()
print(json.dumps(found))
"""


def check_torch_deeply() -> Iterator[Check]:
    """Import torch in another process and let it multiply on the GPU."""
    if find_spec("torch") is None:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=DEEP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Check("torch on GPUs", "problem", f"torch did not answer within {DEEP_SECONDS} s", "is the driver stuck?")
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Check("torch on GPUs", "problem", f"torch fails: {said}", "reinstall torch, for this machine's CUDA driver")
        return
    yield judge_torch(json.loads(done.stdout.splitlines()[-1]), num_gpus=len(list_gpus()))


def judge_torch(found: dict[str, Any], *, num_gpus: int) -> Check:
    """What torch says of itself, beside what nvidia-smi lists."""
    name = "torch on GPUs"
    if found["available"]:
        bf16 = "bf16 works" if found["bf16"] else "no bf16: set training.precision to fp32"
        return Check(name, "ok", f"{len(found['gpus'])} x {found['gpus'][0]}, CUDA {found['cuda']}, {bf16}")
    if num_gpus and found["cuda"] is None:
        return Check(name, "problem", "this torch is built for the CPU", "install a torch with CUDA")
    if num_gpus:
        return Check(
            name,
            "problem",
            f"torch for CUDA {found['cuda']} cannot use the GPUs",
            "the driver may be too old for it, or CUDA_VISIBLE_DEVICES hides them",
        )
    return Check(name, "info", f"torch {found['version']} imports; there is no GPU to use")


# ------------------------------------------------------------------------------------------------------------------- machine


class Gpu(NamedTuple):
    """One line of nvidia-smi."""

    name: str
    memory_gib: float
    driver: str


def list_gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi lists; none where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """`NVIDIA H100 80GB HBM3, 81559, 550.54.15` a GPU; the memory in MiB, or `[N/A]` where it is the machine's own."""
    rows = [line.rsplit(",", 2) for line in text.splitlines() if line.count(",") >= 2]
    return [Gpu(name.strip(), _number(memory) / 1024, driver.strip()) for name, memory, driver in rows]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_gpus() -> Iterator[Check]:
    """GPUs of this machine, and which of them runs may take."""
    gpus = list_gpus()
    if not gpus:
        found = "nvidia-smi is not here" if shutil.which("nvidia-smi") is None else "nvidia-smi lists none, or fails"
        yield Check("gpus", "info", f"{found}: runs on this machine train on the CPU")
        return
    kinds = {gpu.name: [other for other in gpus if other.name == gpu.name] for gpu in gpus}
    text = ", ".join(f"{len(same)} x {name} ({same[0].memory_gib:.0f} GiB)" for name, same in kinds.items())
    yield Check("gpus", "ok", f"{text}, driver {gpus[0].driver}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        usable = [name for name in named.split(",") if name.strip() not in ("", "-1")]
        yield Check(
            "gpus for runs",
            "ok" if usable else "warning",
            f"CUDA_VISIBLE_DEVICES={named} leaves {len(usable)} of {len(gpus)}",
            None if usable else "unset it to train on GPUs",
        )


def check_machine() -> Iterator[Check]:
    """Cores and memory."""
    yield Check("cpu", "ok", f"{system.num_cpus()} cores for this process, {os.cpu_count()} in the machine")
    memory = system.memory()
    yield Check("memory", "ok", f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB of it available")


# --------------------------------------------------------------------------------------------------------------- runs folder


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists()).resolve()


def check_runs_dir(runs_dir: Path, mount: Mount) -> Iterator[Check]:
    """Whether runs can be kept there: space, permission, rename, locks. What is tried is removed again."""
    place = existing(runs_dir)
    there = str(runs_dir) if runs_dir.exists() else f"{runs_dir} is not there yet; in {place}"
    if not place.is_dir():
        yield Check("runs folder", "problem", f"{place} is no folder", "choose another place with --runs-dir")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".tclx-doctor-", dir=place) as folder:
            trouble = try_folder(Path(folder))
    except OSError as error:
        yield Check("runs folder", "problem", f"{there}: {error.strerror}", "choose another place with --runs-dir")
        return
    if trouble:
        yield Check("runs folder", "problem", f"{there}: {trouble}", "choose another file system with --runs-dir")
    else:
        yield Check("runs folder", "ok", f"{there}: files can be written, renamed and locked")
    yield _check_file_system(mount)
    free = shutil.disk_usage(place).free / GIB
    enough = free >= FREE_DISK_GIB
    advice = None if enough else "free some space: checkpoints need it (training.checkpoints.keep_last keeps fewer)"
    yield Check("disk", "ok" if enough else "warning", f"{free:.1f} GiB free for runs", advice)


def _check_file_system(mount: Mount) -> Check:
    where = "network file system" if mount.is_network else "file system of this machine"
    local_locks = [option for option in mount.options if option in _LOCAL_LOCKS] if mount.is_network else []
    if local_locks:
        return Check(
            "file system",
            "warning",
            f"{mount.kind} ({where}), mounted with {local_locks[0]}: other machines do not see its locks",
            "submit from one machine at a time",
        )
    return Check("file system", "ok", f"{mount.kind} ({where}), mounted at {mount.place}")


def try_folder(folder: Path) -> str | None:
    """Write, replace by rename, and lock, as runs do; returns what does not work, or None.

    Raises:
        OSError: it cannot even be written.
    """
    old, new = folder / "state.json", folder / ".state.json.tmp"
    old.write_text("old", encoding="utf-8")
    with new.open("w", encoding="utf-8") as file:
        file.write("new")
        file.flush()
        os.fsync(file.fileno())
    try:
        new.replace(old)
    except OSError as error:
        return f"rename does not replace a file ({error.strerror})"
    if old.read_text(encoding="utf-8") != "new" or new.exists():
        return "after a rename the old file is still there"
    with (folder / "run.lock").open("a") as first, (folder / "run.lock").open("a") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"files cannot be locked with flock ({error.strerror})"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
    return "flock gives one lock to two processes"


# -------------------------------------------------------------------------------------------------------- services elsewhere


def check_wandb_for(specs: Sequence[ExperimentSpec], environment: Mapping[str, str]) -> Iterator[Check]:
    """What W&B will do, whether it would know us, and whether it can be reached where anybody means to use it."""
    yield from check_wandb_of(specs, environment)
    needed = any(wandb_mode(spec.tracking.wandb, environment) == "online" for spec in specs)
    login = find_wandb_login(environment)
    yield check_wandb(login, needed=needed)
    if needed or login.there:
        yield check_wandb_host(environment, needed=needed)


class Login(NamedTuple):
    """Whether W&B would know us. The key itself is never kept."""

    there: bool
    found: str
    advice: str | None = None


def find_wandb_login(environment: Mapping[str, str]) -> Login:
    """Look where the client looks."""
    host = urlsplit(wandb_url(environment)).hostname or "api.wandb.ai"
    if environment.get("WANDB_API_KEY"):
        return Login(True, f"WANDB_API_KEY is set, for {host}; jobs inherit it")
    path = Path(environment.get("NETRC") or Path.home() / ".netrc")
    if not path.exists():
        return Login(False, f"neither WANDB_API_KEY nor {path}: not logged in")
    try:
        known = netrc.netrc(str(path)).authenticators(host) is not None
    except netrc.NetrcParseError as error:  # its message may quote a password
        return Login(False, f"{path} cannot be read: line {error.lineno} is wrong", "mend it or set WANDB_API_KEY")
    except (OSError, UnicodeDecodeError) as error:
        return Login(False, f"{path} cannot be read ({type(error).__name__})", "make it readable or set WANDB_API_KEY")
    return Login(known, f"{path} {'has a login' if known else 'has no login'} for {host}")


def check_wandb(login: Login, *, needed: bool) -> Check:
    """A missing login matters to runs that mean to use it."""
    lacks = needed and not login.there
    advice = login.advice or ("set WANDB_API_KEY or use `wandb login`; without it tclx sync uploads later" if lacks else None)
    return Check("wandb", "warning" if lacks else "info", login.found, advice)


def wandb_url(environment: Mapping[str, str]) -> str:
    """The server that the client would talk to: WANDB_BASE_URL, or what `wandb login --host` has written down."""
    if named := environment.get("WANDB_BASE_URL"):
        return named
    folder = environment.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):  # the client says what is wrong with it
        settings.read(Path(folder) / "settings", encoding="utf-8")
    return settings.get("default", "base_url", fallback="https://api.wandb.ai")


def check_wandb_host(environment: Mapping[str, str], *, needed: bool) -> Check:
    """Whether W&B's server can be reached from here, within a few seconds; nothing is sent."""
    url = wandb_url(environment)
    proxies = {name.lower(): value for name, value in environment.items() if name.lower().endswith("_proxy")}
    proxy = proxies.get(f"{urlsplit(url).scheme}_proxy") or proxies.get("all_proxy")
    goal = urlsplit(proxy if proxy and "//" in proxy else url)
    port = goal.port or (443 if goal.scheme == "https" else 80)
    host = goal.hostname or ""
    through = f" (a proxy for {urlsplit(url).hostname})" if goal.geturl() != url else ""
    if (trouble := try_host(host, port)) is None:
        return Check("wandb server", "ok", f"{host}:{port}{through} can be reached from this machine")
    advice = "runs are not touched by it; set tracking.wandb.mode: offline and use tclx sync where there is a network"
    found = f"{host}:{port}{through} {trouble} from this machine"
    return Check("wandb server", "warning" if needed else "info", found, advice if needed else None)


def try_host(host: str, port: int) -> str | None:
    """Connect and hang up; returns what does not work, or None. Finding the address may take longer than anybody waits."""
    outcome = [f"does not answer within {HOST_SECONDS:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=HOST_SECONDS).close()
            outcome.clear()
        except TimeoutError:
            pass
        except OSError as error:
            outcome[0] = f"cannot be reached ({error.strerror or error})"

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HOST_SECONDS)
    return outcome[0] if outcome else None


def check_wandb_of(specs: Sequence[ExperimentSpec], environment: Mapping[str, str]) -> Iterator[Check]:
    """What W&B will do for these runs."""
    for wandb in dict.fromkeys(spec.tracking.wandb for spec in specs):
        mode = wandb_mode(wandb, environment)
        said = f" (WANDB_MODE={environment['WANDB_MODE']})" if wandb is not None and mode != wandb.mode else ""
        if wandb is None:
            found = "tracking.wandb is null: numbers go into metrics.jsonl alone"
        elif mode == "disabled":
            found = f"disabled{said}: numbers go into metrics.jsonl alone"
        elif mode == "offline":
            found = f"offline{said}: nothing is sent; tclx sync uploads to project {wandb.project}"
        else:
            waits = f"a finished run waits at most {wandb.finish_timeout_seconds} s for it"
            found = f"online: project {wandb.project}{f' of {wandb.entity}' if wandb.entity else ''}; {waits}"
        yield Check("wandb for runs", "info", found)


def check_tensorboard_for(specs: Sequence[ExperimentSpec]) -> Iterator[Check]:
    """Whether runs that ask for TensorBoard can have it."""
    if any(spec.tracking.tensorboard for spec in specs):
        lacking = [problem for spec in specs for problem in missing_packages(spec)]
        if lacking:
            yield Check("tensorboard", "problem", f"{lacking[0].key}: {lacking[0].message}", lacking[0].hint)
        else:
            yield Check("tensorboard", "ok", f"{_version('tensorboard')}: rank 0 copies metrics.jsonl into the run folder")


def check_hub(environment: Mapping[str, str]) -> Iterator[Check]:
    """Where the model hub's files are kept, and whether it may be asked for more."""
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    said = "HF_HOME=" if environment.get("HF_HOME") else ""
    there = "" if home.is_dir() else " (not there yet)"
    how = "HF_HUB_OFFLINE is set: only what is there already" if offline else "weights: hub downloads into it"
    yield Check("model hub", "info", f"{said}{home}{there}; {how}")


def check_hub_for(specs: Sequence[ExperimentSpec], *, with_image: bool) -> Iterator[Check]:
    """Whether what runs take from the hub is here or can be had; image encoders only `with_image`, since that imports timm."""
    for needed in dict.fromkeys(needed for spec in specs for needed in hub_files(spec, with_image=with_image)):
        if hub.in_cache(needed):
            yield Check("hub for runs", "ok", f"{needed.repository} is in the cache ({needed.key})")
        elif (reason := why_not(needed)) is not None:
            found, _, advice = reason.partition("\n")
            yield Check("hub for runs", "problem", found, advice)
        else:
            advice = f"`hf download {needed.repository}` fetches it now, for machines without a network"
            yield Check("hub for runs", "info", f"{needed.repository} is to be downloaded ({needed.key})", advice)
