"""PRACTISE (arXiv 2202.07861), the baseline: whole blocks go, the ones first that adaptors make up for most cheaply."""

from collections.abc import Mapping, Sequence

from dcvit.cost import count_macs
from dcvit.data import FewShot
from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.layers import TokenMerge
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.few_shot.compressor import FewShotCompressor, Recovered
from dcvit.methods.few_shot.drop_trials import DropTrial, check_place_for_adaptors, drop, rank_drops
from dcvit.methods.few_shot.job import Earlier, Job
from dcvit.methods.few_shot.proposal import Proposal, Unit, propose, stand_in_notes
from dcvit.methods.few_shot.settings import PractiseSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Reach, Target
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.subject import Subject, original_of
from dcvit.summary import PlanSummary
from dcvit.summary import summarize as in_figures
from dcvit.types import TimmModule


class PractiseCompressor(FewShotCompressor[PractiseSettings]):
    """Drops whole blocks, those that adaptors make up for most cheaply first."""

    def __init__(self, run: Run, settings: PractiseSettings, few_shot: FewShot | None = None) -> None:
        super().__init__(run, settings, few_shot)
        check_place_for_adaptors(run.subject.family)
        if not self._has_images:
            raise InputError(f"--method {settings.method} ranks blocks on images: give --data")

    def _choose(self, job: Job[PractiseSettings], proposal: Proposal) -> list[BlockPlan]:  # noqa: ARG002
        return self._stand_in(proposal)

    def _recover(self, job: Job[PractiseSettings], proposal: Proposal, after: Earlier | None) -> Recovered:  # noqa: ARG002
        return practise(job, proposal)

    def _stand_in(self, proposal: Proposal) -> list[BlockPlan]:
        return stand_ins(self.run.subject, proposal)

    def _reach(self, proposal: Proposal, job: Job[PractiseSettings] | None) -> Reach:  # noqa: ARG002
        macs = list(unit_macs(self.run.subject, proposal).values())
        return Reach((proposal.saved + min(macs)) / proposal.total, (proposal.saved + sum(macs)) / proposal.total)


def summarize(subject: Subject, target: Target) -> PlanSummary:
    """The plan in figures; which blocks go is a stand-in until trials on images have ranked them."""
    check_place_for_adaptors(subject.family)
    proposal = propose(subject, target)
    entries, notes = stand_ins(subject, proposal), stand_in_notes(target)
    if entries:
        listed = ", ".join(str(entry.index) for entry in entries)
        notes.append(f"Trials on your images choose the blocks that go (here {listed} stand in for them).")
    return in_figures(proposal.base.with_blocks(*entries), subject.plan, target.macs_convention, " ".join(notes))


def stand_ins(subject: Subject, proposal: Proposal) -> list[BlockPlan]:
    """Plan entries of the fewest units, spread over the depth, whose MACs reach the target.

    Raises:
        InputError: If not even all of them do.
    """
    if proposal.wanted <= 0:
        return []
    macs = unit_macs(subject, proposal)
    _check_reach(macs, proposal)
    units = list(macs)
    for count in range(1, len(units) + 1):
        chosen = [units[int((position + 0.5) * len(units) / count)] for position in range(count)]
        if sum(macs[unit] for unit in chosen) >= proposal.wanted * (1 - 1e-9):
            break
    return [BlockPlan(index=index, removed="block") for unit in chosen for index in unit]


