"""How a model is trained on labels, on its teacher's outputs, or on both."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dcvit.flags import Flag
from dcvit.plan import Task as TaskName
from dcvit.preprocessing import Preprocessing

Augmentation = Literal["deit", "crop", "none"]
SMALL_INPUT = 64
"""Inputs of at most so many pixels a side are cropped with padding rather than resized at random."""


class TrainingRecipe(BaseModel):
    """Optimiser, augmentation and length of a training; the values are DeiT's (arXiv 2012.12877) but for lr and epochs.

    `deit` augmentation is random resized crops, flips, RandAugment and random erasing, as timm makes them; `crop`
    shifts by an eighth of the side and flips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[float, Flag()] = Field(
        default=30.0, ge=0, description="Passes over the images; 0.5 is half of one."
    )
    batch_size: Annotated[int, Flag()] = Field(
        default=128, ge=1, description="Images an optimiser step, over all processes and parts."
    )
    accumulate: Annotated[int, Flag(metavar="K")] = Field(
        default=1, ge=1, description="Compute a batch in so many parts, one after the other, for less memory."
    )
    lr: Annotated[float, Flag()] = Field(
        default=2e-4, gt=0, description="Peak learning rate of AdamW; it falls to 0 along a cosine."
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Not on norms, biases, embeddings and compactors.")
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises."
    )
    clip_norm: float = Field(default=1.0, ge=0, description="Largest norm of the gradient; 0 turns clipping off.")
    augmentation: Annotated[Augmentation | None, Flag(default=f"crop up to {SMALL_INPUT} pixels, else deit")] = Field(
        default=None, description="DeiT's, or shifts and flips."
    )
    label_smoothing: Annotated[float, Flag()] = Field(
        default=0.1, ge=0, lt=1, description="Share of the target that is spread over all classes."
    )
    mixup: Annotated[float | None, Flag(metavar="A", default="0.8 with deit")] = Field(
        default=None, ge=0, description="Parameter α of mixup; 0 turns it off."
    )
    cutmix: Annotated[float | None, Flag(metavar="A", default="1.0 with deit")] = Field(
        default=None, ge=0, description="Parameter α of CutMix; 0 turns it off."
    )
    distill: Annotated[float, Flag(metavar="W")] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the uncompressed model's outputs (KL at τ = 1) against the labels; without labels they "
        "are all there is.",
    )
    ema: Annotated[float, Flag(metavar="D")] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the weights that is kept in the end; 0 keeps the last weights.",
    )

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
    """How a student mimics its teacher's features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=64, ge=1, description="Images a step, over all processes.")
    lr: float = Field(default=3e-5, gt=0, description="Peak learning rate of AdamW; it falls to 0 along a cosine.")
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    loss_warmup_epochs: float = Field(
        default=20.0, ge=0, description="The loss is scaled by min(epoch / this, 1); 0 turns it off."
    )
    logit_weight: float = Field(
        default=0.0, ge=0, description="Weight of KL(teacher ‖ student) on the logits, beside the MSE on the features."
    )
    clip_norm: float = Field(default=0.0, ge=0, description="Largest norm of the gradient; 0 turns clipping off.")
