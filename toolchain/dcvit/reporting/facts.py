"""All that a report shows of a model folder, gathered from its files."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from dcvit.data.classes import some_classes
from dcvit.families import Architecture, family_of
from dcvit.files import base_name
from dcvit.folder.findings import checked_file, checks, evaluations, read
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord, OnnxRecord, engine_records, onnx_records
from dcvit.frontiers.result import FRONTIER, read_frontier
from dcvit.reporting.accuracy import Accuracy, Comparison, comparisons, measured
from dcvit.reporting.depth import Depth, DrawnDamage, DrawnTrial, damage_of, trials_of
from dcvit.subject import original_of
from dcvit.summary import PlanSummary, summarize
from dcvit.training.log import LOG
from dcvit.variant import BENCH


class Facts:
    """What is known of a model folder.

    Attributes:
        folder: The folder, its files checked.
        title: What it is called in the report, and in the commands that it names.
        summary: Costs before and after.
        architecture: Of the uncompressed model.
        tokens_before: Tokens of each block of the uncompressed model.
        bench: Latencies, as rows of `bench.json`.
        machine: That they were measured on; None where that was not noted.
        frontier: `frontier.json` of the frontier that the folder lies in; empty where it lies in none.
    """

    def __init__(self, folder: ModelFolder) -> None:
        """Reads everything; nothing is computed but costs."""
        self.folder, self.manifest, self.plan = folder, folder.manifest, folder.plan
        self.title = folder.path.resolve().name
        convention = self.manifest.settings.get("target", {}).get("macs_convention", "full")
        self.summary: PlanSummary = summarize(self.plan, self.plan.original(), convention)
        original = original_of(self.plan)
        family = family_of(original)
        self.architecture: Architecture = family.architecture(original)
        self.family = family.name
        self.tokens_before = family.tokens(original, self.plan.original())
        self.metrics = self.manifest.metrics
        self.onnx: dict[str, OnnxRecord] = onnx_records(folder)
        self.engines: dict[str, EngineRecord] = engine_records(folder)
        self.checks = checks(folder)
        self.frontier = _frontier_around(folder.path)
        self.bench, self.machine = self._measured()

    def _measured(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Latencies of this folder's files; else of its plan, as `frontier` or `compress --speedup` measured it."""
        found = read(self.folder, BENCH)
        if rows := [row for row in found.get("results", []) if self._current(row)]:
            return rows, found["machine"]
        if self.point and "bench" in self.point:
            return [self.point["bench"]], self.frontier["machine"]
        return ([self.metrics["speedup"]], None) if "speedup" in self.metrics else ([], None)

    def _current(self, row: dict[str, Any]) -> bool:
        entry = self.manifest.files.get(row.get("file", ""))
        return entry is not None and entry.sha256 == row["sha256"]

    @property
    def depth(self) -> Depth:
        """What is drawn along the depth."""
        return Depth.of(self.plan, self.architecture, self.tokens_before, self.summary.tokens)

    @property
    def damage(self) -> tuple[DrawnDamage, ...]:
        """What each cut does alone, by the solver."""
        return damage_of(self.metrics, self.plan)

    @property
    def trials(self) -> tuple[DrawnTrial, ...]:
        """What each trial left."""
        return trials_of(self.metrics, self.plan)

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Records of the training's log."""
        if LOG not in self.manifest.files:
            return []
        return [json.loads(line) for line in (self.folder.path / LOG).read_text(encoding="utf-8").splitlines()]

    @property
    def stages(self) -> list[tuple[str, float, float]]:
        """Where the time went: name, seconds, and share of all; what no stage counts comes last."""
        found = dict(self.metrics.get("stages", {}))
        if not found:
            return []
        whole = max(self.metrics.get("seconds", 0.0), sum(found.values()))
        if (rest := whole - sum(found.values())) > 0.01 * whole:
            found["other"] = rest
        return [(name, spent, spent / whole) for name, spent in sorted(found.items(), key=lambda item: -item[1])]

    @cached_property
    def accuracies(self) -> list[Accuracy]:
        """What `evaluate` and `frontier` found, the original first."""
        return measured(evaluations(self.folder), self.frontier, self.point)

    @property
    def before_and_after(self) -> tuple[Accuracy | None, Accuracy | None]:
        """The original's and this model's accuracy, on the same data where both are known."""
        originals = [row for row in self.accuracies if row.original]
        own = [row for row in self.accuracies if not row.original]
        for before in originals:
            for after in own:
                if before.data == after.data and before.images == after.images:
                    return before, after
        return None, own[0] if own else None

    @property
    def comparisons(self) -> list[Comparison]:
        """What `export --evaluate` found."""
        return comparisons(self.onnx)

    @property
    def headline(self) -> dict[str, Any] | None:
        """The comparison that stands for the latency: of the file that ships, which is the newest that was measured.

        Where it was measured in several batches, that of the largest; where no exported file was, the first row.
        """
        exported = [row for row in self.bench if row.get("file") in {*self.onnx, *self.engines}]
        if not exported:
            return next(iter(self.bench), None)
        return max(exported, key=lambda row: (self._written(row["file"]), row["batch"]))

    def _written(self, name: str) -> int:
        return (self.folder.path / name).stat().st_mtime_ns

    @property
    def bench_by_batch(self) -> list[list[dict[str, Any]]]:
        """The rows of `bench`, those of one batch together: they share an axis."""
        batches = dict.fromkeys(row["batch"] for row in self.bench)
        return [[row for row in self.bench if row["batch"] == batch] for batch in batches]

    @property
    def unverified(self) -> list[str]:
        """Exported files that `verify` has not seen as they are now."""
        seen = {checked_file(check["name"]) for check in self.checks}
        return [name for name in (*self.onnx, *self.engines) if name not in seen]

    @property
    def point(self) -> dict[str, Any] | None:
        """This model's point of the frontier."""
        name = self.folder.path.resolve().name
        return next((point for point in self.frontier.get("points", []) if point["folder"] == name), None)

    @property
    def source(self) -> str:
        """The images that it was made with, in words."""
        data = self.manifest.data
        return f"{data['images']:,} images of {base_name(data['source'])}" if data else "no images"

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Every setting of the run, nested ones by dotted names."""
        classes = [("classes", self.classes)] if self.classes else []
        return [*classes, ("seed", str(self.manifest.seed)), *_flat(self.manifest.settings)]

    @property
    def classes(self) -> str:
        """Names of the classes by index; empty where they are not known."""
        return some_classes(self.manifest.classes or ())


def _frontier_around(path: Path) -> dict[str, Any]:
    """The frontier whose folder holds this one."""
    path = path.resolve()
    if not (path.parent / FRONTIER).is_file():
        return {}
    found = read_frontier(path.parent)
    return found if any(point["folder"] == path.name for point in found.get("points", [])) else {}


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((prefix + name, _word(value)))
    return rows


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
