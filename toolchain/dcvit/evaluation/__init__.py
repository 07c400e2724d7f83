"""Accuracy on labelled images or masks, through any runtime."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcvit.agreement import finite
from dcvit.class_map import read_class_map
from dcvit.data import CorruptImages, Images, ImageSource, batches, check_order, fits, open_source
from dcvit.data.masks import with_masks
from dcvit.errors import InputError
from dcvit.evaluation.interval import packed, share_interval
from dcvit.evaluation.segmentation import compare_masks
from dcvit.exporting.for_runtime import export_for
from dcvit.folder.findings import note_evaluation
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.progress import track
from dcvit.runtimes import Session, runtime_named
from dcvit.runtimes.choice import choose_variant
from dcvit.settings import Weights
from dcvit.subject import open_subject, original_of
from dcvit.variant import DEFAULT_BATCH, Precision, Variant


@dataclass(frozen=True)
class EvaluateResult:
    """Accuracy of one model on one set of images.

    Attributes:
        figures: Shares in percent: `top1` and `top5` of a classifier, `miou` and `pixel_accuracy` of a segmentation
            model.
        images: How many were used.
        corrupt: How many were skipped because they cannot be decoded.
        device: What computed.
        iou: Intersection over union of each class in percent, for a segmentation model.
        not_finite: Images with a logit that is NaN or infinite: their classes, or those of their pixels where this is
            so, count as wrong.
        batch: Images in every batch.
        right: Which images a classifier is right on (`interval.packed`); empty for segmentation.
    """

    model: str
    data: str
    figures: dict[str, float]
    images: int
    corrupt: int
    runtime: str
    precision: Precision
    device: str
    iou: tuple[float, ...] = ()
    not_finite: int = 0
    batch: int = DEFAULT_BATCH
    right: str = ""

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """The 95 % interval of `top1`, in percent."""
        return share_interval(round(self.top1 * self.images / 100), self.images)

    @property
    def passed(self) -> bool:
        """Whether every logit is finite; where one is not, the model is broken, however high the figures."""
        return not self.not_finite

    @property
    def top1(self) -> float:
        """Share of the images whose label has the largest logit, in percent."""
        return self.figures["top1"]

    @property
    def top5(self) -> float:
        """The same for the five largest (fewer where the model has fewer classes), in percent."""
        return self.figures["top5"]

    @property
    def miou(self) -> float:
        """Mean intersection over union of a segmentation model, in percent."""
        return self.figures["miou"]

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        fields = dict(vars(self))
        classes = {"iou": list(self.iou)} if self.iou else {}
        interval = {"top1_ci95": list(self.top1_ci95)} if "top1" in self.figures else {}
        kept = {name: value for name, value in fields.items() if name not in ("figures", "iou", "right")}
        return self.figures | interval | kept | classes

    def to_record(self) -> dict[str, Any]:
        """What a model folder keeps: the same, and which images are right."""
        return self.to_json() | {"right": self.right}

    def lines(self) -> Iterable[Any]:
        """The accuracy, and on what."""
        shares = ", ".join(f"{_IN_WORDS[name]} {share:.2f} %" for name, share in self.figures.items())
        if "top1" in self.figures:
            low, high = self.top1_ci95
            shares = shares.replace(" %", f" % [{low:.2f}, {high:.2f}]", 1)
        yield (
            f"{shares} on {self.images} images of {self.data} "
            f"({self.model}, {self.runtime} {self.precision}, {self.device})"
        )
        if self.iou:
            yield "IoU of each class: " + ", ".join(f"{label}: {share:.2f} %" for label, share in enumerate(self.iou))
        if self.corrupt:
            yield f"{self.corrupt} images were skipped: they cannot be decoded"
        if self.not_finite:
            yield (
                f"failed: {self.not_finite} of {self.images} images have logits that are not finite (NaN or infinity), "
                "and count as wrong; fp16 overflows in some models, so try another --precision"
            )


_IN_WORDS = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}


def evaluate(
    model: str | Path | nn.Module,
    data: Images,
    *,
    runtime: str = "torch",
    precision: Precision | None = None,
    with_preprocessing: bool | None = None,
    batch: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights: Weights = "pretrained",
    mask_values: tuple[int, ...] | None = None,
    ignore_index: int | None = None,
    class_map: str | Path | Mapping[str, int] | Sequence[str] | None = None,
) -> EvaluateResult:
    """Counts how often a classifier is right; of a segmentation model, the mean intersection over union.

    What was found of a model folder is kept in it, in `evaluations.json`.

    Args:
        model: A model folder, a timm name, or a module in memory: timm's own, or one that `dcvit.load` gave.
        data: A folder of class folders, a tar of one, or `digits` (its test split). Classes are numbered by name. For a
            segmentation model a folder or tar with `images/` and `masks/`, `shapes` or `thin-shapes` (the test split).
        runtime: One of `dcvit.runtimes.RUNTIMES`; a model folder must hold the file that it runs.
        precision: Of the computation; by default fp32, or that of the exported file that is there (the newest).
        with_preprocessing: Run the exported file that takes pixels, or one that does not; by default what is there.
        batch: Images in every batch; names the exported file. By default 64, or that of the file that is there.
        model_kwargs: For a timm name.
        checkpoint: Weights for a timm name.
        weights: For a timm name without a checkpoint.
        mask_values: Values in mask files that stand for class 0, 1, …; by default the indices themselves.
        ignore_index: Value in mask files of pixels that do not count; by default 255, if that is no class.
        class_map: Class names in the order of the model's outputs: a file (see `read_class_map`), or the names. By
            default they are numbered by name, and compared with those that a model folder knows.

    Raises:
        InputError: If the model or the data cannot be read, the images have no labels, not as many classes as the
            model or in another order than a model folder knows, or the runtime cannot run here.
    """
    wanted = {"batch": batch, "precision": precision, "with_preprocessing": with_preprocessing}
    Variant.model_validate({name: wish for name, wish in wanted.items() if wish is not None})  # before any is read
    chosen = runtime_named(runtime)
    names = read_class_map(class_map)
    source = open_source(data, "test", mask_values=mask_values, ignore_index=ignore_index, class_map=names)
    with _opened(model, model_kwargs, checkpoint, weights) as (folder, temporary):
        variant = choose_variant(
            chosen,
            None if temporary else folder,
            batch=batch,
            precision=precision,
            with_preprocessing=with_preprocessing,
        )
        if temporary:
            export_for(chosen, folder, variant)
        session = chosen.open(folder, variant)
        corrupt = CorruptImages()
        measure = _count_top if folder.plan.task == "classification" else _compare_masks
        figures, images, iou, broken, right = measure(folder, session, source, corrupt, f"evaluating with {runtime}")
        result = EvaluateResult(
            model=model.__class__.__name__ if isinstance(model, nn.Module) else str(model),
            data=source.name,
            figures=figures,
            images=images,
            corrupt=len(corrupt.names),
            runtime=runtime,
            precision=variant.precision,
            device=session.device,
            iou=iou,
            not_finite=broken,
            batch=variant.batch,
            right=right,
        )
        file = chosen.file(folder, variant).name
        note_evaluation(folder, result.to_record(), batch=variant.batch, file=file)
        return result


Figures = tuple[dict[str, float], int, tuple[float, ...], int, str]
"""Figures in percent, how many images they are of, the IoU of each class, images whose logits are not finite, and which
images a classifier is right on."""


def _count_top(
    folder: ModelFolder, session: Session, source: ImageSource, corrupt: CorruptImages, description: str
) -> Figures:
    _check_classes(folder, source)
    first: list[Tensor] = []
    right5 = broken = 0
    read = batches(source, folder.manifest.preprocessing, session.batch, corrupt)
    for images in track(read, description, math.ceil(len(source) / session.batch)):
        logits = session.infer(images.images)
        whole = finite(logits)
        best = (logits.topk(min(5, logits.shape[1])).indices == images.labels[:, None]) & whole[:, None]
        first.append(best[:, 0])
        right5 += int(best.any(1).sum())
        broken += int((~whole).sum())
    right = torch.cat(first).numpy()
    figures = {"top1": 100 * int(right.sum()) / len(right), "top5": 100 * right5 / len(right)}
    return figures, len(right), (), broken, packed(right)


def _compare_masks(
    folder: ModelFolder, session: Session, source: ImageSource, corrupt: CorruptImages, description: str
) -> Figures:
    assert folder.plan.head is not None
    classes = folder.plan.head.num_classes
    found = compare_masks(session, with_masks(source), folder.manifest.preprocessing, classes, corrupt, description)
    return {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}, found.images, found.iou, found.not_finite, ""


@contextmanager
def _opened(
    model: str | Path | nn.Module,
    model_kwargs: dict[str, Any] | None,
    checkpoint: Path | None,
    weights: Weights,
) -> Iterator[tuple[ModelFolder, bool]]:
    """A folder of the model, and whether it was made for the moment, so that nothing is exported yet."""
    if not isinstance(model, nn.Module) and ModelFolder.is_one(model):
        if model_kwargs is not None or checkpoint is not None or weights != "pretrained":
            raise InputError(
                f"{model} is a model folder and has weights of its own; "
                "leave out --checkpoint, --random-init and --model-kwargs"
            )
        yield ModelFolder(model), False
        return
    subject = open_subject(model, model_kwargs=model_kwargs, checkpoint=checkpoint, weights=weights)
    with temporary_folder(subject.model, subject.plan, subject.preprocessing) as folder:
        yield folder, True


def _check_classes(folder: ModelFolder, source: ImageSource) -> None:
    classes = len(source.classes)
    if classes < 2:
        raise InputError(
            f"--data: the images of {source.name} have no labels; evaluate needs one folder for each class"
        )
    expected = original_of(folder.plan).num_classes
    if not fits(source, expected):
        raise InputError(
            f"--data: {source.name} has {classes} classes and the model {expected}; "
            "give the data that the model was trained for, or --class-map FILE if it lacks some of the classes"
        )
    check_order(folder.manifest.classes, source, str(folder.path))
