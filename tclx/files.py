"""Files that several processes read and write: replaced whole, read and checked, locked; what is wrong with them in words."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from tclx.errors import InputError, MachineError, Problem

MAX_JSON_BYTES = 512 * 2**20
"""Of one file; an evaluation's examples, with their images, are the largest and have a few MB."""

T = TypeVar("T")


class Unreadable(InputError):
    """A file of a run folder is damaged, missing, or of a newer version of tclx."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(Problem("", f"{path} cannot be read: {why}"))
        self.path = path
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.why)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, whatever is wrong with it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        Unreadable: it is missing, no regular file, too large, or no JSON.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise Unreadable(path, "it is not a regular file")
        if status.st_size > MAX_JSON_BYTES:
            raise Unreadable(path, f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from error
    try:
        return parse_json(content)
    except ValueError as error:
        raise Unreadable(path, f"it is damaged ({error})" if content.strip() else "it is empty") from error


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file says that holds one object.

    Raises:
        Unreadable: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise Unreadable(path, f"it holds a {type(value).__name__}, not an object")
    return value


def read_texts(path: Path) -> list[str]:
    """What a JSON file says that holds a list of texts.

    Raises:
        Unreadable: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise Unreadable(path, f"it holds a {type(value).__name__}, not a list")
    wrong = next((number for number, one in enumerate(value) if not isinstance(one, str) or not one.strip()), None)
    if wrong is not None:
        raise Unreadable(path, f"entry {wrong} is {value[wrong]!r:.40}, not a text")
    return value


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter  # only commands that read runs wait for it

    return TypeAdapter(kind)


def read_as(path: Path, kind: type[T]) -> T:
    """A JSON file as a dataclass. Keys that it does not know are left out: a newer version of tclx may write more.

    Raises:
        Unreadable: as `read_object`, or a key is missing or of another type.
    """
    from pydantic import ValidationError

    try:
        return cast(T, _adapter(cast(Any, kind)).validate_python(read_object(path)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Unreadable(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end: written beside it, flushed to the disk, renamed over it.

    Raises:
        MachineError: the disk is full or the folder cannot be written; the old file is untouched, as it is after any
            other exception of the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a read-only file system this fails as the writing did
            temporary.unlink()
        raise machine_error(error, f"could not write {path}") from error
    except BaseException:  # the block's own
        temporary.unlink(missing_ok=True)
        raise


def machine_error(error: OSError, what: str) -> MachineError:
    """The user's words for an operating-system error while writing."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again, it continues",
        errno.EDQUOT: "your disk quota is used up: free some space and run the same command again, it continues",
        errno.EACCES: "permission denied: choose another place with --runs-dir, or change the folder's permissions",
        errno.EROFS: "the file system is read-only: choose another place with --runs-dir",
    }.get(error.errno or 0, str(error))
    return MachineError(f"{what}: {advice}")


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold a file's lock for as long as the block runs; yields False when another process on this machine holds it."""
    import fcntl

    with path.open("a") as file:
        for _ in range(_LOOKERS):  # somebody may be looking at this very moment (`lock_is_free`)
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            yield False
            return
        yield True


_LOOKERS = 5
"""So many times a lock is tried for before it counts as held."""


def lock_is_free(file: int) -> bool:
    """Whether nobody holds the lock of an open file. The look itself is a shared lock, kept until the file is closed: two who
    look at once do not take each other for the holder.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


STALE_SECONDS = 90.0
"""A heartbeat that is older has stopped: it beats every 5 s, and a network file system may show it up to a minute late."""


def is_recent(at: float) -> bool:
    """Whether whoever beat last at this time, in seconds since 1970, still lives."""
    return time.time() - at < STALE_SECONDS


@contextmanager
def beating(path: Path, *, every_seconds: float, also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Touch a file for as long as the block runs, from a thread: its age tells whether this process lives.

    Touching costs nothing, also where the disk is full.

    Args:
        path: the file.
        every_seconds: between two beats.
        also: done at every beat.
    """
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # what is wrong with the folder stops the process where it writes what matters
                path.touch()
            also()
            if ended.wait(every_seconds):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
