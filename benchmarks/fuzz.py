"""Hostile files, seeded, against the functions that read them: what comes of each kind.

Every case is a file that was good, changed by a seed (`mutations.py`), and read as commands read it (`readers.py`). A
good end is a result or an error of one line; anything else is a defect: another exception, code that ran, a process or
a connection that was started, a worker that was killed for its memory or its time.

Cases run in forked workers, some dozens of one kind in each. A worker may map 3 GiB more than it began with, so that a
file which asks for more ends there; its peak is the kernel's figure of resident memory (`ru_maxrss`), and stands in the
JSON by kind. 30,000 cases take some 15 minutes of one core. The JSON is written as it goes; a run that was stopped goes
on where it stood, and `--kind` does a kind again.

    OMP_NUM_THREADS=1 nice python benchmarks/fuzz.py --cases 30000 --seed 0
"""

import gc
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click
import torch

from dcvit.errors import DcvitError
from dcvit.files import whole_file
from dcvit.runtimes import flavors
from dcvit.versions import package_versions
from hostile import Kind, kinds

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
MEMORY = 3 << 30
ROUNDS = 10
LATE = ("onnxruntime", "openvino", "matplotlib.pyplot", "jinja2", "sklearn.datasets",
        "rich.table", "dcvit.compression", "dcvit.exporting.int8", "dcvit.cli.compress", "dcvit.cli.frontier",
        "dcvit.cli.evaluate", "dcvit.cli.bench", "dcvit.cli.export", "dcvit.cli.verify", "dcvit.cli.inspect",
        "dcvit.cli.report", "dcvit.cli.plan")  # fmt: skip
"""What commands import where they use it: here once, for all workers."""

STARTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"}


