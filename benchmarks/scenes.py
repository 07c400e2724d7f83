"""The commands that `chaos.py` disturbs: what is there before each, and what an undisturbed run of it leaves."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from dcvit.cli.main import cli
from dcvit.errors import DcvitError
from dcvit.files import sha256_of
from dcvit.folder.model_folder import PLAN, WEIGHTS, ModelFolder
from dcvit.frontiers.result import FRONTIER, read_frontier
from kills import Ended, forked

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 2}
SHAPE = ["vit_tiny_patch16_224", "--model-kwargs", json.dumps(TINY)]
MODEL = [*SHAPE, "--random-init", "--data", "data"]
FEW_SHOT = ["compress", *MODEL, "--samples", "8", "--steps", "2", "--macs-reduction", "0.3", "-o", "out"]
CAIT = [
    "compress", *MODEL, "--method", "cait", "--samples", "8", "--batch-size", "4", "--epochs", "1",
    "--checkpoint-every", "0", "--macs-reduction", "0.3", "-o", "out",
]  # fmt: skip
SIZES = ["frontier", *MODEL, "--samples", "8", "--steps", "2", "--macs-reduction", "0.2", "--macs-reduction", "0.4",
         "-o", "out"]  # fmt: skip
ONNX = ["export", "out", "--batch", "4"]
ENGINE = ["export", "out", "--batch", "4", "--precision", "fp16", "--trt", "--flavor", "tensorrt-rtx",
          "--compute-capability", "8.9"]  # fmt: skip
PACKED, PROBES = "packed", "probes"
TRITON = ["package", "out", "--for", "triton", "-o", PACKED]
DEVICE = ["latency", "vit_tiny_patch16_224", "--model-kwargs", json.dumps(TINY | {"depth": 1}), "--batch", "2",
          "--write-probes", PROBES]  # fmt: skip
TABLE = ["latency", *SHAPE, "--runtime", "torch", "--batch", "2", "-o", "table.json"]


@dataclass(frozen=True)
class Scene:
    """A command, and what is there before it."""

    command: list[str]
    before: tuple[list[str], ...] = ()


SCENES = {
    "compress": Scene(FEW_SHOT),
    "compress, cait": Scene(CAIT),
    "compress --overwrite": Scene([*FEW_SHOT, "--seed", "1", "--overwrite"], (FEW_SHOT,)),
    "frontier": Scene(SIZES),
    "frontier --overwrite": Scene([*SIZES, "--seed", "1", "--overwrite"], (SIZES,)),
    "export": Scene(ONNX, (FEW_SHOT,)),
    "export again": Scene(ONNX, (FEW_SHOT, ONNX)),
    "export --trt": Scene(ENGINE, (FEW_SHOT,)),
    "verify": Scene(["verify", "out"], (FEW_SHOT, ONNX)),
    "evaluate": Scene(["evaluate", "out", "--data", "data", "--batch", "4"], (FEW_SHOT,)),
    "bench": Scene(["bench", "out", "--runtime", "torch", "--batch", "2", "--runs", "5", "--no-memory"], (FEW_SHOT,)),
    "inspect --pictures": Scene(["inspect", "out", "--pictures", "drawn"], (FEW_SHOT,)),
    "report": Scene(["report", "out"], (FEW_SHOT, ONNX)),
    "report of a frontier": Scene(["report", "out"], (SIZES,)),
    "package": Scene(TRITON, (FEW_SHOT, ONNX)),
    "package --overwrite": Scene([*TRITON, "--overwrite"], (FEW_SHOT, ONNX, TRITON)),
    "package --for openvino": Scene(["package", "out", "--for", "openvino", "-o", PACKED], (FEW_SHOT, ONNX)),
    "latency -o": Scene(TABLE),
    "latency -o, again": Scene([*TABLE, "--again"], (TABLE,)),
    "latency --write-probes": Scene(DEVICE),
}
_OVERWRITES = ("compress", "frontier", "package")  # else refused, where the run had ended
_KEPT = (PACKED, PROBES, "table.json", "table.png", "cache/dcvit-tool/latency")


class Stage:
    """A scene, as it begins and as it ends when nothing disturbs it."""

    def __init__(self, place: Path, scene: Scene) -> None:
        self.place, self.scene = place, scene
        self.begin = place / "begin"
        _make_images(self.begin / "data")
        for command in scene.before:
            self._must_run(self.begin, command)
        whole = self.copy("whole")
        began = time.perf_counter()
        self.changes = self._must_run(whole, scene.command)
        self.seconds = time.perf_counter() - began
        self.listed, self.bits = state(whole)

    def copy(self, name: str) -> Path:
        """A place as the scene begins."""
        place = self.place / name
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(self.begin, place))

    def run(self, place: Path, command: list[str] | None = None, **when: Any) -> Ended:
        """Runs the scene's command, or another, in a fork; `when` is that of `forked`."""
        return forked(self.work(place, command), root=place, output=self.output, **when)

    def work(self, place: Path, command: list[str] | None = None) -> Callable[[], None]:
        """What a fork does."""

        def work() -> None:
            os.chdir(place)
            os.environ["XDG_CACHE_HOME"] = os.fspath(place / "cache")
            cli(command or self.scene.command)

        return work

    @property
    def output(self) -> Path:
        """The file that what is printed is added to."""
        return self.place / "output"

    def after(self, place: Path) -> dict[str, Any]:
        """Goes on with what a disturbed run left at a place, and tells what comes of it."""
        found: dict[str, Any] = {"bricked": bricked(place)}
        command = self.scene.command
        if (place / "out" / "checkpoints").is_dir():
            command = [*command, "--resume"]
        elif command[0] in _OVERWRITES and "--overwrite" not in command and (place / _output(command)).exists():
            command = [*command, "--overwrite"]  # it was all done when it was disturbed
        elif "--write-probes" in command:
            shutil.rmtree(place / PROBES, ignore_errors=True)  # likewise; it has no such option
        again = self.run(place, command)
        found |= {"status_after": again.status, "stale": hidden(place)}
        if again.status == 0:
            listed, bits = state(place)
            found |= {"same_files": listed == self.listed, "same_bits": bits == self.bits}
        return found

    def _must_run(self, place: Path, command: list[str]) -> int:
        ended = self.run(place, command)
        if ended.status or ended.changes is None:
            raise click.ClickException(f"{' '.join(command)}: {self.output.read_text()[-2000:]}")
        return ended.changes


