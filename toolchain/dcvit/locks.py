"""Who is at work on a place: processes told apart, and locks that end with their holder."""

import errno
import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
"""In a folder, while a file is added to it."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}

_held: set[int] = set()
log = logging.getLogger(__name__)


class HeldError(Exception):
    """A lock is held by another process; its text names the process, as far as that is known."""


def this_process() -> str:
    """This process among all of all time: `MACHINE-PID-START`, in letters that a file name may have."""
    return f"{_machine()}-{os.getpid()}-{_start(os.getpid()) or 0}"


def is_gone(process: str) -> bool:
    """Whether a process, named as by `this_process`, is known to have ended; of another machine nothing is known."""
    machine, pid, start = process.split("-")
    if machine != _machine():
        return False
    if (found := _start(int(pid))) is not None:
        return found != int(start)  # a later process may have the number of an earlier one
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(start) != 0  # the system tells when processes started, but not of this one: it is dead, not yet reaped


def is_of_this_machine(process: str) -> bool:
    """Whether a process, named as by `this_process`, ran where its end can be seen from here."""
    return process.split("-")[0] == _machine()


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock file at a path, which is there only meanwhile; the system ends the lock with its process.

    A file that a killed process left is no lock: what counts is that the system holds it for a living one. Where the
    file system knows no locks there is a warning, and nothing is held.

    Raises:
        HeldError: If another holds it, and `wait` is not set.
        OSError: If the file cannot be made.
    """
    descriptor, owner = _acquire(path, wait=wait), os.getpid()
    _held.add(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{owner} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if os.getpid() == owner:  # a fork that comes through here holds nothing
            _held.discard(descriptor)
            with suppress(OSError):
                if _is_at(path, descriptor):
                    path.unlink()
            os.close(descriptor)


def _acquire(path: Path, *, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace")
            os.close(descriptor)
            raise HeldError(f"process {holder}" if holder else "another process") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            log.warning("%s: this file system has no locks; see to it that one process at a time writes there", path)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever held it has removed the file, and a third may have made another: only the one at the path counts.
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """In a fork: a worker that outlives its parent must not hold what the parent held."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _machine() -> str:
    """Machine and process namespace: only in there does a process number say anything."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _start(pid: int) -> int | None:
    """When a living process started, in the system's ticks; None where that is not known."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