class Started:
    """An audit hook: what was started, of that which no file may start."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.events.append(f"{event} {arguments[:2]}"[:120])


def outcomes(kind: Kind, cases: list[bytes]) -> tuple[list[tuple[str, str]], float]:
    """What comes of files of a kind, one worker after the other, and the most memory in MiB that one had.

    Returns:
        For each case what it came to (fine, refused, internal error, code run, killed), and where that was.
    """
    found: list[tuple[str, str]] = []
    peak = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        told = Path(name) / "told"
        while len(found) < len(cases):
            told.write_bytes(b"")
            if not (worker := os.fork()):
                _work(kind, cases[len(found) :], Path(name) / "case", told)
            _, status, usage = os.wait4(worker, 0)
            peak = max(peak, usage.ru_maxrss / 1024)
            lines = told.read_bytes().splitlines()
            found += [(said, where) for said, where in map(json.loads, lines)]
            if os.WIFSIGNALED(status):
                found.append(("killed", signal.Signals(os.WTERMSIG(status)).name))
    return found, peak


def _work(kind: Kind, cases: Iterable[bytes], place: Path, told: Path) -> NoReturn:
    try:
        bound = _mapped() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        started = Started()
        sys.addaudithook(started)
        with told.open("a") as file:
            for data in cases:
                shutil.rmtree(place, ignore_errors=True)
                (place / "work").mkdir(parents=True)
                (place / "file").write_bytes(data)
                os.chdir(place / "work")
                started.events.clear()
                signal.setitimer(signal.ITIMER_PROF, kind.seconds)  # of computing, and three times that on the clock
                signal.alarm(3 * kind.seconds)
                said = _one(kind, place)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                if (place / "work" / "code-ran").exists() or started.events:
                    said = "code run", " ".join(started.events)
                file.write(json.dumps(said) + "\n")
                file.flush()
    except BaseException as error:
        with suppress(OSError):
            told.open("a").write(json.dumps(["internal error", f"the study itself: {error!r}"]) + "\n")
    os._exit(0)


def _one(kind: Kind, place: Path) -> tuple[str, str]:
    try:
        kind.read(place)
    except DcvitError:
        return "refused", ""
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dcvit" in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        return "internal error", f"{Path(last.filename).name}:{last.name}: {type(error).__name__}: {str(error)[:200]}"
    return "fine", ""


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Study:
    """Cases of every kind, and what came of those that are done.

    Args:
        cases: How many in all, shared out over the kinds by what they cost.
        seed: Of all changes.
        before: What an earlier run of the same study wrote.
    """

    def __init__(self, every: list[Kind], cases: int, seed: int, before: dict[str, Any] | None = None) -> None:
        shares = sum(kind.share for kind in every)
        self.every, self.seed = every, seed
        self.wanted = {kind.name: math.ceil(cases * kind.share / shares) for kind in every}
        self.asked = {"seed": seed, "cases_wanted": cases}
        same = before is not None and {key: before.get(key) for key in self.asked} == self.asked
        kept = before if same and before is not None else {}
        self.kinds: dict[str, dict[str, Any]] = {
            name: row for name, row in kept.get("kinds", {}).items() if name in self.wanted
        }
        self.defects: dict[str, dict[str, Any]] = kept.get("defects", {})
        self.cpu_seconds: float = kept.get("cpu_seconds", 0.0)

    def forget(self, names: Iterable[str]) -> None:
        """Lets kinds be done again."""
        for name in names:
            self.kinds.pop(name, None)
            self.defects = {where: one for where, one in self.defects.items() if one["kind"] != name}

    def run(self, note: Callable[[dict[str, Any]], None]) -> None:
        """Does what is not done yet: a part of every kind, then the next part."""
        for part in range(1, ROUNDS + 1):
            for kind in self.every:
                done = self.kinds.get(kind.name, {}).get("cases", 0)
                numbers = range(done, self.wanted[kind.name] * part // ROUNDS)
                if numbers:
                    self._do(kind, numbers)
                    note(self.to_json())

    def _do(self, kind: Kind, numbers: range) -> None:
        began = _cpu_seconds()
        cases = [kind.change(kind.good, random.Random(f"{self.seed}/{kind.name}/{number}")) for number in numbers]
        found, peak = outcomes(kind, cases)
        row = self.kinds.setdefault(kind.name, {"cases": 0, "peak_mib": 0.0})
        for number, (said, where) in zip(numbers, found, strict=True):
            row[said] = row.get(said, 0) + 1
            if said not in ("fine", "refused"):
                case = {"kind": kind.name, "case": number, "times": 0}
                self.defects.setdefault(f"{kind.name}: {said}: {where}", case)["times"] += 1
        row["cases"] += len(cases)
        row["peak_mib"] = round(max(row["peak_mib"], peak), 1)
        self.cpu_seconds += _cpu_seconds() - began

    def to_json(self) -> dict[str, Any]:
        counts = Counter[str]()
        for row in self.kinds.values():
            counts.update({key: value for key, value in row.items() if key not in ("cases", "peak_mib")})
        return self.asked | {
            "cases": counts.total(),
            "outcomes": dict(counts),
            "memory": {
                "measured": "ru_maxrss of a worker in MiB; what it uses of its parent's memory counts too",
                "peak_mib": max(row["peak_mib"] for row in self.kinds.values()),
                "bound_mib": MEMORY >> 20,
            },
            "cpu_seconds": round(self.cpu_seconds, 1),
            "kinds": self.kinds,
            "defects": self.defects,
            "versions": package_versions(),
        }


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def prepare() -> None:
    """What every worker has from its parent."""
    torch.set_num_threads(1)  # a forked worker has no other threads
    for name in LATE:
        with suppress(ImportError):
            importlib.import_module(name)
    if flavors.installed("tensorrt-rtx") and not flavors.installed("tensorrt"):
        importlib.import_module("polygraphy.config").USE_TENSORRT_RTX = True  # type: ignore[attr-defined]
        importlib.import_module("polygraphy.backend.trt")
    gc.collect()
    gc.freeze()


@click.command()
@click.option("--cases", type=click.IntRange(min=1), default=30_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--kind", "again", multiple=True, help="A kind that is done again; all others go on.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(cases: int, seed: int, again: tuple[str, ...], output: Path) -> None:
    """Counts what comes of hostile files."""
    prepare()

    def note(found: dict[str, Any]) -> None:
        with whole_file(output) as aside:
            aside.write_text(json.dumps(found, indent=1) + "\n")
        click.echo(f"{found['cases']}: {found['outcomes']}, {found['cpu_seconds']:.0f} s", err=True)

    with tempfile.TemporaryDirectory(prefix="fuzz-good-") as name:
        before = json.loads(output.read_text()) if output.is_file() else None
        study = Study(kinds(Path(name)), cases, seed, before)
        study.forget(again)
        study.run(note)
    sys.exit(1 if study.defects else 0)


if __name__ == "__main__":
    main()
