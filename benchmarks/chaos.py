"""Kills the commands at their file operations and at random moments, and sees whether what is left can be gone on with.

Each command (`scenes.py`) runs on a tiny ViT with random weights, in a fork of a process that has imported everything,
so that it takes a second or two. It is killed before each change of its files, once, and at some random moments. Then
three things are looked at: whether a folder that is there can be opened and all that it lists is right (else it is
bricked), whether the same command (with `--resume` where a run is unfinished) ends well and leaves the bits that an
undisturbed run leaves, and whether hidden files stay behind.

Then two of each command run at once, and each is refused what it wants to write: by a full disk (files of so many bytes
at most), as on a read-only disk, and for want of permission. It must end with one line and no internal error, harm
nothing, and end well when it is given again.

An hour and a half of one core; `--most 12` takes a fifth of it. The JSON is written as it goes, and a run that was
stopped goes on where it stood.

    OMP_NUM_THREADS=1 nice python benchmarks/chaos.py [--moments 10] [--seed 0]
"""

import errno
import importlib
import json
import os
import random
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch

from dcvit.bench.machine import this_machine
from dcvit.files import whole_file
from dcvit.runtimes import flavors
from dcvit.versions import package_versions
from kills import two_forked
from scenes import SCENES, Stage, bricked, hidden, state

RESULTS = Path(__file__).parent / "results" / "chaos.json"
HARDSHIPS: dict[str, dict[str, int]] = {
    "disk full at once": {"limit": 0},
    "disk full after 2 kB": {"limit": 2_000},
    "disk full after 100 kB": {"limit": 100_000},
    "read-only": {"refuse": errno.EROFS},
    "no permission": {"refuse": errno.EACCES},
}
COMMANDS = ("compress", "frontier", "export", "verify", "evaluate", "bench", "inspect", "report", "package", "latency")
MODULES = ("compression", "frontiers", "exporting.onnx", "exporting.tensorrt", "evaluation", "verification",
           "reporting", "bench", "inspection", "packaging", "pricing", "pictures.channels", "methods.cait.compressor",
           "methods.few_shot.compressor", *(f"cli.{name}" for name in COMMANDS))  # fmt: skip


def killed(stage: Stage, *, at: int | None = None, after: float | None = None) -> dict[str, Any]:
    """What a kill leaves, and what comes of it."""
    place = stage.copy("killed")
    status = stage.run(place, at=at, after=after).status
    found = {"before_change": at, "after_seconds": after and round(after, 3), "killed": status == -9}
    return found | stage.after(place)


def killed_by_chance(stage: Stage, draw: random.Random) -> dict[str, Any]:
    """The same at a random moment of a run."""
    after = draw.uniform(0, 1) * stage.seconds
    while not (found := killed(stage, after=after))["killed"]:  # it was done before: the machine is faster now
        after /= 2
    return found


def in_hardship(stage: Stage, **hardship: int) -> dict[str, Any]:
    """What comes of a command that may not write."""
    place = stage.copy("hard")
    before = state(place)
    stage.output.write_text("")
    ended = stage.run(place, **hardship)
    said = stage.output.read_text()
    unforeseen = [line for line in said.splitlines() if "internal error" in line or "Traceback" in line]
    now = state(place)
    kept = ended.status == 0 or (bricked(place) is None and now[1] == before[1] and set(before[0]) <= set(now[0]))
    found = {"status": ended.status, "unforeseen": unforeseen, "earlier_results_whole": kept}
    return found | stage.after(place)


def at_once(stage: Stage) -> dict[str, Any]:
    """What comes of two of a command at once."""
    place = stage.copy("both")
    statuses = two_forked(stage.work(place), root=place, output=stage.output)
    found = {"statuses": sorted(statuses), "bricked": bricked(place), "stale": hidden(place)}
    listed, bits = state(place)
    return found | {"same_files": listed == stage.listed, "same_bits": bits == stage.bits}


def study(stage: Stage, name: str, rows: dict[str, Any], most: int, moments: int, seed: int) -> Any:
    """Does what is not done yet of a scene; yields after each."""
    kills: list[dict[str, Any]] = rows.setdefault("each", [])
    rows.setdefault("changes", stage.changes)
    count = min(rows["changes"], most)
    for number in range(len(kills), count + moments):
        draw = random.Random(f"{seed}/{name}/{number}")
        at = number * rows["changes"] // count if number < count else None
        kills.append(killed_by_chance(stage, draw) if at is None else killed(stage, at=at))
        yield
    for hardship, how in HARDSHIPS.items():
        if hardship not in rows.setdefault("hardships", {}):
            rows["hardships"][hardship] = in_hardship(stage, **how)
            yield
    if "two_writers" not in rows:
        rows["two_writers"] = at_once(stage)
        yield


def summary(scenes: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Counts over some scenes."""
    kills = [kill for rows in scenes.values() for kill in rows.get("each", [])]
    hard = [row for rows in scenes.values() for row in rows.get("hardships", {}).values()]
    both = [rows["two_writers"] for rows in scenes.values() if "two_writers" in rows]
    found = Counter(kills=len(kills), killed=sum(kill["killed"] for kill in kills), hardships=len(hard))
    found["two_writers"] = len(both)
    for row in (*kills, *hard, *both):
        found["bricked"] += row["bricked"] is not None
        found["not_gone_on_with"] += row.get("status_after", 0) != 0
        found["other_files"] += not row.get("same_files", True)
        found["other_bits"] += not row.get("same_bits", True)
        found["stale_files"] += len(row["stale"])
    for row in hard:
        found["internal_errors"] += bool(row["unforeseen"]) or row["status"] not in (0, 1, 2)
        found["earlier_results_harmed"] += not row["earlier_results_whole"]
    for row in both:
        found["two_writers_failed"] += not set(row["statuses"]) <= {0, 2} or 0 not in row["statuses"]
    return dict(found)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option(
    "--most", default=1000, show_default=True, help="Changes of a command that it is killed before; by default all."
)
@click.option("--moments", default=10, show_default=True, help="Random ones, of each command.")
@click.option("--seed", default=0, show_default=True)
@click.option("--scene", "chosen", multiple=True, type=click.Choice(list(SCENES)), help="By default all.")
def main(output: Path, most: int, moments: int, seed: int, chosen: tuple[str, ...]) -> None:
    """Kills commands, and counts what comes of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(f"dcvit.{name}")  # once, for all forks
    engines = flavors.installed("tensorrt-rtx") and not flavors.installed("tensorrt")
    names = chosen or tuple(name for name in SCENES if engines or name != "export --trt")
    asked = {"seed": seed, "most": most, "moments": moments}
    before = json.loads(output.read_text()) if output.is_file() else {}
    scenes = before.get("scenes", {}) if {key: before.get(key) for key in asked} == asked else {}
    about = asked | {"versions": package_versions(), "machine": this_machine().to_json()}
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        for number, name in enumerate(names):
            if "two_writers" in scenes.get(name, {}):
                continue
            stage = Stage(Path(place) / str(number), SCENES[name])
            click.echo(f"{name}: {stage.changes} changes of files, {stage.seconds:.1f} s")
            rows = scenes.setdefault(name, {})
            for _ in study(stage, name, rows, most, moments, seed):
                with whole_file(output) as aside:
                    aside.write_text(json.dumps(about | summary(scenes) | {"scenes": scenes}, indent=1) + "\n")
            click.echo(f"{name}: {summary({name: rows})}")
            shutil.rmtree(stage.place)
    os.sync()
    click.echo(f"in all: {summary(scenes)}")


if __name__ == "__main__":
    main()
