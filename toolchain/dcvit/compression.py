"""Compressing a model from end to end: subject and target in, model folder out."""

import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dcvit.data import FewShot, ImageSource, draw_few_shot, open_source
from dcvit.errors import InputError
from dcvit.folder import ModelFolder, require_free
from dcvit.manifest import Manifest, package_versions
from dcvit.methods.dcvit import search_and_recover
from dcvit.methods.job import Job
from dcvit.methods.nodes import NodeRanking
from dcvit.methods.propose import Proposal, Target, propose
from dcvit.methods.settings import DcvitSettings
from dcvit.plan import BlockPlan
from dcvit.subject import Subject, Weights, open_subject
from dcvit.summary import PlanSummary, summarize
from dcvit.training.hardware import accelerator
from dcvit.training.stages import StageStore, weights_digest
from dcvit.training.views import ViewBank
from dcvit.types import TimmModule

Recover = Literal["mimic", "none"]
CHECKPOINTS = "checkpoints"
METRIC_IMAGES = 256
"""Few-shot images that damage and trials are scored on, at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressResult:
    """A compressed model on disk.

    Attributes:
        folder: The model folder.
        summary: What the plan costs, before and after.
        metrics: What the run measured: scores of the trials in nats, losses, seconds.
    """

    folder: Path
    summary: PlanSummary
    metrics: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.summary.to_json() | {"folder": str(self.folder), "metrics": self.metrics}

    def lines(self) -> Iterable[Any]:
        yield from self.summary.lines()
        yield f"written to {self.folder} in {self.metrics['seconds']:.1f} s"


def compress(
    model: str | Path | nn.Module,
    data: str | Path | ImageSource | None = None,
    *,
    out: str | Path,
    target: Target | None = None,
    settings: DcvitSettings | None = None,
    recover: Recover = "mimic",
    samples: int = 500,
    seed: int = 0,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights: Weights = "pretrained",
    resume: bool = False,
    overwrite: bool = False,
    **targets: Any,
) -> CompressResult:
    """Finds a plan that meets the target, recovers accuracy on a few unlabelled images, and writes a model folder.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: A folder of images, a tar of one, or `digits`; labels are not used. Not needed without recovery.
        out: The model folder to write; it appears whole or not at all.
        target: What to reach; its fields may be given by name instead: `macs_reduction=0.166`, `merge="horizontal@6"`.
        settings: Of the search and the recovery.
        recover: `none` only cuts and merges.
        samples: Images to draw from the data.
        seed: Of every random choice.
        model_kwargs: For `timm.create_model`.
        checkpoint: Weights to load instead of timm's pretrained ones.
        weights: Without a checkpoint: timm's pretrained weights, or random ones.
        resume: Continue an unfinished run from its checkpoints.
        overwrite: Replace a model folder at `out`.
        targets: Fields of `Target`.

    Raises:
        InputError: If any of this cannot be; nothing is left behind.
    """
    started = time.perf_counter()
    out = Path(out)
    target = target or Target(**targets)
    settings = settings or DcvitSettings()
    _check_output(out, resume=resume, overwrite=overwrite)
    if data is None and recover != "none":
        raise InputError("recovery needs images: give --data, or --recover none to cut only")
    subject = open_subject(model, model_kwargs=model_kwargs, checkpoint=checkpoint, weights=weights)
    proposal = propose(subject, target)
    few_shot = None
    if data is not None:
        few_shot = draw_few_shot(open_source(data, "train"), samples, seed, subject.architecture.input_size[0])
    metrics: dict[str, Any] = {}
    if few_shot is None:
        student, entries = _cut_by_norm(subject, proposal)
    else:
        if recover == "none":
            settings = settings.model_copy(update={"steps": 0, "trial_steps": 0})
        try:
            job = _job(subject, proposal, settings, few_shot, seed, StageStore(out / CHECKPOINTS))
            student, entries, metrics = search_and_recover(job, proposal)
        except BaseException:
            _remove_if_empty(out)
            raise
    plan = proposal.base.with_blocks(*entries)
    summary = summarize(plan, subject.plan, target.macs_convention)
    metrics["seconds"] = time.perf_counter() - started
    manifest = Manifest(
        model=plan.model,
        method="dcvit",
        plan_digest=plan.digest,
        seed=seed,
        preprocessing=subject.preprocessing,
        settings={
            "target": target.model_dump(mode="json", exclude_none=True),
            "recover": recover,
            "weights": subject.weights,
            **settings.model_dump(mode="json"),
        },
        data=few_shot.fingerprint if few_shot else None,
        metrics=metrics | {"macs_before": summary.macs_before, "macs_after": summary.macs_after},
        versions=package_versions(),
    )
    if accelerator().is_main_process:
        ModelFolder.create(out, student.cpu(), plan, manifest, overwrite=True)
    accelerator().wait_for_everyone()
    return CompressResult(out, summary, metrics)


def _job(
    subject: Subject, proposal: Proposal, settings: DcvitSettings, few_shot: FewShot, seed: int, store: StageStore
) -> Job:
    teacher = subject.model.to(accelerator().device).requires_grad_(False)
    images = few_shot.tensor(subject.preprocessing)
    views = ViewBank(
        teacher,
        subject.family,
        few_shot,
        subject.preprocessing,
        steps=settings.steps,
        batch_size=settings.training.batch_size,
        seed=seed,
    )
    return Job(
        model=teacher,
        family=subject.family,
        start=subject.plan,
        base=proposal.base,
        views=views,
        calibration=images,
        metric=images[:METRIC_IMAGES],
        settings=settings,
        store=store,
        identity={"model": weights_digest(teacher.state_dict()), "data": few_shot.fingerprint["sha256"]},
        seed=seed,
        depth=subject.architecture.depth,
    )


def _cut_by_norm(subject: Subject, proposal: Proposal) -> tuple[TimmModule, list[BlockPlan]]:
    """Cuts without data: nodes by weight norm and, where no plan fixes them, blocks spread evenly over the depth."""
    entries: list[BlockPlan] = []
    if proposal.macs > 0:
        entries = [entry for unit in proposal.chosen(proposal.spread_out()) for entry in unit]
        listed = ", ".join(str(entry.index) for entry in entries)
        log.warning("no data to choose blocks by, so they are spread over the depth: %s", listed)
    new = [block for block in (*proposal.base.blocks, *entries) if block not in subject.plan.blocks]
    narrowed = [block.index for block in new if block.mlp_hidden is not None]
    ranking = NodeRanking(subject.model, subject.family, narrowed, "norm")
    kept = {block.index: ranking.best(block.index, block.mlp_hidden) for block in new if block.mlp_hidden is not None}
    changes: dict[str, Any] = {"blocks": tuple(sorted(new, key=lambda block: block.index))}
    if proposal.base.merges != subject.plan.merges:
        changes |= {key: getattr(proposal.base, key) for key in ("merges", "merge_operator", "size_aware_attention")}
    subject.family.apply(subject.model, subject.plan.original().replace(**changes), kept)
    return subject.model, entries


def _check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    unfinished = (out / CHECKPOINTS).is_dir() and not ModelFolder.is_one(out)
    if unfinished and resume:
        return
    if unfinished and not overwrite:
        raise InputError(f"{out} holds an unfinished run; continue it with --resume, or start anew with --overwrite")
    if unfinished:
        shutil.rmtree(out)
        return
    require_free(out, overwrite=overwrite)


def _remove_if_empty(out: Path) -> None:
    """A failed run leaves its checkpoints, if it made any, and nothing else."""
    for folder in (out / CHECKPOINTS, out):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
