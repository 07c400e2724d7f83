"""Writes docs/robustness.md from the studies of kills, hostile files, peak memory and model signatures; in a second."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "robustness.md"

Report = dict[str, Any]

START = """
Each table is written by `benchmarks/robustness.py` from the results of a study in `benchmarks/`, which says at its top
how it is done. A column of faults should hold zeros; what is not zero is shown as it was found. Commands whose kills
found a fault were killed again, all of their changes, when it was mended.

Kinds of hostile files were tried again after each mend that touched them, and the others not. Of the models, the 22
whose blocks hold few MACs, or whose shrunk arguments timm refused, were tried a second time, at a share of the MACs
that they can reach, or with heads of keys that fit.
"""


def kills(found: Report) -> str:
    """What kills, full disks and second writers left."""
    rows = [
        [name, str(scene["changes"]), str(len(scene["each"])), _faults(scene["each"]),
         _held(list(scene.get("hardships", {}).values())), _together(scene.get("two_writers"))]
        for name, scene in found["scenes"].items()
    ]  # fmt: skip
    faults = ("bricked", "not_gone_on_with", "other_bits", "other_files", "stale_files")
    counts = {key: found.get(key, 0) for key in faults}
    every = all(scene["changes"] <= found["most"] for scene in found["scenes"].values())
    some = "each of its changes of files, once," if every else f"its changes of files, {found['most']} at most,"
    text = f"""
    Each command is killed as SIGKILL does, before {some} and at random moments; then the same command is given again,
    with `--resume` where a run is unfinished. {found["kills"]} kills in all: {counts["bricked"]} left a folder
    that cannot be opened, {counts["not_gone_on_with"]} could not be gone on with, {counts["other_bits"]} ended with
    other weights, {counts["other_files"]} with other files, and {counts["stale_files"]} hidden files stayed behind.
    *Refused*: of the disk full at once, after 2 kB and after 100 kB, read-only, and no permission, how many ended with
    a line (or with figures and a warning), left earlier results whole, and ended well when the command was given again.
    *Two at once*: both end well, or one is refused by name, and what is there is what one leaves.
    """
    head = ["command", "changes of files", "kills", "faults", "refused", "two at once"]
    return _section("Kills, full disks, second writers (`chaos.py`)", text, _table(head, rows))


def hostile_files(found: Report) -> str:
    """What came of hostile files."""
    rows = [
        [name, f"{row['cases']:,}", f"{row.get('refused', 0):,}", f"{row.get('fine', 0):,}",
         str(row["cases"] - row.get("refused", 0) - row.get("fine", 0)), f"{row['peak_mib']:,.0f}"]
        for name, row in found["kinds"].items()
    ]  # fmt: skip
    text = f"""
    {found["cases"]:,} files and options that were good and were changed by a seed, read as the commands read them:
    *refused* by one line, or *read* (a damaged image is skipped and counted, a damaged stage is computed again).
    *Faults* are other exceptions, code that ran, a process or a connection that was started, a worker that was killed:
    {len(found["defects"])} kinds of them. Memory is the kernel's figure of what was resident in a worker, PyTorch
    included, the highest of a kind.
    """
    head = ["kind", "cases", "refused", "read", "faults", "MiB at most"]
    return _section("Hostile files (`fuzz.py`)", text, _table(head, rows))


def memory(found: Report) -> str:
    """Peak memory by the size of a data set."""
    sizes = list(next(iter(found["cases"].values()))["peak_mib"])
    rows = [
        [name, *(f"{case['peak_mib'][size]:,.0f}" for size in sizes), *_growth(case, sizes)]
        for name, case in found["cases"].items()
    ]
    text = """
    MiB at most, of a process that does all of a command on a tiny model (`ru_maxrss`; PyTorch alone is most of it). A
    training without the augmentation of DeiT, the default up to 64 pixels, keeps its images as pixels of the model's
    size, as long as they take 2 GiB at most; larger sets are decoded when they are needed. *Kept* is what these pixels
    are at the largest set.
    """
    head = ["command", *(f"{int(size):,} images" for size in sizes), "growth", "kept"]
    return _section("Peak memory (`memory.py`)", text, _table(head, rows))


def signatures(found: Report) -> str:
    """Models that go the whole way."""
    told = found["summary"]
    text = f"""
    Of the {told["registered"]} models that timm registers for the families, shrunk, {told["models"]} were tried:
    {told.get("whole way", 0)} go the whole way (nothing cut gives equal outputs, plan, cut, solver),
    {told.get("refused", 0)} are refused by name, {told.get("failed", 0)} fail.
    """
    reasons = [f"- {count} refused: {reason}" for reason, count in told.get("reasons", {}).items()]
    return _section("Models (`signatures.py`)", text, "\n".join(reasons))


SECTIONS: dict[str, Callable[[Report], str]] = {
    "chaos": kills, "fuzz": hostile_files, "memory": memory, "signatures": signatures,
}  # fmt: skip


def _growth(case: Report, sizes: list[str]) -> list[str]:
    grown = case["peak_mib"][sizes[-1]] - case["peak_mib"][sizes[0]]
    return [f"{grown:+,.0f}", f"{case['kept_bytes'] * int(sizes[-1]) / 2**20:,.0f}"]


def _faults(kills: list[Report]) -> str:
    return str(sum(1 for kill in kills if not _whole(kill)))


def _whole(row: Report) -> bool:
    good = row["bricked"] is None and not row["stale"] and row.get("status_after", 0) == 0
    return good and row.get("same_bits", True) and row.get("same_files", True)


def _held(rows: list[Report]) -> str:
    if not rows:
        return "–"
    held = [row for row in rows if _whole(row) and row["earlier_results_whole"] and not row["unforeseen"]]
    return f"{sum(row['status'] in (0, 1, 2) for row in held)} of {len(rows)}"


def _together(row: Report | None) -> str:
    if row is None:
        return "–"
    return "yes" if _whole(row) and set(row["statuses"]) <= {0, 2} and 0 in row["statuses"] else "no"


def _section(title: str, text: str, more: str) -> str:
    return "\n\n".join(filter(None, (f"## {title}", _filled(text), more))) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page() -> str:
    """The page, with a section for each study whose results are there."""
    parts = [f"# What was tried to break it\n\n{_filled(START)}\n"]
    for name, section in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if path.is_file():
            parts.append(section(json.loads(path.read_text())))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
