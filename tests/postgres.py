"""A real PostgreSQL on this machine, for tests.

    python3 -m tests.postgres up [--if-possible]
    python3 -m tests.postgres status
    python3 -m tests.postgres down
    python3 -m tests.postgres around COMMAND...    # up if possible, COMMAND, down again unless it was up before

Everything lives in one folder, /var/lib/tclx-postgres or $TCLX_POSTGRES_HOME, and listens on 127.0.0.1 only, so that a
PostgreSQL of the machine's own is neither used nor disturbed. Made for Debian's package, which is installed where it is
missing; root starts the server as the package's user `postgres`, anybody else as themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.slurm.cluster import ClusterError, NotPossible, apt_install, as_command, run_around, say_started, write_private

DEFAULT_HOME = "/var/lib/tclx-postgres"
PORT = 17020  # below Linux's ephemeral range, which begins at 32768
USER = "tclx"
MARK = "Written by tclx's tests/postgres.py; its `down` removes this folder.\n"


class Server:
    """The server in one folder. Any process may make one of these: what runs is known from PostgreSQL's own pid file."""

    def __init__(self, home: Path | None = None, *, port: int = PORT) -> None:
        self.home = (home or Path(os.environ.get("TCLX_POSTGRES_HOME", DEFAULT_HOME))).absolute()
        self.port = port

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs beside the URL."""
        return {"PGPASSWORD": (self.home / "password").read_text()}

    def url(self, database: str = "postgres") -> str:
        """Without the password, as a sweep file has it."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def is_up(self) -> bool:
        return self._is_ours() and self._control("status").returncode == 0

    def up(self) -> bool:
        """Start the server where it does not run; False when it did."""
        if programs() is None:
            if os.geteuid() != 0:
                raise NotPossible("PostgreSQL is not installed, and apt-get needs root.")
            apt_install(["postgresql"], services=["postgresql"])
        if self.is_up():
            return False
        with self._lock():
            if self.is_up():
                return False
            if not self._is_ours():
                self._make()
            self.start()
        return True

    def down(self) -> bool:
        """Stop the server that `up` started and remove the folder; False when there is none."""
        if not self._is_ours():
            return False
        with self._lock():
            self.stop("fast")
            shutil.rmtree(self.home)
        return True

    def start(self) -> None:
        """Start a server that was made before, and wait until it answers."""
        if self.is_up():
            return
        done = self._control("start", "-w", "-t", "60", "-l", str(self._data / "server.log"))
        if done.returncode != 0:
            log = self._data / "server.log"
            lines = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
            raise ClusterError("\n".join([f"PostgreSQL does not start: {done.stderr.strip()}", *lines]))

    def stop(self, mode: str) -> None:
        """`immediate` is what a crash leaves: clients are cut off, the next start recovers."""
        if self.is_up():
            self._control("stop", "-m", mode, "-w", "-t", "60")

    def make_database(self) -> str:
        """A new empty database's URL."""
        name = f"tclx_{secrets.token_hex(6)}"
        self.query(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        self.query(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def query(self, sql: str) -> str:
        """What psql prints; ClusterError with its words when it fails."""
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url()]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ClusterError(f"{sql}: {done.stderr.strip()}")
        return done.stdout.strip()

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def _is_ours(self) -> bool:
        mark = self.home / "MARK"
        return mark.exists() and mark.read_text() == MARK

    def _make(self) -> None:
        if self.home.exists() and any(self.home.iterdir()):
            raise ClusterError(f"{self.home} has files of someone else in it; name an empty folder in TCLX_POSTGRES_HOME.")
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.home.chmod(0o755)
            (self.home / "MARK").write_text(MARK)  # first: it says whose folder this is
        except PermissionError as error:
            raise NotPossible(f"{self.home} cannot be written; name an empty folder in TCLX_POSTGRES_HOME.") from error
        password = self.home / "password"
        write_private(password, secrets.token_hex(16).encode())
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            for path in (self._data, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password}"]
        done = self._run("initdb", f"--pgdata={self._data}", *options)
        if done.returncode != 0:
            raise ClusterError(f"initdb failed:\n{done.stdout}{done.stderr}")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"\nlisten_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n")

    def _control(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", action, f"--pgdata={self._data}", *options)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of PostgreSQL's programs, which refuse to be run by root."""
        folder = programs()
        if folder is None:
            raise NotPossible("PostgreSQL is not installed.")
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        with tempfile.TemporaryFile("w+") as said:  # the server keeps it open, so a pipe would never end
            done = subprocess.run(
                [str(folder / program), *arguments],
                cwd="/",
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
            said.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", said.read())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time. The folder above is locked: a lock file would be left behind."""
        folder = os.open(self.home.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def programs() -> Path | None:
    """The folder of the newest PostgreSQL server's programs; None where none is installed."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: int(path.parent.name), default=None)


@contextlib.contextmanager
def own_server() -> Iterator[Server]:
    """A further server for a block that stops or breaks it, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(Path(tempfile.mkdtemp(prefix="tclx-postgres-")), port=port)
    server.up()
    try:
        yield server
    finally:
        server.down()


def start(server: Server, *, if_possible: bool) -> bool:
    """Whether this call started the server; says what it did."""
    return say_started(
        "PostgreSQL",
        server.up,
        lambda: f'{server.url()}, export PGPASSWORD="$(cat {server.home}/password)"',
        if_possible=if_possible,
    )


def around(server: Server, command: list[str]) -> int:
    """Run a command with the server up where that is possible; returns the command's exit code."""
    return run_around(command, start=lambda: not server.is_up() and start(server, if_possible=True), stop=server.down)


def main() -> int:
    parser = argparse.ArgumentParser(description="A real PostgreSQL on this machine, for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="install what is missing and start the server")
    up.add_argument("--if-possible", action="store_true", help="without root or packages, say so and exit with 0")
    commands.add_parser("down", help="stop the server and remove its folder")
    commands.add_parser("status", help="exit with 0 when the server is up")
    commands.add_parser("around", help="run a command with the server up").add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()

    server = Server()
    match arguments.command:
        case "up":
            start(server, if_possible=arguments.if_possible)
        case "down":
            print("PostgreSQL is stopped." if server.down() else "There is no PostgreSQL to stop.")
        case "status":
            is_up = server.is_up()
            print(f"PostgreSQL is up: {server.url()}" if is_up else "PostgreSQL is down.")
            return 0 if is_up else 1
        case "around":
            return around(server, arguments.words)
    return 0


if __name__ == "__main__":
    as_command(main)
