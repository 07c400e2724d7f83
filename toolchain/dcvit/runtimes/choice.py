"""Which of a folder's files a runtime runs, where the user does not say it all."""

from collections.abc import Iterator

from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.progress import say
from dcvit.runtimes.base import Runtime
from dcvit.variant import Precision, Variant


def choose_variant(
    runtime: Runtime,
    folder: ModelFolder | None,
    *,
    batch: int | None = None,
    precision: Precision | None = None,
    with_preprocessing: bool | None = None,
) -> Variant:
    """What a runtime runs of a folder: what the user asked for, else batch 64 in fp32, else a file that is there.

    Of several that fit what was asked for the newest is taken, and which one it is, is said.

    Args:
        runtime: That will open the folder.
        folder: A model folder; None stands for one that gets what it lacks.
        batch: Images in every batch; None is no wish, and so are the next two.
        precision: Of the computation.
        with_preprocessing: Whether the file takes pixels.

    Raises:
        InputError: If a wish can never be met. That the file is not there is said by `Runtime.file`.
    """
    asked: dict[str, object] = {"batch": batch, "precision": precision, "with_preprocessing": with_preprocessing}
    wishes = {name: wish for name, wish in asked.items() if wish is not None}
    usual = Variant.model_validate(wishes)
    if folder is None or runtime.artifact == "weights" or len(wishes) == len(asked):
        return usual
    if precision is not None:
        wishes["precision"] = runtime.source(precision)
    there = [each for each in _there(runtime, folder) if wishes.items() <= dict(each).items()]
    if not there or usual.at(runtime.source(usual.precision)) in there:
        return usual
    newest = max(there, key=lambda each: runtime.file(folder, each).stat().st_mtime_ns)
    which = "the only file" if len(there) == 1 else f"the newest of {len(there)} files"
    say(f"taking {runtime.file(folder, newest).name}, {which} of {folder.path} that {runtime.name} can run here")
    return newest if precision is None else newest.at(precision)


def _there(runtime: Runtime, folder: ModelFolder) -> Iterator[Variant]:
    """The variants of the files that it runs, each in the precision of its file."""
    onnx = onnx_records(folder)
    if runtime.artifact == "onnx":
        found = [record.variant for record in onnx.values()]
    else:
        engines = (record for record in engine_records(folder).values() if record.flavor == runtime.name)
        found = [onnx[record.onnx].variant for record in engines if record.onnx in onnx]
    for variant in found:
        if variant.precision in runtime.precisions and runtime.source(variant.precision) == variant.precision:
            yield variant
