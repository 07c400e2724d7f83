"""CAIT on the CIFAR-10 teacher, against the teacher trained on alike, each part alone, ToMe and uniform widths.

    python benchmarks/cait.py --data DATA -o benchmarks/results/cait.json --epochs 2
    python benchmarks/cait.py --data DATA -o benchmarks/results/cait.json --agreement  # with the teacher's classes
    python benchmarks/cait.py --data DATA -o benchmarks/results/cait.json --bench      # when nothing else runs

DATA holds `cifar10/train-0.tar` … `train-4.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`. A row
is written as soon as it is measured, and rows that the file holds already are not measured again; one that was stopped
goes on from its checkpoint. All rows have the same recipe, images, order, augmentation and number of epochs, and all
but the control remove the same share of the MACs. Accuracy is top-1 on all images of `test.tar`, through PyTorch in
fp32; no row trains on them. Models stay in --folders; `--bench` times those against the teacher, in turn, and needs
no training.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

from dcvit.bench import benchmark
from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.data import CorruptImages, JoinedSource, batches, open_source
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.methods.base import Places
from dcvit.methods.cait.compressor import CaitCompressor
from dcvit.methods.cait.proposal import propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cuts.scores import divergence
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.progress import reporting_to
from dcvit.stages import StageStore
from dcvit.subject import Subject, open_shapes, open_subject
from dcvit.training.log import LOG
from dcvit.training.recipe import TrainingRecipe
from dcvit.types import TimmModule
from dcvit.variant import DEFAULT_BATCH, Variant
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save
from peers.tome import ToMe

TOME, TRAINED = "tome.safetensors", "trained.safetensors"
PUBLISHED = CaitSettings.paper()
AS_PUBLISHED = PUBLISHED.model_dump(include={"widths", "trim"})


@dataclass(frozen=True)
class Row:
    """One training: what was asked for."""

    method: str
    macs_reduction: float
    epochs: float
    shards: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Study:
    data: Path
    folders: Path

    @property
    def test(self) -> Path:
        return self.data / "cifar10" / "test.tar"

    @property
    def macs(self) -> int:
        """Of the teacher."""
        subject = open_shapes(MODEL, MODEL_KWARGS)
        return count_macs(subject.model, subject.architecture.input_size).total

    @property
    def checkpoint(self) -> Path:
        return self.data / "teacher" / "deit_tiny_cifar10.safetensors"

    def subject(self) -> Subject:
        return open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=self.checkpoint)

    def images(self, row: Row) -> JoinedSource:
        paths = [self.data / "cifar10" / f"train-{shard}.tar" for shard in range(row.shards)]
        return JoinedSource(f"cifar10 train-0 … {row.shards - 1}", [open_source(path, "train") for path in paths])

    def folder(self, row: Row) -> Path:
        name = row.method.replace(" ", "-").replace(",", "")
        return self.folders / f"{name}-r{row.macs_reduction:g}-e{row.epochs:g}-n{row.shards}-lr{row.lr:g}-s{row.seed}"

    def run(self, row: Row) -> dict[str, Any]:
        started = time.perf_counter()
        found = METHODS[row.method](self, row)
        spent = round(time.perf_counter() - started, 1)
        return {**asdict(row), **found, "seconds": spent, "machine": this_machine().kind}

    def compress(
        self, row: Row, target: Target, *, model: Path | None = None, checkpoint: Path | None = None, **changes: Any
    ) -> dict[str, Any]:
        """A row that is a plan of ours; `model` is a compressed one to start from, `checkpoint` other weights."""
        whole = {"model_kwargs": MODEL_KWARGS, "checkpoint": checkpoint or self.checkpoint}
        result = compress(
            MODEL if model is None else model,
            self.images(row),
            out=self.folder(row),
            target=target,
            settings=settings_of(row, **changes),
            seed=row.seed,
            cache=self.folders / "cache",
            checkpoint_minutes=2,
            resume=True,
            overwrite=True,
            **(whole if model is None else {}),
        )
        accuracy = evaluate(result.folder, self.test, batch=250)
        kept = ("steps", "loss", "images_per_second", "training_seconds", "merge", "widths", "largest_cut", "images")
        metrics = {name: result.metrics[name] for name in kept if name in result.metrics}
        plan = json.loads(result.summary.plan.to_json())
        return {
            "top1": accuracy.top1,
            "test_images": accuracy.images,
            "macs_ratio": self.macs / result.summary.macs_after,
            "params": result.summary.params_after,
            **metrics,
            "plan": {name: plan[name] for name in ("blocks", "merges", "merge_operator") if name in plan},
        }

    def train_alike(
        self, row: Row, make: Callable[[TimmModule], TimmModule], **changes: Any
    ) -> tuple[TimmModule, dict[str, Any]]:
        """A row that is no plan: trained exactly as the others are."""
        subject, folder = self.subject(), self.folder(row)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        run = Run(
            subject,
            open_source(self.images(row), "train"),
            seed=row.seed,
            recovery="train",
            store=StageStore(self.folders / "cache"),
            places=Places(folder / "checkpoints", 2),
            shared=True,
        )
        compressor = CaitCompressor(run, settings_of(row, **changes))
        student = make(copy.deepcopy(subject.model)).requires_grad_(True)
        size = subject.architecture.input_size
        macs = count_macs(subject.model, size).total / count_macs(student, size).total
        result = compressor.finetuning(student, {"row": asdict(row)}).run(row.method)
        (log,) = (folder / "checkpoints").glob(f"*.{LOG}")
        shutil.copy(log, folder / LOG)
        shutil.rmtree(folder / "checkpoints")
        student = student.cpu().eval()
        figures = {
            "top1": top1(student, subject, self.test),
            "macs_ratio": macs,
            "params": sum(parameter.numel() for parameter in student.parameters()),
            "steps": result.steps,
            "loss": result.loss,
            "images_per_second": result.images_per_second,
            "training_seconds": result.seconds,
        }
        return student, figures


def settings_of(row: Row, **changes: Any) -> CaitSettings:
    return CaitSettings.model_validate({"training": TrainingRecipe(epochs=row.epochs, lr=row.lr), **changes})


@torch.no_grad()
def top1(model: TimmModule, subject: Subject, test: Path) -> float:
    right = seen = 0
    for batch in batches(open_source(test, "test"), subject.preprocessing, 250, CorruptImages()):
        right += int((model(batch.images).argmax(1) == batch.labels).sum())
        seen += len(batch.labels)
    return 100 * right / seen


def _control(study: Study, row: Row) -> dict[str, Any]:
    student, figures = study.train_alike(row, lambda model: model)
    save_file(student.state_dict(), study.folder(row) / TRAINED)
    return figures


def _control_of(study: Study, row: Row) -> Path:
    return study.folder(replace(row, method="control", macs_reduction=0.0)) / TRAINED


def _trained_first(study: Study, row: Row) -> dict[str, Any]:
    """The control, narrowed when its training is over: what narrowing alone costs, on equal weights."""
    control = _control_of(study, row)
    if not control.is_file():
        raise click.ClickException(f"{row}: its control has to be trained first, into the same --folders")
    untrained = TrainingRecipe(epochs=0)
    return study.compress(
        row, Target(macs_reduction=row.macs_reduction), checkpoint=control, training=untrained.model_dump()
    )


def _control_label_free(study: Study, row: Row) -> dict[str, Any]:
    """Taught by itself: only weight decay and rounding move it."""
    return study.train_alike(row, lambda model: model, labels=False)[1]


def _cait(
    study: Study, row: Row, *, keep_heads: bool = False, after: int | None = None, **changes: Any
) -> dict[str, Any]:
    """`after`: with a merge there, though the search finds that none pays on a grid of 8 × 8."""
    merge = None if after is None else f"horizontal@{after}"
    target = Target(macs_reduction=row.macs_reduction, keep_heads=keep_heads, merge=merge)
    return study.compress(row, target, **changes)


def _as_published(study: Study, row: Row) -> dict[str, Any]:
    return study.compress(row, Target(macs_reduction=row.macs_reduction), **AS_PUBLISHED)


def _as_published_label_free(study: Study, row: Row) -> dict[str, Any]:
    return study.compress(row, Target(macs_reduction=row.macs_reduction), labels=False, **AS_PUBLISHED)


def _merging_alone(study: Study, row: Row) -> dict[str, Any]:
    return study.compress(row, Target(macs_reduction=row.macs_reduction), prune=False, **AS_PUBLISHED)


def _pruning_alone(study: Study, row: Row) -> dict[str, Any]:
    return study.compress(row, Target(macs_reduction=row.macs_reduction, merge="none"), **AS_PUBLISHED)


def _after_few_shot(study: Study, row: Row) -> dict[str, Any]:
    return _few_shot_then(study, row, 0.40, "horizontal@9")


def _after_few_shot_merging_last(study: Study, row: Row) -> dict[str, Any]:
    return _few_shot_then(study, row, 0.45, "horizontal@11")


def _few_shot_then(study: Study, row: Row, share: float, merge: str) -> dict[str, Any]:
    """The MLPs are narrowed on 500 unlabelled images; then tokens merge once, and all is trained together."""
    start = study.folder(row).with_name(study.folder(row).name + "-start")
    if not ModelFolder.is_one(start):
        compress(
            MODEL,
            study.data / "cifar10" / "train-0.tar",
            out=start,
            target=Target(macs_reduction=share, keep_heads=True),
            settings=SearchSettings(),
            seed=row.seed,
            model_kwargs=MODEL_KWARGS,
            checkpoint=study.checkpoint,
            overwrite=True,
        )
    wanted = 1 - (1 - row.macs_reduction) / (1 - share)
    return study.compress(row, Target(macs_reduction=wanted, merge=merge), model=start, **AS_PUBLISHED)


def _uniform(study: Study, row: Row) -> dict[str, Any]:
    subject = open_shapes(MODEL, MODEL_KWARGS)
    target = Target(macs_reduction=row.macs_reduction, merge="none")
    proposal = propose_jointly(subject, target, PUBLISHED, stand_in_merges(subject, target, PUBLISHED), trained=True)
    return study.compress(row, Target(plan=proposal.uniform(), merge="none"))


def _tome(study: Study, row: Row) -> dict[str, Any]:
    size = study.subject().architecture.input_size

    def make(model: TimmModule) -> ToMe:
        whole = count_macs(model, size).total
        shares = {r / 12: 1 - count_macs(ToMe(model, r / 12), size).total / whole for r in range(12, 84)}
        return ToMe(model, min(shares, key=lambda r: abs(shares[r] - row.macs_reduction)))

    student, figures = study.train_alike(row, make)
    save_file(student.state_dict(), study.folder(row) / TOME)
    return figures | {"r": student.r}


METHODS: dict[str, Callable[[Study, Row], dict[str, Any]]] = {
    "control": _control,
    "control, label-free": _control_label_free,
    "CAIT": _cait,
    "CAIT, trained first": _trained_first,
    "CAIT, label-free": partial(_cait, labels=False),
    "CAIT, heads kept": partial(_cait, keep_heads=True),
    "CAIT, heads kept, label-free": partial(_cait, keep_heads=True, labels=False),
    "CAIT, heads kept, merging at 10": partial(_cait, keep_heads=True, after=10),
    "CAIT, heads kept, merging at 8": partial(_cait, keep_heads=True, after=8),
    "CAIT, recipe paper": _as_published,
    "CAIT, recipe paper, label-free": _as_published_label_free,
    "merging alone": _merging_alone,
    "pruning alone": _pruning_alone,
    "ToMe": _tome,
    "uniform widths": _uniform,
    "few-shot, then CAIT": _after_few_shot,
    "few-shot, then CAIT, merging last": _after_few_shot_merging_last,
}


def bench(study: Study, row: dict[str, Any], max_seconds: float) -> dict[str, Any]:
    """A row's model against the teacher, in turn: ONNX Runtime on the CPU, fp32, batch 64."""
    about = Row(**{name: row[name] for name in Row.__dataclass_fields__})
    path, subject = study.folder(about), study.subject()
    if about.method != "ToMe":
        export(path)
        return benchmark(path, max_seconds=max_seconds).rows[0].to_json()
    # No plan describes ToMe, so its graph takes the place of the teacher's in a folder of the teacher.
    model = ToMe(subject.model, row["r"])
    model.load_state_dict(load_file(path / TOME))
    with temporary_folder(subject.model, subject.plan, subject.preprocessing) as folder:
        export(folder)
        name = Variant().onnx_name
        images = torch.randn(DEFAULT_BATCH, *subject.architecture.input_size)
        names = {"input_names": ["images"], "output_names": ["logits"]}
        program = torch.onnx.export(model.eval(), (images,), dynamo=True, verbose=False, **names)
        assert program is not None
        folder.add(name, lambda aside: program.save(str(aside)), folder.manifest.exports[name])
        return benchmark(ModelFolder(folder.path), MODEL, max_seconds=max_seconds).rows[0].to_json()


