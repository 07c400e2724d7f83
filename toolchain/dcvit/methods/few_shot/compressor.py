"""A model and a few images, opened once and compressed to any number of targets; nothing of it is on disk."""

import dataclasses
import logging
import time
from functools import cached_property
from typing import Any

from torch import Tensor

from dcvit.data import FewShot
from dcvit.errors import InputError
from dcvit.folder.manifest import Manifest
from dcvit.hardware import accelerator
from dcvit.methods.base import Compressed, Recover
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.cuts.damage import divergence, logits_of
from dcvit.methods.cuts.wanted_tokens import Reference
from dcvit.methods.few_shot.job import Earlier, Job
from dcvit.methods.few_shot.practise import check_place_for_adaptors, practise
from dcvit.methods.few_shot.proposal import Proposal, propose, survey
from dcvit.methods.few_shot.search import reach, search, search_and_recover, stand_ins
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.few_shot.synthesis import save_pictures, synthesize
from dcvit.methods.speedup import Candidates, correct, find_reduction, measuring
from dcvit.methods.stopwatch import Stopwatch
from dcvit.methods.target import Target
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.stages import StageStore, weights_digest
from dcvit.subject import Subject
from dcvit.summary import summarize
from dcvit.training.views import ViewBank
from dcvit.types import TimmModule
from dcvit.versions import package_versions

METRIC_IMAGES = 128
"""Few-shot images that damage and trials are scored on, at most."""

log = logging.getLogger(__name__)


def require_classifier(subject: Subject, settings: SearchSettings) -> None:
    """Raises InputError for a segmentation model: few-shot methods learn from the logits of whole images."""
    if subject.plan.task == "segmentation":
        raise InputError(
            f"--method {settings.method} learns from a classifier; give --method cait for segmentation, or cut without "
            "--data by --recover none"
        )


