"""What the teacher says about the images of a training: asked at every step, or kept for other trainings."""

from typing import Any

import torch
from torch import Tensor

from dcvit.hardware import accelerator
from dcvit.progress import track
from dcvit.stages import StageResult, StageStore
from dcvit.training.images import TrainingData
from dcvit.training.mixing import Mixing
from dcvit.training.order import Draw, Order
from dcvit.types import TimmModule

MAX_KEPT_BYTES = 256 << 20
"""More than this is not kept."""


class Teacher:
    """The uncompressed model; it is never trained.

    Args:
        model: In evaluation mode; only its output is used.
    """

    def __init__(self, model: TimmModule) -> None:
        self._model = model.eval().to(accelerator().device)
        self._kept: Tensor | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """The output for the images of a draw, in fp32."""
        if self._kept is not None:
            return self._kept[draw.positions].to(images.device).float()
        with accelerator().autocast():
            return self._model(images).float()

    def keep(
        self, data: TrainingData, order: Order, steps: int, mixing: Mixing, store: StageStore, key: dict[str, Any]
    ) -> None:
        """Computes all outputs of a training beforehand, or takes them from the store, if they are not too large.

        Trainings with equal images, seed and augmentation ask their teacher the same.

        `key` names what the outputs depend on, beside the order of the images.
        """
        positions = steps * order.batch_size
        whole = Order(order.images, order.batch_size, order.seed)
        draw, images, labels = next(iter(data.batches(whole.draws(0, 1))))
        output = self(mixing(images, labels, draw.step)[0][:1], draw)[0]
        if output.numel() * positions * 2 > MAX_KEPT_BYTES:
            return

        def compute() -> StageResult:
            # Half precision halves the memory; its rounding, 2⁻¹¹, is far below the teacher's in bf16.
            kept = torch.empty(positions, *output.shape, dtype=torch.half)
            for draw, images, labels in track(data.batches(whole.draws(0, steps)), "teacher outputs", total=steps):
                kept[draw.positions] = self(mixing(images, labels, draw.step)[0], draw).half().cpu()
            return StageResult({"outputs": kept})

        with accelerator().main_process_first():  # the others find its result in the store
            self._kept = store.run("teacher", key, compute).tensors["outputs"]