@torch.no_grad()
def against_teacher(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    """How far a row's model went from the teacher on the test images, where no label has a say."""
    path, subject = study.folder(Row(**{name: row[name] for name in Row.__dataclass_fields__})), study.subject()
    student = ModelFolder(path).load()
    same = seen = 0
    kl = 0.0
    for batch in batches(open_source(study.test, "test"), subject.preprocessing, 250, CorruptImages()):
        taught, said = subject.model(batch.images), student(batch.images)
        same += int((taught.argmax(1) == said.argmax(1)).sum())
        kl += divergence(said, taught) * len(said)
        seen += len(said)
    return {"agreement": 100 * same / seen, "kl": kl / seen}


@torch.no_grad()
def against_control(study: Study, row: Row) -> dict[str, int]:
    """Test images that a control alone gets right, and that its narrowed form alone does."""
    subject, student = study.subject(), ModelFolder(study.folder(row)).load()
    subject.model.load_state_dict(load_file(_control_of(study, row)))
    lost = won = 0
    for batch in batches(open_source(study.test, "test"), subject.preprocessing, 250, CorruptImages()):
        before, after = (model(batch.images).argmax(1) == batch.labels for model in (subject.model, student))
        lost += int((before & ~after).sum())
        won += int((after & ~before).sum())
    return {"control_alone_right": lost, "alone_right": won}


class _Lines:
    """Progress as lines."""

    def __init__(self) -> None:
        self._told = 0.0

    def track(self, items: Any, description: str, total: int | None) -> Any:  # noqa: ARG002
        yield from items

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def status(self, text: str) -> None:
        if time.perf_counter() - self._told > 60:
            self._told = time.perf_counter()
            click.echo(text, err=True)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--folders", type=click.Path(path_type=Path), default=Path("runs/cait"), show_default=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True, default=list(METHODS))
@click.option("--epochs", default=2.0, show_default=True)
@click.option("--shards", type=click.IntRange(1, 5), default=5, show_default=True, help="Of 10,000 images each.")
@click.option("--macs-reduction", default=0.47, show_default=True)
@click.option("--lr", default=5e-4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--part", type=(int, int), default=(0, 1), help="I N: only every N-th row, for N processes side by side.")
@click.option("--bench", "bench_only", is_flag=True, help="Time the models of the rows that have no latency yet.")
@click.option("--agreement", is_flag=True, help="Compare the models of the rows with the teacher, image by image.")
@click.option("--max-seconds", default=60.0, show_default=True, help="Of timing, for each row.")
def main(
    data: Path, out: Path, folders: Path, methods: tuple[str, ...], epochs: float, shards: int, macs_reduction: float,
    lr: float, seed: int, part: tuple[int, int], bench_only: bool, agreement: bool, max_seconds: float,
) -> None:  # fmt: skip
    study = Study(data, folders)
    if bench_only:
        _bench_all(study, out, max_seconds)
        return
    if agreement:
        _compare_all(study, out)
        return
    if not out.exists():
        teacher = evaluate(MODEL, study.test, batch=250, model_kwargs=MODEL_KWARGS, checkpoint=study.checkpoint)
        save(out, {"teacher_top1": teacher.top1, "test_images": teacher.images, "versions": package_versions(),
                   "machine": this_machine().to_json(), "rows": []})  # fmt: skip
    for method in methods[part[0] :: part[1]]:
        row = Row(method, 0.0 if method.startswith("control") else macs_reduction, epochs, shards, lr, seed)
        if any(asdict(row).items() <= done.items() for done in json.loads(out.read_text())["rows"]):
            continue
        with reporting_to(_Lines()):
            found = study.run(row)
        report = json.loads(out.read_text())  # another process may have added rows meanwhile
        report["rows"].append(found)
        save(out, report)
        click.echo(f"{row}: top-1 {found['top1']:.2f} ({report['teacher_top1']:.2f}), {found['seconds']} s")


def _bench_all(study: Study, out: Path, max_seconds: float) -> None:
    for number, row in enumerate(json.loads(out.read_text())["rows"]):
        if row["method"].startswith("control") or row["seed"] or "bench" in row:  # seeds differ little in structure
            continue
        found = bench(study, row, max_seconds)
        report = json.loads(out.read_text())
        report["rows"][number]["bench"] = found
        save(out, report)
        low, high = found["speedup_ci95"]
        click.echo(f"{row['method']}: MACs ×{row['macs_ratio']:.3f}, ×{found['speedup']:.3f} [{low:.3f}, {high:.3f}]")


def _compare_all(study: Study, out: Path) -> None:
    for number, row in reversed(list(enumerate(json.loads(out.read_text())["rows"]))):  # the newest first
        about = Row(**{name: row[name] for name in Row.__dataclass_fields__})
        if "agreement" in row or not ModelFolder.is_one(study.folder(about)):
            continue
        found = against_teacher(study, row)
        if about.method == "CAIT, trained first":
            found |= against_control(study, about)
        report = json.loads(out.read_text())
        report["rows"][number] |= found
        save(out, report)
        click.echo(f"{about}: the teacher's class for {found['agreement']:.2f} %, KL {found['kl']:.5f} nats")


if __name__ == "__main__":
    main()
