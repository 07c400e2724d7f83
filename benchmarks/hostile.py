"""What the study of hostile files (`fuzz.py`) changes: a good file of each kind, and the function that reads it."""

import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import readers
from dcvit.bench.machine import this_machine
from dcvit.bench.result import BenchResult, BenchRow, Measured
from dcvit.bench.statistics import Latency
from dcvit.exporting import export
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import MANIFEST, PLAN, WEIGHTS, ModelFolder
from dcvit.frontiers.result import FRONTIER
from dcvit.model import build, create
from dcvit.plan import CompressionPlan
from dcvit.runtimes import flavors
from dcvit.sealed import write_sealed
from kills import forked
from mutations import (
    bytes_changed,
    graph_changed,
    json_changed,
    nothing_changed,
    record_changed,
    tree_changed,
)

BASELINE = Path(__file__).parent / "baselines" / "deit_tiny-cut.json"
ENGINE = "model.b2.fp16.tensorrt-rtx.engine"
FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "dds", "tga", "ico", "avif", "jp2", "pcx", "sgi", "icns",
           "qoi")  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: For the table.
        good: The good file's bytes.
        read: Reads a folder that holds the changed one, `file`.
        share: Cases among 30,000; those that cost much have few.
        change: Makes it hostile.
        seconds: Of computing that a case may take.
    """

    name: str
    good: bytes
    read: Callable[[Path], Any]
    share: int
    change: Callable[[bytes, random.Random], bytes] = bytes_changed
    seconds: int = 30


class Payload:
    """What a pickle runs: it leaves a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-ran",)


def kinds(place: Path) -> list[Kind]:
    """Every kind; the good files are made at a place, in a process of its own, and stay there."""
    if forked(lambda: _make(place), root=place, output=place / "output").status:
        raise RuntimeError((place / "output").read_text()[-2000:])
    whole, exported, data = place / "model", place / "exported", place / "data"
    found = [
        Kind("plan", (whole / PLAN).read_bytes(), readers.plan, 2500, json_changed),
        Kind("manifest", (whole / MANIFEST).read_bytes(), partial(readers.folder, whole, MANIFEST), 400, json_changed),
        Kind("weights", (whole / WEIGHTS).read_bytes(), partial(readers.folder, whole, WEIGHTS), 300),
        *(
            Kind(name, (whole / name).read_bytes(), partial(readers.folder, whole, name), 40, json_changed)
            for name in ("evaluations.json", "verify.json", "bench.json", "train.jsonl")
        ),
        Kind(FRONTIER, (place / FRONTIER).read_bytes(), partial(readers.frontier, whole), 160, json_changed),
        Kind("baseline", BASELINE.read_bytes(), readers.baseline, 4000, json_changed),
        Kind("safetensors", (place / "a.safetensors").read_bytes(), partial(readers.checkpoint, ".safetensors"), 1800),
        Kind("pth", (place / "a.pth").read_bytes(), partial(readers.checkpoint, ".pth"), 1500),
        Kind("evil pth", (place / "evil.pth").read_bytes(), partial(readers.checkpoint, ".pth"), 800),
        Kind("pickle", pickle.dumps(Payload()), partial(readers.checkpoint, ".pth"), 200),
        Kind("stage", (place / "stage").read_bytes(), readers.stage, 1500),
        Kind("training checkpoint", readers.state_file(place).read_bytes(), partial(readers.training, place), 500),
        Kind("training checkpoint, sealed", readers.state_record(place), partial(readers.sealed_training, place), 400,
             record_changed),
        Kind("training log", readers.log_file(place).read_bytes(), partial(readers.training_log, place), 400,
             json_changed),
        Kind("record of a run", (place / "run.json").read_bytes(), readers.run_record, 3000, json_changed),
        Kind("onnx", (exported / readers.ONNX).read_bytes(), partial(readers.verified, exported, readers.ONNX), 120),
        Kind("onnx, graph", (exported / readers.ONNX).read_bytes(), partial(readers.verified, exported, readers.ONNX),
             120, graph_changed),
        *(Kind(f"image {name}", (place / f"a.{name}").read_bytes(), partial(readers.image, data, name), 520)
          for name in FORMATS),
        Kind("mask", (place / "pairs" / "masks" / "0.png").read_bytes(), partial(readers.mask, place / "pairs"), 2000),
        Kind("tar", (place / "a.tar").read_bytes(), readers.tar, 2000),
        Kind("class folders", json.dumps(_tree(data)).encode(), partial(readers.tree, data), 1500, tree_changed),
        Kind("--model-kwargs", json.dumps(readers.TINY).encode(), readers.model_kwargs, 1500, json_changed),
        *(Kind(f"options of {name}", name.encode(), partial(readers.options, place, name), share,
               readers.options_drawn, 60)
          for name, share in readers.OPTIONS.items()),
    ]  # fmt: skip
    if (exported / ENGINE).is_file():
        read = partial(readers.verified, exported, ENGINE)
        found.append(Kind("engine", (exported / ENGINE).read_bytes(), read, 80))
        found.append(Kind("engine, cut", b"", read, 10, nothing_changed))
    return found


