"""What a training minimises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Objective(Protocol):
    """The loss of one kind of output."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to compute anything."""

    def losses(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        """Weighted parts of the loss by name, each a mean over the batch; their sum is what is minimised."""


@dataclass(frozen=True)
class Blend(ABC):
    """Cross-entropy, KL(teacher ‖ student) at τ = 1, or both.

    Attributes:
        distill: Weight w of the KL; the cross-entropy has 1 − w. Without labels the KL has weight 1.
        labelled: Whether there are labels.
    """

    distill: float = 0.5
    labelled: bool = True

    @property
    def needs_teacher(self) -> bool:
        return self._weight > 0

    def losses(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        if self._weight < 1:
            assert labels is not None
            parts["cross_entropy"] = (1 - self._weight) * self.cross_entropy(student, labels)
        if self.needs_teacher:
            assert teacher is not None
            parts["distillation"] = self._weight * self.divergence(student, teacher)
        return parts

    @abstractmethod
    def cross_entropy(self, student: Tensor, labels: Tensor) -> Tensor:
        """In nats, a mean over all that is labelled."""

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher ‖ student) in nats, a mean over all that is scored; both are logits of one shape."""

    @property
    def _weight(self) -> float:
        return self.distill if self.labelled else 1.0


@dataclass(frozen=True)
class Classification(Blend):
    """Of one class an image; logits are [B, classes], labels [B] or [B, classes].

    Attributes:
        label_smoothing: For labels [B]; those of mixup are smoothed already.
    """

    label_smoothing: float = 0.0

    def cross_entropy(self, student: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.label_smoothing if labels.ndim == 1 else 0.0
        return F.cross_entropy(student, labels, label_smoothing=smoothing)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
