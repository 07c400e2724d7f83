"""What is to be compressed, whichever way the user names it."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcvit.data import preprocessing_of
from dcvit.dense import SegmentationVit, attach_head
from dcvit.errors import InputError, first_line
from dcvit.families import Architecture, Family, family_of
from dcvit.files import base_name
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import as_if_trained, build, check_finite, create, identify, load_checkpoint
from dcvit.no_weights import no_weights
from dcvit.plan import CompressionPlan, HeadPlan
from dcvit.preprocessing import Preprocessing
from dcvit.settings import Weights
from dcvit.types import TimmModule


@dataclass(frozen=True)
class Subject:
    """A model, and what is known about it.

    Attributes:
        model: With its weights; on the meta device where only costs matter.
        plan: What the model itself is: the identity for a timm model, the folder's plan for a model folder.
        architecture: Of the uncompressed model.
        weights: Where the weights come from, in words.
        fresh_head: Whether the model has a segmentation head that was never trained.
        classes: Names of its classes, where a model folder knows them.
    """

    model: TimmModule
    plan: CompressionPlan
    family: Family
    architecture: Architecture
    preprocessing: Preprocessing
    weights: str
    fresh_head: bool = False
    classes: tuple[str, ...] | None = None


def open_subject(
    model: str | Path | nn.Module,
    *,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights: Weights = "pretrained",
    head: HeadPlan | None = None,
) -> Subject:
    """Loads a timm name, a model folder, or takes (a copy of) a timm module that is already in memory.

    Args:
        model: What to load.
        model_kwargs: For `timm.create_model`.
        checkpoint: Weights to load instead of timm's pretrained ones.
        weights: Without a checkpoint, timm's pretrained weights, or random ones as if trained (`as_if_trained`).
        head: A new segmentation head, with random weights, in place of the classifier.

    Raises:
        InputError: If there is no such model, it is not supported, or its weights cannot be loaded.
    """
    subject = _open(model, model_kwargs, checkpoint, weights)
    if head is None:
        return subject
    plan = subject.plan.replace(head=head)
    build(plan, device="meta")  # an architecture that cannot have one is an error that names it
    made = _subject(attach_head(subject.model, head), plan, f"{subject.weights}, a new {head.kind} head")
    return dataclasses.replace(made, fresh_head=True)


def _open(
    model: str | Path | nn.Module, model_kwargs: dict[str, Any] | None, checkpoint: Path | None, weights: Weights
) -> Subject:
    if isinstance(model, nn.Module) and isinstance(vars(model).get("compression_plan"), CompressionPlan):
        return _loaded(model)
    if isinstance(model, nn.Module):
        name, arguments = (_name_of(model), model_kwargs) if model_kwargs is not None else identify(model)
        head = model.head.plan if isinstance(model, SegmentationVit) else None
        plan = CompressionPlan(model=name, model_kwargs=arguments, head=head)
        check_finite(model.state_dict(), name)
        return _subject(copy.deepcopy(model).eval(), plan, "in memory")
    if ModelFolder.is_one(model):
        if model_kwargs is not None or weights != "pretrained":
            raise InputError(f"{model} is a model folder; leave out --model-kwargs and --random-init")
        folder = ModelFolder(model)
        module, words = folder.load(), f"model folder {base_name(model)}"
        if checkpoint is not None:
            load_checkpoint(module, checkpoint)
            words += f", checkpoint {checkpoint.name}"
        opened = _subject(module, folder.plan, words)
        return dataclasses.replace(opened, classes=folder.manifest.classes)
    plan = CompressionPlan(model=str(model), model_kwargs=model_kwargs or {})
    pretrained = weights == "pretrained" and checkpoint is None
    if pretrained:
        family_of(build(plan, device="meta"))  # a wrong name or argument is found before anything is downloaded
    module = create(plan.model, plan.model_kwargs, pretrained=pretrained)
    if checkpoint is not None:
        load_checkpoint(module, checkpoint)
    elif not pretrained:
        as_if_trained(module)  # random weights are there to be timed
    return _subject(module, plan, f"checkpoint {checkpoint.name}" if checkpoint else weights)


def _loaded(model: TimmModule) -> Subject:
    """A model that came out of a folder, and may have been trained since.

    Raises:
        InputError: If its layers are not those of the plan any more.
    """
    plan: CompressionPlan = vars(model)["compression_plan"]
    expected = {name: tensor.shape for name, tensor in build(plan, device="meta").state_dict().items()}
    found = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if differs := next((name for name in expected | found if expected.get(name) != found.get(name)), None):
        raise InputError(f"'{differs}' of the model is not what it was when dcvit.load gave it; load it again")
    check_finite(model.state_dict(), plan.model)
    subject = _subject(copy.deepcopy(model).cpu().eval(), plan, "in memory, from a model folder")
    return dataclasses.replace(subject, classes=model.pretrained_cfg.get("label_names"))


def open_shapes(model: str | Path, model_kwargs: dict[str, Any] | None = None) -> Subject:
    """The same without weights, on the meta device: enough to count costs."""
    if ModelFolder.is_one(model):
        plan = ModelFolder(model).plan
    else:
        plan = CompressionPlan(model=str(model), model_kwargs=model_kwargs or {})
    return _subject(build(plan, device="meta"), plan, "none")


def _subject(model: TimmModule, plan: CompressionPlan, weights: str) -> Subject:
    original = build(plan.original(), device="meta")
    family = family_of(original)
    architecture = family.architecture(original)
    _check_forward(original, plan.model, architecture)
    preprocessing = preprocessing_of(original, architecture.input_size)
    if plan.task == "segmentation":  # every pixel of an image counts
        preprocessing = preprocessing.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
    return Subject(model, plan, family, architecture, preprocessing, weights)


def _check_forward(original: TimmModule, name: str, architecture: Architecture) -> None:
    """Runs timm's own forward on the meta device, which costs nothing: later a fault would look like one of ours.

    Raises:
        InputError: If it cannot take the images that the model is built for.
    """
    channels, height, width = architecture.input_size
    try:
        with torch.no_grad():
            original(torch.empty(1, channels, height, width, device="meta"))
    except Exception as error:  # whatever timm and torch throw
        raise InputError(
            f"{name} as it is built cannot take images of {height}×{width} with {channels} channels: "
            f"{first_line(error)}; check --model-kwargs (img_size, patch_size, in_chans, …)"
        ) from error


def _name_of(model: TimmModule) -> str:
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__))


def original_of(plan: CompressionPlan) -> TimmModule:
    """The uncompressed model of a plan on the meta device: what a family reads its numbers off."""
    with no_weights():
        return create(plan.model, plan.model_kwargs)
