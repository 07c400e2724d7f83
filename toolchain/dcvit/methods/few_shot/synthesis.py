"""Images made from a model alone, without data: what DC-ViT (arXiv 2403.18708) scores its trials on.

The images are inverted from the classifier, as in DeepInversion (arXiv 1912.08795): noise is optimised until the model
sees a given class in it, under priors that keep it smooth and small.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import functional_call
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from dcvit.errors import InputError
from dcvit.families import matching_family
from dcvit.files import whole_file
from dcvit.hardware import accelerator, fast_backward
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track
from dcvit.stages import StageResult, StageStore, weights_digest
from dcvit.training.mimic import cosine
from dcvit.types import TimmModule

SHEET_COLUMNS = 10
SHEET_SIDE = 96
"""Pixels that an image of the contact sheet is at least wide; smaller ones are enlarged by a whole factor."""


class SynthesisRecipe(BaseModel):
    """How the images are optimised; the defaults are DC-ViT's.

    Attributes:
        lr: Peak learning rate of Adam; it falls to 0 along a cosine.
        betas: Of Adam.
        warmup: Share of the steps over which the learning rate rises; 100 of 2000.
        tv_weight: Weight of the total variation.
        tv_exponent: Power that its norms are raised to; None takes 0.6 for a model whose name begins with `vit` and 1
            for any other (DeiT, Swin, ResNet).
        l2_weight: Weight of the images' norm.
        shift_share: Largest shift of a step, as a share of the side; 30 pixels of 224.
        flip: Probability that a step sees the images mirrored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(default=0.25, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    tv_weight: float = Field(default=1e-4, ge=0)
    tv_exponent: float | None = Field(default=None, gt=0)
    l2_weight: float = Field(default=1e-5, ge=0)
    shift_share: float = Field(default=30 / 224, ge=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class SyntheticSet:
    """Images that the model takes for the given classes.

    Attributes:
        images: [S, C, H, W], normalised, on the CPU; every pixel is one that an image file could hold.
        labels: [S], the class that each was made for, in ascending order.
        loss: Of these very images: the least that any step met, in nats.
    """

    images: Tensor
    labels: Tensor
    loss: float


def synthesize(
    model: TimmModule,
    preprocessing: Preprocessing,
    num_classes: int,
    *,
    count: int = 50,
    steps: int = 2000,
    seed: int = 0,
    recipe: SynthesisRecipe | None = None,
    store: StageStore | None = None,
) -> SyntheticSet:
    """Makes images from the model alone, or gives those that an equal call left in the store.

    Minimises CE(f(x̃), y) + tv_weight·TV(x̃) + l2_weight·L2(x̃) over the whole batch x, where x̃ is x shifted and
    mirrored anew at each step (DC-ViT, arXiv 2403.18708). The model's parameters are not touched, nor is any of the
    caller's random generators; the model is left in evaluation mode, on the process's device.

    Args:
        model: The uncompressed model, f: [S, C, H, W] to logits [S, classes].
        preprocessing: Its input size, mean and standard deviation.
        num_classes: Classes of its head.
        count: Images to make, S, in one batch.
        steps: Steps of Adam, at least 1.
        seed: Of the classes, the start and the shifts.
        recipe: The optimisation; DC-ViT's by default.
        store: Keeps the images by the model's weights and everything else that they depend on.

    Raises:
        InputError: If the model has no classifier, or answers with numbers that are not finite.
    """
    if num_classes < 1:
        raise InputError(
            "synthetic images are made from a classifier, and the model has none (num_classes is 0); "
            "score on the training images with --metric train"
        )
    recipe = recipe or SynthesisRecipe()
    if recipe.tv_exponent is None:
        recipe = recipe.model_copy(update={"tv_exponent": _tv_exponent(model)})
    key = {
        "model": weights_digest(dict(model.named_parameters()) | dict(model.named_buffers())),
        "structure": repr(model),  # merges by the mean leave no trace in the weights
        "preprocessing": preprocessing.model_dump(mode="json"),
        "num_classes": num_classes,
        "count": count,
        "steps": steps,
        "seed": seed,
        "recipe": recipe.model_dump(),
    }

    def compute() -> StageResult:
        made = _optimise(model, preprocessing, num_classes, count, steps, seed, recipe)
        return StageResult({"images": made.images, "labels": made.labels}, {"loss": made.loss})

    result = (store or StageStore(None)).run("synthetic", key, compute)
    return SyntheticSet(result.tensors["images"], result.tensors["labels"], result.record["loss"])


def save_pictures(synthetic: SyntheticSet, preprocessing: Preprocessing, folder: Path) -> None:
    """Writes every image as `INDEX-class-LABEL.png` at its own size, and all on one `contact-sheet.png`."""
    mean, std = _mean_and_std(preprocessing)
    pictures = (synthetic.images * std + mean).clamp(0, 1)
    for index, (picture, label) in enumerate(zip(pictures, synthetic.labels.tolist(), strict=True)):
        _save_png(picture, folder / f"{index:03d}-class-{label}.png")
    factor = max(1, math.ceil(SHEET_SIDE / pictures.shape[-1]))
    enlarged = pictures.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    _save_png(make_grid(enlarged, nrow=SHEET_COLUMNS), folder / "contact-sheet.png")


def total_variation(images: Tensor, exponent: float) -> Tensor:
    """Sum of ‖d‖ᵝ over the differences d of horizontal, vertical and both kinds of diagonal neighbours.

    The Frobenius norm runs over the whole batch.

    Args:
        images: [S, C, H, W].
        exponent: β.

    Returns:
        A scalar.
    """
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) ** exponent for difference in differences]).sum()


