"""CAIT (arXiv 2309.15755): tokens merge and channels are pruned while one training recovers both.

What the paper leaves open and is decided here: merges are chosen before the training; a schedule that is given replaces
the choice. Past the paper, channels need not be pruned while the model trains: by default widths are found by measured
damage and refitted in closed form first, as the few-shot solver does, and merges take the share of the MACs that makes
the least damage in all. Compactors that are pruned lose more to begin with than a short training brings back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from dcvit.errors import InputError, TargetError
from dcvit.methods.cait.prunable import PrunableLayer, most_macs, prunable_layers
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cait.uniform import narrowed_plan, uniform_widths
from dcvit.methods.few_shot.proposal import survey
from dcvit.methods.merges.costs import MergeCosts
from dcvit.methods.merges.search import Schedule, schedules
from dcvit.methods.target import ANY_MERGES, NO_MERGES, Reach, Target
from dcvit.methods.trimming import costs_nothing
from dcvit.model import build
from dcvit.plan import CompressionPlan, merges_text
from dcvit.subject import Subject
from dcvit.summary import PlanSummary, summarize

ChooseMerges = Callable[[CompressionPlan, float], Schedule]
"""Merges for a plan's model, of whose MACs merges and pruning together are to remove a share."""


@dataclass(frozen=True)
class JointProposal:
    """What a target asks of a model.

    Attributes:
        base: The plan before any channel is pruned, with its merges.
        macs: MACs that pruning has to save; 0 where `base` meets the target.
        total: MACs of the given model.
        saved: MACs that `base` saves of them.
        layers: What can be narrowed in `base`.
        width_multiple: Widths stay multiples of this.
        refitted: MACs that cuts before the training can save of `base`, attention among them; None where there are
            none.
    """

    base: CompressionPlan
    macs: float
    total: float
    saved: float
    layers: tuple[PrunableLayer, ...]
    width_multiple: int
    refitted: Callable[[CompressionPlan], float] | None = None

    @property
    def reach(self) -> Reach:
        """Shares of the MACs that are removed with nothing pruned, and with all that can be."""
        most = most_macs(self.layers) if self.refitted is None or not self.layers else self.refitted(self.base)
        return Reach(self.saved / self.total, (self.saved + most) / self.total)

    def removing(self, macs_reduction: float | None) -> "JointProposal":
        """The same for another share of the given model's MACs.

        Raises:
            InputError: If it is out of reach; the message gives the range.
        """
        macs = 0.0 if macs_reduction is None else max(0.0, macs_reduction * self.total - self.saved)
        if macs_reduction is not None and macs > most_macs(self.layers) and macs_reduction > self.reach.most:
            raise self.reach.refusal(macs_reduction, "pruning with these merges")
        return replace(self, macs=macs)

    def uniform(self) -> CompressionPlan:
        """The plan with the same share of every head and MLP cut: a stand-in for the widths that training finds."""
        if not self.macs:
            return self.base
        widths = uniform_widths(self.layers, self.macs, self.width_multiple)
        return narrowed_plan(self.base, self.layers, widths)


def propose_jointly(
    subject: Subject,
    target: Target,
    settings: CaitSettings,
    choose: ChooseMerges,
    *,
    trained: bool,
    refitted: Callable[[CompressionPlan], float] | None = None,
) -> JointProposal:
    """Works out merges, and what pruning has to save. A speed-up is counted as if latency followed MACs.

    Args:
        subject: The model; shapes are enough.
        target: What the user wants.
        settings: Of the method.
        choose: Finds a schedule where none is given.
        trained: Whether merges are trained: then they are linear, if the user does not say `mean`.
        refitted: See `JointProposal`.

    Raises:
        InputError: If the target says nothing, does not fit the model, or cannot be met.
    """
    if target.max_drop is not None:
        raise InputError("--max-drop has to be measured; `dcvit-tool compress` does so")
    wanted = target.macs_reduction if target.speedup is None else 1 - 1 / target.speedup
    if target.merge == ANY_MERGES:  # as this method does anyway
        target = target.model_copy(update={"merge": None})
    merge = None if target.merge == NO_MERGES else target.merge
    target = target.model_copy(update={"trim_last_block": _trims(subject, target, settings)})
    plain = target.at(None)
    merges_already = bool((target.plan or subject.plan).merges)
    if target.merge is None and wanted is not None and not merges_already:
        fixed = survey(subject, plain.model_copy(update={"merge": None, "size_aware": None}))
        missing = (wanted * fixed.total - fixed.saved) / (fixed.total - fixed.saved)
        if missing > 0:
            merge = merges_text(choose(_operated(fixed.base, target, trained), missing)) or None
    if merge is not None and trained and "mean" not in merge:
        merge += ",linear"
    size_aware = target.size_aware if merge is not None or merges_already else None
    if merge is not None and size_aware is None:
        size_aware = not trained
    found = survey(subject, plain.model_copy(update={"merge": merge, "size_aware": size_aware}))
    layers = _layers(subject, found.base, target, settings) if settings.prune else ()
    proposal = JointProposal(found.base, 0.0, found.total, found.saved, tuple(layers), target.width_multiple, refitted)
    if wanted is None and found.base == subject.plan and not subject.fresh_head:
        raise InputError("nothing to do: give --macs-reduction, --speedup, --merge, --plan or --trim-last-block")
    if target.speedup is not None:
        return proposal
    if wanted is not None and not settings.prune and found.saved < wanted * found.total:
        raise TargetError(
            f"--macs-reduction: the merges remove {found.saved / found.total:.4f} of the MACs; give others, or let "
            "channels be pruned"
        )
    return proposal.removing(wanted)