def _output(command: list[str]) -> str:
    return command[command.index("-o") + 1]


def models(place: Path) -> list[Path]:
    """The model folders at a place: one, or those of a frontier."""
    out = place / "out"
    return [out] if ModelFolder.is_one(out) else sorted(path for path in out.glob("r*") if ModelFolder.is_one(path))


def state(place: Path) -> tuple[list[str], dict[str, str]]:
    """The files that folders list or that were written elsewhere, and the sha256 of those that do not tell times."""
    listed, bits = [], {}
    for path in models(place):
        files = ModelFolder(path).manifest.files
        listed += [f"{path.name}/{name}" for name in sorted(files)]
        bits |= {f"{path.name}/{name}": files[name].sha256 for name in (PLAN, WEIGHTS)}
    for name in _KEPT:
        for path in sorted(path for path in (place / name, *(place / name).rglob("*")) if path.is_file()):
            listed.append(str(path.relative_to(place)))
            if name in (PACKED, PROBES):
                bits[listed[-1]] = sha256_of(path)
    return listed, bits


def bricked(place: Path) -> str | None:
    """Why what is there cannot be opened; None where it can, or nothing is there."""
    try:
        if (place / "out" / FRONTIER).is_file():
            for point in read_frontier(place / "out")["points"]:
                ModelFolder(place / "out" / point["folder"])
        elif models(place) or list(place.glob(".out.*.old")):
            ModelFolder(place / "out")
    except DcvitError as error:
        return str(error).replace(str(place), "")
    return None


def hidden(place: Path) -> list[str]:
    """What runs left behind."""
    return sorted(path.name for path in place.rglob(".*"))


def _make_images(root: Path) -> None:
    noise = np.random.default_rng(0)
    for label in range(2):
        (root / f"{label}").mkdir(parents=True)
        for number in range(6):
            pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{label}" / f"{number}.png")
