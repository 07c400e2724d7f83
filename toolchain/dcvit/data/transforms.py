"""How an image becomes a model's input."""

from collections.abc import Callable, Sequence

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
    """Random resized crop (bicubic), flip and RandAugment of magnitude 9: the augmentation of DC-ViT."""
    return create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-n2",
        color_jitter=None,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
