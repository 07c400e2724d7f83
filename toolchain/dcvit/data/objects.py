"""What in Python holds images: arrays, lists, datasets of torch and of Hugging Face."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcvit.data.listing import printable
from dcvit.data.memory import WORKS, MemorySource
from dcvit.data.pixels import Layout, as_picture, check_pixels, layout_of
from dcvit.errors import InputError

_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values", "images"), ("label", "labels", "target")


def source_in_memory(data: Any) -> MemorySource:
    """Images of whatever holds some; `WORKS` says of what.

    Raises:
        InputError: If it holds none, or says how many there are or which is which in no way that is known here.
    """
    name = f"{type(data).__name__} in memory"
    if isinstance(data, torch.utils.data.DataLoader):
        return _of_loader(data)
    if isinstance(data, tuple) and len(data) == 2 and _are_labels(data[1], data[0]):
        images, labels = data
        return _of_images(images, f"{_kind(images)} in memory", labels)
    if isinstance(data, (np.ndarray, torch.Tensor)):
        return _of_images(data, f"{_kind(data)} in memory", None)
    if isinstance(data, dict) and data and all(hasattr(part, "column_names") for part in data.values()):
        raise InputError(f"--data: it holds splits ({', '.join(map(str, data))}); give one of them")
    streamed = isinstance(data, torch.utils.data.IterableDataset)
    if streamed or isinstance(data, (str, bytes, dict, set)) or not _is_sized(data):
        why = ", which has no length and no numbers to read by" if streamed or hasattr(data, "__iter__") else ""
        raise InputError(f"--data: images cannot be read from {_a(type(data).__name__)}{why}; give {WORKS}")
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _of_table(data, name)
    if isinstance(data, (list, tuple)):
        return _of_list(data, name)
    return _of_items(data, name, _names_of_dataset(data), _labels_of_dataset(data))


def _is_sized(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _a(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _kind(images: Any) -> str:
    kind = type(images).__name__
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return f"{kind} [{', '.join(map(str, images.shape))}]"
    return kind


def _are_labels(labels: Any, images: Any) -> bool:
    """Whether the second of a pair is a label for each of the first's images."""
    if isinstance(images, Image.Image) or not hasattr(images, "__len__") or not hasattr(labels, "__len__"):
        return False
    if isinstance(images, str) or isinstance(labels, str):
        return False
    if isinstance(labels, (np.ndarray, torch.Tensor)):
        return labels.ndim == 1
    return bool(len(labels)) and all(isinstance(label, (int, str, np.integer)) for label in labels)


def _of_images(images: Any, name: str, labels: Any) -> MemorySource:
    """Images by number: an array or tensor of them all, which is checked as a whole, or a list."""
    if labels is not None and len(labels) != len(images):
        raise InputError(f"--data: there are {len(images)} images and {len(labels)} labels; give one for each")
    label = None if labels is None else partial(getitem, labels)
    if not isinstance(images, (np.ndarray, torch.Tensor)):
        return _of_list(list(images), name, label)
    if images.ndim not in (3, 4):
        raise InputError(
            f"--data: {name} has {images.ndim} dimensions; images are [n, C, H, W], [n, H, W, C] with C = 1 or 3, or "
            "[n, H, W]"
        )
    if not len(images):
        raise InputError(f"--data: {name} is empty; give {WORKS}")
    if images.ndim == 3 and (images.shape[0] in (1, 3) or images.shape[2] in (1, 3)):
        raise InputError(
            f"--data: {name} may be one image or grey ones; give [n, C, H, W] or [n, H, W, C], with n images"
        )
    layout = layout_of(images[0], name)
    check_pixels(images, name)
    return MemorySource(name, len(images), partial(_part, images, layout, name), label)


def _part(images: Any, layout: Layout, name: str, index: int) -> Image.Image:
    return as_picture(images[index], layout, name)


def _of_list(items: Sequence[Any], name: str, label: Callable[[int], Any] | None = None) -> MemorySource:
    """PIL images, arrays, tensors or paths, or pairs of one and its label."""
    if not items:
        raise InputError(f"--data: {name} is empty; give {WORKS}")
    if label is None and isinstance(items[0], (tuple, list, dict)):
        return _of_items(items, name, None, None)
    paths = isinstance(items[0], (str, Path))
    if paths:
        for path in items:
            if not isinstance(path, (str, Path)):
                raise InputError(f"--data: {name} holds paths and {_a(type(path).__name__)}; give one kind")
            if not Path(path).is_file():
                raise InputError(f"--data: there is no file {printable(str(path))}")
    return MemorySource(name, len(items), items.__getitem__, label, files=items if paths else None)


