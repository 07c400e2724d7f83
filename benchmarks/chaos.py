"""Kills the commands at their file operations and at random moments, and sees whether what is left can be gone on with.

    nice -n 10 python benchmarks/chaos.py -o benchmarks/results/chaos.json [--kills 80] [--seed 0]

Each command runs on a tiny ViT with random weights, in a fork of a process that has imported everything, so that it
takes a second or two. Half of the kills of a command come before a change of its files, spread over all of them, the
other half after a random time. Then three things are looked at: whether a model folder that is there can be opened and
all that it lists is right (else it is bricked), whether the same command (with `--resume` where a run is unfinished)
ends well and leaves the bits that an undisturbed run leaves, and whether hidden files stay behind.
"""

import importlib
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from dcvit.bench.machine import this_machine
from dcvit.cli.main import cli
from dcvit.errors import DcvitError
from dcvit.files import whole_file
from dcvit.folder.model_folder import PLAN, WEIGHTS, ModelFolder
from dcvit.versions import package_versions
from kills import forked

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
MODEL = ["vit_tiny_patch16_224", "--model-kwargs", json.dumps(TINY), "--random-init", "--data", "digits"]
FEW_SHOT = ["compress", *MODEL, "--samples", "16", "--steps", "4", "--macs-reduction", "0.3", "-o", "out"]
CAIT = [
    "compress", *MODEL, "--method", "cait", "--samples", "64", "--batch-size", "16", "--epochs", "1",
    "--checkpoint-every", "0", "--macs-reduction", "0.3", "-o", "out",
]  # fmt: skip
ONNX = ["export", "out", "--batch", "4"]


@dataclass(frozen=True)
class Scene:
    """A command, and what is there before it."""

    command: list[str]
    before: tuple[list[str], ...] = ()


SCENES = {
    "compress": Scene(FEW_SHOT),
    "compress, cait": Scene(CAIT),
    "compress --overwrite": Scene([*FEW_SHOT, "--seed", "1", "--overwrite"], (FEW_SHOT,)),
    "export": Scene(ONNX, (FEW_SHOT,)),
    "export again": Scene(ONNX, (FEW_SHOT, ONNX)),
    "evaluate": Scene(["evaluate", "out", "--data", "digits"], (FEW_SHOT,)),
    "verify": Scene(["verify", "out"], (FEW_SHOT, ONNX)),
    "report": Scene(["report", "out"], (FEW_SHOT, ONNX)),
}


class Stage:
    """A scene, as it begins and as it ends when nothing disturbs it."""

    def __init__(self, place: Path, scene: Scene) -> None:
        self.place, self.scene = place, scene
        self.begin = place / "begin"
        self.begin.mkdir(parents=True)
        for command in scene.before:
            self.must_run(self.begin, command)
        whole = self._copy("whole")
        began = time.perf_counter()
        self.changes = self.must_run(whole, scene.command)
        self.seconds = time.perf_counter() - began
        self.listed, self.bits = _state(whole)

    def kill(self, *, at: int | None = None, after: float | None = None) -> dict[str, Any]:
        """What a kill leaves, and what comes of it."""
        place = self._copy("killed")
        status = self._run(place, self.scene.command, at=at, after=after).status
        found: dict[str, Any] = {
            "before_change": at,
            "after_seconds": after and round(after, 3),
            "killed": status == -9,
        }
        found["bricked"] = _bricked(place)
        command = self.scene.command
        if (place / "out" / "checkpoints").is_dir():
            command = [*command, "--resume"]
        elif command[0] == "compress" and (place / "out").exists() and "--overwrite" not in command:
            command = [*command, "--overwrite"]  # it was all done when it was killed
        again = self._run(place, command)
        found |= {"status_after": again.status, "stale": _hidden(place)}
        if again.status == 0:
            listed, bits = _state(place)
            found |= {"same_files": listed == self.listed, "same_bits": bits == self.bits}
        shutil.rmtree(place)
        return found

    def must_run(self, place: Path, command: list[str]) -> int:
        """Runs a command that nothing disturbs; gives how often it changed a file."""
        ended = self._run(place, command)
        if ended.status or ended.changes is None:
            raise click.ClickException(f"{' '.join(command)}: {(self.place / 'output').read_text()[-2000:]}")
        return ended.changes

    def _run(self, place: Path, command: list[str], **when: Any) -> Any:
        def work() -> None:
            os.chdir(place)
            cli(command)

        return forked(work, root=place, output=self.place / "output", **when)

    def _copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.begin, self.place / name))


def _state(place: Path) -> tuple[list[str], dict[str, str]]:
    """The files that the folder lists, and the sha256 of those that do not tell times."""
    files = ModelFolder(place / "out").manifest.files
    return sorted(files), {name: files[name].sha256 for name in (PLAN, WEIGHTS)}


def _bricked(place: Path) -> str | None:
    if not ModelFolder.is_one(place / "out") and not list(place.glob(".out.*.old")):
        return None
    try:
        ModelFolder(place / "out")
    except DcvitError as error:
        return str(error).replace(str(place), "")
    return None


def _hidden(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob(".*"))


def _summary(kills: list[dict[str, Any]]) -> dict[str, int]:
    found = Counter(kills=len(kills), killed=sum(kill["killed"] for kill in kills))
    for kill in kills:
        found["bricked"] += kill["bricked"] is not None
        found["not_gone_on_with"] += kill["status_after"] != 0
        found["other_files"] += not kill.get("same_files", True)
        found["other_bits"] += not kill.get("same_bits", True)
        found["stale_files"] += len(kill["stale"])
    return dict(found)


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--kills", default=80, show_default=True, help="Of all commands together.")
@click.option("--seed", default=0, show_default=True)
@click.option("--scene", "chosen", multiple=True, type=click.Choice(list(SCENES)), help="By default all.")
def main(out: Path, kills: int, seed: int, chosen: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    for name in ("compression", "exporting", "evaluation", "verification", "report", "methods.cait.compressor"):
        importlib.import_module(f"dcvit.{name}")  # once, for all forks
    draw = random.Random(seed)
    names = chosen or tuple(SCENES)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    about = {"seed": seed, "versions": package_versions(), "machine": this_machine().to_json()}
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        stages = {}
        for number, name in enumerate(names):
            stages[name] = Stage(Path(place) / str(number), SCENES[name])
            click.echo(f"{name}: {stages[name].changes} changes of files, {stages[name].seconds:.1f} s")
        for number in range(kills):
            name, turn = names[number % len(names)], number // len(names)
            stage, each = stages[name], -(-kills // len(names))
            if turn % 2 == 0:
                lot = draw.random()  # one in each part of all changes
                moment = int((turn // 2 + lot) / ((each + 1) // 2) * stage.changes)
                kill = stage.kill(at=moment)
            else:
                after = draw.uniform(0, 1) * stage.seconds
                kill = stage.kill(after=after)
                while not kill["killed"]:  # it was done before: the machine is faster now
                    after /= 2
                    kill = stage.kill(after=after)
            found[name].append(kill)
            scenes = {
                name: {"changes": stages[name].changes, **_summary(rows), "each": rows} for name, rows in found.items()
            }
            every = [kill for rows in found.values() for kill in rows]
            with whole_file(out) as aside:
                aside.write_text(json.dumps(about | _summary(every) | {"scenes": scenes}, indent=2) + "\n")
            click.echo(f"{number + 1} of {kills}: {name}: {kill}")


if __name__ == "__main__":
    main()