def practise(
    job: Job[PractiseSettings],
    proposal: Proposal,
    *,
    steps: int | None = None,
    latency_saved: Mapping[Unit, float] | None = None,
) -> Recovered:
    """Tries each unit dropped alone, drops the best together, and trains the whole network once.

    [choice] The adaptors only serve to rank the units and are discarded: those of different trials do not combine.
    [choice] Trials and fine-tuning follow the job's one recipe; the paper's loss is the feature MSE alone, which is
    `logit_weight=0`.

    Args:
        job: Its settings say how long a trial is (`steps_of_a_trial`) and how training goes; `search` is not used.
        proposal: Its units are those of DC-ViT: single blocks, or pairs in a Swin Transformer.
        steps: Optimiser steps of the fine-tuning. None takes as many as DC-ViT's progressive recovery takes in total
            for this target: `settings.steps` for each unit that it would compress, for each block that the base plan
            fixes, and once for merges.
        latency_saved: Latency that dropping each unit saves, in % of the model's. [choice] None takes the unit's share
            of the MACs, which ranks equally where all units are equal, as in a ViT.

    Raises:
        InputError: If dropping all units does not reach the target.
    """
    start = {block.index: block for block in job.start.blocks}
    fixed = [block for block in proposal.base.blocks if start.get(block.index) != block]
    student = _cut_fixed(job, fixed)
    trials: list[DropTrial] = []
    units: list[Unit] = []
    if proposal.wanted > 0:
        macs = _macs_of_units(proposal, job.start, job.family)
        _check_reach(macs, proposal)
        saved = latency_saved or {unit: 100 * cost / proposal.total for unit, cost in macs.items()}
        trials = rank_drops(job, student, fixed, {unit: saved[unit] for unit in macs})
        units = fewest([trial.unit for trial in trials], macs, proposal.wanted)
    entries = drop(job, student, [index for unit in units for index in unit])
    if steps is None:
        steps = job.settings.steps * (_units_of_dcvit(proposal, len(units)) + len(fixed) + job.merges)
    with job.watch.stage("recovery"):
        job.train(student, [*fixed, *entries], steps, "fine-tuning", last_block=job.depth - 1)
    found = {
        "trials": [trial.record.model_dump(exclude_none=True) for trial in trials],
        "fine_tuning_steps": steps,
        "losses": job.losses,
        "stages_reused": job.store.reused,
    }
    return Recovered(student.eval(), entries, found)


def unit_macs(subject: Subject, proposal: Proposal) -> dict[Unit, int]:
    """MACs of each unit as a whole, under the base plan; merges that hang on a block stay when it goes."""
    return _macs_of_units(proposal, subject.plan, subject.family)


def _macs_of_units(proposal: Proposal, start: CompressionPlan, family: Family) -> dict[Unit, int]:
    proposal.check_units()
    model = build(proposal.base, device="meta")
    count = count_macs(model, family.architecture(original_of(start)).input_size, proposal.macs_convention)
    names = {module: name for name, module in model.named_modules()}
    parts = {
        unit: [part for index in unit for part in family.block(model, index).children()] for unit in proposal.units
    }
    return {
        unit: count.under(names[part] for part in inside if not isinstance(part, TokenMerge))
        for unit, inside in parts.items()
    }


def fewest(ranked: Sequence[Unit], macs: Mapping[Unit, float], target: float) -> list[Unit]:
    """The fewest of the first units whose MACs together reach the target; all of them where they do not."""
    chosen: list[Unit] = []
    while len(chosen) < len(ranked) and sum(macs[unit] for unit in chosen) < target * (1 - 1e-9):
        chosen.append(ranked[len(chosen)])
    return chosen


def _cut_fixed(job: Job[PractiseSettings], fixed: Sequence[BlockPlan]) -> TimmModule:
    """The merged model with the cuts that the base plan fixes."""
    narrowed = {entry.index: entry.mlp_hidden for entry in fixed if entry.mlp_hidden is not None}
    ranking = NodeRanking(
        job.model, job.family, list(narrowed), job.settings.nodes, images=job.calibration, seed=job.seed
    )
    student = job.merged()
    kept = {index: ranking.best(index, width) for index, width in narrowed.items()}
    job.family.apply(student, job.start.original().with_blocks(*fixed), kept)
    return student


def _check_reach(macs: Mapping[Unit, int], proposal: Proposal) -> None:
    total, saved = proposal.total, proposal.saved
    reach = Reach((saved + min(macs.values())) / total, (saved + sum(macs.values())) / total)
    reach.check((saved + proposal.wanted) / total, f"dropping 1 to {len(macs)} units")


def _units_of_dcvit(proposal: Proposal, otherwise: int) -> int:
    """Units that DC-ViT compresses for this target; where the target is out of its reach, `otherwise`."""
    if proposal.wanted <= 0:
        return 0
    try:
        return proposal.structure().units
    except InputError:
        return otherwise
