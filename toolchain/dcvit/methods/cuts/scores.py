"""How far a student's outputs are from the teacher's: by logits where there are some, else by features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dcvit.agreement import rows
from dcvit.folder.records import FEATURE_ERROR, KL, ErrorMeasure
from dcvit.hardware import accelerator
from dcvit.plan import CompressionPlan
from dcvit.subject import original_of
from dcvit.types import TimmModule


@torch.no_grad()
def divergence(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean KL(teacher ‖ student) in nats, over images with logits [S, classes], or over pixels [S, classes, H, W]."""
    student, teacher = (rows(logits).double().log_softmax(-1) for logits in (student_logits, teacher_logits))
    return float(F.kl_div(student, teacher, reduction="batchmean", log_target=True))


@torch.no_grad()
def feature_error(student_features: Tensor, teacher_features: Tensor) -> float:
    """Squared error of features f against the teacher's t, as a share of how far these lie from their mean.

    ‖f − t‖² / ‖t − t̄‖², each summed over images and channels, t̄ the mean over the images: what all images have in
    common tells none of them apart, and must not make an error look small. Errors that do not know of each other add
    up. Features are what the model's forward gives: [S, C], or [S, N, C] where nothing pools them.
    """
    student, teacher = student_features.double(), teacher_features.double()
    spread = (teacher - teacher.mean(0)).square().sum()
    return float((student - teacher).square().sum() / spread.clamp_min(1e-12))


@dataclass(frozen=True)
class Score:
    """How far a student's outputs are from the teacher's; 0 where they are equal, and small damages add up.

    Attributes:
        words: What it is called.
        measure: Of the student's outputs and the teacher's.
    """

    words: ErrorMeasure
    measure: Callable[[Tensor, Tensor], float]

    @property
    def name(self) -> Literal["kl", "feature_error"]:
        """In metrics."""
        return self.words.key


def score_of(plan: CompressionPlan) -> Score:
    """What suits the outputs of a model: KL for logits, the error of the features where there is no head."""
    classes = original_of(plan).num_classes if plan.head is None else plan.head.num_classes
    return Score(KL, divergence) if classes > 1 else Score(FEATURE_ERROR, feature_error)


@torch.no_grad()
def logits_of(model: TimmModule, images: Tensor) -> Tensor:
    """Logits [S, classes] of images [S, C, H, W], in the precision that the machine is fast in."""
    device = next(model.parameters()).device
    with accelerator().autocast():
        return torch.cat([model(chunk.to(device)).float().cpu() for chunk in images.split(64)])
