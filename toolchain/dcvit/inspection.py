"""What a model folder holds, for people and scripts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from dcvit.folder import ModelFolder
from dcvit.manifest import Manifest
from dcvit.plan import CompressionPlan
from dcvit.summary import PlanSummary, summarize


@dataclass(frozen=True)
class Inspection:
    """A model folder whose every file is the one that was written."""

    path: Path
    plan: CompressionPlan
    manifest: Manifest
    summary: PlanSummary

    def to_json(self) -> dict[str, Any]:
        return self.summary.to_json() | {"folder": str(self.path), "manifest": self.manifest.model_dump(mode="json")}

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
        settings = self.manifest.settings
        data = self.manifest.data
        images = f"{data['images']} images of {data['source']}" if data else "no images"
        yield f"made from {settings.get('weights', '?')} weights with {images}, seed {self.manifest.seed}"
        versions = ", ".join(f"{name} {version}" for name, version in self.manifest.versions.items())
        yield f"by {versions}"
        files = Table()
        for column in ("file", "bytes", "sha256"):
            files.add_column(column, justify="right" if column == "bytes" else "left")
        for name, entry in self.manifest.files.items():
            files.add_row(name, f"{entry.bytes:,}", entry.sha256[:16] + "…")
        yield files
        yield f"all {len(self.manifest.files)} files are as they were written"


def inspect(folder: Path) -> Inspection:
    """Opens a model folder and counts its costs.

    Raises:
        InputError: If it is no model folder, or a file in it has changed.
    """
    opened = ModelFolder(folder)
    convention = opened.manifest.settings.get("target", {}).get("macs_convention", "full")
    return Inspection(
        opened.path, opened.plan, opened.manifest, summarize(opened.plan, opened.plan.original(), convention)
    )
