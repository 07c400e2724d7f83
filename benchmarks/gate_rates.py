"""How often the gate is right: unchanged models must pass, and slower ones must be caught.

    python benchmarks/gate_rates.py -o benchmarks/results/gate_rates.json

A baseline is measured, then the gate runs many times, with more work in every pass of the compressed model or without
(A/A), in random order and in fresh processes of twenty runs each. About ten minutes on a quiet machine, an hour on one
whose cores have five takers each.
"""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import click

from dcvit.bench.baseline import DEFAULT_TOLERANCE
from dcvit.bench.gate import judge, measure
from dcvit.bench.machine import this_machine
from dcvit.bench.pair import Setting, pair_of
from dcvit.files import whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import limited_to
from dcvit.variant import Variant
from gate import BATCH, SHORT, folder_of, slowed

RUNS = {0.0: 30, 0.10: 30, 0.03: 20, 0.05: 20, 0.06: 20, 0.07: 20, 0.08: 20}
"""Gate runs for each slow-down."""
SETTING = Setting.of("onnxruntime", Variant.of(BATCH), threads=1)

Trial = tuple[Path, Path, float, float, int, float]


def run(trial: Trial) -> dict[str, Any]:
    """One run of the gate."""
    folder, original, slow, threshold, group, max_seconds = trial
    with limited_to(1), pair_of(ModelFolder(folder), original) as pair:
        found = judge(slowed(lambda: pair.open(SETTING), slow), threshold, group, max_seconds)
    return {
        "slow_down": slow,
        "outcome": found.outcome,
        "speedup": found.speedup,
        "sessions": found.sides,
        "runs": found.rounds,
        "seconds": found.seconds,
        "load": os.getloadavg()[0],
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each slow-down how the gate ended."""
    rows = []
    for slow in sorted({each["slow_down"] for each in runs}):
        these = [each for each in runs if each["slow_down"] == slow]
        ends = {name: sum(each["outcome"] == name for each in these) for name in ("passed", "failed", "undecided")}
        seconds = sum(each["seconds"] for each in these) / len(these)
        rows.append({"slow_down": slow, "gate_runs": len(these), **ends, "mean_seconds": seconds})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, as in the README here."""
    lines = ["| slower by | runs | passed | failed | undecided | seconds a run |", "|---|---|---|---|---|---|"]
    for row in rows:
        counts = " | ".join(str(row[key]) for key in ("gate_runs", "passed", "failed", "undecided"))
        lines.append(f"| {row['slow_down']:.0%} | {counts} | {row['mean_seconds']:.0f} |")
    return "\n".join(lines)


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--case", default=SHORT, show_default=True)
@click.option("--runs", type=int, help="Of each slow-down. [default: 30 of 0 % and 10 %, 20 of the others]")
@click.option("--max-seconds", default=30.0, show_default=True, help="Of one run of the gate.")
def main(out: Path, case: str, runs: int | None, max_seconds: float) -> None:
    started, machine = time.perf_counter(), this_machine()
    with folder_of(case) as folder, limited_to(1), pair_of(folder, None) as pair:
        pair.prepare(SETTING)
        baseline = measure(lambda: pair.open(SETTING), DEFAULT_TOLERANCE / 5, 120)
        low, high = baseline.interval
        click.echo(f"baseline ×{baseline.speedup:.3f} [{low:.3f}, {high:.3f}], {baseline.sessions} sessions")
        threshold = baseline.speedup * (1 - DEFAULT_TOLERANCE)
        trials: list[Trial] = [
            (folder.path, pair.baseline.path, slow, threshold, baseline.group, max_seconds)
            for slow, times in RUNS.items()
            for _ in range(runs or times)
        ]
        random.Random(0).shuffle(trials)
        about = {
            "case": case,
            "baseline": vars(baseline),
            "tolerance": DEFAULT_TOLERANCE,
            "max_seconds": max_seconds,
            "planned": len(trials),
        }
        done: list[dict[str, Any]] = []
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=20) as pool:
            for found in pool.imap(run, trials):
                done.append(found)
                rows = summary(done)
                caught = [row["slow_down"] for row in rows if row["failed"] >= 0.9 * row["gate_runs"]]
                report = about | {
                    "rates": rows,
                    "caught_9_in_10": min(caught, default=None),
                    "seconds": time.perf_counter() - started,
                    "machine": machine.measured().to_json(),
                    "runs": done,
                }
                with whole_file(out) as aside:
                    aside.write_text(json.dumps(report, indent=1) + "\n")
                click.echo(
                    f"{len(done)}/{len(trials)} slower by {found['slow_down']:.0%}: {found['outcome']}, "
                    f"×{found['speedup']:.3f}, {found['seconds']:.1f} s, load {found['load']:.1f}"
                )
    click.echo(table(summary(done)))


if __name__ == "__main__":
    main()
