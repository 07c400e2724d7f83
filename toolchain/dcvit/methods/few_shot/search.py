"""DC-ViT, as published or with our solver: from a job and a proposal to a recovered student."""

import math
from collections.abc import Sequence
from dataclasses import replace

from accelerate.utils import broadcast_object_list

from dcvit.data import FewShot
from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.folder.records import BlockDamage, TrialRecord
from dcvit.methods.cuts.damage import Examination, PossibleCuts
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.cuts.scores import logits_of, score_of
from dcvit.methods.few_shot.allocate import RESOLUTION, damage_of
from dcvit.methods.few_shot.compressor import NO_CHOICE, FewShotCompressor, Recovered
from dcvit.methods.few_shot.currency import Compared, smallest_share
from dcvit.methods.few_shot.figures import stand_ins, trimming
from dcvit.methods.few_shot.job import Earlier, Job
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.methods.few_shot.recovery import held_out, recover_at_once
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.few_shot.solver import examined, most_saved, solve, widths_of
from dcvit.methods.few_shot.trials import rank_units, recover_progressively
from dcvit.methods.merges.costs import MergeCosts
from dcvit.methods.merges.search import (
    CALIBRATION_IMAGES,
    SHARES,
    Schedule,
    axes_in_turn,
    choose_merges,
    most_reduction,
    worth_weighing,
)
from dcvit.methods.milliseconds import latency_share, predicted_ms
from dcvit.methods.run import Compressed, Run
from dcvit.methods.target import ANY_MERGES, ANY_SHARE, Reach, Target
from dcvit.plan import BlockPlan, CompressionPlan, merges_text
from dcvit.pricing.probes import Style
from dcvit.progress import say


