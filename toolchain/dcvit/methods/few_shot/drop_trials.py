"""PRACTISE's trials (arXiv 2202.07861): each unit dropped alone, with adaptors that are trained around the gap."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.folder.records import TrialRecord
from dcvit.hardware import accelerator
from dcvit.layers.adaptor import Layer, adapt_input, adapt_output
from dcvit.methods.few_shot.job import OF_THE_PLAN, Job
from dcvit.methods.few_shot.proposal import Unit
from dcvit.methods.few_shot.settings import PractiseSettings
from dcvit.plan import BlockPlan
from dcvit.progress import say
from dcvit.stages import StageResult
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

    @property
    def record(self) -> TrialRecord:
        """For the manifest."""
        return TrialRecord(
            blocks=self.unit, mse=self.error, saved_percent=self.saved, score=self.score, seconds=self.seconds
        )


def check_place_for_adaptors(family: Family) -> None:
    """Raises InputError for an attention that may use the weights of qkv without the layer that an adaptor hangs on."""
    if family.adaptor_layers is None:
        raise InputError(f"--method practise knows no place for its adaptors in a {family.name}; use --method dcvit")


def rank_drops(
    job: Job[PractiseSettings], student: TimmModule, fixed: Sequence[BlockPlan], saved: Mapping[Unit, float]
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
        say(f"without {_named(unit)}: feature MSE {trial.error:.2g}, {trial.score:.2g} per % saved")
        trials.append(trial)
    return sorted(trials, key=lambda trial: trial.score)


def drop_with_adaptors(job: Job[PractiseSettings], student: TimmModule, unit: Unit) -> list[Layer]:
    """Drops a unit in place and returns the adaptors that now stand around the gap; nothing else is trainable.

    Transformers: behind the MLP of every earlier block, on its branch, and before the qkv of every later one [known];
    in a Swin Transformer too, through all stages [choice]. A block that has lost such a layer gets no adaptor [choice].
    ResNets: within the stage [known], and on the residual branch [choice]: behind the last convolution of every earlier
    block, and before the first one of every later block.
    """
    student.requires_grad_(False)
    drop(job, student, unit)
    places = job.family.adaptor_places(student, unit)
    assert places is not None  # `check_place_for_adaptors` comes before any trial
    return [adapt_output(layer) for layer in places.behind] + [adapt_input(layer) for layer in places.in_front]


def _trial(job: Job[PractiseSettings], student: TimmModule, fixed: Sequence[BlockPlan], unit: Unit) -> StageResult:
    def compute() -> StageResult:
        trial = copy.deepcopy(student)
        drop_with_adaptors(job, trial, unit)
        result = mimic(
            trial,
            job.family,
            job.views,
            job.recipe,
            steps=job.settings.steps_of_a_trial,
            seed=job.seed,
            description=f"trial without {_named(unit)}",
            adapt=(lambda tokens: job.family.merge_tokens(job.model, job.base, tokens)) if job.merges else None,
        )
        return StageResult({}, {"mse": feature_error(job, trial), "loss": result.loss, "seconds": result.seconds})

    key = job.key(
        but={"steps", "trial_steps", "metric", "synthesis_steps", *OF_THE_PLAN},
        unit=list(unit),
        fixed=[entry.model_dump() for entry in fixed],
        steps=job.settings.steps_of_a_trial,
    )
    return job.store.run("dropped", key, compute)


@torch.no_grad()
def feature_error(job: Job[PractiseSettings], student: TimmModule) -> float:
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


def drop(job: Job[PractiseSettings], student: TimmModule, blocks: Sequence[int]) -> list[BlockPlan]:
    """Drops whole blocks in place, and returns their plan entries."""
    entries = [BlockPlan(index=index, removed="block") for index in blocks]
    job.family.apply(student, job.start.original().with_blocks(*entries))
    return entries


def _named(unit: Unit) -> str:
    return ("block " if len(unit) == 1 else "blocks ") + ", ".join(str(index) for index in unit)
