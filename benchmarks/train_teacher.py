"""Trains a teacher to convergence on CIFAR-10: weights that have nothing to spare, for studies of accuracy.

    python benchmarks/train_teacher.py deit-tiny --data DATA -o deit_tiny.safetensors
    python benchmarks/train_teacher.py vit-small --data DATA -o vit_small.safetensors

`deit-tiny` is the teacher's own architecture (32 pixels, patches of 4) from scratch, 200 epochs; `vit-small` the
DINOv2-shaped ViT-S/14 of DATA at 112 pixels, fine-tuned, 20 epochs. DATA holds `cifar10/train-0.tar` … `train-4.tar`,
`cifar10/test.tar` and `dinov2/`. All images are on the device, and shifted, mirrored, cut out and mixed there, for an
H100 takes tens of thousands a second. On a CPU it trains for as long as it is given (`--minutes`) and goes on from its
state (OUT.state) when it is called again. Weights are written in fp16; what is printed at the end is their top-1 on
`test.tar`, which nothing is chosen by.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from dcvit.data import decode, open_source
from dcvit.hardware import accelerator, fast_backward
from dcvit.model import create, load_checkpoint
from dcvit.sealed import read_sealed, write_sealed
from few_shot import MODEL, MODEL_KWARGS

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARDS = 5


@dataclass(frozen=True)
class Recipe:
    """How one teacher is trained.

    Attributes:
        model: timm name.
        kwargs: Of `timm.create_model`.
        start: Weights to start from, in DATA; None starts from random ones.
        epochs: Passes over the 50,000 images.
        lr: Peak of AdamW's learning rate, which rises over a twentieth of the steps and falls to 0 along a cosine.
        mixup: Parameter α.
        cutout: Pixels a side of the square that is blanked, of 32.
        mean: Of the model's preprocessing.
        std: The same.
    """

    model: str
    kwargs: dict[str, Any]
    start: str | None
    epochs: float
    lr: float
    mixup: float
    cutout: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RECIPES = {
    "deit-tiny": Recipe(MODEL, MODEL_KWARGS, None, 200, 1e-3, 0.4, 10, CIFAR_MEAN, CIFAR_STD),
    "vit-small": Recipe(
        "vit_small_patch14_dinov2", {"img_size": 112, "num_classes": 10}, "dinov2/vit_small_dinov2_focus.safetensors",
        20, 2e-4, 0.2, 8, IMAGENET_MEAN, IMAGENET_STD,
    ),
}  # fmt: skip


def pixels(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """All images as uint8 [n, 3, 32, 32], and their labels [n]."""

    def one(item: tuple[Any, int]) -> tuple[Tensor, int]:
        data, label = item[0].read(item[1])
        image = decode(data, 3)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1), label

    sources = [open_source(path, "train") for path in paths]
    items = [(source, index) for source in sources for index in range(len(source))]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, items))
    return torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found])


def augmented(images: Tensor, labels: Tensor, recipe: Recipe, classes: int, draw: torch.Generator) -> Any:
    """Images [b, 3, 32, 32] in 0 … 1 shifted by up to 4 pixels, mirrored, cut out, mixed; soft labels [b, classes]."""
    b, device = len(images), images.device

    def drawn(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (b,), generator=draw, device=device)

    rows = torch.arange(32, device=device)
    padded = F.pad(images, (4, 4, 4, 4))
    across = torch.where(drawn(0, 2)[:, None] == 1, rows.flip(0), rows)
    down, across = rows + drawn(0, 9)[:, None], across + drawn(0, 9)[:, None]
    batch = torch.arange(b, device=device)[:, None, None]
    images = padded[batch, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
    middle = torch.stack([drawn(0, 32), drawn(0, 32)])[:, :, None]
    blank = ((rows - middle).abs() < recipe.cutout / 2).float()
    images = images * (1 - blank[0][:, None, :, None] * blank[1][:, None, None, :])
    soft = F.one_hot(labels, classes).float()
    soft = 0.9 * soft + 0.1 / classes
    share = torch._sample_dirichlet(torch.full((1, 2), recipe.mixup, device=device), draw)[0, 0]
    return share * images + (1 - share) * images.flip(0), share * soft + (1 - share) * soft.flip(0)


class Training:
    """A model under way, whose state is kept beside the weights that it will be."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, epochs: float, batch: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.state, self.seed, self.batch = recipe, out.with_name(out.name + ".state"), seed, batch
        self.device = accelerator().device
        self.model = _started(recipe, data).to(self.device)
        groups = param_groups_weight_decay(self.model, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self.images, self.labels = pixels([data / f"cifar10/train-{shard}.tar" for shard in range(SHARDS)])
        self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
        self.steps = max(1, round(epochs * len(self.images) / batch))
        self.about = {"model": recipe.model, "steps": self.steps, "batch": batch, "seed": seed}
        self.done = 0
        if (kept := read_sealed(self.state)) is not None:
            self._put_back(*kept)

    def run(self, minutes: float) -> bool:
        """Trains until the end, or for so long; whether it is the end."""
        ends = time.perf_counter() + 60 * minutes
        forward = torch.compile(self.model) if self.device.type == "cuda" else self.model
        self.model.train()
        saved = time.perf_counter()
        with fast_backward(self.model):
            for step, indices in self._order():
                loss = self._step(forward, step, indices)
                if step % 50 == 49 or step + 1 == self.steps:
                    click.echo(f"step {step + 1} of {self.steps}: loss {loss.item():.3f}")
                self.done = step + 1
                late = time.perf_counter() > ends
                if late or time.perf_counter() - saved > 60:
                    self.save()
                    saved = time.perf_counter()
                if late:
                    break
        return self.done == self.steps

    def save(self) -> None:
        """Writes the state, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
        write_sealed(self.state, tensors, self.about | {"done": self.done})

    def _put_back(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        if {name: record.get(name) for name in self.about} != self.about:
            raise click.ClickException(f"{self.state} is of another training; give another -o, or delete it")
        self.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        )
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                entries.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.done = record["done"]
        click.echo(f"goes on behind step {self.done} of {self.steps}")

    def _order(self) -> Iterator[tuple[int, Tensor]]:
        """Steps that are left, and the images of each: every image once an epoch, the order a function of the seed."""
        each = max(1, len(self.images) // self.batch)
        for step in range(self.done, self.steps):
            epoch, number = divmod(step, each)
            if number == 0 or step == self.done:
                order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(self.seed + epoch))
            yield step, order[number * self.batch : (number + 1) * self.batch].to(self.device)

    def _step(self, forward: nn.Module, step: int, indices: Tensor) -> Tensor:
        rise = min(1.0, (step + 1) / (0.05 * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * rise * (1 + math.cos(math.pi * step / self.steps)) / 2
        draw = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        classes = self.model.num_classes
        images, soft = augmented(self.images[indices].float() / 255, self.labels[indices], self.recipe, classes, draw)
        with accelerator().autocast():
            logits = forward(prepared(images, self.recipe))
        loss = F.cross_entropy(logits.float(), soft)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def prepared(images: Tensor, recipe: Recipe) -> Tensor:
    """As the model takes them: resized, and normalised."""
    size = recipe.kwargs["img_size"]
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (recipe.mean, recipe.std))
    return (images - mean) / std


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> float:
    """In percent."""
    right = 0
    for chunk, target in zip(images.split(250), labels.split(250), strict=True):
        with accelerator().autocast():
            logits = model(prepared(chunk.float() / 255, recipe))
        right += int((logits.argmax(1) == target).sum())
    return 100 * right / len(images)


def _started(recipe: Recipe, data: Path) -> Any:
    model = create(recipe.model, recipe.kwargs)
    if recipe.start is not None:
        backbone = create(recipe.model, recipe.kwargs | {"num_classes": 0})
        load_checkpoint(backbone, data / recipe.start)
        model.load_state_dict(backbone.state_dict(), strict=False)
    return model


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="By default the recipe's.")
@click.option("--batch-size", default=1024, show_default=True)
@click.option("--minutes", default=600.0, show_default=True, help="After which it stops, to be called again.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
def main(name: str, data: Path, epochs: float | None, batch_size: int, minutes: float, seed: int, out: Path) -> None:
    """Trains a teacher, or goes on with it."""
    recipe = RECIPES[name]
    training = Training(recipe, data, out, epochs or recipe.epochs, batch_size, seed)
    if not training.run(minutes):
        click.echo(f"{training.done} of {training.steps} steps are done; call it again to go on")
        return
    model = training.model.eval()
    weights = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file({key: value.cpu().contiguous() for key, value in weights.items()}, out)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    images, labels = (each.to(training.device) for each in pixels([data / "cifar10/test.tar"]))
    click.echo(f"{out}: top-1 {top1(model, images, labels, recipe):.2f} % of {len(images)} test images")
    training.state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
