"""One run of a method: what it is given, what it gives, and the way from any target to a compressed model."""

import dataclasses
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from dcvit.bench.machine import this_machine
from dcvit.data import FewShot, ImageSource, draw_few_shot
from dcvit.folder.manifest import Manifest
from dcvit.hardware import accelerator
from dcvit.methods.accuracy_target import Judge, Judged, Search, in_metrics
from dcvit.methods.base import MethodSettings, Places
from dcvit.methods.cuts.scores import logits_of, score_of
from dcvit.methods.milliseconds import TABLE
from dcvit.methods.speedup import Candidates, Found, Goal, Measure, correct, find_share, measuring
from dcvit.methods.stopwatch import Stopwatch
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.settings import DEFAULT_SAMPLES, Recovery
from dcvit.stages import StageResult, StageStore, weights_digest
from dcvit.subject import Subject
from dcvit.summary import PlanSummary, summarize
from dcvit.types import TimmModule
from dcvit.versions import package_versions

METRIC_IMAGES = 128
"""Images that damage and trials are scored on, at most."""

S = TypeVar("S", bound=MethodSettings)


@dataclass
class Run:
    """What a method works on and where it keeps what it finds.

    Attributes:
        subject: The model; it stays as it is.
        source: Images; without them a method only cuts and merges.
        samples: Images to use; None takes what the method does.
        seed: Of every random choice.
        recovery: How accuracy is recovered.
        store: Keeps the results of long stages.
        places: For what a long training leaves behind while it is under way.
        shared: Whether others read the store, so that it is worth keeping more in it than this run needs.
        watch: Where the time goes.
        judge: Compares models with the original on other images than `source`; None where no target asks for it.
        classes: Names of the model's classes; None where they are not known.
        repeat: What the manifest holds for the run to be repeated; empty where it cannot be.
    """

    subject: Subject
    source: ImageSource | None = None
    samples: int | None = None
    seed: int = 0
    recovery: Recovery = "none"
    store: StageStore = field(default_factory=lambda: StageStore(None))
    places: Places = field(default_factory=Places)
    shared: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)
    judge: Judge | None = None
    classes: tuple[str, ...] | None = None
    repeat: dict[str, Any] = field(default_factory=dict)

    @property
    def recovers(self) -> bool:
        """Whether there are images, and accuracy is recovered on them."""
        return self.source is not None and self.recovery != "none"

    @cached_property
    def teacher(self) -> TimmModule:
        """The subject's model, where it computes, without gradients."""
        return self.subject.model.to(accelerator().device).requires_grad_(False)

    def draw(self, samples: int = DEFAULT_SAMPLES, *, at_most: bool = False) -> FewShot:
        """Images drawn at random: the same at each call.

        Raises:
            InputError: If there are fewer; with `at_most`, if there are none.
        """
        assert self.source is not None
        if (key := (samples, at_most)) not in self._drawn:
            channels = self.subject.architecture.input_size[0]
            self._drawn[key] = draw_few_shot(self.source, samples, self.seed, channels, at_most=at_most)
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[tuple[int, bool], FewShot]:
        return {}

    def identity(self, images: dict[str, Any] | None) -> dict[str, Any]:
        """What every kept result depends on, beside settings and target: digests of the model and of its images."""
        named = {name: value for name, value in (images or {}).items() if name != "source"}
        return {
            "model": self._weights,
            "images": named or None,
            "preprocessing": self.subject.preprocessing.model_dump(mode="json"),
            "precision": accelerator().mixed_precision,
            "seed": self.seed,
            "versions": {name: package_versions().get(name) for name in ("dcvit-tool", "torch", "timm")},
        }

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.subject.model.state_dict())


@dataclass(frozen=True)
class Compressed:
    """A compressed model in memory.

    Attributes:
        summary: What the plan costs, before and after.
        metrics: What the run measured: `kl` in nats, or `feature_error` of a model without a head; losses; seconds, in
            all and by stage.
        texts: Files for the model folder, by name.
    """

    model: TimmModule
    summary: PlanSummary
    metrics: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> CompressionPlan:
        """What the model is."""
        return self.summary.plan


