"""Folders with everything that a report shows, and with nothing of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dcvit.bench.history import write_history
from dcvit.bench.machine import this_machine
from dcvit.bench.result import BenchResult, BenchRow, Measured
from dcvit.bench.statistics import Latency, speedup, speedup_interval
from dcvit.cost import count_macs
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.findings import note_evaluation
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers.result import FRONTIER, FrontierResult, Point, mark_pareto
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.training.log import LOG
from dcvit.verification import verify

from .changes import change_manifest

MakeFolder = Callable[..., ModelFolder]

BLOCKS = (
    BlockPlan(index=1, removed="attention", mlp_hidden=64),
    BlockPlan(index=2, head_dim=16),
    BlockPlan(index=3, mlp_hidden=32),
)
DAMAGE = {
    str(block): {
        "attention": 10.0**-block,
        "mlp": {"64": 2e-5 * (block + 1), "32": 2e-4 * (block + 1)},
        "heads": {"8": 1e-5 * (block + 1)},
    }
    for block in range(4)
}
TRAINING = [
    {
        "step": step,
        "epoch": step / 10,
        "loss": 2.0 / step,
        "losses": {"cross_entropy": 1.5 / step, "distillation": 0.5 / step},
        "lr": 1e-3,
        "images_per_second": 100.0,
        "seconds": 2.0 * step,
        "widths": {"mlp_hidden": [128 - step] * 4, "head_dim": [16] * 4},
    }
    for step in range(1, 6)
]


@pytest.fixture(scope="session")
def compressed_plan(tiny_plan: CompressionPlan) -> CompressionPlan:
    """All that the figures along the depth can show."""
    merges = (Merge(after=1, axis="horizontal"), Merge(after=2, axis="vertical"))
    one_head = tiny_plan.model_kwargs | {"num_heads": 1}
    return tiny_plan.replace(model_kwargs=one_head, blocks=BLOCKS, merges=merges)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, make_folder: MakeFolder, compressed_plan: CompressionPlan) -> Path:
    """A folder that was exported, verified, evaluated, timed and trained; tests that change it copy it."""
    folder = make_folder(tmp_path_factory.mktemp("full") / "small-vit", compressed_plan)
    change_manifest(
        folder,
        method="dcvit",
        settings={"weights": "random", "steps": 5, "training": {"lr": 2e-4}},
        data={"source": "/home/somebody/private/photos", "images": 64, "corrupt": 0, "sha256": "ab" * 32},
        metrics={"damage": DAMAGE, "stages": {"recovery": 6.0, "refit": 2.0}, "seconds": 10.0, "kl": 0.01},
        versions={"dcvit-tool": "0.1.0"},
    )
    folder.add(LOG, lambda path: _put(path, "".join(json.dumps(record) + "\n" for record in TRAINING)))
    export(folder, 4, "fp32")
    export(folder, 4, "fp16", evaluate="digits", max_drop=100.0)
    verify(folder, "digits")
    evaluate(folder.path, "digits", batch=4)
    write_history(ModelFolder(folder.path), bench_result(folder))
    opened = ModelFolder(folder.path)
    original = {"top1": 50.0, "top5": 90.0, "data": "digits", "images": 500, "corrupt": 0}
    original |= {"runtime": "torch", "precision": "fp32", "device": "CPU"}
    note_evaluation(opened, original, batch=4, file=None)
    return opened.path


@pytest.fixture
def full_copy(full: Path, tmp_path: Path) -> ModelFolder:
    """The same, to be changed."""
    return ModelFolder(shutil.copytree(full, tmp_path / "small-vit"))


@pytest.fixture
def bare(tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> ModelFolder:
    """A model and nothing else."""
    return make_folder(tmp_path / "bare", tiny_plan)


@pytest.fixture
def frontier_folder(tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> Path:
    """Three sizes with accuracy and latency; the middle one is beaten by the small one."""
    path, points = tmp_path / "sizes", []
    (path).mkdir()
    for target, width, top1 in ((0.1, 96, 90.0), (0.3, 64, 80.0), (0.5, 32, 85.0)):
        name = f"r{target:g}"
        folder = make_folder(path / name, tiny_plan.with_blocks(BlockPlan(index=1, mlp_hidden=width)))
        points.append(
            Point(name, target, target, 1000 - width, 500, 1, 0.1 * target, top1, bench_row(1 + target), 1.0,
                  folder.plan.digest)
        )  # fmt: skip
    about = {
        "macs_convention": "full", "data": {"images": 64}, "evaluated_on": "/home/somebody/digits", "seed": 0,
        "settings": {"metric": "train"}, "versions": {},
    }  # fmt: skip
    original = {"macs": 2000, "params": 900, "top1": 91.0, "images": 500}
    result = FrontierResult(
        path, "vit_tiny_patch16_224", mark_pareto(points), original, about, this_machine(), seconds=3.0
    )
    _put(path / FRONTIER, json.dumps(result.to_json()))
    return path


def bench_row(ratio: float, measured: Measured | None = None) -> BenchRow:
    """A row of made-up times: 40 rounds, scattered as real ones are."""
    scatter = 1 + np.random.default_rng(0).gamma(2, 0.01, (2, 40))
    before, after = 12.0 * scatter[0], 12.0 / ratio * scatter[1]
    return BenchRow(
        runtime="onnxruntime", batch=4, precision="fp32", device="CPU", threads=2, latency=Latency.of(after),
        baseline=Latency.of(before), speedup=speedup(before, after), speedup_ci95=speedup_interval(before, after),
        runs=40, stopped="interval", measured=measured,
    )  # fmt: skip


def bench_result(folder: ModelFolder) -> BenchResult:
    """As `bench` makes it, but for the times."""
    macs = count_macs(folder.load(), (3, 32, 32)).total
    file = "model.b4.fp32.onnx"
    measured = Measured(file, folder.manifest.files[file].sha256, "the original", "fp32", macs, 2 * macs)
    return BenchResult(folder.path, "the original", macs, 2 * macs, (bench_row(1.5, measured),), this_machine())


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
