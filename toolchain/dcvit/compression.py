"""Compressing a model from end to end: subject and target in, model folder out."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError
from torch import nn

from dcvit import repeat, run_record
from dcvit.data import Images, class_names, open_source, seeded
from dcvit.errors import InputError
from dcvit.flags import flags_of
from dcvit.folder.lock import running
from dcvit.folder.model_folder import ModelFolder, require_free
from dcvit.hardware import accelerator
from dcvit.loading import adopt
from dcvit.methods.accuracy_target import Judge, held_apart, in_words
from dcvit.methods.base import Method, MethodSettings, Places
from dcvit.methods.registry import DEFAULT, METHODS, method_of, of_preset, refusal
from dcvit.methods.run import Compressor, Run
from dcvit.methods.target import MEASURED, Target
from dcvit.new_head import new_head, undoing_merges
from dcvit.output import CHECKPOINTS, check_cache, check_output, leaving_nothing_behind
from dcvit.settings import Recovery, RunSettings
from dcvit.stages import StageStore
from dcvit.subject import open_subject
from dcvit.summary import PlanSummary, summarize


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
        if found := self.metrics.get("max_drop"):
            yield in_words(found)
        yield f"written to {self.folder} in {self.metrics['seconds']:.1f} s"


def compress(
    model: str | Path | nn.Module | None = None,
    data: Images | None = None,
    *,
    out: str | Path,
    target: Target | None = None,
    settings: MethodSettings | None = None,
    preset: str | None = None,
    from_manifest: str | Path | None = None,
    validation: Images | None = None,
    **options: Any,
) -> CompressResult:
    """Finds a plan that meets the target, recovers accuracy, and writes a model folder.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: A folder of images, a tar of one, or `digits`. Not needed without recovery.
        out: The model folder to write; it appears whole or not at all.
        target: What to reach; its fields may be given by name instead: `macs_reduction=0.166`, `merge="horizontal@6"`.
        settings: Of the method; they say which one it is. By default `SearchSettings()`.
        preset: Name of a target for a well-known model in one kind of runtime, instead of one: `cait-tiny-int8`.
        from_manifest: `manifest.json` of a model folder: the run that made it is done again. Model, target and settings
            are the manifest's; the images and the checkpoint are given again, and must be the same.
        validation: Images that `max_drop` is measured on; by default a fifth of the data is held out.
        options: Fields of `Target` and of `RunSettings`: `samples=500`, `seed=1`, `resume=True`.

    Raises:
        InputError: If any of this cannot be; nothing is left behind.
    """
    out = Path(out)
    if preset is not None:
        settings, options = _of_preset(preset, model, target, settings, options)
    target, run = read_options(target, options)
    again = None
    if from_manifest is not None:
        _check_free(target, settings, run)
        again = repeat.read(Path(from_manifest), run)
        model, target, settings, run = again.model(model), again.target, again.settings, again.run
    if model is None:
        raise InputError("there is no model: give MODEL, a timm name or a model folder")
    if data is None and _only_weights(model, target, run):
        assert run.checkpoint is not None
        return _adopted(model, run.checkpoint, out, overwrite=run.overwrite)
    method_of(settings or METHODS[DEFAULT].settings()).check_target(target)
    with running(out):
        compressor = prepare(
            model, data, out, target, settings, run,
            finished=ModelFolder.is_one(out), again=again, judged=(validation, target.max_drop),
        )  # fmt: skip
        with leaving_nothing_behind(out):
            made = compressor.compress(target)
            accelerator().wait_for_everyone()
            if accelerator().is_main_process:
                manifest = compressor.manifest(made, target)
                ModelFolder.create(out, made.model, made.plan, manifest, overwrite=True, texts=made.texts)
            accelerator().wait_for_everyone()
    return CompressResult(out, made.summary, made.metrics)


def _of_preset(
    preset: str,
    model: str | Path | nn.Module | None,
    target: Target | None,
    settings: MethodSettings | None,
    options: dict[str, Any],
) -> tuple[MethodSettings, dict[str, Any]]:
    """Settings and options with what a preset decides."""
    if model is None or isinstance(model, nn.Module):
        raise InputError(f"preset={preset!r} is for a timm name or a model folder")
    method, fields = of_preset(preset, ModelFolder(model).plan.model if ModelFolder.is_one(model) else str(model))
    if (
        target is not None
        or (settings is not None and settings.method != method.name)
        or {*fields, *MEASURED} & {*options}
    ):
        raise InputError(f"preset={preset!r} fixes the method, the merges and the target; leave these out")
    return settings or method.settings(), fields | options


def _only_weights(model: str | Path | nn.Module, target: Target, run: RunSettings) -> TypeGuard[str | Path]:
    """Whether all that is asked for is a folder's model with the weights of a training elsewhere."""
    folder = not isinstance(model, nn.Module) and ModelFolder.is_one(model)
    return folder and run.checkpoint is not None and run.recover == "none" and target == Target()


def _adopted(folder: str | Path, checkpoint: Path, out: Path, *, overwrite: bool) -> CompressResult:
    started = time.perf_counter()
    require_free(out, overwrite=overwrite)
    with running(out):
        made = adopt(folder, checkpoint, out, overwrite=True)
    convention = made.manifest.settings.get("target", {}).get("macs_convention", "full")
    summary = summarize(made.plan, made.plan.original(), convention)
    return CompressResult(out, summary, made.manifest.metrics | {"seconds": time.perf_counter() - started})