def refits(settings: CaitSettings, subject: Subject) -> bool:
    """Whether widths are found and refitted before the training.

    Raises:
        InputError: If that is asked for, and the model's head says nothing yet that damage could be measured on.
    """
    if settings.widths == "refit" and subject.fresh_head:
        raise InputError("--widths refit needs a trained head; train it first, or give --widths cdcp")
    return settings.prune and settings.widths != "cdcp" and not subject.fresh_head


def stand_in_merges(subject: Subject, target: Target, settings: CaitSettings) -> ChooseMerges:
    """Chooses without images: of the shortest schedules that remove the settings' share, the one that removes least.

    Where none removes enough it gives the one that removes most, and leaves the rest to pruning.
    """

    def choose(plan: CompressionPlan, macs_reduction: float) -> Schedule:
        macs_reduction = settings.share(macs_reduction)
        costs = MergeCosts(build(plan, device="meta"), subject.family, plan, target.macs_convention)
        reductions: dict[Schedule, float] = {}
        for _, equally_long in groupby(schedules(costs.grid, costs.depth), key=len):
            reductions = {merges: costs.reduction(merges) for merges in equally_long}
            enough = [merges for merges in reductions if reductions[merges] >= macs_reduction]
            if enough:
                return min(enough, key=reductions.__getitem__)
        return max(reductions, key=reductions.__getitem__, default=())

    return choose


def summarize_jointly(subject: Subject, target: Target, settings: CaitSettings) -> PlanSummary:
    """The plan in figures; where merges and widths are to be found on images, with stand-ins for them."""
    if target.measured:
        raise InputError(f"{target.measured} has to be measured; `dcvit-tool compress` does so")
    proposal = propose_jointly(subject, target, settings, stand_in_merges(subject, target, settings), trained=True)
    notes = []
    if target.merge is None and proposal.base.merges and not subject.plan.merges and target.plan is None:
        notes.append(f"your images choose the merges (here {merges_text(proposal.base.merges)} stand in for them)")
    if proposal.macs:
        how = "your images find" if refits(settings, subject) else "training finds"
        notes.append(f"{how} the widths (here all are cut by the same share)")
    if target.made_for is not None:
        notes.append(str(target.made_for))
    return summarize(proposal.uniform(), subject.plan, target.macs_convention, "; ".join(notes))


def _trims(subject: Subject, target: Target, settings: CaitSettings) -> bool:
    """Whether the last block is to be trimmed: as the user says, else wherever it may be and nothing fixes the plan."""
    if target.trim_last_block is not None:
        return target.trim_last_block
    asked = (target.macs_reduction, target.speedup, target.merge) != (None, None, None) and target.plan is None
    return settings.trim and asked and costs_nothing(subject)


def _operated(plan: CompressionPlan, target: Target, trained: bool) -> CompressionPlan:
    """With the operator and the attention that chosen merges will have."""
    aware = not trained if target.size_aware is None else target.size_aware
    return plan.replace(merge_operator="linear" if trained else "mean", size_aware_attention=aware)


def _layers(subject: Subject, base: CompressionPlan, target: Target, settings: CaitSettings) -> list[PrunableLayer]:
    return prunable_layers(
        build(base, device="meta"),
        subject.family,
        base,
        multiple=target.width_multiple,
        keep_heads=target.keep_heads,
        min_head_dim=target.min_head_dim,
        min_mlp_hidden=settings.pruning.min_mlp_hidden,
        macs_convention=target.macs_convention,
    )
