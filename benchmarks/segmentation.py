"""Segmentation on the bundled shapes: mIoU and speed-up before and after merging and pruning, from scratch.

    python benchmarks/segmentation.py --folders runs/segmentation -o benchmarks/results/segmentation.json
    python benchmarks/segmentation.py --folders runs/segmentation -o … --bench      # when nothing else runs

A small Vision Transformer learns the shapes from scratch, with the recipe of `--method cait`; it is the teacher of all
that follows. The students, and the teacher itself as a control, are trained on with one recipe, on the same images in
the same order. mIoU is on the 500 test images, which no step has seen, through PyTorch in fp32. Models stay in
--folders; those that are there already are not made again, nor are rows of the output file measured again, and
`--bench` only times them, against the teacher in turn.
"""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import onnx

from dcvit.bench import benchmark
from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.data.shapes import ShapesSource
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.files import whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.inspection import inspect
from dcvit.methods.cait.compressor import CaitCompressor
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.run import Run
from dcvit.plan import HeadKind
from dcvit.runtimes.flavors import installed
from dcvit.subject import open_subject
from dcvit.training.recipe import TrainingRecipe
from dcvit.variant import DEFAULT_BATCH
from dcvit.verification import verify
from dcvit.versions import package_versions

MODEL = "vit_tiny_patch16_224"
MODEL_KWARGS = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "class_token": False,
    "global_pool": "avg",
    "pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
MERGE = "horizontal@2,vertical@4"
BASE = {"batch_size": 32, "warmup": 0.1, "augmentation": "crop"}
SURPRISES = ("Scatter", "Gather", "Resize", "TopK", "NonZero")
"""What an ONNX file must not hold: it is slow in TensorRT, or does not build."""

train, test = ShapesSource("train"), ShapesSource("test")  # one of each, which keeps what it has drawn


class Study:
    """The models of one head, each in a folder of its name, made when it is first asked for."""

    def __init__(self, folders: Path, head: HeadKind, teacher_epochs: float, epochs: float) -> None:
        self.folders, self.head = folders / head, head
        self.first = TrainingRecipe(epochs=teacher_epochs, lr=2e-3, **BASE)
        self.further = TrainingRecipe(epochs=epochs, lr=5e-4, **BASE)

    def teacher(self) -> Path:
        return self._made("teacher", lambda out: compress(
            MODEL, train, out=out, task="segmentation", head=self.head, model_kwargs=MODEL_KWARGS, weights="random",
            settings=CaitSettings(training=self.first), resume=True, overwrite=True,
        ))  # fmt: skip

    def control(self) -> Path:
        """The teacher trained on, exactly as the students are."""
        return self._made("control", self._train_on)

    def merged_only(self) -> Path:
        """Size-aware attention changes nothing here: on an even grid without prefix tokens all sizes are equal."""
        return self._made("merged, not trained", lambda out: compress(
            self.teacher(), out=out, recover="none", merge=MERGE, settings=CaitSettings(), resume=True, overwrite=True,
        ))  # fmt: skip

    def merged(self) -> Path:
        return self._made("merged, trained", lambda out: compress(
            self.teacher(), train, out=out, merge=MERGE, settings=CaitSettings(prune=False, training=self.further),
            resume=True, overwrite=True,
        ))  # fmt: skip

    def joint(self, macs_reduction: float = 0.6) -> Path:
        return self._made("merged and pruned, trained", lambda out: compress(
            self.teacher(), train, out=out, merge=MERGE, macs_reduction=macs_reduction,
            settings=CaitSettings(training=self.further), resume=True, overwrite=True,
        ))  # fmt: skip

    def all(self) -> dict[str, Path]:
        made = [self.teacher(), self.control(), self.merged_only(), self.merged(), self.joint()]
        return {path.name.replace("_", " "): path for path in made}

    def _made(self, name: str, make: Any) -> Path:
        out = self.folders / name.replace(" ", "_")
        if not ModelFolder.is_one(out):
            click.echo(f"{self.head}: {name}")
            make(out)
        return out

    def _train_on(self, out: Path) -> None:
        subject = open_subject(self.teacher())
        compressor = CaitCompressor(Run(subject, train, recovery="train"), CaitSettings(training=self.further))
        student = copy.deepcopy(subject.model).requires_grad_(True)
        result = compressor.finetuning(student, {"control": True}).run("control")
        metrics = {"steps": result.steps, "training_seconds": result.seconds}
        manifest = ModelFolder(self.teacher()).manifest.model_copy(update={"exports": {}, "metrics": metrics})
        ModelFolder.create(out, student.cpu(), subject.plan, manifest)