class Compressor:
    """Compresses one subject to any number of targets; what they share is computed once.

    Args:
        subject: The model; it stays as it is.
        few_shot: Images to search and recover with; None only cuts.
        settings: Of the search and the recovery.
        recover: `none` only cuts and merges.
        seed: Of every random choice.
        store: Keeps the results of long stages.
        watch: Where the time goes, of a larger run that this is part of.
    """

    def __init__(
        self,
        subject: Subject,
        few_shot: FewShot | None,
        settings: SearchSettings,
        *,
        recover: Recover,
        seed: int,
        store: StageStore,
        watch: Stopwatch | None = None,
    ) -> None:
        if recover == "none":
            settings = settings.model_copy(update={"steps": 0, "trial_steps": 0})
        if settings.method == "practise":
            check_place_for_adaptors(subject.family)
            if few_shot is None:
                raise InputError("--method practise ranks blocks on images: give --data")
        self.subject, self.few_shot, self.settings = subject, few_shot, settings
        self.recover, self.seed, self.store = recover, seed, store
        self.watch = watch or Stopwatch()
        self._surveys: dict[str, Proposal] = {}
        self._references: dict[str, Reference] = {}

    def compress(self, target: Target, after: Compressed | None = None) -> Compressed:
        """Finds a plan that meets the target, and recovers accuracy where there are images.

        Args:
            target: What to reach.
            after: This compressor's result for a smaller reduction, and else the same target. The solver then cuts and
                trains on from it, for a fraction of the steps, rather than from the given model.

        Raises:
            InputError: If the target is out of reach.
        """
        started, before = time.perf_counter(), dict(self.watch.seconds)
        if target.speedup is not None:
            return self._compress_to_speedup(target)
        proposal = self._propose(target)
        if self.few_shot is None:
            student, entries = self._cut_by_norm(proposal)
            metrics: dict[str, Any] = {}
        else:
            job = self._job_of(proposal)
            if self.settings.method == "practise":
                student, entries, metrics = practise(job, proposal)
            else:
                earlier = None if after is None else Earlier(after.model, after.plan.blocks)
                student, entries, metrics = search_and_recover(job, proposal, earlier)
            with self.watch.stage("scoring"):
                metrics["kl"] = divergence(logits_of(student, job.metric), self._teacher_logits)
            metrics["stages"] = self.watch.since(before)
        summary = summarize(proposal.base.with_blocks(*entries), self.subject.plan, target.macs_convention)
        return Compressed(student.cpu(), summary, metrics | {"seconds": time.perf_counter() - started})

    def plan(self, target: Target) -> CompressionPlan:
        """The plan for a target without a training step; for `trials`, other blocks stand in for the chosen ones.

        Raises:
            InputError: If the target is out of reach.
        """
        proposal = self._propose(target)
        entries = stand_ins(proposal) if self.few_shot is None else search(self._job_of(proposal), proposal)
        return proposal.base.with_blocks(*entries)

    def job(self, target: Target) -> tuple[Job, Proposal]:
        """What the searches work on: for studies of their parts.

        Raises:
            InputError: If the target says nothing or does not fit the model.
        """
        proposal = self._propose(target)
        return self._job_of(proposal), proposal

    def manifest(self, made: Compressed, target: Target) -> Manifest:
        """What the model folder of a compressed model says about it."""
        data = self.few_shot.fingerprint if self.few_shot else None
        return manifest_of(self.subject, made, target, self.settings, recover=self.recover, seed=self.seed, data=data)

    def _compress_to_speedup(self, target: Target) -> Compressed:
        assert target.speedup is not None
        if self.settings.method == "practise":
            raise InputError("--speedup works with --method dcvit; give --macs-reduction for practise")
        started = time.perf_counter()
        with measuring(self.subject.plan.original(), self.subject.preprocessing, target.runtime) as measure:
            candidates = self._candidates(target)
            found = find_reduction(target.speedup, candidates, measure)
            made, row = correct(
                found,
                target.speedup,
                candidates,
                lambda share: self.compress(target.at(share)),
                lambda made: measure(made.plan),
            )
        metrics = made.metrics | {"speedup": row.to_json(), "speedup_measurements": found.measurements}
        return dataclasses.replace(made, metrics=metrics | {"seconds": time.perf_counter() - started})

    def _candidates(self, target: Target) -> Candidates:
        proposal = self._survey(target)
        if not proposal.units:
            raise InputError("--speedup: the plan leaves no block that could be compressed")
        least, most = proposal.reach() if self.few_shot is None else reach(self._job_of(proposal), proposal)
        saved, total = proposal.saved, proposal.total
        return Candidates(
            base=proposal.base,
            plan=lambda share: self.plan(target.at(share)),
            base_share=saved / total,
            least=(saved + least) / total,
            most=(saved + most) / total,
        )

    def _propose(self, target: Target) -> Proposal:
        if target.macs_reduction is None:
            return propose(self.subject, target)
        return self._survey(target).removing(target.macs_reduction)

    def _survey(self, target: Target) -> Proposal:
        """Counted once for all reductions."""
        key = target.at(None).model_dump_json()
        if key not in self._surveys:
            self._surveys[key] = survey(self.subject, target)
        return self._surveys[key]

    @cached_property
    def _teacher(self) -> TimmModule:
        return self.subject.model.to(accelerator().device).requires_grad_(False)

    @cached_property
    def _teacher_logits(self) -> Tensor:
        return logits_of(self._teacher, self._metric)

    @cached_property
    def _images(self) -> Tensor:
        assert self.few_shot is not None
        return self.few_shot.tensor(self.subject.preprocessing)

    @cached_property
    def _metric(self) -> Tensor:
        if self.settings.metric == "train":
            return self._images[:METRIC_IMAGES]
        steps, classes = self.settings.synthesis_steps, self.subject.architecture.num_classes
        # The others find the first one's result in the store.
        with self.watch.stage("synthesis"), accelerator().main_process_first():
            made = synthesize(
                self._teacher, self.subject.preprocessing, classes, steps=steps, seed=self.seed, store=self.store
            )
        if self.store.folder is not None and accelerator().is_main_process:
            save_pictures(made, self.subject.preprocessing, self.store.folder / "synthetic")
        return made.images

    @cached_property
    def _views(self) -> ViewBank:
        assert self.few_shot is not None
        return ViewBank(
            self._teacher,
            self.subject.family,
            self.few_shot,
            self.subject.preprocessing,
            steps=self.settings.steps,
            batch_size=self.settings.training.batch_size,
            seed=self.seed,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Everything that kept results depend on and no target changes."""
        assert self.few_shot is not None
        return {
            "model": weights_digest(self._teacher.state_dict()),
            "data": self.few_shot.fingerprint["sha256"],
            "preprocessing": self.subject.preprocessing.model_dump(mode="json"),
            "precision": accelerator().mixed_precision,
            "versions": {name: package_versions().get(name) for name in ("dcvit-tool", "torch", "timm")},
        }

    def _job_of(self, proposal: Proposal) -> Job:
        return Job(
            model=self._teacher,
            family=self.subject.family,
            start=self.subject.plan,
            base=proposal.base,
            views=self._views,
            calibration=self._images,
            metric=self._metric,
            references=self._references,
            settings=self.settings,
            store=StageStore(self.store.folder),  # its count of reused stages is this job's
            identity=self._identity,
            seed=self.seed,
            depth=self.subject.architecture.depth,
            watch=self.watch,
        )

    def _cut_by_norm(self, proposal: Proposal) -> tuple[TimmModule, list[BlockPlan]]:
        """Cuts without data: nodes by weight norm and, where no plan fixes them, blocks spread over the depth."""
        subject = self.subject
        entries = stand_ins(proposal)
        if entries:
            listed = ", ".join(str(entry.index) for entry in entries)
            log.warning("no data to choose blocks by, so they are spread over the depth: %s", listed)
        return cut_by_norm(subject, proposal.base.with_blocks(*entries)), entries


def manifest_of(
    subject: Subject,
    made: Compressed,
    target: Target,
    settings: SearchSettings | CaitSettings,
    *,
    recover: Recover,
    seed: int,
    data: dict[str, Any] | None,
) -> Manifest:
    """What a model folder says about where its model comes from."""
    summary = made.summary
    return Manifest(
        model=made.plan.model,
        method=settings.method,
        plan_digest=made.plan.digest,
        seed=seed,
        preprocessing=subject.preprocessing,
        settings={
            "target": target.model_dump(mode="json", exclude_none=True),
            "recover": recover,
            "weights": subject.weights,
            **settings.model_dump(mode="json"),
        },
        data=data,
        metrics=made.metrics | {"macs_before": summary.macs_before, "macs_after": summary.macs_after},
        versions=package_versions(),
    )