def _check_free(target: Target, settings: MethodSettings | None, run: RunSettings) -> None:
    """Raises InputError if anything is given that a manifest decides."""
    named = [name for name, value in run if value != type(run).model_fields[name].get_default()]
    if target != Target() or settings is not None or set(named) - repeat.GIVEN_AGAIN:
        raise InputError("--from-manifest decides model, target and settings; leave out the others")


def read_options(target: Target | None, options: dict[str, Any]) -> tuple[Target, RunSettings]:
    """The target and the run that options by field name describe.

    Raises:
        InputError: If there is no such option, one has a value that cannot be, or `target` is given beside its fields.
    """
    of_run = {name: options.pop(name) for name in [*options] if name in RunSettings.model_fields}
    if target is not None and options:
        raise InputError(f"{', '.join(options)}: give a target, or the fields of one, not both")
    try:
        return target or Target(**options), RunSettings(**of_run)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def prepare(
    model: str | Path | nn.Module,
    data: Images | None,
    out: Path,
    target: Target,
    settings: MethodSettings | None,
    run: RunSettings,
    *,
    finished: bool,
    again: repeat.Repeated | None = None,
    judged: tuple[Images | None, float | None] = (None, None),
    **more: Any,
) -> Compressor[Any]:
    """Opens the model and the images, and checks all that can be checked before any work is done.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: Images; opened here, once.
        out: The folder to write.
        target: What to reach.
        settings: Of the method.
        run: The other settings.
        finished: Whether `out` holds the result of a run like this one.
        again: The run that is to be repeated.
        judged: Images to judge by, and the smallest drop that is asked for.
        more: What the command has beside these, by option: a resumed run must be given the same.

    Raises:
        InputError: If something cannot be.
    """
    check_output(out, finished=finished, resume=run.resume, overwrite=run.overwrite)
    settings = settings or METHODS[DEFAULT].settings()
    method = method_of(settings)
    check_known(method, target, run)
    recovery = _checked_recovery(method, run.recover, data)
    kept = check_cache(run.cache, out)
    accelerator().wait_for_everyone()  # from here on the output is no longer as the checks of every process found it
    source = None
    if data is not None:
        source = open_source(
            data, "train", mask_values=run.mask_values, ignore_index=run.ignore_index, class_map=run.class_map
        )
    source, held = held_apart(source, *judged, run)
    if source is not None and run.samples is not None and run.samples > len(source):
        raise InputError(f"--samples {run.samples}: {source.name} has {len(source)} images; ask for at most as many")
    head = new_head(model, run.task, run.head, run.model_kwargs, source)
    with seeded(run.seed):  # random weights and a new head are the seed's, so that a run can be resumed
        subject = open_subject(
            model, model_kwargs=run.model_kwargs, checkpoint=run.checkpoint, weights=run.weights, head=head
        )
    subject = undoing_merges(subject, run.unmerge)
    if again is not None:
        again.check_subject(subject)
    if source is not None and subject.plan.task not in method.tasks:
        able = " or ".join(f"--method {each.name}" for each in METHODS.values() if subject.plan.task in each.tasks)
        raise InputError(
            f"--method {method.name} is for {' and '.join(sorted(method.tasks))}; give {able} for {subject.plan.task}, "
            "or cut without --data by --recover none"
        )
    if source is not None and subject.fresh_head and not method.trains_heads:
        raise InputError(
            f"a new head learns from labels, and --method {method.name} has none; give --method cait first"
        )
    place = out / CHECKPOINTS
    works = Run(
        subject,
        source,
        samples=run.samples or method.samples,
        seed=run.seed,
        recovery=recovery,
        store=StageStore(kept),
        places=Places(place, run.checkpoint_minutes, run.tensorboard) if source and recovery != "none" else Places(),
        shared=run.cache is not None,
        judge=None if held is None else Judge(*held, subject),
        classes=class_names(subject.classes, source, subject.architecture.num_classes),
        # What another command has beside the options of `compress` is not in a manifest.
        repeat=repeat.describe(model, subject, run, alone=not more and judged[0] is None),
    )
    compressor = method.compressor(works, settings)
    if again is not None:
        again.check_images(compressor.fingerprint())
    if source is not None:
        said = run_record.describe(subject, source.name, target, settings, run, **more)
        if held is not None:
            said["--validation"] = held[1]
        run_record.check_same(place, said)
        accelerator().wait_for_everyone()
        if accelerator().is_main_process:
            run_record.write(place, said)
    return compressor


def check_known(method: Method[Any], target: Target, run: RunSettings) -> None:
    """Checks that a method knows all that is asked of it.

    Raises:
        InputError: If a field is set that means nothing to it; the message names the methods that know it.
    """
    for settings in (target, run):
        for field in flags_of(type(settings)):
            value = getattr(settings, field.name)
            if value != field.info.get_default() and not method.knows(field.name):
                raise refusal(method, field.name, field.option)


def _checked_recovery(method: Method[Any], asked: Recovery | None, data: object) -> Recovery:
    """How accuracy is recovered.

    Raises:
        InputError: If the method cannot, or there is no data for it.
    """
    if asked not in (None, method.recovery, "none"):
        raise InputError(f"--recover {asked}: --method {method.name} has {method.recovery} and none")
    if data is None and asked != "none":
        raise InputError("recovery needs images: give --data, or --recover none to cut only")
    return asked or method.recovery
