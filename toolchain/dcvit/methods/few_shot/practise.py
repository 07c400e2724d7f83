"""PRACTISE (arXiv 2202.07861), the baseline: whole blocks go, the ones first that adaptors make up for most cheaply."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.hardware import accelerator
from dcvit.layers import TokenMerge
from dcvit.layers.adaptor import Layer, adapt_input, adapt_output
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.proposal import Proposal, Unit
from dcvit.methods.few_shot.search import Found
from dcvit.model import build
from dcvit.plan import BlockPlan
from dcvit.progress import say
from dcvit.stages import StageResult
from dcvit.subject import original_of
from dcvit.training.mimic import mimic
from dcvit.types import TimmModule


@dataclass(frozen=True)
class DropTrial:
    """One unit dropped alone, with trained adaptors around the gap.

    Attributes:
        unit: Its blocks.
        error: Mean squared error of the features on the few-shot images.
        saved: Latency that dropping it saves, in % of the model's.
        seconds: Of the training.
    """

    unit: Unit
    error: float
    saved: float
    seconds: float

    @property
    def score(self) -> float:
        """Error per percent of latency saved; the lower, the better."""
        return self.error / self.saved


def check_place_for_adaptors(family: Family) -> None:
    """Raises InputError for an attention that may use the weights of qkv without the layer that an adaptor hangs on."""
    if family.adaptor_layers is None:
        raise InputError(f"--method practise knows no place for its adaptors in a {family.name}; use --method dcvit")


def practise(
    job: Job,
    proposal: Proposal,
    *,
    steps: int | None = None,
    latency_saved: Mapping[Unit, float] | None = None,
) -> Found:
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
    # Equal entries and steps are another training here than in DC-ViT.
    job = replace(job, identity=job.identity | {"method": "practise"})
    start = {block.index: block for block in job.start.blocks}
    fixed = [block for block in proposal.base.blocks if start.get(block.index) != block]
    student = _cut_fixed(job, fixed)
    trials: list[DropTrial] = []
    units: list[Unit] = []
    if proposal.macs > 0:
        macs = unit_macs(job, proposal)
        _check_reach(macs, proposal)
        saved = latency_saved or {unit: 100 * cost / proposal.total for unit, cost in macs.items()}
        trials = rank_drops(job, student, fixed, {unit: saved[unit] for unit in macs})
        units = fewest([trial.unit for trial in trials], macs, proposal.macs)
    entries = _drop(job, student, [index for unit in units for index in unit])
    if steps is None:
        steps = job.settings.steps * (_units_of_dcvit(proposal, len(units)) + len(fixed) + job.merges)
    with job.watch.stage("recovery"):
        job.train(student, [*fixed, *entries], steps, "fine-tuning", last_block=job.depth - 1)
    found = {
        "trials": [
            {"blocks": t.unit, "mse": t.error, "saved_percent": t.saved, "score": t.score, "seconds": t.seconds}
            for t in trials
        ],
        "fine_tuning_steps": steps,
        "losses": job.losses,
        "stages_reused": job.store.reused,
    }
    return student.eval(), entries, found


def unit_macs(job: Job, proposal: Proposal) -> dict[Unit, int]:
    """MACs of each unit as a whole, under the base plan; merges that hang on a block stay when it goes."""
    model = build(proposal.base, device="meta")
    original = original_of(job.start)
    count = count_macs(model, job.family.architecture(original).input_size, proposal.macs_convention)
    names = {module: name for name, module in model.named_modules()}
    parts = {
        unit: [part for index in unit for part in job.family.block(model, index).children()] for unit in proposal.units
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


def rank_drops(
    job: Job, student: TimmModule, fixed: Sequence[BlockPlan], saved: Mapping[Unit, float]
) -> list[DropTrial]:
    """Tries each unit alone; the one of the least score comes first.

    Args:
        job: What is compressed.
        student: The merged model with `fixed` cut; it stays as it is.
        fixed: Cuts that are made already.
        saved: Latency that dropping each unit saves, in %.
    """
    trials = []
    for unit in saved:
        result = _trial(job, student, fixed, unit)
        trial = DropTrial(unit, result.record["mse"], saved[unit], result.record["seconds"])
        say(f"without {_named(unit)}: feature MSE {trial.error:.4f}, {trial.score:.4f} per % saved")
        trials.append(trial)
    return sorted(trials, key=lambda trial: trial.score)


def drop_with_adaptors(job: Job, student: TimmModule, unit: Unit) -> list[Layer]:
    """Drops a unit in place and returns the adaptors that now stand around the gap; nothing else is trainable.

    Transformers: behind the MLP of every earlier block, on its branch, and before the qkv of every later one [known];
    in a Swin Transformer too, through all stages [choice]. A block that has lost such a layer gets no adaptor [choice].
    ResNets: within the stage [known], and on the residual branch [choice]: behind the last convolution of every earlier
    block, and before the first one of every later block.
    """
    student.requires_grad_(False)
    _drop(job, student, unit)
    places = job.family.adaptor_places(student, unit)
    assert places is not None  # `check_place_for_adaptors` comes before any trial
    return [adapt_output(layer) for layer in places.behind] + [adapt_input(layer) for layer in places.in_front]


def _trial(job: Job, student: TimmModule, fixed: Sequence[BlockPlan], unit: Unit) -> StageResult:
    def compute() -> StageResult:
        trial = copy.deepcopy(student)
        drop_with_adaptors(job, trial, unit)
        result = mimic(
            trial,
            job.family,
            job.views,
            job.settings.training,
            steps=job.settings.steps_of_a_trial,
            seed=job.seed,
            description=f"trial without {_named(unit)}",
            adapt=(lambda tokens: job.family.merge_tokens(job.model, job.base, tokens)) if job.merges else None,
        )
        return StageResult({}, {"mse": feature_error(job, trial), "loss": result.loss, "seconds": result.seconds})

    key = job.key(
        unit=list(unit),
        fixed=[entry.model_dump() for entry in fixed],
        settings=job.settings.model_dump(include={"nodes", "training"}),
        steps=job.settings.steps_of_a_trial,
    )
    return job.store.run("dropped", key, compute)


@torch.no_grad()
def feature_error(job: Job, student: TimmModule) -> float:
    """Mean squared error of the student's features on the few-shot images, all tokens after the final norm."""
    device = next(job.model.parameters()).device
    student.eval().to(device)
    total, count = 0.0, 0
    for chunk in job.calibration.split(64):
        with accelerator().autocast():
            wanted = job.family.features_and_logits(job.model, chunk.to(device))[0].float()
            features = job.family.features_and_logits(student, chunk.to(device))[0].float()
        if job.merges:
            wanted = job.family.merge_tokens(job.model, job.base, wanted)
        total += float((features - wanted).square().sum())
        count += features.numel()
    return total / count


