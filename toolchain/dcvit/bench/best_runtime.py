"""Which runtime is the fastest for a folder on a GPU: what a user with a GPU would pick."""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from dcvit.bench.timers import wall_timer
from dcvit.errors import InputError, first_line
from dcvit.folder.model_folder import ModelFolder
from dcvit.progress import say, track
from dcvit.runtimes import RUNTIMES, Runtime
from dcvit.variant import Variant

_LEFT_OUT = ("onnxruntime", "openvino", "torch-max-autotune")
"""Those of the CPU, and one that compiles for minutes."""
_WARM_UP, _PASSES = 5, 30


@dataclass(frozen=True)
class Search:
    """What was tried.

    Attributes:
        variant: Batch and precision.
        runtime: The fastest.
        median_ms: Of each that ran.
        skipped: Why others did not run, by name.
    """

    variant: Variant
    runtime: str
    median_ms: dict[str, float]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {"batch": self.variant.batch, "precision": self.variant.precision} | {
            key: value for key, value in vars(self).items() if key != "variant"
        }

    def __str__(self) -> str:
        """The winner, and the others by their time."""
        ranked = sorted(self.median_ms.items(), key=lambda each: each[1])
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in ranked)
        return f"the fastest runtime at batch {self.variant.batch} is {self.runtime} ({times})"


def fastest(folder: ModelFolder, variant: Variant) -> Search:
    """Times the folder's model in every runtime of the GPU whose file is there, some passes each.

    Raises:
        InputError: If none of them runs.
    """
    images = torch.randn(
        variant.batch, *folder.manifest.preprocessing.input_size, generator=torch.Generator().manual_seed(0)
    )
    times: dict[str, float] = {}
    skipped: dict[str, str] = {}
    there = [runtime for runtime in RUNTIMES.values() if runtime.name not in _LEFT_OUT]
    for runtime in track(there, "looking for the fastest runtime"):
        if reason := runtime.unavailable():
            skipped[runtime.name] = reason
            continue
        try:
            times[runtime.name] = _median_ms(runtime, folder, variant, images)
        except InputError as error:  # no file, no such precision, or not on this GPU
            skipped[runtime.name] = str(error)
        except RuntimeError as error:  # such as memory that does not suffice
            skipped[runtime.name] = first_line(error)
        torch.cuda.empty_cache()
    if not times:
        raise InputError(f"no runtime of this GPU can run {folder.path}: {'; '.join(skipped.values())}")
    found = Search(variant, min(times, key=times.__getitem__), times, skipped)
    say(str(found))
    return found


def _median_ms(runtime: Runtime, folder: ModelFolder, variant: Variant, images: torch.Tensor) -> float:
    session, timed = runtime.open(folder, variant), wall_timer()
    session.load(images)
    for _ in range(_WARM_UP):
        session.execute()
    return 1000 * median(timed(session.execute) for _ in range(_PASSES))
