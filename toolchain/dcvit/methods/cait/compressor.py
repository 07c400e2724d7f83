"""A model and many images: merged, narrowed and trained (CAIT); nothing but checkpoints is on disk."""

from functools import cached_property
from typing import Any

from torch import Tensor

from dcvit.hardware import accelerator
from dcvit.methods.cait.cdcp import ChannelPruning
from dcvit.methods.cait.proposal import JointProposal, propose_jointly, refits, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cait.weighing import Weighing
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.run import METRIC_IMAGES, Compressed, Compressor, Run
from dcvit.methods.speedup import Candidates, Measure
from dcvit.methods.target import MEASURED, Reach, Target
from dcvit.plan import CompressionPlan, merges_text
from dcvit.stages import digest_of
from dcvit.training.finetune import Checkpoints, FinetuneResult, Finetuning
from dcvit.training.images import TrainingData
from dcvit.training.log import LOG, TrainingLog, require_tensorboard
from dcvit.training.pruner import Pruner
from dcvit.training.setup import set_up
from dcvit.training.task import Objective
from dcvit.training.teacher import Teacher
from dcvit.types import TimmModule

_FINEST = 0.001
"""Share of the MACs by which a plan with narrower widths differs at least from one without."""


class CaitCompressor(Compressor[CaitSettings]):
    """Merges, prunes and trains until a target is met; without images, cuts every layer by the same share.

    Args:
        run: Its model, and images to train on.
        settings: Of the method and the training.
    """

    def __init__(self, run: Run, settings: CaitSettings) -> None:
        recipe = settings.training.resolved(run.subject.preprocessing, run.subject.plan.task)
        super().__init__(run, settings.model_copy(update={"training": recipe}))
        self._logs: list[TrainingLog] = []
        if run.places.tensorboard is not None:
            require_tensorboard()  # found to be missing before any image is read

    def plan(self, target: Target) -> CompressionPlan:
        return self._plan(self._propose(target), target)

    def fingerprint(self) -> dict[str, Any] | None:
        return self._material[0].fingerprint if self.run.recovers else None

    def finetuning(
        self,
        student: TimmModule,
        depends: dict[str, Any],
        pruner: Pruner | None = None,
        span: tuple[int, int] | None = None,
    ) -> Finetuning:
        """The training of a student, as it stands; studies train others exactly as the method trains its own.

        Args:
            student: Takes the subject's images and gives what the subject gives.
            depends: What the result depends on, beside the subject, the images, the settings and the seed.
            pruner: Narrows the student while it trains.
            span: The steps to train; by default all.
        """
        run, (data, task) = self.run, self._material
        key = self._identity | {"settings": self.settings.model_dump(mode="json"), "of": depends}
        name, place = digest_of(key)[:12], run.places.checkpoints
        begin = 0 if span is None else span[0]
        log = TrainingLog(None if place is None else place / f"{name}.{LOG}", run.places.tensorboard, begin)
        self._logs.append(log)
        training = Finetuning(
            student,
            task,
            data,
            self.settings.training,
            num_classes=run.subject.architecture.num_classes,
            seed=run.seed,
            teacher=Teacher(run.teacher),
            pruner=pruner,
            log=log,
            span=span,
            checkpoints=None if place is None else Checkpoints(place, name, key, run.places.minutes),
        )
        if run.shared:
            with run.watch.stage("teacher"):
                training.keep_teacher(run.store, self._identity)
        return training

    def _make(self, target: Target, after: Compressed | None) -> Compressed:  # noqa: ARG002 (each size trains by itself)
        return self._made(self._propose(target), target)

    def _candidates(self, target: Target, measure: Measure) -> Candidates[Compressed]:
        """Where training finds the widths, uniform ones stand in; a latency is a speed-up over the original."""
        if target.latency is not None:
            whole = measure(self.run.subject.plan.original()).latency.median_ms
            target = target.model_copy(update={"speedup": whole / target.latency, "latency": None})
        proposal = self._propose(target, measure)
        reach = proposal.reach
        return Candidates(
            base=proposal.base,
            base_share=reach.least,
            plan=lambda share: self._plan(proposal.removing(share), target),
            make=lambda share: self._made(proposal.removing(share), target),
            reach=Reach(min(reach.least + _FINEST, reach.most), reach.most),
            base_chosen=True,
        )

    def _metric(self) -> Tensor | None:
        """Few images, and none where the head is new: nothing is to be kept then."""
        if not self.run.recovers or self.run.subject.fresh_head:
            return None
        return self._metric_images

    @cached_property
    def _metric_images(self) -> Tensor:
        return self.run.draw(METRIC_IMAGES, at_most=True).tensor(self.run.subject.preprocessing)

    @cached_property
    def _material(self) -> tuple[TrainingData, Objective]:
        """Images and loss; read when the target is known to be within reach."""
        run = self.run
        assert run.source is not None
        return set_up(
            run.subject,
            run.source,
            self.settings.training,
            labels=self.settings.labels,
            samples=run.samples,
            seed=run.seed,
        )

    def _propose(self, target: Target, measure: Measure | None = None) -> JointProposal:
        subject, settings, trained = self.run.subject, self.settings, self.run.recovers
        choose = self._weighing.merges(target, measure) if trained else stand_in_merges(subject, target, settings)

        def refitted(base: CompressionPlan) -> float:
            return self._weighing.refit(base).most_macs(target)

        able = refitted if self._refits else None
        return propose_jointly(subject, target, settings, choose, trained=trained, refitted=able)

    def _plan(self, proposal: JointProposal, target: Target) -> CompressionPlan:
        """The plan that a proposal comes to, or a stand-in where training finds the widths."""
        if self._refits and proposal.macs:
            return self._weighing.refit(proposal.base).plan(target, proposal.macs)
        return proposal.uniform()

    def _made(self, proposal: JointProposal, target: Target) -> Compressed:
        if not self.run.recovers:
            plan = proposal.uniform()
            return self._compressed(cut_by_norm(self.run.subject, plan), plan, target, {})
        student, plan, metrics = self._train(proposal, target)
        told = "".join(log.text for log in self._logs)
        return self._compressed(student, plan, target, metrics, {LOG: told} if told else {})

    def _train(self, proposal: JointProposal, target: Target) -> tuple[TimmModule, CompressionPlan, dict[str, Any]]:
        plan, pruner, span, wide = proposal.base, None, None, None
        asked = target.model_dump(mode="json", exclude={"macs_reduction", "merge", "plan", *MEASURED})
        self._logs.clear()
        if self._refits and proposal.macs:
            refit = self._weighing.refit(plan)
            if self.settings.narrow_at:
                model, wide, span = self._train_wide(plan, asked)
                refit = self._weighing.refit_of(plan, model)
            start = refit.cut(target, proposal.macs)
            student, plan = start.model.requires_grad_(True), start.plan
        else:
            student = cut_by_norm(self.run.subject, plan).requires_grad_(True)
        if proposal.macs and not self._refits:
            pruner = ChannelPruning(
                student.to(accelerator().device),
                self.run.subject.family,
                plan,
                target,
                macs_to_save=proposal.macs,
                settings=self.settings.pruning,
            )
        depends = {"plan": plan.digest, "macs": 0.0 if pruner is None else proposal.macs, "target": asked}
        training = self.finetuning(student, depends, pruner, span)
        with self.run.watch.stage("training"):
            result = training.run(_described(plan, pruner))
        if wide is not None:
            result = wide.followed_by(result)
        data = self._material[0]
        metrics: dict[str, Any] = {
            "merge": merges_text(proposal.base.merges),
            "steps": result.steps,
            "loss": result.loss,
            "images_per_second": result.images_per_second,
            "training_seconds": result.seconds,
            "images": data.num_images,
            "labelled": data.labelled,
        }
        if pruner is not None:
            plan = plan.with_blocks(*pruner.fold())
            metrics |= {"widths": pruner.widths(), "largest_cut": pruner.largest_cut}
        return student, plan, metrics

    def _train_wide(
        self, plan: CompressionPlan, asked: dict[str, Any]
    ) -> tuple[TimmModule, FinetuneResult, tuple[int, int]]:
        """The merged model, trained as far as it is not narrowed yet, and the steps that are left."""
        student = cut_by_norm(self.run.subject, plan).requires_grad_(True)
        steps = self.settings.training.steps(self._material[0].num_images)
        at = round(self.settings.narrow_at * steps)
        depends = {"plan": plan.digest, "macs": 0.0, "target": asked}
        training = self.finetuning(student, depends, span=(0, at))
        with self.run.watch.stage("training"):
            result = training.run("training before it is narrowed")
        return student.requires_grad_(False), result, (at, steps)

    @cached_property
    def _weighing(self) -> Weighing:
        return Weighing(self.run, self.settings, refits=self._refits)

    @cached_property
    def _refits(self) -> bool:
        return self.run.recovers and refits(self.settings, self.run.subject)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self.run.identity(self._material[0].fingerprint)


def _described(plan: CompressionPlan, pruner: Pruner | None) -> str:
    parts = [name for name, there in (("merging", plan.merges), ("pruning", pruner)) if there]
    return " and ".join([*parts, "training"])
