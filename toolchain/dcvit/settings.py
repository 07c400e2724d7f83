"""Settings of every run, whatever its method: which weights, how many images, which seed, where results are kept."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer

from dcvit.class_map import read_class_map
from dcvit.flags import Flag
from dcvit.plan import HeadKind, HeadPlan, Task, Unmerge

Weights = Literal["pretrained", "random"]
Recovery = Literal["mimic", "train", "none"]

DEFAULT_SAMPLES = 500
"""Images that a few-shot method draws, and that widths and merges are weighed on."""


class WeightSettings(BaseModel):
    """Which weights a timm name gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: Annotated[Path | None, Flag(path="file")] = Field(
        default=None, description="Weights to load (.safetensors, or .pth of tensors); else timm's pretrained ones."
    )
    weights: Annotated[Weights, Flag("--random-init", value="random", default="")] = Field(
        default="pretrained", description="Random weights, for latency studies."
    )
    model_kwargs: Annotated[dict[str, Any] | None, Flag()] = Field(
        default=None, description="Arguments of timm.create_model, as JSON."
    )


def _numbers(value: Any) -> Any:
    """`0,255` as the command line has it, or numbers already."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class MaskSettings(BaseModel):
    """How masks are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_values: Annotated[
        tuple[int, ...] | None, BeforeValidator(_numbers), Flag(metavar="A,B,…", separated=True, default="0, 1, …")
    ] = Field(default=None, description="Values in mask files that stand for class 0, 1, …, as 0,255.")
    ignore_index: Annotated[int | None, Flag(metavar="V", default="255, if that is no class")] = Field(
        default=None, ge=0, le=255, description="Value in mask files of pixels that do not count."
    )


class LabelSettings(BaseModel):
    """How classes are numbered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_map: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(read_class_map),
        Flag(metavar="FILE", separated=True, default="numbered by name"),
    ] = Field(
        default=None,
        description="Class names in the order of the model's outputs, one a line (or NAME INDEX), as timm takes them.",
    )


class RunSettings(WeightSettings, MaskSettings, LabelSettings):
    """What a run is told beside its target and the settings of its method."""

    recover: Annotated[Recovery | None, Flag(default="what the method does")] = Field(
        default=None, description="How accuracy is recovered; 'none' only cuts and merges, and needs no data."
    )
    samples: Annotated[int | None, Flag(default=f"{DEFAULT_SAMPLES}, or all for a training on many")] = Field(
        default=None, ge=1, description="Images to use."
    )
    seed: Annotated[int, Flag()] = Field(default=0, ge=0, description="Of every random choice.")
    cache: Annotated[Path | None, Flag(path="folder", default="in OUT, until done")] = Field(
        default=None, description="A folder where results of long stages are kept, for other targets and runs."
    )
    checkpoint_minutes: Annotated[float, Flag("--checkpoint-every", metavar="MIN")] = Field(
        default=10.0, ge=0, description="Minutes between two checkpoints of a long training."
    )
    tensorboard: Annotated[Path | None, Flag(path="folder", metavar="DIR")] = Field(
        default=None, description="Write TensorBoard's event files of a long training there."
    )
    task: Annotated[Task | None, Flag(default="what MODEL is for")] = Field(
        default=None,
        description="'segmentation' puts a new head in place of a classifier's and trains it along, on images with "
        "masks.",
    )
    head: Annotated[HeadKind | HeadPlan | None, Flag(default="linear")] = Field(
        default=None, description="Of a new segmentation model: what reads the last block, or several."
    )
    unmerge: Annotated[Unmerge | None, Flag(default="residual")] = Field(
        default=None,
        description="How a segmentation model undoes merges in front of its head: 'residual' adds what a token has "
        "gained since its merge to what each patch was before it, 'repeat' gives every patch its token, 'bilinear' "
        "interpolates. A model that merges already keeps its own.",
    )
    resume: Annotated[bool, Flag()] = Field(default=False, description="Continue an unfinished run.")
    overwrite: Annotated[bool, Flag()] = Field(default=False, description="Replace what an earlier run wrote to OUT.")

    @field_serializer("head")
    def _head_as_given(self, head: HeadKind | HeadPlan | None) -> Any:
        """What was left open stays open when the run is repeated: how merges are undone is then decided alike."""
        return head.model_dump(mode="json", exclude_unset=True) if isinstance(head, HeadPlan) else head