class _Items:
    """Items by number, each an image, a pair of one and its label, or a dict of both.

    The last is kept: image and label are asked for one after the other, and making an item may take long.
    """

    def __init__(self, data: Any, keys: tuple[Any, Any] | None, labels: Sequence[Any] | None) -> None:
        self._data, self._keys, self._labels = data, keys, labels
        self._number, self._item = -1, None

    def image(self, index: int) -> Any:
        return self._of(index) if self._keys is None else self._of(index)[self._keys[0]]

    def label(self, index: int) -> Any:
        if self._labels is not None:
            return self._labels[index]
        assert self._keys is not None
        return self._of(index)[self._keys[1]]

    def _of(self, index: int) -> Any:
        if self._number != index:
            self._number, self._item = index, self._data[index]
        return self._item


def _of_items(data: Any, name: str, names: Sequence[str] | None, labels: Sequence[Any] | None) -> MemorySource:
    """Whatever gives images, or (image, label) pairs, or dicts of both, by number; `labels` are known without them."""
    if not len(data):
        raise InputError(f"--data: {name} is empty; give {WORKS}")
    keys = _keys(data[0], name)
    items = _Items(data, keys, labels)
    labelled = labels is not None or (keys is not None and keys[1] is not None)
    return MemorySource(name, len(data), items.image, items.label if labelled else None, names)


def _keys(item: Any, name: str) -> tuple[Any, Any] | None:
    """Where image and label stand in an item; None where the item is the image."""
    if isinstance(item, dict):
        image = next((key for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            held = ", ".join(map(str, item))
            raise InputError(
                f"--data: items of {name} hold {held}, and no image; call it 'image', and its class 'label'"
            )
        return image, next((key for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        return (0, 1) if len(item) > 1 else (0, None)
    return None


def _of_table(data: Any, name: str) -> MemorySource:
    """A Hugging Face dataset: columns `image` and `label`."""
    columns = list(data.column_names)
    image = next((column for column in _IMAGE_KEYS if column in columns), None)
    if image is None:
        raise InputError(
            f"--data: {name} has the columns {', '.join(columns)}, and no image; call it 'image' (rename_column)"
        )
    label = next((column for column in _LABEL_KEYS if column in columns), None)
    names = None if label is None else getattr(data.features[label], "names", None)
    return _of_items(data, name, names, None if label is None else _column(data, label))


def _column(data: Any, label: str) -> Sequence[Any]:
    """All labels, without a decoded image."""
    return list(data.select_columns([label])[label]) if hasattr(data, "select_columns") else list(data[label])


def _of_loader(loader: Any) -> MemorySource:
    """The dataset of a DataLoader, in the dataset's order: what batches are is for the tool to say."""
    from torch.utils.data import RandomSampler, SequentialSampler

    streamed = isinstance(loader.dataset, torch.utils.data.IterableDataset)
    if not streamed and type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise InputError(
            f"--data: the DataLoader draws with a {type(loader.sampler).__name__}; give its dataset, or a Subset of it"
        )
    return source_in_memory(loader.dataset)


def _names_of_dataset(data: Any) -> Sequence[str] | None:
    """Names of classes, as torchvision's datasets and subsets of them have them."""
    names = getattr(data, "classes", None)
    if names is None and hasattr(data, "dataset"):
        return _names_of_dataset(data.dataset)
    return names if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else None


def _labels_of_dataset(data: Any) -> Any:
    """All labels, where a dataset keeps them aside; those of a subset, and of torch's own TensorDataset too."""
    if isinstance(data, torch.utils.data.Subset):
        inner = _labels_of_dataset(data.dataset)
        return None if inner is None else [inner[index] for index in data.indices]
    if isinstance(data, torch.utils.data.TensorDataset):
        return data.tensors[1] if len(data.tensors) > 1 else None
    targets = getattr(data, "targets", None)
    plain = getattr(data, "target_transform", None) is None and getattr(data, "transforms", None) is None
    return targets if plain and isinstance(targets, (list, torch.Tensor, np.ndarray)) else None
