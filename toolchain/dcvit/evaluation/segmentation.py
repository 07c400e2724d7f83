"""Agreement of predicted with true masks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dcvit.agreement import finite
from dcvit.data import CorruptImages
from dcvit.data.masks import IGNORE, mask_batches
from dcvit.data.protocols import MaskSource
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track
from dcvit.runtimes import Session


@dataclass(frozen=True)
class MaskAgreement:
    """Over all pixels of all images that count, at the model's input size; shares in percent.

    Attributes:
        miou: Intersection over union, the mean over the classes that occur in a mask or a prediction.
        pixel_accuracy: Share of the pixels whose class has the largest score.
        iou: Intersection over union of each class; 0 for one that does not occur.
        images: How many there were.
        not_finite: Images with a logit that is NaN or infinite; its pixel counts as wrong.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    images: int
    not_finite: int


def compare_masks(
    session: Session,
    source: MaskSource,
    preprocessing: Preprocessing,
    num_classes: int,
    corrupt: CorruptImages,
    description: str,
) -> MaskAgreement:
    """Runs a segmentation model over images with masks; pixels of class 255 do not count.

    Args:
        session: The model in a runtime.
        source: Images and masks.
        preprocessing: How an image becomes the model's input.
        num_classes: That the model tells apart.
        corrupt: Takes the images that cannot be decoded.
        description: For the progress bar.

    Raises:
        InputError: If no image can be decoded, or a mask is missing or holds a class that the model does not know.
    """
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    images = broken = 0
    batches = mask_batches(source, preprocessing, num_classes, session.batch, corrupt)
    for batch in track(batches, description, math.ceil(len(source) / session.batch)):
        logits = session.infer(batch.images)
        whole = finite(logits)
        # Any class but the true one.
        found_classes = torch.where(whole, logits.argmax(1), (batch.masks + 1) % num_classes)
        counts += _pixels(batch.masks, found_classes, num_classes)
        broken += int((~whole).flatten(1).any(1).sum())
        images += len(batch.images)
    right = counts.diagonal().double()
    either = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = 100 * right / either.clamp(min=1)
    return MaskAgreement(
        miou=float(iou[either > 0].mean()) if either.any() else 0.0,
        pixel_accuracy=100 * float(right.sum() / counts.sum().clamp(min=1)),
        iou=tuple(iou.tolist()),
        images=images,
        not_finite=broken,
    )


def _pixels(masks: Tensor, found: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each class (rows) were found to be of each (columns): [classes, classes]."""
    counted = masks != IGNORE
    pairs = masks[counted].long() * num_classes + found[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
