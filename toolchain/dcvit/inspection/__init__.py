"""What a model folder holds, for people and scripts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from dcvit.data import Images
from dcvit.data.classes import some_classes
from dcvit.errors import InputError
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.inspection.layers import FileLayers, exported_layers
from dcvit.pictures import write_pictures
from dcvit.plan import CompressionPlan
from dcvit.summary import PlanSummary, summarize


@dataclass(frozen=True)
class Inspection:
    """A model folder whose every file is the one that was written.

    Attributes:
        pictures: Files that were drawn of it.
        layers: Of its exported files, where they were asked for.
    """

    path: Path
    plan: CompressionPlan
    manifest: Manifest
    summary: PlanSummary
    pictures: tuple[Path, ...] = ()
    layers: tuple[FileLayers, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        layers = {} if self.layers is None else {"layers": [file.to_json() for file in self.layers]}
        return (
            self.summary.to_json()
            | layers
            | {
                "folder": str(self.path),
                "task": self.plan.task,
                "manifest": self.manifest.model_dump(mode="json"),
                "pictures": [str(picture) for picture in self.pictures],
            }
        )

    def lines(self) -> Iterable[Any]:
        yield from self.summary.lines()
        blocks = Table()
        for column in ("block", "attention", "MLP nodes", "head dim", "merges after it"):
            blocks.add_column(column, justify="right")
        merges: dict[int, list[str]] = {}
        for merge in self.plan.merges:
            merges.setdefault(merge.after - 1, []).append(f"{merge.axis} {self.plan.merge_operator}")
        for index in sorted({block.index for block in self.plan.blocks} | set(merges)):
            block = self.plan.block(index)
            gone = block.removed == "block"
            blocks.add_row(
                str(index),
                "removed" if block.removed else "kept",
                "removed" if gone else str(block.mlp_hidden or "as before"),
                "removed" if block.removed else str(block.head_dim or "as before"),
                ", ".join(merges.get(index, [])),
            )
        if blocks.row_count:
            yield blocks
        if self.plan.head is not None:
            yield f"segmentation: a {self.plan.head.kind} head for {self.plan.head.num_classes} classes"
        if self.manifest.classes is not None:
            yield f"classes: {some_classes(self.manifest.classes)}"
        settings = self.manifest.settings
        data = self.manifest.data
        images = f"{data['images']} images of {data['source']}" if data else "no images"
        yield f"made from {settings.get('weights', '?')} weights with {images}, seed {self.manifest.seed}"
        if isinstance(trained := settings.get("trained_on"), dict):
            how = f"the checkpoint {trained['checkpoint']}" if "checkpoint" in trained else "saved from Python"
            yield f"and trained on by its user, from {trained.get('from', '?')}: {how}"
        versions = ", ".join(f"{name} {version}" for name, version in self.manifest.versions.items())
        yield f"by {versions}"
        files = Table()
        for column in ("file", "bytes", "sha256"):
            files.add_column(column, justify="right" if column == "bytes" else "left")
        for name, entry in self.manifest.files.items():
            files.add_row(name, f"{entry.bytes:,}", entry.sha256[:16] + "…")
        yield files
        yield f"all {len(self.manifest.files)} files are as they were written"
        for picture in self.pictures:
            yield f"drawn: {picture}"
        for file in self.layers or ():
            yield from file.lines()


def inspect(
    folder: Path,
    *,
    pictures: Path | None = None,
    data: Images | None = None,
    layers: bool = False,
) -> Inspection:
    """Opens a model folder and counts its costs.

    Args:
        folder: A model folder.
        pictures: A folder to draw the token grids and the channels of its blocks into.
        data: Images; the grids are drawn over the first one.
        layers: Lists the layers of every exported file.

    Raises:
        InputError: If it is no model folder, a file in it has changed, or the pictures cannot be drawn.
    """
    if data is not None and pictures is None:
        raise InputError("--data is what pictures are drawn over; say where to with --pictures DIR")
    opened = ModelFolder(folder)
    convention = opened.manifest.settings.get("target", {}).get("macs_convention", "full")
    summary = summarize(opened.plan, opened.plan.original(), convention)
    drawn = () if pictures is None else tuple(write_pictures(opened, pictures, data))
    listed = tuple(exported_layers(opened)) if layers else None
    return Inspection(opened.path, opened.plan, opened.manifest, summary, drawn, listed)
