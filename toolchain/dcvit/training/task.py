"""What a training minimises."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Task(Protocol):
    """The loss of one kind of output."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to compute anything."""

    def losses(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        """Weighted parts of the loss by name, each a mean over the batch; their sum is what is minimised."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy, KL(teacher ‖ student) at τ = 1, or both; logits are [B, classes], labels [B] or [B, classes].

    Attributes:
        distill: Weight w of the KL; the cross-entropy has 1 − w. Without labels the KL has weight 1.
        label_smoothing: For labels [B]; those of mixup are smoothed already.
    """

    distill: float = 0.5
    label_smoothing: float = 0.0
    labelled: bool = True

    @property
    def needs_teacher(self) -> bool:
        return not self.labelled or self.distill > 0

    def losses(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        weight = self.distill if self.labelled else 1.0
        if self.labelled and weight < 1:
            assert labels is not None
            smoothing = self.label_smoothing if labels.ndim == 1 else 0.0
            parts["cross_entropy"] = (1 - weight) * F.cross_entropy(student, labels, label_smoothing=smoothing)
        if self.needs_teacher:
            assert teacher is not None
            divergence = F.kl_div(
                student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
            )
            parts["distillation"] = weight * divergence
        return parts
