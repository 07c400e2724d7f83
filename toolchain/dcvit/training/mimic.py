"""Feature mimicking: training a student on its teacher's features, without labels (DC-ViT, arXiv 2403.18708)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.agreement import rows
from dcvit.families import Family
from dcvit.hardware import accelerator, fast_backward
from dcvit.progress import track
from dcvit.training.recipe import MimicRecipe
from dcvit.training.views import TeacherOutput, ViewBank
from dcvit.types import TimmModule


@dataclass(frozen=True)
class MimicResult:
    """How the training went.

    Attributes:
        loss: Mean over the last tenth of the steps, unscaled; None where there were none.
        seconds: Wall time.
    """

    loss: float | None
    seconds: float


def mimic(
    student: TimmModule,
    family: Family,
    views: ViewBank,
    recipe: MimicRecipe,
    *,
    steps: int,
    seed: int,
    description: str,
    adapt: Callable[[Tensor], Tensor] | None = None,
    together: bool = True,
) -> MimicResult:
    """Trains the parameters of `student` that require gradients, in place, on the teacher's features.

    There is no dropout and no drop-path: the student stays in evaluation mode.

    Args:
        student: The compressed model.
        family: How to read its features.
        views: Images with the teacher's output.
        recipe: Optimiser and loss.
        steps: Optimiser steps.
        seed: Decides the order of the images.
        description: What the progress bar says.
        adapt: Maps the teacher's tokens [B, N, C] to the student's [B, N', C] where merging made them fewer.
        together: Several processes share every batch and average their gradients; otherwise this one trains alone.
    """
    started = time.perf_counter()
    if steps == 0:
        return MimicResult(None, 0.0)
    process = accelerator()
    student.eval().to(process.device)
    pair: nn.Module = _FeaturesAndLogits(student, family)
    if together:
        pair = process.prepare(pair)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, recipe.warmup))
    losses: list[float] = []
    with fast_backward(student):
        for step, (images, target) in enumerate(
            track(views.batches(steps, seed, together=together), description, total=steps)
        ):
            with process.autocast():
                features, logits = pair(images)
            loss = _loss(features.float(), logits.float(), target, recipe, adapt)
            epoch = step * recipe.batch_size / views.num_images
            scale = min(epoch / recipe.loss_warmup_epochs, 1.0) if recipe.loss_warmup_epochs else 1.0
            process.backward(loss * scale)
            if recipe.clip_norm:
                process.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    process.free_memory()  # Accelerate keeps every model that it prepared
    tail = losses[-max(1, steps // 10) :]
    return MimicResult(sum(tail) / len(tail), time.perf_counter() - started)


def _loss(
    features: Tensor,
    logits: Tensor,
    target: TeacherOutput,
    recipe: MimicRecipe,
    adapt: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    loss = F.mse_loss(features, target.features if adapt is None else adapt(target.features))
    if recipe.logit_weight:
        ours, theirs = (rows(each).log_softmax(-1) for each in (logits, target.logits))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        loss = loss + recipe.logit_weight * divergence
    return loss


def cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise over the share `warmup` of the steps, a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


class _FeaturesAndLogits(nn.Module):
    """Both outputs of one forward pass, so that several processes can wrap it."""

    def __init__(self, model: TimmModule, family: Family) -> None:
        super().__init__()
        self.model, self.family = model, family

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.family.features_and_logits(self.model, images)
