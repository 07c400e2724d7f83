"""Accuracy on labelled images, through any runtime."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dcvit.artifacts import DEFAULT_BATCH, Precision, check_batch, check_precision
from dcvit.data import CorruptImages, ImageSource, batches, open_source
from dcvit.errors import InputError
from dcvit.exporting.temporary import export_for, temporary_folder
from dcvit.folder import ModelFolder
from dcvit.progress import track
from dcvit.runtimes import Runtime, Session, runtime_named
from dcvit.subject import Weights, open_subject, original_of


@dataclass(frozen=True)
class EvaluateResult:
    """Accuracy of one model on one set of images.

    Attributes:
        top1: Share of the images whose label has the largest logit, in percent.
        top5: The same for the five largest (fewer where the model has fewer classes), in percent.
        images: How many were used.
        corrupt: How many were skipped because they cannot be decoded.
        device: What computed.
    """

    model: str
    data: str
    top1: float
    top5: float
    images: int
    corrupt: int
    runtime: str
    precision: Precision
    device: str

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return dict(vars(self))

    def lines(self) -> Iterable[Any]:
        """The accuracy, and on what."""
        yield (
            f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % on {self.images} images of {self.data} "
            f"({self.model}, {self.runtime} {self.precision}, {self.device})"
        )
        if self.corrupt:
            yield f"{self.corrupt} images were skipped: they cannot be decoded"


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path | ImageSource,
    *,
    runtime: str = "torch",
    precision: Precision = "fp32",
    batch: int = DEFAULT_BATCH,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights: Weights = "pretrained",
) -> EvaluateResult:
    """Counts how often a model is right.

    Args:
        model: A model folder, a timm name, or a timm module in memory.
        data: A folder of class folders, a tar of one, or `digits` (its test split). Classes are numbered by name.
        runtime: One of `dcvit.runtimes.RUNTIMES`; a model folder must hold the file that it runs.
        precision: Of the computation.
        batch: Images in every batch; names the exported file.
        model_kwargs: For a timm name.
        checkpoint: Weights for a timm name.
        weights: For a timm name without a checkpoint.

    Raises:
        InputError: If the model or the data cannot be read, the images have no labels or not as many classes as the
            model, or the runtime cannot run here.
    """
    check_batch(batch)
    check_precision(precision)
    chosen = runtime_named(runtime)
    source = open_source(data, "test")
    with _opened(model, chosen, batch, precision, model_kwargs, checkpoint, weights) as (folder, session):
        _check_classes(folder, source)
        corrupt = CorruptImages()
        right1 = right5 = seen = 0
        read = batches(source, folder.manifest.preprocessing, session.batch, corrupt)
        for images in track(read, f"evaluating with {runtime}", math.ceil(len(source) / session.batch)):
            logits = session.infer(images.images)
            best = logits.topk(min(5, logits.shape[1])).indices == images.labels[:, None]
            right1 += int(best[:, 0].sum())
            right5 += int(best.any(1).sum())
            seen += len(logits)
        return EvaluateResult(
            model=model.__class__.__name__ if isinstance(model, nn.Module) else str(model),
            data=source.name,
            top1=100 * right1 / seen,
            top5=100 * right5 / seen,
            images=seen,
            corrupt=len(corrupt.names),
            runtime=runtime,
            precision=precision,
            device=session.device,
        )


@contextmanager
def _opened(
    model: str | Path | nn.Module,
    runtime: Runtime,
    batch: int,
    precision: Precision,
    model_kwargs: dict[str, Any] | None,
    checkpoint: Path | None,
    weights: Weights,
) -> Iterator[tuple[ModelFolder, Session]]:
    if not isinstance(model, nn.Module) and ModelFolder.is_one(model):
        if model_kwargs is not None or checkpoint is not None or weights != "pretrained":
            raise InputError(
                f"{model} is a model folder and has weights of its own; "
                "leave out --checkpoint, --random-init and --model-kwargs"
            )
        folder = ModelFolder(model)
        yield folder, runtime.open(folder, batch, precision)
        return
    subject = open_subject(model, model_kwargs=model_kwargs, checkpoint=checkpoint, weights=weights)
    with temporary_folder(subject.model, subject.plan, subject.preprocessing) as folder:
        export_for(runtime, folder, batch, precision)
        yield folder, runtime.open(folder, batch, precision)


def _check_classes(folder: ModelFolder, source: ImageSource) -> None:
    classes = len(source.classes)
    if classes < 2:
        raise InputError(
            f"--data: the images of {source.name} have no labels; evaluate needs one folder for each class"
        )
    expected = original_of(folder.plan).num_classes
    if classes != expected:
        raise InputError(
            f"--data: {source.name} has {classes} classes and the model {expected}; "
            "give the data that the model was trained for"
        )