def _optimise(
    model: TimmModule,
    preprocessing: Preprocessing,
    num_classes: int,
    count: int,
    steps: int,
    seed: int,
    recipe: SynthesisRecipe,
) -> SyntheticSet:
    device = accelerator().device
    model.eval().to(device)
    # Without gradients of their own, the weights cost neither time nor the activations that these would need.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # Drawn on the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(seed)
    labels = _labels(num_classes, count, generator)
    mean, std = (statistic.to(device) for statistic in _mean_and_std(preprocessing))
    darkest, brightest = (0 - mean) / std, (1 - mean) / std
    # The start is clipped too: the batch that is kept may be any, and must hold valid pixels.
    noise = torch.randn(count, *preprocessing.input_size, generator=generator).to(device)
    images = noise.clamp(darkest, brightest).requires_grad_()
    targets = labels.to(device)
    optimizer = torch.optim.Adam([images], lr=recipe.lr, betas=recipe.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, recipe.warmup))
    best, least = images.detach(), math.inf  # the view is kept, not x: it is what the loss was measured on
    with fast_backward(model):
        for _ in track(range(steps), "synthetic images"):
            view = _view(images, recipe, generator)
            with accelerator().autocast():
                logits = functional_call(model, weights, (view,))
            loss = _loss(view, logits.float(), targets, recipe)
            value = loss.item()
            if not math.isfinite(value):
                raise InputError("synthetic images: the model's output is not finite; check its weights (--checkpoint)")
            if value < least:
                best, least = view.detach().clone(), value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                images.clamp_(darkest, brightest)
    return SyntheticSet(best.cpu(), labels, least)


def _loss(view: Tensor, logits: Tensor, labels: Tensor, recipe: SynthesisRecipe) -> Tensor:
    assert recipe.tv_exponent is not None
    return (
        F.cross_entropy(logits, labels)
        + recipe.tv_weight * total_variation(view, recipe.tv_exponent)
        + recipe.l2_weight * view.flatten(1).norm(dim=1).mean()
    )


def _view(images: Tensor, recipe: SynthesisRecipe, generator: torch.Generator) -> Tensor:
    """The whole batch, shifted around its edges and perhaps mirrored."""
    reach = [round(recipe.shift_share * side) for side in images.shape[-2:]]
    shifts = [int(torch.randint(-most, most + 1, (), generator=generator)) for most in reach]
    view = images.roll(shifts, dims=(-2, -1))
    return view.flip(-1) if torch.rand((), generator=generator) < recipe.flip else view


def _labels(num_classes: int, count: int, generator: torch.Generator) -> Tensor:
    """Classes drawn at random, none a second time before each was drawn once."""
    passes = [torch.randperm(num_classes, generator=generator) for _ in range(math.ceil(count / num_classes))]
    return torch.cat(passes)[:count].sort().values


def _tv_exponent(model: TimmModule) -> float:
    family = matching_family(model)
    return 1.0 if family is None else family.tv_exponent(model)


def _mean_and_std(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Both as [C, 1, 1]."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return mean[:, None, None], std[:, None, None]


def _save_png(picture: Tensor, path: Path) -> None:
    with whole_file(path) as aside:
        to_pil_image(picture.mul(255).round().to(torch.uint8)).save(aside, format="PNG")