def _make(place: Path) -> None:
    torch.manual_seed(0)
    blocks = ({"index": 1, "mlp_hidden": 16},)
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=readers.TINY, blocks=blocks)
    manifest = Manifest(model=plan.model, method="search", plan_digest="", seed=0, preprocessing=readers.PREPROCESSING)
    manifest.settings = {"target": {"macs_reduction": 0.1}, "weights": "random"}
    manifest.metrics = {"kl": 0.1, "seconds": 1.0, "stages": {"refit": 0.5}}
    manifest.exports = {
        "model.b2.fp32.onnx": {"kind": "onnx", "batch": 2, "precision": "fp32", "opset": 18, "weights_sha256": ""}
    }
    folder = ModelFolder.create(place / "model", build(plan), plan, manifest)
    _add_findings(folder)
    manifest.exports = {}
    exported = ModelFolder.create(place / "exported", build(plan), plan, manifest)
    export(exported, 2, "fp32")
    if flavors.installed("tensorrt-rtx"):
        export(exported, 2, "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.9",))
    _make_weights(place, plan)
    _make_images(place)
    readers.train(place)
    said = {"MODEL": plan.model, "--data": "digits", "--seed": 0, "--macs-reduction": 0.3, "--merge": None}
    (place / "run.json").write_text(json.dumps(said))
    (place / FRONTIER).write_text(json.dumps(_frontier(plan)))


def _make_weights(place: Path, plan: CompressionPlan) -> None:
    state = create(plan.model, readers.TINY).state_dict()
    save_file(state, place / "a.safetensors")
    torch.save(state, place / "a.pth")
    torch.save({**state, "evil": Payload()}, place / "evil.pth")
    write_sealed(place / "stage", {"a": torch.ones(3)}, {"loss": 1.0})


def _make_images(place: Path) -> None:
    for number in range(3):
        (place / "data" / str(number)).mkdir(parents=True)
        Image.effect_noise((40, 40), 60).convert("RGB").save(place / "data" / str(number) / "a.png")
    for name in FORMATS:
        side = 32 if name in ("icns", "ico") else 24
        Image.effect_noise((side, side), 60).convert("RGB").save(place / f"a.{name}")
    with tarfile.open(place / "a.tar", "w") as tar:
        tar.add(place / "data", "data")
    for sort in ("images", "masks"):
        (place / "pairs" / sort).mkdir(parents=True)
    for number in range(3):
        Image.effect_noise((24, 24), 60).convert("RGB").save(place / "pairs" / "images" / f"{number}.png")
        classes = np.random.default_rng(number).integers(0, 3, (24, 24), dtype=np.uint8)
        Image.fromarray(classes).save(place / "pairs" / "masks" / f"{number}.png")


def _tree(data: Path) -> list[list[str]]:
    return [[str(path.relative_to(data)), "image", ""] for path in sorted(data.rglob("*.png"))]


def _add_findings(folder: ModelFolder) -> None:
    evaluated = {"top1": 50.0, "top5": 90.0, "images": 9, "corrupt": 0, "data": "digits", "runtime": "torch",
                 "precision": "fp32", "device": "cpu", "batch": 64, "original": True}  # fmt: skip
    check = {"name": f"{PLAN}: equal", "passed": True, "max_abs_error": 0.0, "tolerance": 1e-3, "detail": ""}
    log = {"step": 1, "epoch": 0.1, "loss": 1.0, "losses": {"kl": 1.0}, "lr": 1e-3, "seconds": 1.0}
    texts = {
        "evaluations.json": {"results": [evaluated]},
        "verify.json": {"checks": [check], "files": {PLAN: folder.manifest.files[PLAN].sha256}},
        "bench.json": _bench(folder),
        "train.jsonl": log | {"images_per_second": 9.0},
    }
    for name, content in texts.items():
        folder.add(name, lambda path, content=content: path.write_text(json.dumps(content) + "\n") and None)  # type: ignore[misc]


def _bench(folder: ModelFolder) -> dict[str, Any]:
    latency = Latency.of(np.linspace(10, 12, 20))
    measured = Measured(WEIGHTS, folder.manifest.files[WEIGHTS].sha256, "the original", "fp32", 9, 18)
    row = BenchRow("torch", 2, "fp32", "CPU", 1, latency, latency, 1.0, (0.9, 1.1), 20, "interval", measured=measured)
    return BenchResult(Path("model"), "the original", 9, 18, (row,), this_machine()).to_json()


def _frontier(plan: CompressionPlan) -> dict[str, Any]:
    point = {"folder": "r0.1", "target": 0.1, "macs_reduction": 0.1, "macs": 9, "params": 9, "blocks_compressed": 1,
             "kl": 0.1, "seconds": 1.0, "plan_digest": "", "pareto": True}  # fmt: skip
    return {
        "folder": "f", "model": plan.model, "original": {"macs": 10, "params": 10}, "points": [point],
        "macs_convention": "full", "data": {"images": 1, "source": "x"}, "scored_on": "x", "evaluated_on": None,
        "seed": 0, "settings": {}, "versions": {}, "machine": None, "seconds": 1.0,
    }  # fmt: skip
