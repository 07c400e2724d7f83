"""Mixup and CutMix by timm, the same for every part of a step."""

import torch
from timm.data import Mixup
from torch import Tensor

from dcvit.data import derived_seed, seeded


class Mixing:
    """Mixes each image of a batch with its mirror image in it; does nothing where both parameters are 0.

    Args:
        mixup: Parameter α of mixup.
        cutmix: Parameter α of CutMix.
        classes: Of the labels.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, classes: int, seed: int) -> None:
        self.active = mixup > 0 or cutmix > 0
        self._seed = seed
        if self.active:
            self._mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor | None, step: int) -> tuple[Tensor, Tensor | None]:
        """Mixes images [b, C, H, W], b even; labels [b] become [b, classes]."""
        if not self.active:
            return images, labels
        targets = torch.zeros(len(images), dtype=torch.long, device=images.device) if labels is None else labels
        with seeded(derived_seed(self._seed, step, 2)):
            mixed, soft = self._mix(images, targets)
        return mixed, None if labels is None else soft
