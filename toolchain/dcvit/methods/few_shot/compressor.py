"""A model and a few images, opened once and compressed to any number of targets; nothing of it is on disk."""

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from dcvit.data import FewShot
from dcvit.errors import InputError, TargetError
from dcvit.files import json_text
from dcvit.hardware import accelerator
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.cuts.wanted_tokens import WantedTokens
from dcvit.methods.few_shot.currency import Compared, in_macs
from dcvit.methods.few_shot.fitted_images import views_needed, with_views
from dcvit.methods.few_shot.job import Earlier, Job
from dcvit.methods.few_shot.proposal import Proposal, priced, propose, survey
from dcvit.methods.few_shot.settings import FewShotSettings
from dcvit.methods.few_shot.synthesis import save_pictures, synthesize
from dcvit.methods.milliseconds import SETTING, TABLE, latency_share, latency_table, predicted
from dcvit.methods.run import METRIC_IMAGES, Compressed, Compressor, Run
from dcvit.methods.speedup import Candidates, Measure
from dcvit.methods.target import ANY_MERGES, ANY_SHARE, NO_MERGES, Reach, Target
from dcvit.methods.trimming import trimmed, untrimmed
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.pricing.probes import Style
from dcvit.pricing.table import LatencyTable, style_of
from dcvit.settings import DEFAULT_SAMPLES
from dcvit.stages import StageStore
from dcvit.subject import original_of
from dcvit.training.views import ViewBank
from dcvit.types import TimmModule

S = TypeVar("S", bound=FewShotSettings)

