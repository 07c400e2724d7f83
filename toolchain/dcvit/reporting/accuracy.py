"""What is known of a model's accuracy: `evaluations.json`, the frontier around it, and what export measured."""

from dataclasses import dataclass
from typing import Any

from dcvit.evaluation.interval import paired_interval, share_interval, unpacked
from dcvit.files import base_name
from dcvit.folder.records import OnnxRecord

_ACCURACIES = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right, somewhere.

    Attributes:
        name: `top-1` or `mIoU`.
        value: In percent.
        original: Whether it is the uncompressed model's.
        note: What else was found.
        right: Which images it is right on (`interval.packed`); empty where that was not kept.
        file: Of the folder, that ran; empty for the original.
    """

    name: str
    value: float
    data: str
    images: int
    runtime: str
    precision: str
    device: str
    original: bool
    note: str = ""
    right: str = ""
    file: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of a top-1, in percent; of masks none is known."""
        return share_interval(round(self.value * self.images / 100), self.images) if self.name == "top-1" else None

    def change_from(self, original: "Accuracy") -> tuple[float, float] | None:
        """The 95 % interval of the change, in points, where both were judged image by image on the same images."""
        if not (self.right and original.right) or self.images != original.images or self.name != "top-1":
            return None
        return paired_interval(unpacked(original.right, self.images), unpacked(self.right, self.images))


@dataclass(frozen=True)
class Comparison:
    """A precision against fp32 in PyTorch, measured when it was exported; values in percent.

    Attributes:
        file: The ONNX file.
        drop: Points lost.
    """

    file: str
    runtime: str
    data: str
    images: int
    top1: float | None
    top1_fp32: float | None
    agreement: float
    drop: float
    max_drop: float


def measured(rows: list[dict[str, Any]], frontier: dict[str, Any], point: dict[str, Any] | None) -> list[Accuracy]:
    """The original's accuracies, then this model's.

    Args:
        rows: Of `evaluations.json`.
        frontier: `frontier.json` around the folder, or nothing.
        point: This model's in it.
    """
    found = [_accuracy(row) for row in rows]
    if "top1" in frontier.get("original", {}):
        data, images = base_name(frontier["evaluated_on"]), frontier["original"]["images"]
        for original, where in ((True, frontier["original"]), (False, point or {})):
            known = any((row.data, row.original) == (data, original) for row in found)
            if "top1" in where and not known:
                found.append(Accuracy("top-1", where["top1"], data, images, "torch", "fp32", "", original))
    return sorted(found, key=lambda row: (not row.original, row.data, row.runtime != "torch", row.runtime))


def comparisons(files: dict[str, OnnxRecord]) -> list[Comparison]:
    """What `export --evaluate` found."""
    return [
        Comparison(
            file=name,
            runtime=found.runtime,
            data=base_name(found.data),
            images=found.images,
            top1=found.top1,
            top1_fp32=found.top1_fp32,
            agreement=found.agreement,
            drop=found.drop,
            max_drop=found.max_drop,
        )
        for name, record in files.items()
        if (found := record.evaluation) is not None
    ]


def _accuracy(row: dict[str, Any]) -> Accuracy:
    names = [name for name in _ACCURACIES if name in row]
    others = ", ".join(f"{_ACCURACIES[name]} {row[name]:.2f} %" for name in names[1:])
    return Accuracy(
        name=_ACCURACIES[names[0]],
        value=row[names[0]],
        data=base_name(row["data"]),
        images=row["images"],
        runtime=row["runtime"],
        precision=row["precision"],
        device=row["device"],
        original=row["original"],
        note=others,
        right=row.get("right", ""),
        file=row.get("file", ""),
    )