def measured(path: Path) -> dict[str, Any]:
    """mIoU, costs, and what the exported files are."""
    found = evaluate(path, test)
    costs = inspect(path).summary
    exported = export(path, DEFAULT_BATCH, "fp32")
    engine = export(path, DEFAULT_BATCH, "fp16", trt=installed("tensorrt-rtx")).engine
    operators = Counter(node.op_type for node in onnx.load(exported.onnx.path).graph.node)
    surprises = [kind for kind in operators if kind.startswith(SURPRISES)]
    checked = verify(path, test)
    through = evaluate(path, test, runtime="onnxruntime")
    if surprises or not checked.passed:
        raise SystemExit(f"{path}: {surprises or [check for check in checked.checks if not check.passed]}")
    metrics = ModelFolder(path).manifest.metrics
    return {
        "miou": found.miou,
        "miou_onnxruntime": through.miou,
        "pixel_accuracy": found.figures["pixel_accuracy"],
        "iou": list(found.iou),
        "test_images": found.images,
        "macs": costs.macs_after,
        "params": costs.params_after,
        "tokens": costs.tokens,
        "training": {name: metrics[name] for name in ("steps", "training_seconds", "widths") if name in metrics},
        "operators": dict(sorted(operators.items())),
        "checks": len(checked.checks),
        "engine": engine and engine.about,
    }


@click.command()
@click.option("--folders", type=click.Path(path_type=Path), required=True, help="Where the models are kept.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--head", "heads", type=click.Choice(["linear", "multi-level"]), multiple=True, default=["multi-level"])
@click.option("--teacher-epochs", default=8.0, show_default=True)
@click.option("--epochs", default=3.0, show_default=True, help="Of the control and the students.")
@click.option("--bench", is_flag=True, help="Time what is there against the teacher: ONNX Runtime, fp32, batch 64.")
@click.option("--max-seconds", default=60.0, show_default=True, help="Of timing, for each model.")
def main(
    folders: Path, out: Path, heads: tuple[HeadKind, ...], teacher_epochs: float, epochs: float, bench: bool,
    max_seconds: float,
) -> None:  # fmt: skip
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"heads": {}}
    for head in heads:
        study = Study(folders, head, teacher_epochs, epochs)
        rows = report["heads"].setdefault(head, {"rows": {}})["rows"]
        report["heads"][head] |= {"teacher_epochs": teacher_epochs, "epochs": epochs, "merge": MERGE}
        for name, path in study.all().items():
            row = rows.setdefault(name, {})
            if not bench and "miou" in row:
                continue
            if not bench:
                row |= measured(path)
                click.echo(f"{head}, {name}: mIoU {row['miou']:.2f} %, {row['macs'] / 1e6:.1f} M MACs")
            elif ModelFolder(path).plan != ModelFolder(study.teacher()).plan:
                timed = benchmark(path, max_seconds=max_seconds)
                row["bench"] = timed.to_json() | {"folder": name}
                click.echo(f"{head}, {name}: ×{timed.rows[0].speedup:.3f} {timed.rows[0].speedup_ci95}")
            report |= {
                "model": MODEL,
                "model_kwargs": MODEL_KWARGS,
                "machine": this_machine().to_json(),
                "versions": package_versions(),
            }
            with whole_file(out) as aside:
                aside.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
