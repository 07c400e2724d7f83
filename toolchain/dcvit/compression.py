"""Compressing a model from end to end: subject and target in, model folder out."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dcvit.data import DEFAULT_SAMPLES, ImageSource, draw_few_shot, open_source, seeded
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder, require_free
from dcvit.hardware import accelerator
from dcvit.methods.base import Recover
from dcvit.methods.cait.compressor import JointCompressor
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.compressor import Compressor, require_classifier
from dcvit.methods.few_shot.proposal import propose
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.target import Target
from dcvit.new_head import new_head
from dcvit.plan import HeadKind, HeadPlan, Task
from dcvit.stages import StageStore
from dcvit.subject import Weights, open_subject
from dcvit.summary import PlanSummary

CHECKPOINTS = "checkpoints"


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
        if row := self.metrics.get("speedup"):
            low, high = row["speedup_ci95"]
            threads = "" if row["threads"] is None else f", {row['threads']} threads"
            yield (
                f"×{row['speedup']:.3f} [{low:.3f}, {high:.3f}] as fast as the original: {row['runtime']}, "
                f"batch {row['batch']}, {row['precision']}, {row['device']}{threads}, {row['runs']} runs"
            )
        yield f"written to {self.folder} in {self.metrics['seconds']:.1f} s"


def compress(
    model: str | Path | nn.Module,
    data: str | Path | ImageSource | None = None,
    *,
    out: str | Path,
    target: Target | None = None,
    settings: SearchSettings | CaitSettings | None = None,
    recover: Recover | None = None,
    samples: int | None = None,
    seed: int = 0,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights: Weights = "pretrained",
    resume: bool = False,
    overwrite: bool = False,
    cache: str | Path | None = None,
    checkpoint_minutes: float = 10.0,
    tensorboard: Path | None = None,
    task: Task | None = None,
    head: HeadPlan | HeadKind | None = None,
    **targets: Any,
) -> CompressResult:
    """Finds a plan that meets the target, recovers accuracy, and writes a model folder.

    With `SearchSettings`, the default, accuracy is recovered on a few unlabelled images; with `CaitSettings` the model
    is merged and pruned while it trains, on labels, on the uncompressed model's outputs, or on both.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: A folder of images, a tar of one, or `digits`. Not needed without recovery.
        out: The model folder to write; it appears whole or not at all.
        target: What to reach; its fields may be given by name instead: `macs_reduction=0.166`, `merge="horizontal@6"`.
        settings: Of the method; its type says which.
        recover: `mimic` (few-shot methods), `train` (CAIT) or `none`, which only cuts and merges; by default the
            method's own.
        samples: Images to draw from the data; by default 500 for a few-shot method, and all for CAIT.
        seed: Of every random choice.
        model_kwargs: For `timm.create_model`.
        checkpoint: Weights to load instead of timm's pretrained ones.
        weights: Without a checkpoint: timm's pretrained weights, or random ones.
        resume: Continue an unfinished run from its checkpoints.
        overwrite: Replace a model folder at `out`.
        cache: A folder where results of long stages are kept for other targets and runs; by default they are in
            `out` while the run is under way. CAIT's teacher then computes its outputs beforehand and keeps them.
        checkpoint_minutes: Between two checkpoints of CAIT's training.
        tensorboard: A folder for TensorBoard's event files of CAIT's training.
        task: `segmentation` puts a new head in place of a classifier's, which CAIT trains along on images with masks;
            by default what the model is for.
        head: Kind of the new head, by default `linear`; it has the classes of the masks, or of `model_kwargs`.
        targets: Fields of `Target`.

    Raises:
        InputError: If any of this cannot be; nothing is left behind.
    """
    out = Path(out)
    target = target or Target(**targets)
    check_output(out, finished=ModelFolder.is_one(out), resume=resume, overwrite=overwrite)
    settings = settings or SearchSettings()
    recover = _checked_recovery(settings, recover, data)
    kept = check_cache(cache, out)
    accelerator().wait_for_everyone()  # from here on the output is no longer as the checks of every process found it
    segmentation = new_head(model, task, head, model_kwargs, data)
    with seeded(seed):  # random weights and a new head are the seed's, so that a run can be resumed
        subject = open_subject(
            model, model_kwargs=model_kwargs, checkpoint=checkpoint, weights=weights, head=segmentation
        )
    compressor: Compressor | JointCompressor
    if isinstance(settings, CaitSettings):
        trained = recover == "train"
        compressor = JointCompressor(
            subject,
            data if trained else None,
            settings,
            samples=samples,
            seed=seed,
            store=StageStore(kept),
            checkpoints=out / CHECKPOINTS if trained else None,
            minutes=checkpoint_minutes,
            tensorboard=tensorboard,
            keep_teacher=cache is not None,
        )
    else:
        if target.trim_last_block:
            raise InputError(
                "--trim-last-block is of --method cait; it trims any model folder: compress FOLDER --method cait "
                "--recover none --trim-last-block"
            )
        target = target.resolved(trained=recover != "none")
        if target.speedup is None:
            propose(subject, target)  # what cannot be is found before any image is read
        few_shot = None
        if data is not None:
            require_classifier(subject, settings)
            channels = subject.architecture.input_size[0]
            few_shot = draw_few_shot(open_source(data, "train"), samples or DEFAULT_SAMPLES, seed, channels)
        compressor = Compressor(subject, few_shot, settings, recover=recover, seed=seed, store=StageStore(kept))
    with leaving_nothing_behind(out):
        made = compressor.compress(target)
    accelerator().wait_for_everyone()
    if accelerator().is_main_process:
        manifest = compressor.manifest(made, target)
        folder = ModelFolder.create(out, made.model, made.plan, manifest, overwrite=True)
        for name, text in made.texts.items():
            folder.add(name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    accelerator().wait_for_everyone()
    return CompressResult(out, made.summary, made.metrics)


def _checked_recovery(settings: SearchSettings | CaitSettings, recover: Recover | None, data: object) -> Recover:
    """How accuracy is recovered.

    Raises:
        InputError: If the method cannot, or there is no data for it.
    """
    own: Recover = "train" if isinstance(settings, CaitSettings) else "mimic"
    if recover not in (None, own, "none"):
        raise InputError(f"--recover {recover}: --method {settings.method} has {own} and none")
    if data is None and recover != "none":
        raise InputError("recovery needs images: give --data, or --recover none to cut only")
    return recover or own


def check_cache(cache: str | Path | None, out: Path) -> Path:
    """Where stage results are kept: the given folder, or `checkpoints` in the output while a run is under way.

    Raises:
        InputError: If the folder cannot be, or would go away with the output.
    """
    if cache is None:
        return out / CHECKPOINTS
    cache = Path(cache)
    if cache.exists() and not cache.is_dir():
        raise InputError(f"--cache: {cache} is a file; give a folder")
    if cache.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--cache: {cache} is in the output folder, which is replaced at the end; choose another one")
    return cache


def check_output(out: Path, *, finished: bool, resume: bool, overwrite: bool) -> None:
    """Checks that an output folder may be written, and clears an unfinished run that is not to be continued.

    Args:
        out: The folder.
        finished: Whether it holds the result of a run like this one.
        resume: Continue an unfinished run.
        overwrite: Replace a result or an unfinished run.

    Raises:
        InputError: If it may not.
    """
    unfinished = (out / CHECKPOINTS).is_dir() and not finished
    if unfinished and resume:
        return
    if unfinished and not overwrite:
        raise InputError(f"{out} holds an unfinished run; continue it with --resume, or start anew with --overwrite")
    if unfinished:
        shutil.rmtree(out)
    elif not (finished and overwrite):
        require_free(out, overwrite=overwrite)


@contextmanager
def leaving_nothing_behind(out: Path) -> Iterator[None]:
    """A run that is stopped leaves its checkpoints; one that was asked the impossible leaves nothing."""
    continued = (out / CHECKPOINTS).exists()
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError) and not continued:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        for folder in (out / CHECKPOINTS, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