NO_CHOICE = (
    "--merge auto is for the solver (`--method dcvit --search solver`) with --data, on a model whose attention can go, "
    "and for --method cait"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """A student that was cut and trained.

    Attributes:
        student: The model.
        entries: The plan entries that were chosen for it.
        metrics: What the search measured.
    """

    student: TimmModule
    entries: Sequence[BlockPlan]
    metrics: dict[str, Any]


class FewShotCompressor(Compressor[S]):
    """What the few-shot methods share; each says how it chooses and recovers.

    Args:
        run: Its model, and images to search and recover with; without images it only cuts.
        settings: Of the search and the recovery.
        few_shot: Images that were drawn already.
    """

    corrections: ClassVar[int] = 2

    def __init__(self, run: Run, settings: S, few_shot: FewShot | None = None) -> None:
        if run.recovery == "none":
            settings = settings.model_copy(update={"steps": 0, "trial_steps": 0})
        super().__init__(run, settings)
        self._given = few_shot
        self._surveys: dict[str, Proposal] = {}
        self._wanted: dict[tuple[str, int], WantedTokens] = {}
        self._fitted: dict[int, Tensor] = {}
        self._tables: dict[str, LatencyTable] = {}
        if settings.metric == "synthetic":
            if run.subject.plan.task == "segmentation":
                raise InputError("--metric synthetic draws images of a classifier's classes; leave it out")
            self.scored_on = "synthetic images"

    def plan(self, target: Target) -> CompressionPlan:
        target = self._resolved(target)
        proposal = self._propose(target)
        entries = (
            self._choose(self._job_of(proposal, target), proposal) if self._has_images else self._stand_in(proposal)
        )
        return proposal.base.with_blocks(*entries)

    def predicted(self, target: Target, plan: CompressionPlan) -> dict[str, Any] | None:
        if not self._solves_in_milliseconds:
            return None
        return predicted(self.run.subject, plan, self._table(target, plan))

    def job(self, target: Target) -> tuple[Job, Proposal]:
        """What the searches work on: for studies of their parts.

        Raises:
            InputError: If the target says nothing or does not fit the model.
        """
        target = self._resolved(target)
        proposal = self._propose(target)
        return self._job_of(proposal, target), proposal

    def fingerprint(self) -> dict[str, Any] | None:
        return self.few_shot.fingerprint if self._has_images else None

    @cached_property
    def few_shot(self) -> FewShot:
        """The images, drawn when the target is known to be within reach."""
        return self._given or self.run.draw(self.run.samples or DEFAULT_SAMPLES)

    @abstractmethod
    def _choose(self, job: Job, proposal: Proposal) -> Sequence[BlockPlan]:
        """The plan entries that `_recover` would choose, without training; stand-ins for what only trials tell.

        Raises:
            InputError: If the target is out of reach.
        """

    @abstractmethod
    def _recover(self, job: Job, proposal: Proposal, after: Earlier | None) -> Recovered:
        """Chooses what to cut, cuts it and recovers accuracy.

        Raises:
            InputError: If the target is out of reach.
        """

    @abstractmethod
    def _stand_in(self, proposal: Proposal) -> Sequence[BlockPlan]:
        """The plan entries where there is no image to choose by: the method's structure, spread over the depth."""

    @abstractmethod
    def _reach(self, proposal: Proposal, job: Job | None) -> Reach:
        """Shares of the MACs that the search can remove, what the base plan removes included."""

    @property
    def _solves_in_milliseconds(self) -> bool:
        """Whether cuts are chosen by what they save in the runtime; else MACs stand in for it."""
        return False

    @property
    def _has_images(self) -> bool:
        return self._given is not None or self.run.source is not None

    def _make(self, target: Target, after: Compressed | None) -> Compressed:
        target = self._resolved(target)  # merges that were left open are the same in both currencies
        compared = self._compared(target, after)
        made = self._made(in_macs(target, compared), after)
        if compared is not None:
            made = dataclasses.replace(made, metrics=made.metrics | {"solved_in": compared.to_json()})
        return made if target.latency_reduction is None else self._with_prediction(made, target)

    def _compared(self, target: Target, after: Compressed | None) -> Compared | None:  # noqa: ARG002
        """What a share of the latency comes to in either currency; None where there is but one."""
        return None

    def _made(self, target: Target, after: Compressed | None) -> Compressed:
        """`_make` in the currency of the target."""
        target = self._resolved(target)
        proposal = self._propose(target)
        if not self._has_images:
            found = self._cut_by_norm(proposal)
        else:
            found = self._recover(self._job_of(proposal, target), proposal, self._earlier(after, proposal))
            if self._trims_at_the_end(proposal.base):
                trimmed(found.student, self.run.subject.family, proposal.base)
        plan = proposal.base.with_blocks(*found.entries)
        return self._compressed(found.student, plan, target, dict(found.metrics))

    def _trims_at_the_end(self, plan: CompressionPlan) -> bool:
        """Whether the last block is trimmed when all is done: students recover with all their tokens."""
        return plan.trims_last_block and not self.run.subject.plan.trims_last_block

    def _earlier(self, made: Compressed | None, proposal: Proposal) -> Earlier | None:
        """What to go on from: an earlier result of the same merges."""
        if made is None or made.plan.merges != proposal.base.merges:
            return None
        trims = self._trims_at_the_end(made.plan)
        student = untrimmed(made.model, made.plan) if trims else made.model
        return Earlier(student, made.plan.blocks, made.metrics.get("training", {}).get("lr"))

    def _candidates(self, target: Target, measure: Measure) -> Candidates[Compressed]:  # noqa: ARG002
        target, option = self._resolved(target), target.measured
        in_time = self._solves_in_milliseconds
        metrics: dict[str, Any] = {}
        if in_time and (compared := self._compared_at(target)) is not None:
            in_time, metrics = not compared.macs_serve, {"solved_in": compared.to_json()}
        at = target.priced if in_time else target.at
        proposal = self._survey(at(ANY_SHARE))
        if not proposal.blocks:
            raise TargetError(f"{option}: the plan leaves no block that could be compressed")
        job = self._job_of(proposal, target) if self._has_images else None

        def make(share: float | None) -> Compressed:
            made = self._made(at(share), None)
            return dataclasses.replace(made, metrics=made.metrics | metrics)

        return Candidates(
            base=proposal.base,
            base_share=proposal.saved / proposal.total,
            plan=lambda share: self.plan(at(share)),
            make=make,
            reach=self._reach(proposal, job),
            cost="predicted latency" if in_time else "MACs",
        )

    def _compared_at(self, target: Target) -> Compared | None:
        """`_compared` at the share of the latency that a measured target asks for, as a table says."""
        try:
            share = self._predicted_share(target)
        except TargetError:
            return None  # measuring will tell
        return self._compared(target.priced(share), None)

    def _make_as_fast(self, target: Target) -> Compressed:
        """Where times of another machine are given, what they predict decides, and nothing is measured here."""
        if target.latency_table is not None and not self._solves_in_milliseconds:
            raise InputError("--latency-table is for the solver (`--search solver`), on a model whose attention can go")
        if target.latency_table is None:
            made = super()._make_as_fast(target)
        else:
            made = self._make(target.priced(self._predicted_share(target)), None)
        return self._with_prediction(made, target)

    def _with_prediction(self, made: Compressed, target: Target) -> Compressed:
        """With what a table says of it, and the table."""
        if (found := self.predicted(target, made.plan)) is None:
            return made
        texts = made.texts | {TABLE: json_text(self._table(target, made.plan).to_json(), indent=1) + "\n"}
        return dataclasses.replace(made, metrics=made.metrics | {"predicted_latency": found}, texts=texts)

    def _predicted_share(self, target: Target) -> float:
        """The share of the latency that a table says is to be removed.

        Raises:
            TargetError: If that is out of reach; the message says what is not.
        """
        resolved = self._resolved(target)
        proposal = self._survey(resolved.priced(ANY_SHARE))
        share = latency_share(target, proposal.total)
        job = self._job_of(proposal, resolved) if self._has_images else None
        most = self._reach(proposal, job).most
        if share > most:
            least_ms = proposal.total * (1 - most)
            raise TargetError(
                f"{target.measured} is out of reach: cutting all that can be cut comes to {least_ms:.3g} ms "
                f"(×{1 / (1 - most):.2f}), as the table says"
            )
        return share

    def _metric(self) -> Tensor | None:
        return self._metric_images if self._has_images else None

    def _resolved(self, target: Target) -> Target:
        """The target with all decided that it leaves open.

        Raises:
            InputError: If merges are left to a search that does not choose them.
        """
        if target.merge == ANY_MERGES:
            raise InputError(NO_CHOICE)
        if target.merge == NO_MERGES:
            target = target.model_copy(update={"merge": None})
        return target.resolved(trained=self.run.recovery != "none")

    def _propose(self, target: Target) -> Proposal:
        share = target.macs_reduction if target.latency_reduction is None else target.latency_reduction
        return propose(self.run.subject, target) if share is None else self._survey(target).removing(share)

    def _survey(self, target: Target) -> Proposal:
        """Counted once for all reductions; in milliseconds where a share of the latency is to be removed."""
        in_time = target.latency_reduction is not None
        key = (target.priced(ANY_SHARE) if in_time else target.at(None)).model_dump_json()
        if key not in self._surveys:
            found = survey(self.run.subject, target)
            if in_time:
                found = priced(found, self.run.subject, self._table(target, found.base))
            self._surveys[key] = found
        return self._surveys[key]

    def _table(self, target: Target, base: CompressionPlan) -> LatencyTable:
        """What cuts cost in the target's runtime, behind the merges of a plan."""
        style = self._style(base)
        key = target.model_dump_json(include={*SETTING}) + repr(style)
        if key not in self._tables:
            self._tables[key] = latency_table(self.run.subject, target, style)
        return self._tables[key]

    def _style(self, base: CompressionPlan) -> Style:
        """Of the merges that a table has to know."""
        return style_of(base)

    @cached_property
    def _images(self) -> Tensor:
        return self.few_shot.tensor(self.run.subject.preprocessing)

    def _fitted_images(self, held_out: int) -> Tensor:
        """The images but the last so many, with as many views of each as the widest MLP asks for on its tokens."""
        if held_out not in self._fitted:
            run, subject, images = self.run, self.run.subject, self._images[: len(self._images) - held_out]
            tokens = subject.family.tokens(original_of(subject.plan), subject.plan)
            views = views_needed(len(images), tokens, subject.architecture.blocks)
            few_shot = self.few_shot.without_last(held_out)
            self._fitted[held_out] = with_views(images, few_shot, subject.preprocessing, views, run.seed)
        return self._fitted[held_out]

    @cached_property
    def _metric_images(self) -> Tensor:
        if self.settings.metric == "train":
            return self._images[:METRIC_IMAGES]
        run, steps = self.run, self.settings.synthesis_steps
        preprocessing, classes = run.subject.preprocessing, run.subject.architecture.num_classes
        # The others find the first one's result in the store.
        with run.watch.stage("synthesis"), accelerator().main_process_first():
            made = synthesize(run.teacher, preprocessing, classes, steps=steps, seed=run.seed, store=run.store)
        if run.store.folder is not None and accelerator().is_main_process:
            save_pictures(made, preprocessing, run.store.folder / "synthetic")
        return made.images

    @cached_property
    def _views(self) -> ViewBank:
        return ViewBank(
            self.run.teacher,
            self.run.subject.family,
            self.few_shot,
            self.run.subject.preprocessing,
            steps=self.settings.steps,
            batch_size=self.settings.training.batch_size,
            seed=self.run.seed,
            held_out=self._held_out,
        )

    @property
    def _held_out(self) -> int:
        """Images that no step sees, to judge the training on."""
        return 0

    def _job_of(self, proposal: Proposal, target: Target) -> Job:
        run = self.run
        return Job(
            model=run.teacher,
            family=run.subject.family,
            start=run.subject.plan,
            base=proposal.base,
            views=self._views,
            calibration=self._images,
            fitted=self._fitted_images,
            metric=self._metric_images,
            wanted_tokens=self._wanted,
            settings=self.settings,
            target=target,
            store=StageStore(run.store.folder),  # its count of reused stages is this job's
            identity=run.identity(self.few_shot.fingerprint),
            seed=run.seed,
            depth=run.subject.architecture.depth,
            watch=run.watch,
        )

    def _cut_by_norm(self, proposal: Proposal) -> Recovered:
        """Cuts without data: nodes by weight norm and, where no plan fixes them, blocks spread over the depth."""
        entries = self._stand_in(proposal)
        if entries:
            listed = ", ".join(str(entry.index) for entry in entries)
            log.warning("no data to choose blocks by, so they are spread over the depth: %s", listed)
        return Recovered(cut_by_norm(self.run.subject, proposal.base.with_blocks(*entries)), entries, {})