def _cut_fixed(job: Job, fixed: Sequence[BlockPlan]) -> TimmModule:
    """The merged model with the cuts that the base plan fixes."""
    narrowed = {entry.index: entry.mlp_hidden for entry in fixed if entry.mlp_hidden is not None}
    ranking = NodeRanking(
        job.model, job.family, list(narrowed), job.settings.nodes, images=job.calibration, seed=job.seed
    )
    student = job.merged()
    kept = {index: ranking.best(index, width) for index, width in narrowed.items()}
    job.family.apply(student, job.start.original().with_blocks(*fixed), kept)
    return student


def _drop(job: Job, student: TimmModule, blocks: Sequence[int]) -> list[BlockPlan]:
    """Drops whole blocks in place, and returns their plan entries."""
    entries = [BlockPlan(index=index, removed="block") for index in blocks]
    job.family.apply(student, job.start.original().with_blocks(*entries))
    return entries


def _check_reach(macs: Mapping[Unit, int], proposal: Proposal) -> None:
    most = sum(macs.values())
    if most < proposal.macs * (1 - 1e-9):
        raise InputError(
            f"--macs-reduction: {proposal.macs / proposal.total:.4f} is out of reach; dropping all {len(macs)} units "
            f"that may go takes {math.floor(most / proposal.total * 1e4) / 1e4:.4f}"
        )


def _units_of_dcvit(proposal: Proposal, otherwise: int) -> int:
    """Units that DC-ViT compresses for this target; where the target is out of its reach, `otherwise`."""
    if proposal.macs <= 0:
        return 0
    try:
        return proposal.structure().units
    except InputError:
        return otherwise


def _named(unit: Unit) -> str:
    return ("block " if len(unit) == 1 else "blocks ") + ", ".join(str(index) for index in unit)