class Compressor(ABC, Generic[S]):
    """Compresses a run's subject to any number of targets; what they share is computed once.

    Attributes:
        corrections: How often it may be made anew where the plan that it chose is not as fast as the one that was timed
            in its place.
        scored_on: Images that `kl` or `feature_error` is of, in words.
    """

    corrections: ClassVar[int] = 0
    scored_on: str = "few-shot images"

    def __init__(self, run: Run, settings: S) -> None:
        self.run, self.settings = run, settings

    def compress(self, target: Target, after: Compressed | None = None) -> Compressed:
        """Finds a plan that meets the target, and recovers accuracy where there are images.

        Args:
            target: What to reach.
            after: This compressor's result for a smaller reduction, and else the same target. A method that can goes on
                from it rather than from the given model.

        Raises:
            InputError: If the target is out of reach, or the images are not what the model was made for.
        """
        started, before = time.perf_counter(), dict(self.run.watch.seconds)
        if target.max_drop is not None:
            made = self._make_as_accurate(target)
        else:
            made = self._make_as_fast(target) if target.measured else self._make(target, after)
        spent: dict[str, Any] = {"seconds": time.perf_counter() - started}
        if self.run.source is not None:
            spent = {"stages": self.run.watch.since(before)} | spent
        texts = made.texts if target.made_for is None else made.texts | {TABLE: target.made_for.table_text()}
        return dataclasses.replace(made, metrics=made.metrics | spent, texts=texts)

    @abstractmethod
    def plan(self, target: Target) -> CompressionPlan:
        """The plan for a share of the MACs without a training step; stand-ins for what only training finds.

        Raises:
            InputError: If the target is out of reach.
        """

    def predicted(self, target: Target, plan: CompressionPlan) -> dict[str, Any] | None:  # noqa: ARG002
        """What a table says of a plan where the target's latency counts; None where no plan is made by such a table.

        Args:
            target: Says where.
            plan: Of the subject.

        Raises:
            InputError: If there is no such table, and none can be measured here.
        """
        return None

    @abstractmethod
    def fingerprint(self) -> dict[str, Any] | None:
        """Of the images that were used; None where none were."""

    def manifest(self, made: Compressed, target: Target) -> Manifest:
        """What the model folder of a compressed model says about where it comes from."""
        run, summary = self.run, made.summary
        return Manifest(
            model=made.plan.model,
            method=self.settings.method,
            plan_digest=made.plan.digest,
            seed=run.seed,
            preprocessing=run.subject.preprocessing,
            settings={
                "target": target.model_dump(mode="json", exclude_none=True),
                "recover": run.recovery,
                "weights": run.subject.weights,
                **self.settings.model_dump(mode="json"),
            },
            data=self.fingerprint(),
            classes=run.classes,
            metrics=made.metrics | {"macs_before": summary.macs_before, "macs_after": summary.macs_after},
            versions=package_versions(),
            repeat=run.repeat,
        )

    @abstractmethod
    def _make(self, target: Target, after: Compressed | None) -> Compressed:
        """`compress` for a target that need not be measured."""

    @abstractmethod
    def _candidates(self, target: Target, measure: Measure) -> Candidates[Compressed]:
        """The plans among which one of the target's speed-up is searched."""

    @abstractmethod
    def _metric(self) -> Tensor | None:
        """Images [S, C, H, W] that the outputs are compared on; None where there are none."""

    def _compressed(
        self,
        student: TimmModule,
        plan: CompressionPlan,
        target: Target,
        metrics: dict[str, Any],
        texts: dict[str, str] | None = None,
    ) -> Compressed:
        """The result of `_make`, with its costs and how far its outputs are from the original's."""
        if (images := self._metric()) is not None:
            with self.run.watch.stage("scoring"):
                score = score_of(self.run.subject.plan)
                metrics[score.name] = score.measure(logits_of(student, images), self._teacher_logits)
        summary = summarize(plan, self.run.subject.plan, target.macs_convention)
        return Compressed(student.cpu(), summary, metrics, texts or {})

    @cached_property
    def _teacher_logits(self) -> Tensor:
        images = self._metric()
        assert images is not None
        return logits_of(self.run.teacher, images)

    def _make_as_fast(self, target: Target) -> Compressed:
        """Structure alone decides latency: plans are timed, one is made, and what it came to is timed again."""
        subject = self.run.subject
        setting = target.runtime, target.variant, target.threads
        with measuring(subject.plan.original(), subject.preprocessing, *setting) as measure:
            candidates = self._candidates(target, measure)
            with self.run.watch.stage("measuring"):
                found = self._find(target, candidates, measure)
            made, row = correct(found, Goal.of(target), candidates, lambda made: measure(made.plan), self.corrections)
        metrics = {"speedup": row.to_json(), "speedup_measurements": found.measurements}
        return dataclasses.replace(made, metrics=made.metrics | metrics)

    def _make_as_accurate(self, target: Target) -> Compressed:
        """Models are made, each from the one before where the method can do that, until the smallest is known."""
        judge, original = self.run.judge, self.run.teacher
        assert target.max_drop is not None
        assert judge is not None

        def judged(made: Compressed) -> Judged:
            with self.run.watch.stage("judging"):
                found = judge.judge(made.model, original)
            made.model.cpu()
            return found

        search = Search(target.max_drop, lambda share, best: self._make(target.at(share), best), judged)
        found = search.run()
        return dataclasses.replace(found[1], metrics=found[1].metrics | {"max_drop": in_metrics(search, found, judge)})

    def _find(self, target: Target, candidates: Candidates[Compressed], measure: Measure) -> Found:
        """What was measured once decides for a resumed run too, on the machine that measured it."""

        def search() -> StageResult:
            return StageResult({}, dataclasses.asdict(find_share(Goal.of(target), candidates, measure)))

        key = self.run.identity(self.fingerprint()) | {
            "base": candidates.base.digest,
            "cost": candidates.cost,
            "target": target.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "machine": this_machine().kind,
        }
        return Found(**self.run.store.run("speedup", key, search).record)
