"""The two models of a comparison: a folder's, and the one it is measured against."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dcvit.cost import count_macs
from dcvit.data import seeded
from dcvit.errors import InputError
from dcvit.exporting.for_runtime import export_for
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.folder.temporary import temporary_folder
from dcvit.model import build, stand_in
from dcvit.progress import say
from dcvit.runtimes import Session, runtime_named
from dcvit.subject import open_shapes
from dcvit.variant import Precision, Variant


@dataclass(frozen=True)
class Setting:
    """How two models are run.

    Attributes:
        runtime: Name of the runtime.
        variant: Of the candidate.
        baseline_precision: Of the baseline, which is of the same variant otherwise.
        threads: CPU threads of each; None gives them all cores.
    """

    runtime: str
    variant: Variant
    baseline_precision: Precision
    threads: int | None

    @classmethod
    def of(
        cls,
        runtime: str,
        variant: Variant,
        baseline_precision: Precision | None = None,
        threads: int | None = None,
    ) -> "Setting":
        """The baseline's precision is by default the candidate's.

        Raises:
            InputError: If no model can be run so here.
        """
        return cls(runtime, variant, baseline_precision or variant.precision, threads)

    def __post_init__(self) -> None:
        """Raises InputError for what no model can be run with here."""
        self.variant.at(self.baseline_precision)
        runtime_named(self.runtime)

    @property
    def baseline_variant(self) -> Variant:
        """Of the baseline."""
        return self.variant.at(self.baseline_precision)

    def file(self, folder: ModelFolder) -> Path:
        """The file of a candidate that is run.

        Raises:
            InputError: If the folder lacks it.
        """
        return runtime_named(self.runtime).file(folder, self.variant)


@dataclass(frozen=True)
class Pair:
    """Two models that take the same images.

    Attributes:
        candidate: The folder that is measured.
        baseline: The folder that it is measured against.
        against: What to call that one.
        temporary: Whether it was made for this comparison, so that nothing is exported yet.
    """

    candidate: ModelFolder
    baseline: ModelFolder
    against: str
    temporary: bool

    def prepare(self, setting: Setting) -> None:
        """Exports what the runtime needs of a temporary baseline, and looks that all is there."""
        runtime, file = runtime_named(setting.runtime), setting.file(self.candidate)
        if self.temporary:
            say(f"preparing {self.against} for {runtime.name}")
            capabilities, profile = None, None
            if runtime.artifact == "engine":  # both engines are built for the same GPUs
                engine = engine_records(self.candidate)[file.name]
                capabilities, profile = engine.compute_capabilities, engine.profile
            variant = setting.baseline_variant
            record = onnx_records(self.candidate).get(file.name)
            if profile is not None or (record is not None and record.dynamic):
                variant = variant.of_any_batch()  # else the baseline would have an easier file
            exported = variant.at(runtime.source(variant.precision)).onnx_name
            if runtime.artifact != "onnx" or exported not in self.baseline.manifest.files:
                export_for(runtime, self.baseline, variant, capabilities, profile, latency_only=True)
        runtime.file(self.baseline, setting.baseline_variant)

    def open(self, setting: Setting) -> tuple[Session, Session]:
        """Fresh sessions of the baseline and the candidate, with the same random images loaded."""
        runtime, size = runtime_named(setting.runtime), self.candidate.manifest.preprocessing.input_size
        images = torch.randn(setting.variant.batch, *size, generator=torch.Generator().manual_seed(0))
        before = runtime.open(self.baseline, setting.baseline_variant)
        after = runtime.open(self.candidate, setting.variant)
        for session in (before, after):
            session.load(images)
        return before, after


OpenPair = Callable[[], tuple[Session, Session]]
"""Fresh sessions of the baseline and the candidate."""


@contextmanager
def pair_of(folder: ModelFolder, against: Path | str | None) -> Iterator[Pair]:
    """A folder and what it is measured against.

    Args:
        folder: The candidate.
        against: A model folder, or a timm name, which gets the folder's model_kwargs and random weights (`stand_in`;
            `build`, if the folder's were never trained). None takes the folder's own model, uncompressed.

    Raises:
        InputError: If there is no such model, or it takes images of another size.
    """
    if against is not None and ModelFolder.is_one(against):
        yield _same_input(Pair(folder, ModelFolder(against), str(against), temporary=False))
        return
    plan = folder.plan.original()
    if against is not None:
        plan = plan.replace(model=str(against))
    size = open_shapes(plan.model, plan.model_kwargs).architecture.input_size
    preprocessing = folder.manifest.preprocessing.model_copy(update={"input_size": size})
    with seeded(0):
        # Like with like: a candidate that was never trained has a graph of its own in some runtimes.
        model = build(plan) if _is_untrained(folder) else stand_in(plan)
        made = temporary_folder(model, plan, preprocessing)
        del model  # the folder alone holds it, until it is on disk
    with made as temporary:
        name = f"{plan.model} (uncompressed, random weights)"
        yield _same_input(Pair(folder, temporary, name, temporary=True))


def _is_untrained(folder: ModelFolder) -> bool:
    """Whether every linear layer's bias is 0, as timm starts."""
    with safe_open(folder.path / WEIGHTS, framework="pt") as weights:
        names = set(weights.keys())
        linear = [name for name in names if name.endswith(".bias") and _is_matrix(weights, f"{name[:-4]}weight", names)]
        return not any(bool(weights.get_tensor(name).any()) for name in linear)


def _is_matrix(weights: Any, name: str, names: Collection[str]) -> bool:
    return name in names and len(weights.get_slice(name).get_shape()) == 2


def _same_input(pair: Pair) -> Pair:
    ours, theirs = (item.manifest.preprocessing.input_size for item in (pair.candidate, pair.baseline))
    if ours != theirs:
        raise InputError(
            f"--against: {pair.baseline.plan.model} takes images of {list(theirs)} and {pair.candidate.path} of "
            f"{list(ours)}; their latencies are not comparable"
        )
    return pair


def macs_of(folder: ModelFolder) -> int:
    """Multiply-accumulates of a folder's model for one image."""
    return count_macs(build(folder.plan, device="meta"), folder.manifest.preprocessing.input_size).total
