"""A model and many images: merged, narrowed and trained at once (CAIT); nothing but checkpoints is on disk."""

import copy
import logging
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from dcvit.data import ImageSource
from dcvit.errors import InputError
from dcvit.folder.manifest import Manifest
from dcvit.hardware import accelerator
from dcvit.methods.base import Compressed, Recover
from dcvit.methods.cait.cdcp import ChannelPruning
from dcvit.methods.cait.proposal import JointProposal, propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cait.weighing import Weighing
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.few_shot.compressor import manifest_of
from dcvit.methods.speedup import TOLERANCE, Candidates, Measure, find_reduction, measuring
from dcvit.methods.stopwatch import Stopwatch
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan, merges_text
from dcvit.stages import StageResult, StageStore, weights_digest
from dcvit.subject import Subject
from dcvit.summary import summarize
from dcvit.training.finetune import Checkpoints, Finetuning
from dcvit.training.images import TrainingData
from dcvit.training.log import LOG, TrainingLog
from dcvit.training.pruner import Pruner
from dcvit.training.setup import set_up
from dcvit.training.task import Task
from dcvit.training.teacher import Teacher
from dcvit.types import TimmModule
from dcvit.versions import package_versions

log = logging.getLogger(__name__)


class JointCompressor:
    """Compresses one subject by CAIT.

    Args:
        subject: The model; it stays as it is.
        data: Images to train on; None only merges and cuts.
        settings: Of the method and the training.
        samples: Images to use; None takes all.
        seed: Of every random choice.
        store: Keeps the results of long stages.
        checkpoints: A folder for the state of the training and its log; None keeps neither.
        minutes: Between two states.
        tensorboard: A folder for TensorBoard's event files.
        keep_teacher: Let the teacher compute its outputs beforehand, and keep them in the store for other runs.
    """

    def __init__(
        self,
        subject: Subject,
        data: str | Path | ImageSource | None,
        settings: CaitSettings,
        *,
        samples: int | None,
        seed: int,
        store: StageStore,
        checkpoints: Path | None = None,
        minutes: float = 10.0,
        tensorboard: Path | None = None,
        keep_teacher: bool = False,
    ) -> None:
        recipe = settings.training.resolved(subject.preprocessing, subject.plan.task)
        self.subject, self.settings = subject, settings.model_copy(update={"training": recipe})
        self.seed, self.store, self.checkpoints, self.minutes = seed, store, checkpoints, minutes
        self.keep_teacher = keep_teacher
        self.watch = Stopwatch()
        self.log = TrainingLog(None if checkpoints is None else checkpoints / LOG, tensorboard)
        self._source, self._samples = data, samples

    def compress(self, target: Target) -> Compressed:
        """Merges, prunes and trains until the target is met; without images, cuts every layer by the same share.

        Raises:
            InputError: If the target is out of reach, or the images are not what the model was trained for.
        """
        started = time.perf_counter()
        if target.speedup is None:
            made = self._make(self._propose(target), target)
        else:
            with measuring(self.subject.plan.original(), self.subject.preprocessing, target.runtime) as measure:
                made = self._make_as_fast(self._propose(target, measure), target, measure)
        made.metrics.update(stages=self.watch.since({}), seconds=time.perf_counter() - started)
        return made

    def manifest(self, made: Compressed, target: Target) -> Manifest:
        """What the model folder of a compressed model says about it."""
        recover: Recover = "train" if self._trains else "none"
        fingerprint = self._material[0].fingerprint if self._trains else None
        return manifest_of(self.subject, made, target, self.settings, recover=recover, seed=self.seed, data=fingerprint)

    @property
    def _trains(self) -> bool:
        return self._source is not None

    @cached_property
    def _material(self) -> tuple[TrainingData, Task]:
        """Images and loss; read when the target is known to be within reach."""
        assert self._source is not None
        return set_up(
            self.subject,
            self._source,
            self.settings.training,
            labels=self.settings.labels,
            samples=self._samples,
            seed=self.seed,
        )

    def finetuning(self, student: TimmModule, depends: dict[str, Any], pruner: Pruner | None = None) -> Finetuning:
        """The training of a student, as it stands; studies train others exactly as the method trains its own.

        Args:
            student: Takes the subject's images and gives what the subject gives.
            depends: What the result depends on, beside the subject, the images, the settings and the seed.
            pruner: Narrows the student while it trains.
        """
        data, task = self._material
        checkpoints = None
        if self.checkpoints is not None:
            key = self._identity | {"settings": self.settings.model_dump(mode="json"), "of": depends}
            checkpoints = Checkpoints(self.checkpoints, key, self.minutes)
        training = Finetuning(
            student,
            task,
            data,
            self.settings.training,
            num_classes=self.subject.architecture.num_classes,
            seed=self.seed,
            teacher=Teacher(self._teacher),
            pruner=pruner,
            log=self.log,
            checkpoints=checkpoints,
        )
        if self.keep_teacher:
            with self.watch.stage("teacher"):
                training.keep_teacher(self.store, self._identity)
        return training

    def _propose(self, target: Target, measure: Measure | None = None) -> JointProposal:
        stand_in = stand_in_merges(self.subject, target, self.settings)
        choose = self._weighing.merges(target, measure) if self._trains else stand_in
        return propose_jointly(self.subject, target, self.settings, choose, trained=self._trains)

    def _make_as_fast(self, proposal: JointProposal, target: Target, measure: Measure) -> Compressed:
        """Structure alone decides latency: plans are timed, and the trained one again.

        Where training finds the widths, uniform ones stand in for them.
        """
        wanted = target.speedup
        assert wanted is not None

        def find() -> StageResult:
            if measure(proposal.base).speedup >= wanted:
                return StageResult({}, {"macs_reduction": None, "measurements": 1})
            least, most = proposal.reach
            if least == most:
                raise InputError(
                    f"--speedup {wanted:g}: merging alone measures ×{measure(proposal.base).speedup:.2f}; "
                    "give other merges, or let channels be pruned"
                )
            if self._refits:
                most = least + self._weighing.refit(proposal.base).most_macs(target) / proposal.total
            candidates = Candidates(
                base=proposal.base,
                plan=lambda share: self._plan(proposal.removing(share), target),
                base_share=least,
                least=least + 0.001,
                most=most,
            )
            found = find_reduction(wanted, candidates, measure)
            return StageResult({}, {"macs_reduction": found.macs_reduction, "measurements": found.measurements})

        with self.watch.stage("measuring"):
            key = {"base": proposal.base.digest, "target": target.model_dump(mode="json")}
            if self._refits:  # the plans that are timed follow from the weights and the images
                key |= self._weighing.identity
            found = self.store.run("speedup", key, find).record
        made = self._make(proposal.removing(found["macs_reduction"]), target)
        with self.watch.stage("measuring"):
            row = measure(made.plan)
        if row.speedup < wanted * (1 - TOLERANCE):
            log.warning("the widths that training found make it ×%.3f as fast, not ×%g", row.speedup, wanted)
        made.metrics.update(speedup=row.to_json(), speedup_measurements=found["measurements"])
        return made

    def _make(self, proposal: JointProposal, target: Target) -> Compressed:
        if not self._trains:
            plan = proposal.uniform()
            summary = summarize(plan, self.subject.plan, target.macs_convention)
            return Compressed(cut_by_norm(self.subject, plan), summary, {})
        student, plan, metrics = self._train(proposal, target)
        summary = summarize(plan, self.subject.plan, target.macs_convention)
        texts = {LOG: self.log.text} if self.log.text else {}
        return Compressed(student.cpu(), summary, metrics, texts)

    def _plan(self, proposal: JointProposal, target: Target) -> CompressionPlan:
        """The plan that a proposal comes to, or a stand-in where training finds the widths."""
        if self._refits and proposal.macs:
            return self._weighing.refit(proposal.base).plan(target, proposal.macs)
        return proposal.uniform()

    def _train(self, proposal: JointProposal, target: Target) -> tuple[TimmModule, CompressionPlan, dict[str, Any]]:
        plan, pruner = proposal.base, None
        if self._refits and proposal.macs:
            start = self._weighing.refit(plan).cut(target, proposal.macs)
            student, plan = start.model.requires_grad_(True), start.plan
        else:
            student = cut_by_norm(self.subject, plan).requires_grad_(True)
        if proposal.macs and not self._refits:
            counted = {"width_multiple": target.width_multiple, "keep_heads": target.keep_heads}
            pruning = self.settings.pruning.model_copy(update=counted)
            pruner = ChannelPruning(
                student.to(accelerator().device),
                self.subject.family,
                plan,
                macs_to_save=proposal.macs,
                settings=pruning,
                macs_convention=target.macs_convention,
            )
        depends = {"plan": plan.digest, "macs": 0.0 if pruner is None else proposal.macs}
        training = self.finetuning(student, depends, pruner)
        with self.watch.stage("training"):
            result = training.run(_described(plan, pruner))
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

    @cached_property
    def _weighing(self) -> Weighing:
        assert self._source is not None
        return Weighing(
            self.subject,
            self._source,
            self.settings,
            refits=self._refits,
            seed=self.seed,
            store=self.store,
            watch=self.watch,
        )

    @cached_property
    def _refits(self) -> bool:
        return self._trains and self.settings.refits(self.subject)

    @cached_property
    def _teacher(self) -> TimmModule:
        return copy.deepcopy(self.subject.model).requires_grad_(False)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Everything that checkpoints and kept results depend on and no target changes."""
        return {
            "model": weights_digest(self.subject.model.state_dict()),
            "data": {name: value for name, value in self._material[0].fingerprint.items() if name != "source"},
            "preprocessing": self.subject.preprocessing.model_dump(mode="json"),
            "precision": accelerator().mixed_precision,
            "versions": {name: package_versions().get(name) for name in ("dcvit-tool", "torch", "timm")},
        }


def _described(plan: CompressionPlan, pruner: Pruner | None) -> str:
    parts = [name for name, there in (("merging", plan.merges), ("pruning", pruner)) if there]
    return " and ".join([*parts, "training"])
