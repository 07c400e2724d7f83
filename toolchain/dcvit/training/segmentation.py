"""Training on images with masks: what a training of `dcvit.training.finetune` draws from, and what it minimises."""

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcvit.data import CorruptImages, check_channels, decode, derived_seed, prepared
from dcvit.data.masks import IGNORE, checked_mask, resized_mask
from dcvit.data.protocols import MaskSource
from dcvit.errors import InputError
from dcvit.files import base_name
from dcvit.hardware import accelerator
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes import available_cores
from dcvit.training.augmentation import ShiftAndFlip, pixel_transform
from dcvit.training.images import MAX_CACHE_BYTES
from dcvit.training.order import Draw
from dcvit.training.recipe import Augmentation
from dcvit.training.task import Blend

CROP_SHARE = 0.25, 1.0
"""Area of a random crop, as a share of the image's."""
CROP_SHAPE = 4 / 3
"""How much wider or narrower than the image it may be."""


class Segmentation(Blend):
    """Of one class a pixel; scores are [B, classes, H, W], labels [B, H, W]."""

    def cross_entropy(self, student: Tensor, labels: Tensor) -> Tensor:
        counted = (labels != IGNORE).sum().clamp(min=1)  # a crop may hold nothing that counts
        return F.cross_entropy(student, labels, ignore_index=IGNORE, reduction="sum") / counted

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher ‖ student), a mean over all pixels: no label says which do not count."""
        scores = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
        return scores.sum(1).mean()


class TrainingPairs:
    """Images and masks of a source, augmented together and anew in every epoch.

    What a pair looks like in an epoch depends on (seed, epoch, image) alone. A corrupt image, or one that
    cannot be prepared, is named and replaced by the next one.

    Args:
        source: Where they come from.
        preprocessing: Of the model.
        num_classes: That a mask may hold.
        augmentation: `crop` shifts by an eighth of the side and flips; `deit`, for large images, crops a part of
            random size and shape and flips it.
        seed: Decides which images are drawn, and how they are augmented.
        samples: How many to draw at random; by default all.

    Raises:
        InputError: If there are fewer, or images cannot be what the model takes.
    """

    labelled = True

    def __init__(
        self,
        source: MaskSource,
        preprocessing: Preprocessing,
        num_classes: int,
        augmentation: Augmentation,
        seed: int,
        samples: int | None = None,
    ) -> None:
        if samples is not None and samples > len(source):
            raise InputError(f"--samples {samples}: {source.name} has {len(source)} images; ask for at most as many")
        check_channels(preprocessing.input_size[0])
        drawn = np.random.default_rng(seed).permutation(len(source))[:samples]
        self._source, self._chosen, self._preprocessing = source, np.sort(drawn), preprocessing
        self._num_classes, self._seed, self._corrupt = num_classes, seed, CorruptImages()
        self._transform = pixel_transform(preprocessing)
        size = preprocessing.input_size[1:]
        self._resized_crops = augmentation == "deit"
        self._vary = ShiftAndFlip(len(drawn), size, seed) if augmentation == "crop" else None
        fits = len(drawn) * (preprocessing.input_size[0] + 1) * size[0] * size[1] <= MAX_CACHE_BYTES
        self._kept: dict[int, Tensor] | None = {} if fits and not self._resized_crops else None
        self.num_images = len(drawn)
        names = "\0".join(source.filename(number) for number in self._chosen.tolist())
        self.fingerprint: dict[str, Any] = {
            "source": base_name(source.name),
            "images": len(drawn),
            "sha256_of_names": hashlib.sha256(names.encode()).hexdigest(),
        }

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor, Tensor | None]]:
        """The images [b, C, H, W] of each draw, augmented, on the device, and their masks [b, H, W]."""
        device = accelerator().device
        for draw, pairs in self._loaded(draws):
            pairs = pairs.to(device)
            if self._vary is not None:
                pairs = self._vary(pairs, draw.epochs, draw.indices)
            yield draw, self._normalised(pairs[:, :-1]), IGNORE - pairs[:, -1].long()

    def _loaded(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Every draw with its pairs [b, C + 1, H, W]; the next one is decoded while this one is used."""
        under_way: deque[tuple[Draw, Iterator[Tensor]]] = deque()
        with ThreadPoolExecutor(available_cores()) as pool:
            for draw in draws:
                under_way.append((draw, pool.map(self._load, draw.epochs.tolist(), draw.indices.tolist())))
                if len(under_way) > 1:
                    ready, pairs = under_way.popleft()
                    yield ready, torch.stack(list(pairs))
            for ready, pairs in under_way:
                yield ready, torch.stack(list(pairs))

    def _load(self, epoch: int, index: int) -> Tensor:
        """Pixels and, as a last channel, 255 − mask: what a shift fills with zeros does not count. [C + 1, H, W]."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        for following in range(self.num_images):
            number = int(self._chosen[(index + following) % self.num_images])
            try:
                image = decode(self._source.read(number)[0], self._preprocessing.input_size[0])
                mask = checked_mask(self._source, number, image.size, self._num_classes)
                if self._resized_crops:
                    image, mask = self._cropped(image, mask, derived_seed(self._seed, epoch, index))
                pixels = torch.as_tensor(prepared(self._transform, image))
            except OSError as error:
                self._corrupt.add_once(self._source.filename(number), error)
                continue
            cut = resized_mask(mask, self._preprocessing.input_size[1:])
            pair = torch.cat([pixels, (IGNORE - cut)[None].to(torch.uint8)])
            if self._kept is not None:
                self._kept[index] = pair
            return pair
        raise InputError(f"--data: none of the {self.num_images} images of {self._source.name} can be decoded")

    def _cropped(self, image: Image.Image, mask: NDArray[np.uint8], seed: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """A part of random place, size and shape, mirrored or not; of both the same."""
        random = np.random.default_rng(seed)
        share, shape = random.uniform(*CROP_SHARE), math.exp(random.uniform(-1, 1) * math.log(CROP_SHAPE))
        width = min(image.width, max(1, round(image.width * math.sqrt(share * shape))))
        height = min(image.height, max(1, round(image.height * math.sqrt(share / shape))))
        left, top = (int(random.integers(rest + 1)) for rest in (image.width - width, image.height - height))
        part, cut = image.crop((left, top, left + width, top + height)), mask[top : top + height, left : left + width]
        if random.random() < 0.5:
            part, cut = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT), cut[:, ::-1]
        return part, np.ascontiguousarray(cut)

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (
            255 * torch.tensor(figures, device=pixels.device)[:, None, None]
            for figures in (self._preprocessing.mean, self._preprocessing.std)
        )
        return (pixels.float() - mean) / std
