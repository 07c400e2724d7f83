"""Trains the small ViT of `dcvit-tool demo` on the bundled digits and writes the weights that ship with the package.

python benchmarks/train_digits_vit.py            # a few minutes on two CPU cores
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import create_transform
from torch import Tensor

from dcvit.data import CorruptImages, ImageSource, batches, decode, open_source, preprocessing_of, seeded
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.families import family_of
from dcvit.hardware import accelerator, fast_backward
from dcvit.model import create
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule


@click.command()
@click.option("--epochs", default=80, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
def main(epochs: int, batch_size: int, lr: float, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    model = create(MODEL, MODEL_KWARGS)
    preprocessing = preprocessing_of(model, family_of(model).architecture(model).input_size)
    train = open_source("digits", "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        images, labels = augmented(train, preprocessing, seed + epoch)
        order = torch.randperm(len(images))
        model.train()
        with fast_backward(model):
            for indices in order.split(batch_size)[: len(images) // batch_size]:
                with accelerator().autocast():
                    logits = model(images[indices])
                loss = F.cross_entropy(logits.float(), labels[indices], label_smoothing=0.1)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test top-1 {accuracy(model.eval(), preprocessing):.2%}")
    save_file(model.state_dict(), out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, test top-1 {accuracy(model.eval(), preprocessing):.2%}")


def augmented(source: ImageSource, preprocessing: Preprocessing, seed: int) -> tuple[Tensor, Tensor]:
    # Digits are neither mirrored nor recoloured: shifted and scaled a little.
    transform = create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        scale=(0.7, 1.0),
        ratio=(0.85, 1.18),
        hflip=0.0,
        color_jitter=None,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    items = [source.read(index) for index in range(len(source))]
    with seeded(seed):
        images = torch.stack([transform(decode(data, 3)) for data, _ in items])
    return images, torch.tensor([label for _, label in items])


@torch.no_grad()
def accuracy(model: TimmModule, preprocessing: Preprocessing) -> float:
    right = total = 0
    for batch in batches(open_source("digits", "test"), preprocessing, 100, CorruptImages()):
        right += int((model(batch.images).argmax(1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total


if __name__ == "__main__":
    main()
