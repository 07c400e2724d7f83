"""A compressed model is a plain module: here it is trained on by a loop of a few lines, and evaluated by hand.

python examples/own_training_loop.py
"""

import numpy as np
import torch
from safetensors.numpy import load_file
from torch.nn import functional as F

import dcvit
from dcvit.data.digits import FILE
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS

OUT, STEPS = "digits-cut", 60


def main() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    train, test = slice(0, 1297), slice(1297, None)
    # Only cut, by the norms of the weights: the loop below does the rest.
    cut = {"macs_reduction": 0.5, "recover": "none", "overwrite": True}
    dcvit.compress(MODEL, out=OUT, model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS, **cut)
    model = dcvit.load(OUT)
    print(f"top-1 as it was cut: {top1(model, images[test], labels[test]):.1f} %")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(STEPS):
        batch = torch.randint(0, 1297, (64,))
        loss = F.cross_entropy(model(images[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"top-1 after {STEPS} steps: {top1(model.eval(), images[test], labels[test]):.1f} %")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the model takes them, [1797, 3, 32, 32], and labels; the 500 test images of `digits` come last."""
    found = load_file(FILE)
    order = np.random.default_rng(0).permutation(len(found["images"]))
    grey = torch.tensor(found["images"][order] / 16, dtype=torch.float32)[:, None]
    mean, std = (MODEL_KWARGS["pretrained_cfg_overlay"][name][0] for name in ("mean", "std"))
    resized = F.interpolate(grey, size=(32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    return ((resized - mean) / std).expand(-1, 3, -1, -1), torch.tensor(found["labels"][order]).long()


@torch.no_grad()
def top1(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (model(images).argmax(dim=1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
