"""Ends a process at a chosen file operation as SIGKILL does, where nothing is cleaned up and no `finally` runs; or
refuses it what it wants to write.
"""

import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killer:
    """An audit hook: counts what is about to change files below `root`, and kills the process before change `at`.

    With `refuse`, a number of `errno`, every change fails as the system would let it fail.
    """

    def __init__(self, root: Path, at: int | None, refuse: int | None = None) -> None:
        self.root, self.at, self.refuse, self.count = os.fspath(root), at, refuse, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._counts(event, arguments):
            if self.refuse is not None:
                raise OSError(self.refuse, os.strerror(self.refuse), arguments[0])
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1

    def _counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":  # the exchange of two folders
            return arguments[1] == "renameat2"
        if event != "open" and event not in _CHANGES:
            return False
        if event == "open" and not arguments[2] & _TO_WRITE:
            return False
        if isinstance(arguments[0], int):
            return event != "open"
        path = os.fsdecode(arguments[0])
        return path.startswith(self.root) or (event != "open" and not os.path.isabs(path))


@dataclass(frozen=True)
class Ended:
    """How a fork ended.

    Attributes:
        status: Its exit status; −9 where it was killed.
        changes: Changes that it made; None where it was killed.
    """

    status: int
    changes: int | None


def forked(
    work: Callable[[], None],
    *,
    root: Path,
    at: int | None = None,
    after: float | None = None,
    refuse: int | None = None,
    limit: int | None = None,
    output: Path = Path(os.devnull),
) -> Ended:
    """Runs work in a fork, and kills it, or refuses it something.

    Args:
        work: What to do.
        root: Changes below it count.
        at: Kill it before its change of this number.
        after: Kill it after so many seconds.
        refuse: Let every change below `root` fail with this `errno`.
        limit: Let no file grow above so many bytes, as on a full disk; what is printed counts too.
        output: The file that what it prints is added to.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _run(work, Killer(root, at, refuse), writer, output)
    os.close(writer)
    if after is not None and not select.select([reader], [], [], after)[0]:
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader) as told:
        changes = told.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(changes) if changes else None)


def two_forked(work: Callable[[], None], *, root: Path, output: Path) -> list[int]:
    """Runs work in two forks at once; gives their exit statuses."""
    with ThreadPoolExecutor(2) as pool:  # threads wait; the work is done in the forks
        return [ended.status for ended in pool.map(lambda _: forked(work, root=root, output=output), range(2))]


def _run(work: Callable[[], None], killer: Killer, writer: int, output: Path) -> NoReturn:
    status = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.addaudithook(killer)
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, str(killer.count).encode())
        os._exit(status)
