"""Segmentation on the bundled shapes: mIoU and speed-up of small models beside a control, over three seeds.

    python benchmarks/segmentation.py --folders runs/segmentation -o benchmarks/results/segmentation.json
    python benchmarks/segmentation.py --folders runs/segmentation -o … --bench      # when nothing else runs
    python benchmarks/segmentation.py --folders runs/segmentation -o … --page docs/segmentation.md

A small Vision Transformer learns each set from scratch, with the recipe of `--method cait`; it is the teacher of all
that follows. `compress --method dcvit --speedup S` makes small models of few images without their masks; with the first
seed it finds, by measuring, which share of the MACs has to go. Students of that share are cut and trained by `--method
cait`, beside the teacher itself as a control, with one recipe; a seed is of the order of the images, their augmentation
and what a student is fitted on. For the first seed the merges of `MERGE` alone are undone in each way that there is,
before training and after. mIoU is on the 500 test images, which no step has seen, through PyTorch in fp32.
Files of the first seed are exported, verified and built as engines. Models stay in --folders; what is there or in the
output file already is not made again. `--bench` only times the students of the first seed, against the teacher in turn.
"""

import copy
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import click
import onnx

from dcvit.bench import benchmark
from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.data.shapes import SETS, ShapesSource
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.inspection import inspect
from dcvit.methods.cait.compressor import CaitCompressor
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.run import Run
from dcvit.plan import Unmerge
from dcvit.runtimes.flavors import installed
from dcvit.subject import open_subject
from dcvit.training.recipe import TrainingRecipe
from dcvit.variant import DEFAULT_BATCH
from dcvit.verification import verify
from dcvit.versions import package_versions
from few_shot import save
from page_of_results import table

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
SPEEDUPS = (1.3, 1.6)
RUNTIME = "onnxruntime"
FEW = 64
CAIT, FEW_SHOT, FIRST = "CAIT, ×{}", "DC-ViT, not trained, ×{}", "control, then DC-ViT, ×{}"
MERGE = "horizontal@2,vertical@4"
BASE = {"batch_size": 32, "warmup": 0.1, "augmentation": "crop"}
SURPRISES = ("Scatter", "Gather", "Resize", "TopK", "NonZero")
"""What an ONNX file must not hold: it is slow in TensorRT, or does not build."""


@dataclass
class Study:
    """The models of one set, each in a folder of its name, made when it is first asked for."""

    folders: Path
    name: str
    first: TrainingRecipe
    further: TrainingRecipe
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        self.train, self.test = ShapesSource("train", self.name), ShapesSource("test", self.name)

    def teacher(self) -> Path:
        return self._made("teacher", 0, lambda out: compress(
            MODEL, self.train, out=out, task="segmentation", head="multi-level", model_kwargs=MODEL_KWARGS,
            weights="random", settings=CaitSettings(training=self.first), resume=True, overwrite=True,
        ))  # fmt: skip

    def control(self, seed: int) -> Path:
        """The teacher trained on, exactly as the students are."""
        return self._made("control", seed, lambda out: self._train_on(out, seed))

    def few_shot(self, speedup: float, seed: int) -> Path:
        """From few images, of which no mask is read; refitted in closed form, not trained."""
        asked: dict[str, Any] = {"macs_reduction": self.share(speedup)} if seed else {
            "speedup": speedup, "runtime": RUNTIME
        }  # fmt: skip
        return self._made(FEW_SHOT.format(speedup), seed, lambda out: compress(
            self.teacher(), self.train, out=out, seed=seed, samples=FEW, settings=SearchSettings(steps=0),
            resume=True, overwrite=True, **asked,
        ))  # fmt: skip

    def share(self, speedup: float) -> float:
        """Of the MACs, that has to go for it: as the first seed found by measuring."""
        return inspect(self.few_shot(speedup, 0)).summary.macs_reduction

    def smaller(self, speedup: float, seed: int) -> Path:
        return self._made(CAIT.format(speedup), seed, lambda out: compress(
            self.teacher(), self.train, out=out, macs_reduction=self.share(speedup), merge="none", seed=seed,
            settings=CaitSettings(training=self.further), resume=True, overwrite=True,
        ))  # fmt: skip

    def trained_first(self, speedup: float, seed: int) -> Path:
        """The control, narrowed when its training is over."""
        return self._made(FIRST.format(speedup), seed, lambda out: compress(
            self.control(seed), self.train, out=out, seed=seed, samples=FEW, settings=SearchSettings(steps=0),
            macs_reduction=self.share(speedup), resume=True, overwrite=True,
        ))  # fmt: skip

    def merged(self, unmerge: Unmerge, *, trained: bool) -> Path:
        """Size-aware attention changes nothing here: on an even grid without prefix tokens all sizes are equal."""
        settings = CaitSettings(prune=False, training=self.further) if trained else CaitSettings()
        how: dict[str, Any] = {"data": self.train} if trained else {"recover": "none"}
        return self._made(f"merged, {unmerge}, {'' if trained else 'not '}trained", 0, lambda out: compress(
            self.teacher(), out=out, merge=MERGE, unmerge=unmerge, settings=settings, resume=True, overwrite=True,
            **how,
        ))  # fmt: skip

    def rows(self) -> Iterator[tuple[str, int, Callable[[], Path]]]:
        """Name and seed of each model, and what makes it or finds it made."""
        yield "teacher", 0, self.teacher
        for seed in self.seeds:
            yield from ((FEW_SHOT.format(each), seed, partial(self.few_shot, each, seed)) for each in SPEEDUPS)
        for seed in self.seeds:
            yield "control", seed, partial(self.control, seed)
            yield from ((CAIT.format(each), seed, partial(self.smaller, each, seed)) for each in reversed(SPEEDUPS))
        for seed in self.seeds:
            yield from ((FIRST.format(each), seed, partial(self.trained_first, each, seed)) for each in SPEEDUPS)
        for trained in (False, True):
            for unmerge in get_args(Unmerge):
                label = f"merged, {unmerge}, {'' if trained else 'not '}trained"
                yield label, 0, partial(self.merged, unmerge, trained=trained)

    def _made(self, name: str, seed: int, make: Callable[[Path], object]) -> Path:
        out = self.folders / self.name / f"{name.replace(' ', '_')}_{seed}"
        if not ModelFolder.is_one(out):
            click.echo(f"{self.name}: {name}, seed {seed}")
            make(out)
        return out

    def _train_on(self, out: Path, seed: int) -> None:
        subject = open_subject(self.teacher())
        compressor = CaitCompressor(
            Run(subject, self.train, recovery="train", seed=seed), CaitSettings(training=self.further)
        )
        student = copy.deepcopy(subject.model).requires_grad_(True)
        result = compressor.finetuning(student, {"control": True}).run("control")
        metrics = {"steps": result.steps, "training_seconds": result.seconds}
        manifest = ModelFolder(self.teacher()).manifest.model_copy(update={"exports": {}, "metrics": metrics})
        ModelFolder.create(out, student.cpu(), subject.plan, manifest)