class DcVitCompressor(FewShotCompressor[SearchSettings]):
    """Solves for the cuts of the least measured damage, or tries each block as the paper does."""

    def __init__(self, run: Run, settings: SearchSettings, few_shot: FewShot | None = None) -> None:
        super().__init__(run, settings, few_shot)
        self._merges: dict[str, Schedule] = {}
        self._any_merges: Style | None = None
        self._comparisons: dict[str, Compared | None] = {}

    def _resolved(self, target: Target) -> Target:
        """Merges that are left to the solver are those with the least damage in all; what costs nothing comes first."""
        aware = bool(target.resolved(trained=self.run.recovery != "none").size_aware)
        if target.merge == ANY_MERGES:
            self._any_merges = Style(axes_in_turn(self.run.subject.architecture.grid), "mean", aware)
        target = trimming(self.run.subject, target, self.settings, self._surveyed, stand_in=not self._has_images)
        if target.merge != ANY_MERGES:
            return super()._resolved(target)
        if (key := target.model_dump_json()) not in self._merges:
            self._merges[key] = self._choose_merges(target, aware=aware)
        text = merges_text(self._merges[key])
        return target.model_copy(update={"merge": text or None, "size_aware": aware if text else None})

    def _compared(self, target: Target, after: Compressed | None) -> Compared | None:
        if target.latency_reduction is None or not (self._has_images and self._solves_in_milliseconds):
            return None
        key = target.model_dump_json() + ("" if after is None else after.plan.digest)
        if key not in self._comparisons:
            self._comparisons[key] = self._compare(target, after)
        return self._comparisons[key]

    def _compare(self, target: Target, after: Compressed | None) -> Compared | None:
        subject, job, proposal = self.run.subject, *self.job(target)
        assert target.latency_reduction is not None
        table, wanted = self._table(target, proposal.base), (1 - target.latency_reduction) * proposal.total

        def milliseconds(share: float) -> float:
            plan = self._plan_after(target.at(share), after)
            return predicted_ms(subject, plan, table)

        counted = self._survey(self._resolved(target.at(ANY_SHARE)))
        share = smallest_share(self._reach(counted, job), milliseconds, wanted)
        if share is None or self._plan_after(target.at(share), after) == self._plan_after(target, after):
            return None
        found = [self._untrained_score(each, after) for each in (target, target.at(share))]
        (scores,) = broadcast_object_list([found])  # of several processes the first decides
        compared = Compared(scores[0], scores[1], share)
        taken = "MACs" if compared.macs_serve else "milliseconds"
        say(f"damage of cuts solved in milliseconds {scores[0]:.3g}, in MACs {scores[1]:.3g}: solved in {taken}")
        return compared

    def _plan_after(self, target: Target, after: Compressed | None) -> CompressionPlan:
        """The plan for a target, whose blocks only lose more than an earlier result's."""
        job, proposal = self.job(target)
        earlier = self._earlier(after, proposal)
        examination = _examined(job, proposal, _fixed(job, proposal))
        return proposal.base.with_blocks(*_entries(proposal, examination, [] if earlier is None else earlier.entries))

    def _untrained_score(self, target: Target, after: Compressed | None) -> float:
        job, proposal = self.job(target)
        untrained = replace(job, settings=job.settings.model_copy(update={"steps": 0}))
        student = self._recover(untrained, proposal, self._earlier(after, proposal)).student
        return score_of(self.run.subject.plan).measure(logits_of(student, job.metric), self._teacher_logits)

    def _surveyed(self, target: Target) -> Proposal:
        return self._survey(target.priced(ANY_SHARE) if target.measured else target)

    def _choose_merges(self, target: Target, *, aware: bool) -> Schedule:
        """Weighs schedules, at what the target asks for, by what they and the cuts beside them do.

        Raises:
            InputError: If the target says no share, or this search does not weigh merges.
        """
        if not (self._has_images and self._solves_in_milliseconds):
            raise InputError(NO_CHOICE)
        subject, plain = self.run.subject, target.model_copy(update={"merge": None, "size_aware": None})
        if plain.measured:
            total = self._survey(plain.priced(ANY_SHARE)).total
            plain = plain.priced(latency_share(plain, total))
        share = plain.macs_reduction or plain.latency_reduction
        if share is None:
            raise InputError("--merge auto needs a target, such as --macs-reduction 0.3 or --speedup 1.5")
        plan = subject.plan.replace(merge_operator="mean", size_aware_attention=aware)
        costs = MergeCosts(self.run.teacher, subject.family, plan, target.macs_convention)
        most = most_reduction(costs)
        with self.run.watch.stage("merges"):
            trials = worth_weighing(
                choose_merges(
                    self.run.teacher, subject.family, plan, self._images[:CALIBRATION_IMAGES],
                    macs_reduction=min(part * share, most), macs_convention=target.macs_convention,
                    store=self.run.store, costs=costs,
                )
                for part in SHARES
            )  # fmt: skip
            damages = {trial.merges: self._damage_with(trial.merges, plain, share, aware=aware) for trial in trials}
        best = min(damages, key=damages.__getitem__)
        if math.isinf(damages[best]):
            return ()  # nothing reaches it; what follows says so
        say(f"merges: {merges_text(best) or 'none, other cuts do less damage'} (damage {damages[best]:.4g} in all, "
            f"{damages[()]:.4g} without)")  # fmt: skip
        return best

    def _damage_with(self, merges: Schedule, plain: Target, share: float, *, aware: bool) -> float:
        """Of a schedule, and of the cuts that remove the rest of a share; infinite where they cannot.

        Damages of cuts are measured without merges; what each cut saves is counted with them.
        """
        merged = plain.model_copy(update={"merge": merges_text(merges), "size_aware": aware}) if merges else plain
        try:
            proposal = self._survey(merged)
            job, _ = self.job(plain)
            cuts = self.predicted_damage(job, proposal.removing(share))
        except InputError:
            return math.inf
        if not merges:
            return cuts
        student = self._job_of(proposal, merged).merged()
        harm = score_of(self.run.subject.plan).measure(logits_of(student, job.metric), self._teacher_logits)
        return cuts + harm

    def _style(self, base: CompressionPlan) -> Style:
        """Where merges are chosen, one table serves every schedule, and none."""
        return self._any_merges or super()._style(base)

    def _choose(self, job: Job[SearchSettings], proposal: Proposal) -> list[BlockPlan]:
        """Which blocks recover best in trials is not known yet: blocks spread over the depth stand in for them."""
        if _uses_solver(job):
            return _entries(proposal, _examined(job, proposal, _fixed(job, proposal)))
        return stand_ins(proposal)

    def _recover(self, job: Job[SearchSettings], proposal: Proposal, after: Earlier | None) -> Recovered:
        """The solver goes on from an earlier result; trials always start from the job's model."""
        fixed = _fixed(job, proposal)
        found = _solve(job, proposal, fixed, after) if _uses_solver(job) else _try_units(job, proposal, fixed)
        metrics = found.metrics | {"losses": job.losses, "stages_reused": job.store.reused}
        if job.training is not None:
            metrics["training"] = job.training.to_json()
        return Recovered(found.student, found.entries, metrics)

    @property
    def _solves_in_milliseconds(self) -> bool:
        return _has_solver(self.settings, self.run.subject.family)

    @property
    def _held_out(self) -> int:
        return held_out(len(self.few_shot)) if _has_solver(self.settings, self.run.subject.family) else 0

    def _stand_in(self, proposal: Proposal) -> list[BlockPlan]:
        return stand_ins(proposal)

    def _reach(self, proposal: Proposal, job: Job[SearchSettings] | None) -> Reach:
        if job is None or not _uses_solver(job):
            return proposal.reach()
        examination = _examined(job, proposal, _fixed(job, proposal))
        damages = _damages(examination, proposal)
        # The solver counts what each attention and MLP saves in steps of the target, rounded down.
        rounding = 1 - (2 * len(damages) + 1) / RESOLUTION
        most = rounding * most_saved(damages, proposal.blocks, proposal.widths)
        return Reach(proposal.least / proposal.total, (proposal.saved + most) / proposal.total)

    def most_macs(self, target: Target) -> float:
        """MACs that the narrowest plan saves beyond the base plan."""
        job, proposal = self.job(target)
        return self._reach(proposal, job).most * proposal.total - proposal.saved

    def predicted_damage(self, job: Job[SearchSettings], proposal: Proposal) -> float:
        """Sum of the damages of what the solver chooses.

        Args:
            job: Its model is the one that damages are measured on, merged or not.
            proposal: What to reach, and what each cut saves of it.

        Raises:
            InputError: If the target is out of reach.
        """
        examination = _examined(job, proposal, [])
        damages, widths = _damages(examination, proposal), proposal.widths
        return sum(
            damage_of(damages[entry.index], widths_of(entry, widths[entry.index]), widths[entry.index])
            for entry in _entries(proposal, examination)
        )


