"""DC-ViT as published (arXiv 2403.18708): each block is tried alone, the best are compressed one after the other."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from dcvit.hardware import accelerator
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.cuts.scores import logits_of, score_of
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.plan import BlockPlan
from dcvit.progress import say
from dcvit.types import TimmModule

Unit = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One unit compressed alone.

    Attributes:
        unit: Its blocks.
        score: Of the student's outputs on the metric images, as `score_of` the model says; the lower, the better it
            recovers.
    """

    unit: Unit
    score: float
    seconds: float


def rank_units(job: Job[SearchSettings], units: Sequence[Sequence[BlockPlan]], ranking: NodeRanking) -> list[Trial]:
    """Tries each unit alone; the one that recovers best comes first.

    Several processes share out the trials: each keeps the results of its own in the job's store, where all read them.
    """
    student = _start(job)
    wanted, score_by = logits_of(job.model, job.metric), score_of(job.start)
    process = accelerator()
    if process.num_processes > 1 and job.store.folder is not None:
        for entries in units[process.process_index :: process.num_processes]:
            _try(job, student, entries, ranking)
        process.wait_for_everyone()
    trials = []
    for entries in units:
        trial, seconds = _try(job, student, entries, ranking)
        score = score_by.measure(logits_of(trial, job.metric), wanted)
        say(f"{_named(entries)}: {score_by.words.name} {score:.2g}")
        trials.append(Trial(tuple(entry.index for entry in entries), score, seconds))
    return sorted(trials, key=lambda trial: trial.score)


def _try(
    job: Job[SearchSettings], student: TimmModule, entries: Sequence[BlockPlan], ranking: NodeRanking
) -> tuple[TimmModule, float]:
    """A copy of the student with one unit compressed and trained, and the seconds that took."""
    trial = copy.deepcopy(student)
    _cut(job, trial, entries, ranking)
    last = min(entries[-1].index + 1, job.depth - 1)
    steps, description = job.settings.steps_of_a_trial, f"trial of {_named(entries)}"
    return trial, job.train(trial, entries, steps, description, last_block=last, together=False)


def recover_progressively(
    job: Job[SearchSettings], units: Sequence[Sequence[BlockPlan]], ranking: NodeRanking
) -> TimmModule:
    """Compresses the units one after the other, each followed by training; the first one's trial is not repeated."""
    student = _start(job)
    done: list[BlockPlan] = []
    for position, entries in enumerate(units):
        done += entries
        _cut(job, student, entries, ranking)
        last = min(max(entry.index for entry in done) + 1, job.depth - 1)
        description = f"{_named(entries)} ({position + 1} of {len(units)})"
        job.train(student, done, job.settings.steps, description, last_block=last)
    return student.eval()


def _start(job: Job[SearchSettings]) -> TimmModule:
    student = job.merged()
    if job.merges:
        job.train(student, [], job.settings.steps, "merging", last_block=job.depth - 1)
    return student


def _cut(job: Job[SearchSettings], student: TimmModule, entries: Sequence[BlockPlan], ranking: NodeRanking) -> None:
    kept = {e.index: ranking.best(e.index, e.mlp_hidden) for e in entries if e.mlp_hidden is not None}
    job.family.apply(student, job.start.original().with_blocks(*entries), kept)


def _named(entries: Sequence[BlockPlan]) -> str:
    return ("block " if len(entries) == 1 else "blocks ") + ", ".join(str(entry.index) for entry in entries)
