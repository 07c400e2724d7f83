"""How a model is trained on labels, on its teacher's outputs, or on both."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dcvit.plan import Task as TaskName
from dcvit.preprocessing import Preprocessing

Augmentation = Literal["deit", "crop", "none"]
SMALL_INPUT = 64
"""Inputs of at most so many pixels a side are cropped with padding rather than resized at random."""


class TrainingRecipe(BaseModel):
    """Optimiser, augmentation and length of a training; the values are DeiT's (arXiv 2012.12877) but for lr and epochs.

    Attributes:
        epochs: Passes over the images; 0.5 is half of one.
        batch_size: Images an optimiser step, over all processes.
        accumulate: Parts that a batch is computed in, one after the other, for less memory.
        lr: Peak learning rate of AdamW; it falls to 0 along a cosine.
        weight_decay: Not on norms, biases, embeddings and compactors.
        warmup: Share of the steps over which the learning rate rises.
        clip_norm: Largest norm of the gradient; 0 turns clipping off.
        augmentation: `deit` is random resized crops, flips, RandAugment and random erasing, as timm makes them; `crop`
            shifts by an eighth of the side and flips; None takes `crop` for inputs up to 64 pixels, else `deit`.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Parameter α of mixup, and of CutMix in `cutmix`; 0 turns it off, None goes with the augmentation.
        distill: Weight w of KL(teacher ‖ student) at τ = 1 beside (1 − w) times the cross-entropy; without labels
            the KL is all there is.
        ema: Decay of the moving average of the weights that is kept in the end; 0 keeps the last weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(default=30.0, ge=0)
    batch_size: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, ge=0)
    augmentation: Augmentation | None = None
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    mixup: float | None = Field(default=None, ge=0)
    cutmix: float | None = Field(default=None, ge=0)
    distill: float = Field(default=0.5, ge=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)

    def steps(self, images: int) -> int:
        """Optimiser steps over so many images; at least one, unless there are no epochs."""
        return max(1, round(self.epochs * images / self.batch_size)) if self.epochs else 0

    def resolved(self, preprocessing: Preprocessing, task: TaskName = "classification") -> "TrainingRecipe":
        """The same with the values that stand for None; masks are never mixed by default."""
        small = max(preprocessing.input_size[1:]) <= SMALL_INPUT
        augmentation: Augmentation = self.augmentation or ("crop" if small else "deit")
        mixes = augmentation == "deit" and task == "classification"
        mixing = {"mixup": 0.8, "cutmix": 1.0} if mixes else {"mixup": 0.0, "cutmix": 0.0}
        chosen: dict[str, Any] = {
            name: value if getattr(self, name) is None else getattr(self, name) for name, value in mixing.items()
        }
        return self.model_copy(update={"augmentation": augmentation, **chosen})


class MimicRecipe(BaseModel):
    """How a student is trained.

    Attributes:
        batch_size: Images a step, over all processes.
        lr: Peak learning rate of AdamW; it falls to 0 along a cosine.
        warmup: Share of the steps over which the learning rate rises.
        loss_warmup_epochs: The loss is scaled by min(epoch / this, 1); 0 turns it off.
        logit_weight: Weight of KL(teacher ‖ student) on the logits, beside the MSE on the features.
        clip_norm: Largest norm of the gradient; 0 turns clipping off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=3e-5, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    loss_warmup_epochs: float = Field(default=20.0, ge=0)
    logit_weight: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=0.0, ge=0)
