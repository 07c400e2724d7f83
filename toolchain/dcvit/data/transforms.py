"""How an image becomes a model's input."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from dcvit.preprocessing import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def preprocessing_of(model: nn.Module, input_size: tuple[int, int, int]) -> Preprocessing:
    """The model's own preprocessing, at the input size that it was built for."""
    config = resolve_model_data_config(model)
    # timm keeps the figures of three colours for a model of one channel.
    mean, std = (_for_channels(config[name], input_size[0]) for name in ("mean", "std"))
    return Preprocessing(
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config.get("crop_mode") or "center",
    )


def _for_channels(figures: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(figures) if len(figures) == channels else (sum(figures) / len(figures),) * channels


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Resize, centre crop and normalise, as timm evaluates the model."""
    return create_transform(**preprocessing.model_dump())


def training_transform(preprocessing: Preprocessing) -> Transform:
    """Random resized crop (bicubic), flip and RandAugment of magnitude 9: the augmentation of DC-ViT.

    It gives pixels [C, H, W] from 0 to 255, a quarter of the size of what `normalised` makes of them.
    """
    return with_valid_bits(
        create_transform(
            input_size=preprocessing.input_size,
            is_training=True,
            interpolation="bicubic",
            auto_augment="rand-m9-n2",
            color_jitter=None,
            use_prefetcher=True,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
    )


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels [..., C, H, W] from 0 to 255 as the model takes them, by the steps of timm's transforms."""
    mean, std = (torch.tensor(figures)[:, None, None] for figures in (preprocessing.mean, preprocessing.std))
    return pixels.float().div_(255).sub_(mean).div_(std)


def with_valid_bits(transform: Transform) -> Transform:
    """The transform with a RandAugment that keeps one bit of a colour at least: Pillow 13 refuses to keep none.

    No random choice becomes another.
    """
    for step in getattr(transform, "transforms", ()):
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_one_bit_at_least, operation.level_fn)
    return transform


def _one_bit_at_least(bits: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    return (max(1, *bits(level, settings)),)