def measured(path: Path, test: ShapesSource) -> dict[str, Any]:
    """mIoU, costs and cuts."""
    found, costs, folder = evaluate(path, test), inspect(path).summary, ModelFolder(path)
    return {
        "miou": found.miou,
        "pixel_accuracy": found.figures["pixel_accuracy"],
        "iou": list(found.iou),
        "test_images": found.images,
        "macs": costs.macs_after,
        "params": costs.params_after,
        "tokens": costs.tokens,
        "plan": folder.plan.model_dump(mode="json", exclude_defaults=True, exclude={"model", "model_kwargs"}),
        "training_seconds": folder.manifest.metrics.get("training_seconds"),
    }


def files(path: Path, test: ShapesSource) -> dict[str, Any]:
    """What the exported files are, and mIoU through one."""
    exported = export(path, DEFAULT_BATCH, "fp32")
    engine = export(path, DEFAULT_BATCH, "fp16", trt=installed("tensorrt-rtx")).engine
    operators = Counter(node.op_type for node in onnx.load(exported.onnx.path).graph.node)
    surprises = [kind for kind in operators if kind.startswith(SURPRISES)]
    checked = verify(path, test)
    if surprises or not checked.passed:
        raise SystemExit(f"{path}: {surprises or [check for check in checked.checks if not check.passed]}")
    return {
        "miou_onnxruntime": evaluate(path, test, runtime="onnxruntime").miou,
        "operators": dict(sorted(operators.items())),
        "checks": len(checked.checks),
        "engine": engine and engine.about,
    }


