"""Augmented views of a few images, with what the teacher makes of them, computed once and used by every stage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dcvit.data import FewShot, normalised
from dcvit.families import Family
from dcvit.hardware import accelerator
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track
from dcvit.types import TimmModule

MAX_VIEWS = 16
"""Views of each image that are kept; longer training sees them again."""

MAX_CACHE_BYTES = 2 << 30
"""Teacher features beyond this are computed anew at each step rather than kept."""


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher says about a batch.

    Attributes:
        features: All tokens after the final norm, [B, N, C].
        logits: [B, classes].
    """

    features: Tensor
    logits: Tensor

    def to(self, device: torch.device) -> "TeacherOutput":
        """The same on another device, in fp32."""
        return TeacherOutput(self.features.to(device).float(), self.logits.to(device).float())


class ViewBank:
    """Augmented views of n images and the teacher's output for each, made when the first batch is drawn.

    Args:
        teacher: The uncompressed model.
        few_shot: The images.
        steps: Longest training that will draw from the bank; decides how many views of each image are made.
        batch_size: Images a step.
        held_out: The last so many images are in no batch.
    """

    def __init__(
        self,
        teacher: TimmModule,
        family: Family,
        few_shot: FewShot,
        preprocessing: Preprocessing,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        held_out: int = 0,
    ) -> None:
        self.teacher, self.family, self.batch_size = teacher, family, batch_size
        self.few_shot, self.preprocessing, self.seed = few_shot, preprocessing, seed
        self.num_images, self.held_out = len(few_shot), held_out
        self.num_views = min(max(1, math.ceil(steps * batch_size / self.num_images)), MAX_VIEWS)

    @cached_property
    def views(self) -> Tensor:
        """All views, uint8 [views·n, C, H, W] from 0 to 255: normalised they would take four times as much."""
        views = torch.empty(self.num_views, self.num_images, *self.preprocessing.input_size, dtype=torch.uint8)
        for number in track(range(self.num_views), "augmenting"):
            views[number] = self.few_shot.augmented_pixels(self.preprocessing, self.seed * MAX_VIEWS + number)
        return views.flatten(0, 1)

    def images(self, pixels: Tensor) -> Tensor:
        """Some of the views as a model takes them, on the device."""
        # Normalised on the CPU: a GPU multiplies by 1/255 instead, and rounds otherwise.
        return normalised(pixels, self.preprocessing).to(accelerator().device)

    @cached_property
    def _cached(self) -> TeacherOutput | None:
        return self._teach() if self._fits() else None

    def prepare(self) -> None:
        """Makes the views and the teacher's output now, if they are not there yet."""
        _ = self._cached

    def batches(self, steps: int, seed: int, *, together: bool = True) -> Iterator[tuple[Tensor, TeacherOutput]]:
        """Yields `steps` batches of images [B, C, H, W] on the device, with the teacher's output.

        The order depends on the seed alone. Of several processes that train together, each gets its share of a batch.
        """
        process = accelerator()
        order = self._order(steps, seed).chunk(steps)
        for indices in order:
            mine = indices[process.process_index :: process.num_processes] if together else indices
            images = self.images(self.views[mine])
            if self._cached is not None:
                output = TeacherOutput(self._cached.features[mine], self._cached.logits[mine])
            else:
                output = self._ask(images)
            yield images, output.to(process.device)

    def _order(self, steps: int, seed: int) -> Tensor:
        """Indices of views, steps·batch of them: every one that is not held out once before any is seen again."""
        generator = torch.Generator().manual_seed(seed)
        needed = steps * self.batch_size
        trained = (
            (torch.arange(len(self.views)) % self.num_images < self.num_images - self.held_out).nonzero().flatten()
        )
        passes = [torch.randperm(len(trained), generator=generator) for _ in range(-(-needed // len(trained)))]
        return trained[torch.cat(passes)[:needed]]

    def _fits(self) -> bool:
        features = self._ask(self.images(self.views[:1])).features
        return features.numel() * len(self.views) * 2 <= MAX_CACHE_BYTES

    def _teach(self) -> TeacherOutput:
        parts = track(self.views.split(self.batch_size), "teacher features")
        chunks = [self._ask(self.images(pixels)) for pixels in parts]
        # Half precision halves the memory; its rounding, 2⁻¹¹, is far below what mimicking can reach.
        return TeacherOutput(
            torch.cat([chunk.features.half().cpu() for chunk in chunks]),
            torch.cat([chunk.logits.half().cpu() for chunk in chunks]),
        )

    @torch.no_grad()
    def _ask(self, images: Tensor) -> TeacherOutput:
        with accelerator().autocast():
            return TeacherOutput(*self.family.features_and_logits(self.teacher, images))
