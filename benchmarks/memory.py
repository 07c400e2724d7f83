"""Peak memory of evaluate, the solver and CAIT on data sets of 500, 5,000 and 20,000 images.

Every command runs in a process of its own on a tiny ViT with random weights; the figure is the kernel's `ru_maxrss`:
the most memory that the process, or one of those that it started to decode images, had resident at once. The images of
a set are hard links to a few files, so that making it is cheap. All of it takes some five minutes of one core.

    OMP_NUM_THREADS=1 python benchmarks/memory.py
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from dcvit.bench.machine import this_machine
from dcvit.files import whole_file
from dcvit.versions import package_versions

RESULTS = Path(__file__).parent / "results" / "memory.json"
SIZES = (500, 5_000, 20_000)
CLASSES = 10
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": CLASSES}
SOLVER = ["--samples", "500", "--steps", "10", "--macs-reduction", "0.3"]
CAIT = ["--method", "cait", "--epochs", "1", "--batch-size", "250", "--macs-reduction", "0.3"]


@dataclass(frozen=True)
class Case:
    """A command on a set of any size.

    Attributes:
        side: Of the images and of the model's input, in pixels.
        command: Before the model.
        options: After it.
        kept_bytes: Of each image, that are kept by design, up to `MAX_CACHE_BYTES` (2 GiB).
    """

    side: int
    command: str
    options: tuple[str, ...] = ()
    kept_bytes: int = 0


CASES = {
    "evaluate": Case(32, "evaluate"),
    "solver": Case(32, "compress", (*SOLVER, "-o", "out")),
    "cait at 32 pixels": Case(32, "compress", (*CAIT, "-o", "out"), 3 * 32 * 32),
    "cait at 96 pixels": Case(96, "compress", (*CAIT, "-o", "out")),
}


def make_set(place: Path, images: int, side: int) -> Path:
    """A folder of class folders, of so many images in all."""
    root, noise = place / f"{images}-{side}", np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"{label}").mkdir(parents=True)
        first = root / f"{label}" / "0.png"
        Image.fromarray(noise.integers(0, 256, (side + 8, side + 8, 3), dtype=np.uint8)).save(first)
        for number in range(1, images // CLASSES):
            os.link(first, root / f"{label}" / f"{number}.png")
    return root


def peak_mib(case: Case, data: Path, place: Path) -> float:
    """The most memory of a process that runs a case."""
    model = ["vit_tiny_patch16_224", "--model-kwargs", json.dumps(TINY | {"img_size": case.side}), "--random-init"]
    command = [sys.executable, "-m", "dcvit.cli.main", case.command, *model, "--data", str(data), *case.options]
    with tempfile.TemporaryDirectory(dir=place) as work, (place / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=work, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException((place / "output").read_text()[-2000:])
    return round(usage.ru_maxrss / 1024, 1)


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(output: Path) -> None:
    """Measures peak memory by the size of the data set."""
    found: dict[str, Any] = {
        "measured": "ru_maxrss in MiB, of a process that does all of the command",
        "machine": this_machine().to_json(),
        "versions": package_versions(),
        "cases": {name: {"side": case.side, "kept_bytes": case.kept_bytes} for name, case in CASES.items()},
    }
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        sets: dict[tuple[int, int], Path] = {}
        for images in SIZES:
            for title, case in CASES.items():
                at = images, case.side
                sets[at] = sets.get(at) or make_set(Path(name), *at)
                peak = peak_mib(case, sets[at], Path(name))
                found["cases"][title].setdefault("peak_mib", {})[str(images)] = peak
                click.echo(f"{title}, {images} images: {peak} MiB", err=True)
                with whole_file(output) as aside:
                    aside.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
