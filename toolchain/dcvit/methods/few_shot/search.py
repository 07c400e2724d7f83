"""DC-ViT, as published or with our solver: from a job and a proposal to a recovered student."""

from collections.abc import Sequence
from typing import Any

from dcvit.methods.cuts.damage import Examination, PossibleCuts
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.few_shot.allocate import RESOLUTION, damage_of
from dcvit.methods.few_shot.job import Earlier, Job
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.methods.few_shot.solver import examined, most_macs, recover_at_once, solve, widths_of
from dcvit.methods.few_shot.trials import rank_units, recover_progressively
from dcvit.plan import BlockPlan
from dcvit.types import TimmModule

Found = tuple[TimmModule, list[BlockPlan], dict[str, Any]]
"""The student, the plan entries that were chosen for it, and what the search measured."""


def search_and_recover(job: Job, proposal: Proposal, after: Earlier | None = None) -> Found:
    """Chooses what to cut, cuts it and recovers accuracy, the way the job's settings say.

    Args:
        job: The model, the images, the settings.
        proposal: What to reach.
        after: The solver goes on from this; trials always start from the job's model.

    Raises:
        InputError: If the target is out of reach.
    """
    fixed = _fixed(job, proposal)
    if _uses_solver(job):
        student, entries, found = _solve(job, proposal, fixed, after)
    else:
        student, entries, found = _try_units(job, proposal, fixed)
    return student, entries, found | {"losses": job.losses, "stages_reused": job.store.reused}


def search(job: Job, proposal: Proposal) -> list[BlockPlan]:
    """The plan entries that `search_and_recover` would choose, without training.

    Which blocks recover best in trials is not known then: blocks spread over the depth stand in for them.

    Raises:
        InputError: If the target is out of reach.
    """
    if _uses_solver(job):
        return _entries(proposal, _examined(job, proposal, _fixed(job, proposal)))
    return stand_ins(proposal)


def possible_cuts(proposal: Proposal, fixed: Sequence[BlockPlan] = ()) -> PossibleCuts:
    """What the solver may choose from; MLPs that are fixed have to be known too."""
    narrowed = {block.index for block in fixed if block.mlp_hidden is not None}
    return PossibleCuts(
        narrower_mlp=tuple(sorted({*proposal.blocks, *narrowed})),
        narrower_heads=tuple(sorted(block for block, cost in proposal.blocks.items() if cost.heads)),
        no_attention=tuple(sorted(block for unit in proposal.units for block in unit)),
    )


def stand_ins(proposal: Proposal) -> list[BlockPlan]:
    """Plan entries of DC-ViT's structure, its blocks spread evenly over the depth."""
    return [entry for unit in proposal.chosen(proposal.spread_out()) for entry in unit] if proposal.macs > 0 else []


def predicted_damage(job: Job, proposal: Proposal) -> float:
    """Sum of the measured damages, in nats, of what the solver chooses.

    Args:
        job: Its model is the one that damages are measured on, merged or not.
        proposal: What to reach, and what each cut saves of it.

    Raises:
        InputError: If the target is out of reach.
    """
    examination = _examined(job, proposal, [])
    whole = proposal.whole
    return sum(
        damage_of(examination.damages[entry.index], widths_of(entry, whole), whole)
        for entry in _entries(proposal, examination)
    )


def reach(job: Job, proposal: Proposal) -> tuple[float, float]:
    """MACs that the search can save beyond the base plan, least and most."""
    if _uses_solver(job):
        examination = _examined(job, proposal, _fixed(job, proposal))
        damages = {block: examination.damages[block] for block in proposal.blocks}
        # The solver counts what each attention and MLP saves in steps of the target, rounded down.
        rounding = 1 - (2 * len(damages) + 1) / RESOLUTION
        return 0.0, rounding * most_macs(damages, proposal.blocks, proposal.whole)
    return proposal.reach()


def _fixed(job: Job, proposal: Proposal) -> list[BlockPlan]:
    start = {block.index: block for block in job.start.blocks}
    return [block for block in proposal.base.blocks if start.get(block.index) != block]


def _uses_solver(job: Job) -> bool:
    return job.settings.search == "solver" and job.family.removes == "attention"


def _examined(job: Job, proposal: Proposal, fixed: list[BlockPlan]) -> Examination:
    cuts = possible_cuts(proposal, fixed)
    return examined(job, cuts, proposal.width_multiple) if cuts.narrower_mlp else Examination({}, {})


def _entries(proposal: Proposal, examination: Examination, after: Sequence[BlockPlan] = ()) -> list[BlockPlan]:
    if proposal.macs <= 0:
        return []
    damages = {block: examination.damages[block] for block in proposal.blocks}
    return solve(
        damages, proposal.blocks, proposal.whole, proposal.macs, proposal.total, proposal.width_multiple, after
    )


def _solve(job: Job, proposal: Proposal, fixed: list[BlockPlan], after: Earlier | None) -> Found:
    examination = _examined(job, proposal, fixed)
    entries = _entries(proposal, examination, [] if after is None else after.entries)
    student = recover_at_once(job, sorted([*fixed, *entries], key=lambda entry: entry.index), examination, after)
    damage = {str(block): each.model_dump(mode="json") for block, each in examination.damages.items()}
    return student, entries, {"damage": damage}


def _try_units(job: Job, proposal: Proposal, fixed: list[BlockPlan]) -> Found:
    trials = proposal.trials() if proposal.macs > 0 else []
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
    found = {"trials": [{"blocks": t.unit, "kl": t.score, "seconds": t.seconds} for t in ranked]}
    return student, [entry for unit in units for entry in unit], found
