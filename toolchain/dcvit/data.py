"""Images from a folder, a tar or the bundled digits: drawing a few, and reading them all in batches."""

import hashlib
import io
import logging
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform, resolve_model_data_config
from timm.data.readers import create_reader
from torch import Tensor, nn

from dcvit.errors import InputError, first_line
from dcvit.manifest import Preprocessing

log = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]
DIGITS = "digits"


class ImageSource(Protocol):
    """Where images come from. Reading one may raise OSError, if the image is corrupt."""

    @property
    def name(self) -> str:
        """What the user calls it: a path, or `digits`."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""

    def filename(self, index: int) -> str:
        """A name for messages."""


class FileSource:
    """Images in a folder (of class folders, or flat) or in a tar of class folders."""

    def __init__(self, root: str | Path) -> None:
        """Lists the images.

        Raises:
            InputError: If there is nothing at the path, it is not a folder or a tar, or it holds no images.
        """
        self.name = str(root)
        path = Path(root)
        if not path.exists():
            raise InputError(f"--data: there is nothing at {root}; give a folder of images, a tar of one, or 'digits'")
        if path.is_file() and path.suffix != ".tar":
            raise InputError(f"--data: {root} is neither a folder nor a .tar file")
        try:
            self._reader = create_reader("", root=str(root))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"--data: there are no images in {root} (JPEG, PNG, …): {first_line(error)}") from error
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"--data: {root} cannot be read: {first_line(error)}") from error
        labels: dict[str, int] = getattr(self._reader, "class_to_idx", None) or self._reader.class_name_to_idx
        self.classes = sorted(labels, key=labels.__getitem__)

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: int) -> tuple[bytes, int]:
        file, label = self._reader[index]
        with file:
            return file.read(), int(label)

    def filename(self, index: int) -> str:
        return self._reader.filename(index)


class DigitsSource:
    """scikit-learn's handwritten digits: 8×8 grey images, 1297 to train and 500 to test, split once and for all."""

    name = DIGITS
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012 (the protocol's field, never changed)

    def __init__(self, split: Literal["train", "test"]) -> None:
        """Loads one of the two splits."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.images))
        chosen = order[:1297] if split == "train" else order[1297:]
        self._images = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        Image.fromarray(self._images[index]).save(buffer, format="PNG")
        return buffer.getvalue(), int(self._labels[index])

    def filename(self, index: int) -> str:
        return f"digit {index}"


def open_source(data: str | Path | ImageSource, split: Literal["train", "test"]) -> ImageSource:
    """Opens what `--data` names; the split matters only for the bundled digits.

    Raises:
        InputError: If no images can be found there.
    """
    if not isinstance(data, (str, Path)):
        return data
    return DigitsSource(split) if str(data) == DIGITS else FileSource(data)


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


@dataclass(frozen=True)
class Batch:
    """Some images of a source.

    Attributes:
        images: [B, C, H, W], normalised.
        labels: [B].
    """

    images: Tensor
    labels: Tensor


class CorruptImages:
    """Counts the images that could not be decoded, and names each in a warning."""

    def __init__(self) -> None:
        """Starts at none."""
        self.names: list[str] = []

    def add(self, name: str, error: Exception) -> None:
        """Notes one."""
        self.names.append(name)
        log.warning("skipped %s, which cannot be decoded: %s", name, first_line(error))


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes an image to RGB, or to grey for a model of one channel. Raises OSError if it cannot be."""
    try:
        return Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"not an image: {first_line(error)}") from error


def batches(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    corrupt: CorruptImages,
    *,
    threads: int = 2,
) -> Iterator[Batch]:
    """Reads a source in order, in batches for evaluation; the last may be smaller. Corrupt images are skipped.

    Raises:
        InputError: If no image can be decoded.
    """
    transform = evaluation_transform(preprocessing)

    def load(index: int, data: bytes) -> Tensor | None:
        try:
            return transform(decode(data, preprocessing.input_size[0]))
        except OSError as error:
            corrupt.add(source.filename(index), error)
            return None

    some = False
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            # Only decoding is shared out: a tar is read through one file handle.
            encoded, labels = zip(*(source.read(index) for index in indices), strict=True)
            loaded = list(pool.map(load, indices, encoded))
            images = [image for image in loaded if image is not None]
            if images:
                some = True
                kept = [label for label, image in zip(labels, loaded, strict=True) if image is not None]
                yield Batch(torch.stack(images), torch.tensor(kept))
    if not some:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")


@dataclass(frozen=True)
class FewShot:
    """A few images drawn at random from a source, without their labels.

    Attributes:
        images: Decoded, at their own sizes.
        fingerprint: Source, number of images, and sha256 over their pixels: equal for equal images.
    """

    images: list[Image.Image]
    fingerprint: dict[str, Any]

    def tensor(self, preprocessing: Preprocessing) -> Tensor:
        """All images, prepared as for evaluation: [n, C, H, W]."""
        transform = evaluation_transform(preprocessing)
        return torch.stack([transform(image) for image in self.images])

    def augmented(self, preprocessing: Preprocessing, seed: int) -> Tensor:
        """One augmented view of every image, [n, C, H, W]; the same for the same seed."""
        transform = training_transform(preprocessing)
        with seeded(seed):
            return torch.stack([transform(image) for image in self.images])


def draw_few_shot(source: ImageSource, samples: int, seed: int, channels: int = 3, *, at_most: bool = False) -> FewShot:
    """Draws images at random; a corrupt one is skipped, named and replaced by another.

    Raises:
        InputError: If the source has fewer images (that can be decoded) than asked for; with `at_most`, if it has none.
    """
    if samples > len(source) and not at_most:
        raise InputError(f"--samples {samples}: {source.name} has {len(source)} images; ask for at most as many")
    corrupt = CorruptImages()
    images: list[Image.Image] = []
    digest = hashlib.sha256()
    for index in np.random.default_rng(seed).permutation(len(source)):
        if len(images) == samples:
            break
        try:
            image = decode(source.read(int(index))[0], channels)
        except OSError as error:
            corrupt.add(source.filename(int(index)), error)
            continue
        digest.update(repr(image.size).encode() + image.tobytes())
        images.append(image)
    if at_most and not images:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")
    if len(images) < samples and not at_most:
        raise InputError(
            f"--samples {samples}: only {len(images)} images of {source.name} can be decoded "
            f"({len(corrupt.names)} are corrupt)"
        )
    fingerprint = {
        "source": source.name,
        "images": len(images),
        "corrupt": len(corrupt.names),
        "sha256": digest.hexdigest(),
    }
    return FewShot(images, fingerprint)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's CPU generators for a block, and puts them back after it."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