def possible_cuts(proposal: Proposal, fixed: Sequence[BlockPlan] = ()) -> PossibleCuts:
    """What the solver may choose from; MLPs that are fixed have to be known too."""
    narrowed = {block.index for block in fixed if block.mlp_hidden is not None}
    return PossibleCuts(
        narrower_mlp=tuple(sorted({*proposal.blocks, *narrowed})),
        narrower_heads=proposal.narrower_heads,
        no_attention=tuple(sorted(block for unit in proposal.units for block in unit)),
        gone=tuple(sorted(block for unit in proposal.units for block in unit)),
        min_head_dim=proposal.min_head_dim,
    )


def _fixed(job: Job[SearchSettings], proposal: Proposal) -> list[BlockPlan]:
    start = {block.index: block for block in job.start.blocks}
    return [block for block in proposal.base.blocks if start.get(block.index) != block]


def _uses_solver(job: Job[SearchSettings]) -> bool:
    return _has_solver(job.settings, job.family)


def _has_solver(settings: SearchSettings, family: Family) -> bool:
    return settings.search == "solver" and family.removes == "attention"


def _examined(job: Job[SearchSettings], proposal: Proposal, fixed: list[BlockPlan]) -> Examination:
    cuts = possible_cuts(proposal, fixed)
    return examined(job, cuts, proposal.width_multiple) if cuts.narrower_mlp else Examination({}, {})


def _entries(proposal: Proposal, examination: Examination, after: Sequence[BlockPlan] = ()) -> list[BlockPlan]:
    if proposal.wanted <= 0:
        return []
    found = solve(
        _damages(examination, proposal), proposal.blocks, proposal.widths, proposal.wanted, proposal.total,
        proposal.width_multiple, after, proposal.saved, proposal.least,
    )  # fmt: skip
    return [_beside(proposal.base.block(entry.index), entry) for entry in found]


def _damages(examination: Examination, proposal: Proposal) -> dict[int, BlockDamage]:
    """Of every block that may be cut; one that is as narrow as it may be has nothing to lose."""
    nothing = BlockDamage(attention=None, mlp={})
    found = {block: examination.damages.get(block, nothing) for block in proposal.blocks}
    if proposal.base.trims_last_block and found:
        found[max(found)] = found[max(found)].model_copy(update={"block": None})  # what is trimmed, stays
    return found


def _beside(now: BlockPlan, entry: BlockPlan) -> BlockPlan:
    """The whole entry of a block, some of which an earlier compression made."""
    removed = entry.removed or now.removed
    head_dim = None if removed else entry.head_dim or now.head_dim
    return BlockPlan(index=now.index, removed=removed, head_dim=head_dim, mlp_hidden=entry.mlp_hidden or now.mlp_hidden)


def _solve(job: Job[SearchSettings], proposal: Proposal, fixed: list[BlockPlan], after: Earlier | None) -> Recovered:
    examination = _examined(job, proposal, fixed)
    entries = _entries(proposal, examination, [] if after is None else after.entries)
    student = recover_at_once(job, sorted([*fixed, *entries], key=lambda entry: entry.index), examination, after)
    damage = {str(block): each.model_dump(mode="json") for block, each in examination.damages.items()}
    return Recovered(student, entries, {"damage": damage})


def _try_units(job: Job[SearchSettings], proposal: Proposal, fixed: list[BlockPlan]) -> Recovered:
    trials = proposal.trials() if proposal.wanted > 0 else []
    narrowed = [
        entry.index for entry in (*fixed, *(e for unit in trials for e in unit)) if entry.mlp_hidden is not None
    ]
    with job.watch.stage("trials"):
        ranking = NodeRanking(
            job.model, job.family, narrowed, job.settings.nodes, images=job.calibration, seed=job.seed
        )
        ranked = rank_units(job, trials, ranking) if trials else []
    units = proposal.chosen([trial.unit for trial in ranked]) if trials else []
    with job.watch.stage("recovery"):
        student = recover_progressively(job, [*([block] for block in fixed), *units], ranking)
    name = score_of(job.start).name
    records = [
        TrialRecord.model_validate({"blocks": trial.unit, name: trial.score, "seconds": trial.seconds})
        for trial in ranked
    ]
    found = {"trials": [record.model_dump(exclude_none=True) for record in records]}
    return Recovered(student, [entry for unit in units for entry in unit], found)
