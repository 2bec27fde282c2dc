"""A real SLURM cluster on this machine, for tests: four nodes of 8 CPUs and 2 pretended GPUs each.

    python3 tests/slurm/cluster.py up [--accounting off] [--if-possible]
    python3 tests/slurm/cluster.py status
    python3 tests/slurm/cluster.py down
    python3 tests/slurm/cluster.py around COMMAND...    # up if possible, COMMAND, down again unless it was up before

Everything lives in one folder, /var/lib/tclx-slurm or $TCLX_SLURM_HOME (not in /run, which Debian mounts noexec: batch
scripts are executed from there), and listens on 127.0.0.1. It has its own munged, MariaDB and keys, so that a SLURM of
the machine's own is neither used nor disturbed. Made for Debian's slurm-wlm 22.05; needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

DEFAULT_HOME = "/var/lib/tclx-slurm"
NODES = ("n1", "n2", "n3", "n4")
SLURMD_PORTS = (17001, 17002, 17003, 17004)
SLURMCTLD_PORT, SLURMDBD_PORT, MARIADB_PORT = 17010, 17011, 17012  # below Linux's ephemeral range, which begins at 32768
MARK = "# Written by tclx's tests/slurm/cluster.py; its `down` removes this folder."
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# program -> Debian package. mariadb-server-core has the program without the service, and needs the last to set up a database.
PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ACCOUNTING_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}
SERVICES = ("munge", "slurmctld", "slurmd", "slurmdbd")

SLURM_CONF = """\
{mark}
ClusterName=tclx
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits cred_expire + 1 s before it starts again: 11 s here, 121 s by default.
AuthInfo=socket={home}/munge.socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/pid/slurmctld.slurm
SlurmdPidFile={home}/pid/%n.slurm
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true

# No cgroups, and nodes larger than the machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none

# Waits that a production cluster counts in minutes.
SlurmdTimeout=10
KillWait=5
MessageTimeout=30
MinJobAge=300
ReturnToService=2
JobRequeue=1
MaxArraySize=1001

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/none
{accounting}
GresTypes=gpu
DefMemPerCPU=2000
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{slurmd_ports}] CPUs=8 RealMemory=32000 Gres=gpu:2 State=UNKNOWN

PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=2 PriorityTier=1 PreemptMode=OFF
# A job in `high` preempts one in `low`: SIGTERM at once, SIGKILL and the queue after GraceTime.
PartitionName=low Nodes=ALL MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=2 PreemptMode=OFF
"""

WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none\n"
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={home}/munge.socket
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={home}/pid/slurmdbd.slurm
LogFile={home}/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""

DATABASE_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
"""


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why."""


class NotPossible(ClusterError):
    """This machine cannot have the cluster: no root, no apt, or no packages."""


class Cluster:
    """The cluster in one folder. Any process may make one of these: what runs is known from pid files."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or Path(os.environ.get("TCLX_SLURM_HOME", DEFAULT_HOME))).absolute()

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this cluster, to be added to os.environ."""
        return {"SLURM_CONF": str(self.home / "slurm.conf")}

    @property
    def accounting(self) -> bool:
        return (self.home / "slurmdbd.conf").exists()

    def is_up(self) -> bool:
        return self._is_ours() and all(self._is_alive(name) for name in self._daemons())

    def up(self, *, accounting: bool = True) -> bool:
        """Start what does not run yet and wait until all nodes are idle; False when everything ran already."""
        if self.is_up() and self.accounting == accounting:
            return False
        if os.geteuid() != 0:
            raise NotPossible("the test cluster's daemons need root.")
        install_packages(PACKAGES | (ACCOUNTING_PACKAGES if accounting else {}))
        with self._lock():
            if self._is_ours() and self.accounting != accounting:
                raise ClusterError(f"{self.home} has a cluster with accounting {'off' if accounting else 'on'}: `down` first.")
            if self.is_up():
                return False
            self._write_configuration(accounting=accounting)
            for name in self._daemons():
                self._start(name)
                if name == "slurmdbd":
                    self._add_account()
        self.wait_for_nodes()
        return True

    def down(self) -> bool:
        """Stop the daemons that `up` started and the jobs they run, and remove the folder; False when there is none."""
        if not self._is_ours():
            return False
        if not os.access(self.home, os.W_OK):
            raise ClusterError(f"{self.home} belongs to another user, who must stop the cluster.")
        with self._lock():
            # The controller first, or it would start jobs while the nodes go; the database last, it is written to.
            self._stop("slurmctld")
            self._stop(*NODES)
            for pid in self._job_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for name in ("slurmdbd", "mariadbd", "munged"):
                self._stop(name)
            shutil.rmtree(self.home)
        return True

    def kill_node(self, node: str) -> None:
        """SIGKILL the slurmd of this node, as a crash would; its jobs' processes live on."""
        self._stop(node, with_signal=signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self._start(node)

    def stop_controller(self) -> None:
        self._stop("slurmctld")

    def start_controller(self) -> None:
        self._start("slurmctld")

    def wait_for_nodes(self, *, timeout: float = 120) -> None:
        """Wait until every node is idle, so also until no job runs."""
        self._wait(lambda: set(self.node_states().values()) == {"idle"}, "all nodes idle", timeout=timeout)

    def node_states(self) -> dict[str, str]:
        """State of each node in SLURM's words: {"n1": "idle", ...}; "*" at the end: the node does not answer."""
        lines = self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %t").splitlines()
        return dict(line.split() for line in lines)

    def run(self, *command: str) -> str:
        """Output of one of SLURM's commands; ClusterError with the command's words when it fails."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _daemons(self) -> tuple[str, ...]:
        """In the order in which they start."""
        return ("munged", *(("mariadbd", "slurmdbd") if self.accounting else ()), "slurmctld", *NODES)

    def _command(self, name: str) -> list[str]:
        home = self.home
        match name:
            case "munged":
                files = {
                    "socket": "munge.socket",
                    "key-file": "munge.key",
                    "seed-file": "munge.seed",
                    "pid-file": "pid/munged.munge",
                }
                return ["munged", "--foreground", *(f"--{option}={home / file}" for option, file in files.items())]
            case "mariadbd":
                return [
                    *("mariadbd", "--no-defaults", "--user=root", f"--datadir={home}/mariadb"),
                    *(f"--socket={home}/mariadb.socket", f"--pid-file={home}/pid/mariadbd.mariadb"),
                    *("--bind-address=127.0.0.1", f"--port={MARIADB_PORT}", "--skip-name-resolve"),
                    *(f"--init-file={home}/database.sql", "--innodb-lock-wait-timeout=900"),
                    "--innodb-flush-method=nosync",  # this database need not survive a power cut
                ]
            case "slurmdbd" | "slurmctld":
                return [name, "-D"]
            case _:
                return ["slurmd", "-D", "-N", name]

    def _is_ready(self, name: str) -> bool:
        match name:
            case "munged":
                return (self.home / "munge.socket").is_socket()
            case "mariadbd" | "slurmdbd":
                return answers(MARIADB_PORT if name == "mariadbd" else SLURMDBD_PORT)
            case "slurmctld":
                return "is UP" in self.run("scontrol", "ping")
            case _:
                return True  # `sinfo` tells, later and for all of them

    def _start(self, name: str) -> None:
        if self._is_alive(name):
            return
        with (self.home / "pid" / name).open("w") as file:
            pid = start_detached(self._command(name), environment=self.environment, log=self.home / "log" / f"{name}.out")
            file.write(f"{pid} {start_time(pid)}")
        self._wait(lambda: self._is_ready(name), f"{name} to answer", process=name)

    def _stop(self, *names: str, with_signal: signal.Signals = signal.SIGTERM, timeout: float = 60) -> None:
        """Signal these daemons and wait until they are gone; SIGKILL for those that outlive the timeout."""
        pids = [pid for pid in map(self._pid, names) if pid is not None]
        for pid in pids:
            os.kill(pid, with_signal)
        end = time.monotonic() + timeout
        while alive := [pid for pid in map(self._pid, names) if pid is not None]:
            if time.monotonic() > end:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _pid(self, name: str) -> int | None:
        """The daemon's pid, if it lives and the pid has not gone to another process since."""
        try:
            pid, started = map(int, (self.home / "pid" / name).read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    def _is_alive(self, name: str) -> bool:
        return self._pid(name) is not None

    def _job_processes(self) -> list[int]:
        """Job steps and what they started, known by their environment; survivors of a killed slurmd are among them."""
        ours = f"SLURM_CONF={self.home}/slurm.conf".encode()
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                in_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
                if ours in variables and (in_job or (folder / "comm").read_text() == "slurmstepd\n"):
                    pids.append(int(folder.name))
        return [pid for pid in pids if pid != os.getpid()]

    def _is_ours(self) -> bool:
        conf = self.home / "slurm.conf"
        return conf.exists() and conf.read_text().startswith(MARK)

    def _write_configuration(self, *, accounting: bool) -> None:
        if self._is_ours():
            if any(map(self._is_alive, self._daemons())):
                return
            shutil.rmtree(self.home)  # left by a crash of the machine
        if self.home.exists() and any(self.home.iterdir()):
            raise ClusterError(f"{self.home} has files of someone else in it; name an empty folder in TCLX_SLURM_HOME.")
        for folder in ("", "log", "pid", "state", *(f"spool/{node}" for node in NODES)):
            (self.home / folder).mkdir(parents=True, exist_ok=True, mode=0o755)
        values = {
            "mark": MARK,
            "home": self.home,
            "host": socket.gethostname().split(".")[0],
            "password": secrets.token_hex(16),
            "slurmctld_port": SLURMCTLD_PORT,
            "slurmdbd_port": SLURMDBD_PORT,
            "mariadb_port": MARIADB_PORT,
            "slurmd_ports": ",".join(map(str, SLURMD_PORTS)),
        }
        template = WITH_ACCOUNTING if accounting else WITHOUT_ACCOUNTING
        conf = SLURM_CONF.format(accounting=template.format(**values), **values)
        (self.home / "slurm.conf").write_text(conf)  # first: it says whose folder this is
        write_private(self.home / "munge.key", secrets.token_bytes(128))
        for number in range(2):
            (self.home / f"gpu{number}").symlink_to("/dev/null")  # it must be a device, and is only looked at
        (self.home / "gres.conf").write_text(f"Name=gpu File={self.home}/gpu[0-1]\n")
        (self.home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        if accounting:
            write_private(self.home / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
            write_private(self.home / "database.sql", DATABASE_SQL.format(**values).encode())
            self._make_database()

    def _make_database(self) -> None:
        options = ("--no-defaults", "--user=root", f"--datadir={self.home}/mariadb", "--skip-test-db", "--skip-name-resolve")
        done = subprocess.run(["mariadb-install-db", *options], env={"PATH": PATH}, capture_output=True, text=True)
        if done.returncode != 0:
            raise ClusterError(f"mariadb-install-db failed:\n{done.stdout}{done.stderr}")

    def _add_account(self) -> None:
        """Jobs of root need an association; associations are not enforced, so other users may run jobs too."""
        if "root" in self.run("sacctmgr", "-nP", "show", "assoc", "cluster=tclx", "account=default", "format=user"):
            return
        for what in (["cluster", "tclx"], ["account", "default"], ["user", "root", "account=default"]):
            # exit code 1 also means that it exists already
            subprocess.run(["sacctmgr", "-i", "add", *what], env=os.environ | self.environment, capture_output=True)
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", "defaultaccount=default")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time. The folder above is locked: a lock file would be left behind."""
        folder = os.open(self.home.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _wait(self, is_true: Callable[[], bool], what: str, *, process: str = "slurmctld", timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        problem = ""
        while True:
            try:
                if is_true():
                    return
            except ClusterError as error:
                problem = f"\n{error}"
            if not self._is_alive(process):
                raise ClusterError(f"{process} has ended.{problem}\n{self._log(process)}")
            if time.monotonic() > end:
                raise ClusterError(f"Waited {timeout:.0f} s for {what}.{problem}\n{self._log(process)}")
            time.sleep(0.2)

    def _log(self, name: str) -> str:
        files = [file for file in (self.home / "log" / f"{name}{suffix}" for suffix in (".out", ".log")) if file.exists()]
        return "\n".join(line for file in files for line in [f"{file}:", *file.read_text(errors="replace").splitlines()[-10:]])


def start_detached(command: Sequence[str], *, environment: dict[str, str], log: Path) -> int:
    """Start a daemon that outlives this process, with a clean environment, in the folder /; returns its pid."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        return os.posix_spawn(
            "/usr/bin/env",  # changes the folder and becomes the command, with the same pid
            ["env", "--chdir=/", *command],
            {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **environment},
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((nothing, 0), (output, 1), (output, 2))],
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGHUP],  # Python ignores the first, nohup the last
        )
    finally:
        os.close(output)
        os.close(nothing)


def start_time(pid: int) -> int | None:
    """When this process started, in clock ticks since boot; None when there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def install_packages(packages: dict[str, str]) -> None:
    """Install the Debian packages of the programs that are missing, without their services; NotPossible if apt cannot."""
    missing = sorted({package for program, package in packages.items() if not shutil.which(program, path=PATH)})
    if not missing:
        return
    apt_install(missing, services=SERVICES)


def apt_install(packages: Sequence[str], *, services: Sequence[str]) -> None:
    """Install Debian packages without these services of theirs; NotPossible if apt cannot."""
    if not shutil.which("apt-get"):
        raise NotPossible(f"{', '.join(packages)} not installed, and there is no apt-get.")
    print(f"Installing {', '.join(packages)}.", flush=True)
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"]
    install = ["apt-get", *options, "install", "--yes", "--no-install-recommends", *packages]
    with no_services(services):
        # The lists may be missing or old, so a failure is tried once more with new ones.
        done = quietly(install)
        if done.returncode != 0:
            quietly(["apt-get", *options, "update"])
            done = quietly(install)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise NotPossible(f"apt-get cannot install {', '.join(packages)}: {last}")


def quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@contextlib.contextmanager
def no_services(services: Sequence[str], policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """Debian starts and enables the services of what it installs: prevent the one, undo the other."""
    before = [service for service in services if has_service(service)]
    ours = not policy.exists()  # a container has one already
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()
        new = [service for service in services if has_service(service) and service not in before]
        if new and shutil.which("systemctl"):
            quietly(["systemctl", "disable", *new])


def has_service(name: str) -> bool:
    return Path(f"/lib/systemd/system/{name}.service").exists()


def start(cluster: Cluster, *, accounting: bool = True, if_possible: bool) -> bool:
    """Whether this call started the cluster; says what it did."""
    return say_started(
        "The SLURM cluster",
        lambda: cluster.up(accounting=accounting),
        lambda: f"export SLURM_CONF={cluster.environment['SLURM_CONF']}",
        if_possible=if_possible,
    )


def say_started(what: str, up: Callable[[], bool], how_to_use: Callable[[], str], *, if_possible: bool) -> bool:
    """Start a service of the tests, and say so; whether this call did it."""
    before = time.monotonic()
    try:
        started = up()
    except NotPossible as error:
        if not if_possible:
            raise
        print(f"{what} is not to be had here: {error}", flush=True)
        return False
    took = f"is up after {time.monotonic() - before:.0f} s" if started else "is running already"
    print(f"{what} {took}: {how_to_use()}", flush=True)
    return started


def run_around(command: list[str], *, start: Callable[[], bool], stop: Callable[[], object]) -> int:
    """Run a command with a service up where that is possible; returns the command's exit code.

    Args:
        command: its words.
        start: whether it started the service, which then is stopped again.
        stop: stops it.
    """
    started = start()
    try:
        return subprocess.run(command).returncode
    finally:
        if started:
            stop()


def around(cluster: Cluster, command: list[str]) -> int:
    """Run a command with the cluster up where that is possible; returns the command's exit code."""
    return run_around(command, start=lambda: not cluster.is_up() and start(cluster, if_possible=True), stop=cluster.down)


def status(cluster: Cluster) -> int:
    if not cluster.is_up():
        print("The SLURM cluster is down.")
        return 1
    print(f"The SLURM cluster is up, accounting {'on' if cluster.accounting else 'off'}.")
    print(cluster.run("sinfo"), end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A real SLURM cluster on this machine, for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="install what is missing and start the cluster")
    up.add_argument("--accounting", choices=("on", "off"), default="on", help="off: no MariaDB, no slurmdbd, no sacct")
    up.add_argument("--if-possible", action="store_true", help="without root or packages, say so and exit with 0")
    commands.add_parser("down", help="stop the cluster and remove its folder")
    commands.add_parser("status", help="exit with 0 when the cluster is up")
    commands.add_parser("around", help="run a command with the cluster up").add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()

    cluster = Cluster()
    match arguments.command:
        case "up":
            start(cluster, accounting=arguments.accounting == "on", if_possible=arguments.if_possible)
        case "down":
            print("The SLURM cluster is stopped." if cluster.down() else "There is no SLURM cluster to stop.")
        case "status":
            return status(cluster)
        case "around":
            return around(cluster, arguments.words)
    return 0


def as_command(main: Callable[[], int]) -> NoReturn:
    """A terminal that closes or a runner that gives up must still let `around` stop what it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    as_command(main)