def page(report: dict[str, Any]) -> str:
    """The page: rows of equal name put together, differences to the control seed by seed."""
    rows = report["rows"]

    def of(name: str, kind: str) -> dict[int, dict[str, Any]]:
        return {row["seed"]: row for row in rows if (row["set"], row["name"]) == (kind, name)}

    listed = []
    for kind, name in dict.fromkeys((row["set"], row["name"]) for row in rows):
        found, control = of(name, kind), of("control", kind)
        mious = [row["miou"] for row in found.values()]
        whole = of("teacher", kind)[0]
        base = dict.fromkeys(found, whole) if "not trained" in name else control
        against = [row["miou"] - base[seed]["miou"] for seed, row in found.items() if seed in base]
        bench = next((row["bench"]["results"][0] for row in found.values() if "bench" in row), None)
        first = next(iter(found.values()))
        listed.append([
            kind, name, len(mious), f"×{whole['macs'] / first['macs']:.3f}",
            "" if bench is None else "×{:.3f} [{:.3f}, {:.3f}]".format(bench["speedup"], *bench["speedup_ci95"]),
            _spread(mious), "" if name in ("teacher", "control") else _spread(against, "+"),
        ])  # fmt: skip
    columns = ["set", "model", "seeds", "MACs", "speed-up, 95 %", "mIoU (%)", "against"]
    where = ", ".join(dict.fromkeys(row["machine"]["cpu"] for row in rows))
    epochs = "; ".join(
        f"{kind}: the teacher {row['teacher_epochs']:g} epochs of 2,000 images, the others {row['epochs']:g} more"
        for kind in SETS if (row := of("teacher", kind).get(0))
    )  # fmt: skip
    about = (
        "A ViT of 6 blocks, width 96, 64×64 pixels in patches of 4 (256 tokens), with a multi-level head, trained from "
        "scratch on sets that come with the package: `shapes` (5 kinds) and `thin-shapes` (10 kinds, seven of them "
        f"strokes of two to four pixels, half a patch). {epochs[0].upper() + epochs[1:]}; the control is the teacher, "
        "trained on exactly as the students are. mIoU on 500 test images, PyTorch fp32; over seeds mean ± standard "
        "deviation. What was trained stands against the control of its seed, what was not against the teacher. "
        "Speed-up: ONNX Runtime fp32, batch 64, 2 cores, first seed, against the teacher in turn. Training and timing "
        f"on {where}. Files of the first seed passed `verify`, hold no Scatter, Gather, Resize, TopK or NonZero, and "
        "build as TensorRT-RTX engines. Written by `benchmarks/segmentation.py`."
    )
    names = (
        f"`DC-ViT` is `compress --method dcvit --speedup S --samples {FEW} --steps 0`: {FEW} images, none of their "
        "masks, no training. `CAIT` is `compress --method cait --merge none` at the same share of the MACs: widths "
        "refitted on 500 images, then training on. `control, then DC-ViT` narrows the control as DC-ViT narrows the "
        "teacher. `merged` "
        f"is `--merge {MERGE}` alone; merges are undone in front of the head by giving every patch its token "
        "(`repeat`), between the tokens' centres (`bilinear`), or by what the token has gained since its merge, added "
        "to what the patch was before it (`residual`, the default)."
    )
    parts = [textwrap.fill(each, 120) for each in (about, names)]
    return "\n\n".join(["# Segmentation", *parts, table(columns, listed)]) + "\n"


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    return f"{mean(values):{sign}.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


@click.command()
@click.option("--folders", type=click.Path(path_type=Path), required=True, help="Where the models are kept.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--set", "sets", type=click.Choice(list(SETS)), multiple=True, default=list(SETS))
@click.option("--teacher-epochs", default=8.0, show_default=True)
@click.option("--epochs", default=3.0, show_default=True, help="Of the control and the students.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--row", "wanted", multiple=True, help="Names that contain this; by default all.")
@click.option("--bench", is_flag=True, help="Time what is there against the teacher: ONNX Runtime, fp32, batch 64.")
@click.option("--max-seconds", default=60.0, show_default=True, help="Of timing, for each model.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Only write the page of what is there.")
def main(
    folders: Path, out: Path, sets: tuple[str, ...], teacher_epochs: float, epochs: float, seeds: tuple[int, ...],
    wanted: tuple[str, ...], bench: bool, max_seconds: float, page_path: Path | None,
) -> None:  # fmt: skip
    """Makes and measures what has not been, and keeps each row as it comes."""
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    if page_path is not None:
        page_path.write_text(page(report), encoding="utf-8")
        return
    for name in sets:
        first = TrainingRecipe(epochs=teacher_epochs, lr=2e-3, **BASE)
        further = TrainingRecipe(epochs=epochs, lr=5e-4, **BASE)
        study = Study(folders, name, first, further, seeds)
        for label, seed, make in study.rows():
            if wanted and not any(each in label for each in wanted):
                continue
            path = make()
            known = {"set": name, "name": label, "seed": seed}
            row = next((each for each in report["rows"] if known.items() <= each.items()), None)
            if row is None:
                row = known | {"teacher_epochs": teacher_epochs, "epochs": epochs, **measured(path, study.test)}
                row |= {"machine": this_machine().to_json(), "versions": package_versions()}
                report["rows"].append(row)
                click.echo(f"{name}, {label}, seed {seed}: mIoU {row['miou']:.2f} %, {row['macs'] / 1e6:.1f} M MACs")
            unfit = label.startswith("merged") and "not trained" in label
            if not bench and seed == 0 and "checks" not in row and not unfit:
                row |= files(path, study.test)
            if (
                bench
                and seed == 0
                and label.startswith(("CAIT", "DC-ViT", "merged, residual, trained"))
                and "bench" not in row
            ):
                row["bench"] = benchmark(path, max_seconds=max_seconds).to_json() | {"folder": label}
                click.echo(f"{name}, {label}: ×{row['bench']['results'][0]['speedup']:.3f}")
            save(out, report)


if __name__ == "__main__":
    main()
