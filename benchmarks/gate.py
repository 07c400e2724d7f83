"""The gate on models of our own: has anything in this repository, or below it, made a compressed model slower?

    python benchmarks/gate.py                      # every case against its file in benchmarks/baselines/
    python benchmarks/gate.py --short              # one case; what `make test` runs
    python benchmarks/gate.py --update             # write the baselines anew
    python benchmarks/gate.py --slow 0.10          # with 10 % more work in each compressed pass: must fail

Each case is a plan of a small DeiT, built with the first random weights, as its original is, and exported in a few
seconds: one thread, ONNX Runtime fp32, batch 8.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from torch import Tensor

from dcvit.bench.baseline import Baseline
from dcvit.bench.check import checked, update
from dcvit.bench.gate_result import Checked, GateResult
from dcvit.bench.machine import this_machine
from dcvit.bench.pair import OpenPair, Setting, pair_of
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.runtimes import Session, limited_to
from dcvit.subject import open_shapes
from dcvit.variant import Variant

BASELINES = Path(__file__).parent / "baselines"
BATCH = 8
"""Passes of 5 to 12 ms on one core: much shorter ones feel the cold caches after every interruption."""
_DEIT: dict[str, Any] = {
    "model": "deit_tiny_patch16_224",
    "model_kwargs": {"img_size": 32, "patch_size": 4, "num_classes": 10, "depth": 4},
}
CASES = {
    "deit_tiny-merged": CompressionPlan(
        **_DEIT,
        merges=(Merge(after=1, axis="horizontal"), Merge(after=2, axis="vertical")),
        size_aware_attention=True,
    ),
    "deit_tiny-cut": CompressionPlan(
        **_DEIT,
        blocks=(
            BlockPlan(index=1, removed="attention", mlp_hidden=512),
            BlockPlan(index=2, head_dim=32, mlp_hidden=512),
        ),
    ),
}
SHORT = "deit_tiny-merged"


class Slowed(Session):
    """A session with more work in every pass: matrix products, for a share of the thread's own time in the pass.

    Not of the time on the clock: where others have the core, that is many times more. The session has one thread.
    """

    def __init__(self, session: Session, share: float) -> None:
        super().__init__(session.batch, session.device, session.threads)
        self._session, self._share = session, share
        self._matrix = np.ones((16, 16), dtype=np.float32)

    def load(self, images: Tensor) -> None:
        self._session.load(images)

    def execute(self) -> None:
        started = time.thread_time()
        self._session.execute()
        until = started + (1 + self._share) * (time.thread_time() - started)
        while time.thread_time() < until:
            self._matrix @ self._matrix

    def logits(self) -> Tensor:
        return self._session.logits()


def slowed(open_pair: OpenPair, share: float) -> OpenPair:
    """The same sessions, the compressed model's slower by a share."""

    def opened() -> tuple[Session, Session]:
        baseline, candidate = open_pair()
        return baseline, Slowed(candidate, share)

    return opened if share else open_pair


@contextmanager
def folder_of(case: str) -> Iterator[ModelFolder]:
    """The case's compressed model, exported."""
    plan = CASES[case]
    with temporary_folder(build(plan), plan, open_shapes(plan.model, plan.model_kwargs).preprocessing) as folder:
        export(folder, BATCH)
        yield folder


def check_case(case: str, baselines: Path, slow: float, max_seconds: float) -> Checked:
    baseline = Baseline.read(baselines / f"{case}.json")
    with folder_of(case) as folder, limited_to(baseline.threads), pair_of(folder, baseline.against) as pair:
        pair.prepare(baseline.setting)
        open_pair = slowed(lambda: pair.open(baseline.setting), slow)
        return checked(case, baseline, folder, open_pair, this_machine(), max_seconds)


@click.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--short", is_flag=True, help=f"Only {SHORT}, at most ten seconds of timing.")
@click.option("--update", "writes", is_flag=True, help="Write the baselines.")
@click.option("--baselines", type=click.Path(path_type=Path, file_okay=False), default=BASELINES)
@click.option("--undecided", type=click.Choice(["pass", "fail"]), default="fail", show_default=True)
@click.option("--slow", type=click.FloatRange(min=0), default=0.0, help="Share of more work in the compressed model.")
@click.option("--max-seconds", type=float, default=60.0, show_default=True, help="Of timing, for each case.")
def main(
    cases: tuple[str, ...], short: bool, writes: bool, baselines: Path, undecided: Any, slow: float, max_seconds: float
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if short:
        cases, max_seconds = (SHORT,), min(max_seconds, 10.0)
    if writes:
        for case in cases:
            with folder_of(case) as folder:
                setting = Setting.of("onnxruntime", Variant.of(BATCH), threads=1)
                written = update(folder.path, baselines / f"{case}.json", setting, max_seconds=max_seconds)
            console.print(*written.lines(), sep="\n")
        return
    machine = this_machine()
    rows = tuple(check_case(case, baselines, slow, max_seconds) for case in cases)
    result = GateResult(rows, undecided, machine.measured())
    for line in result.lines():
        console.print(line)
    sys.exit(not result.passed)


if __name__ == "__main__":
    main()
