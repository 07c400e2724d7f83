"""Which segmentation head a model gets and how it undoes merges, by what the user asks for and what the model is."""

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from dcvit.data import ImageSource
from dcvit.data.masks import count_classes, with_masks
from dcvit.dense.segmentation import SegmentationVit
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import HeadKind, HeadPlan, Task, Unmerge
from dcvit.subject import Subject


def new_head(
    model: str | Path | nn.Module,
    task: Task | None,
    head: HeadPlan | HeadKind | None,
    model_kwargs: dict[str, Any] | None,
    source: ImageSource | None,
) -> HeadPlan | None:
    """The segmentation head that a model gets; None where it keeps its own.

    Raises:
        InputError: If the task is not the model's and cannot become it, or nothing tells the classes of a pixel.
    """
    if isinstance(model, nn.Module):
        own: Task = "segmentation" if isinstance(model, SegmentationVit) else "classification"
    else:
        own = ModelFolder(model).plan.task if ModelFolder.is_one(model) else "classification"
    wanted = task or ("segmentation" if head is not None else own)
    if own == "segmentation":
        if wanted != own or head is not None:
            raise InputError("MODEL is a segmentation model already and keeps its head; leave out --task and --head")
        return None
    if wanted == "classification":
        if head is not None:
            raise InputError("--head is for --task segmentation")
        return None
    if isinstance(head, HeadPlan):
        return head
    classes = (model_kwargs or {}).get("num_classes")
    if classes is None and source is not None:
        classes = count_classes(with_masks(source))
    if classes is None:
        raise InputError("--task segmentation: give --data with masks, or num_classes in --model-kwargs")
    try:
        return HeadPlan(kind=head or "linear", num_classes=classes)
    except ValidationError as error:
        raise InputError(f"--task segmentation: {error.errors()[0]['msg']}, and there are {classes} classes") from error


def undoing_merges(subject: Subject, how: Unmerge | None) -> Subject:
    """The model with a head that undoes merges as asked; by default `residual`, where none was made before.

    A model without merges computes the same whichever way it is.

    Raises:
        InputError: If it is a classifier, whose head needs no full grid.
    """
    head = subject.plan.head
    if head is None:
        if how is not None:
            raise InputError("--unmerge is for segmentation, whose head reads the full grid")
        return subject
    said = subject.plan.merges or "unmerge" in head.model_fields_set
    new = head.model_copy(update={"unmerge": how or (head.unmerge if said else "residual")})
    subject.model.head.plan = new
    return dataclasses.replace(subject, plan=subject.plan.replace(head=new))
