"""From a model folder to an ONNX file and an engine, which go into the folder."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcvit.class_map import read_class_map
from dcvit.data import Images, ImageSource, draw_few_shot, open_source
from dcvit.errors import CheckFailedError, InputError
from dcvit.exporting.accuracy_limit import MAX_DROP, evaluate_file
from dcvit.exporting.explicit import FP8_CAPABILITY
from dcvit.exporting.onnx import opset_for, write_onnx
from dcvit.exporting.quantization import Calibration
from dcvit.exporting.result import ExportedFile, ExportResult, ExportResults
from dcvit.exporting.storage import data_file
from dcvit.exporting.targets import DEFAULT_PROFILE, EngineTarget, Profile, engine_target
from dcvit.exporting.tensorrt import build_engine
from dcvit.files import writing
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import EngineRecord, EvaluationRecord, OnnxRecord
from dcvit.hardware import give_memory_back
from dcvit.progress import say
from dcvit.variant import DEFAULT_BATCH, QUANTIZED, Batch, Flavor, Precision, Variant

__all__ = [
    "METADATA", "ExportResult", "ExportResults", "ExportedFile", "calibration_from", "export", "export_each",
    "metadata_of",
]  # fmt: skip

METADATA = "dcvit."
"""What the keys of our metadata in an ONNX file start with."""
NAMES = "names"
"""The key of class names, which is not ours alone."""
CALIBRATION_IMAGES = 192
"""Drawn for int8 and fp8; two thirds set the ranges, one third measures the agreement."""


def export(
    folder: ModelFolder | Path | str,
    batch: Batch = DEFAULT_BATCH,
    precision: Precision = "fp32",
    *,
    with_preprocessing: bool = False,
    data: Images | Calibration | None = None,
    evaluate: Images | None = None,
    max_drop: float | None = None,
    class_map: str | Path | Mapping[str, int] | Sequence[str] | None = None,
    trt: bool = False,
    flavor: Flavor | None = None,
    compute_capabilities: tuple[str, ...] | None = None,
    profile: Profile | None = None,
    opset: int | None = None,
) -> ExportResult:
    """Writes the folder's model as ONNX, every dimension fixed, and with `trt` builds an engine from it.

    Args:
        folder: A model folder; the files are added to it.
        batch: Images in every batch; "dynamic" leaves their number open, and only that.
        precision: Is in the graph itself; images, logits and layer norms stay fp32, and so does the softmax of
            attention that is not one operator. int8 is in the form of ONNX Runtime's CPU kernels, and with `trt` in
            that of TensorRT, as fp8 always is.
        with_preprocessing: The graph takes pixels, uint8 [B, H, W, C], and normalises them.
        data: Images that int8 and fp8 are calibrated on; labels are not used.
        evaluate: Images to compare the file with the fp32 model on, by top-1 where they have labels of the model.
        max_drop: Points of top-1 (without labels: percent of the images whose class changes) that the file may lose
            there; one that loses more does not stay in the folder. 1 by default.
        class_map: Class names in the order of the model's outputs, for the labels of `evaluate`.
        trt: Build an engine too.
        flavor: `tensorrt` or `tensorrt-rtx`; by default the one that is installed.
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine is for, such as "8.9".
        profile: Of an engine that takes any number of images: the least, the one that its kernels are chosen for, and
            the most; by default 1, 64 and 256.
        opset: Of the ONNX file; by default 23 for what is made for GPUs, where attention is one operator, else 20.

    Raises:
        InputError: If the batch is empty, the precision cannot have the opset, the folder is not whole, images are
            missing, or no engine can be built here or has the precision.
        CheckFailedError: If too little of the model can be int8 or fp8, or the file loses more than `max_drop`.
    """
    (result,) = export_each(
        folder, (batch,), precision, with_preprocessing=with_preprocessing, data=data, evaluate=evaluate,
        max_drop=max_drop, class_map=class_map, trt=trt, flavor=flavor, compute_capabilities=compute_capabilities,
        profile=profile, opset=opset,
    ).results  # fmt: skip
    return result


def export_each(
    folder: ModelFolder | Path | str,
    batches: Sequence[Batch],
    precision: Precision = "fp32",
    *,
    with_preprocessing: bool = False,
    data: Images | Calibration | None = None,
    evaluate: Images | None = None,
    max_drop: float | None = None,
    class_map: str | Path | Mapping[str, int] | Sequence[str] | None = None,
    trt: bool = False,
    flavor: Flavor | None = None,
    compute_capabilities: tuple[str, ...] | None = None,
    profile: Profile | None = None,
    opset: int | None = None,
) -> ExportResults:
    """The same for several batches, a file each; arguments and errors are those of `export`."""
    variants = [
        Variant.of_file(batch, precision, with_preprocessing=with_preprocessing) for batch in dict.fromkeys(batches)
    ]
    _check_profile(variants, profile, trt=trt)
    profile = profile or DEFAULT_PROFILE
    # An engine that takes any number of images is tuned for one.
    variants = [each.model_copy(update={"batch": profile[1]}) if each.dynamic else each for each in variants]
    variants = [each.of_engine() if trt else each for each in variants]
    opset = opset_for(variants[0], opset)
    _check_images(precision, data, evaluate, max_drop)
    # All that can be wrong is found before the first file is written.
    least = FP8_CAPABILITY if precision == "fp8" else None
    target = engine_target(flavor, compute_capabilities, least) if trt else None
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    test = None if evaluate is None else open_source(evaluate, "test", class_map=read_class_map(class_map))
    calibration = None if data is None else calibration_from(folder.manifest, data)
    limit = MAX_DROP if max_drop is None else max_drop
    results = []
    for variant in variants:
        onnx, record = _export_onnx(folder, variant, opset, calibration, test, limit)
        engine = _export_engine(folder, record, target, profile if variant.dynamic else None) if target else None
        results.append(ExportResult(onnx, record, engine))
    return ExportResults(tuple(results))


def _check_profile(variants: list[Variant], profile: Profile | None, *, trt: bool) -> None:
    if profile is None:
        return
    if not trt or not any(variant.dynamic for variant in variants):
        raise InputError("--profile is about an engine that takes any number of images; add --batch dynamic and --trt")
    if not 1 <= profile[0] <= profile[1] <= profile[2]:
        raise InputError(f"--profile {','.join(map(str, profile))}: give the least, the usual and the most images")


def calibration_from(manifest: Manifest, data: Images | Calibration) -> Calibration:
    """Draws the images that int8 and fp8 are calibrated on, prepared as the model wants them.

    Raises:
        InputError: If there are no images.
    """
    if isinstance(data, Calibration):
        return data
    preprocessing = manifest.preprocessing
    source = open_source(data, "train")
    shots = draw_few_shot(source, CALIBRATION_IMAGES, seed=0, channels=preprocessing.input_size[0], at_most=True)
    return Calibration(shots.tensor(preprocessing), shots.fingerprint)


def metadata_of(folder: ModelFolder, variant: Variant) -> dict[str, str]:
    """What an ONNX file says about itself in `metadata_props`: plan, preprocessing, batch, precision and input.

    Names of classes, where they are known, stand under `names` as ultralytics writes and reads them: a Python dict of
    the name by index, `{0: 'cat', 1: 'dog'}`.
    """
    classes = folder.manifest.classes
    names = {} if classes is None else {NAMES: repr(dict(enumerate(classes)))}
    return names | {
        METADATA + "plan_sha256": folder.plan.digest,
        METADATA + "model": folder.plan.model,
        METADATA + "preprocessing": json.dumps(folder.manifest.preprocessing.model_dump(mode="json")),
        METADATA + "batch": "dynamic" if variant.dynamic else str(variant.batch),
        METADATA + "precision": variant.precision,
        METADATA + "input": "pixels, uint8 NHWC" if variant.with_preprocessing else "normalised, fp32 NCHW",
    }


def _check_images(precision: Precision, data: Any, evaluate: Any, max_drop: float | None) -> None:
    if precision in QUANTIZED and data is None:
        raise InputError(
            f"--precision {precision} is calibrated on images: give --data (a folder, a tar of one, or 'digits')"
        )
    if precision not in QUANTIZED and data is not None:
        raise InputError(f"--data is what int8 and fp8 are calibrated on; leave it out for {precision}")
    if max_drop is not None and evaluate is None:
        raise InputError("--max-drop is measured on images: give --evaluate")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop {max_drop:g}: give points between 0 and 100")


def _export_onnx(
    folder: ModelFolder,
    variant: Variant,
    opset: int,
    calibration: Calibration | None,
    test: ImageSource | None,
    max_drop: float,
) -> tuple[ExportedFile, OnnxRecord]:
    name = variant.onnx_name
    say(f"exporting {name}")
    started = time.perf_counter()
    record = OnnxRecord(
        batch=variant.batch,
        precision=variant.precision,
        opset=opset,
        weights_sha256=folder.manifest.files[WEIGHTS].sha256,
        with_preprocessing=variant.with_preprocessing,
        dynamic=variant.dynamic,
        for_engine=variant.for_engine,
    )
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:
        aside = Path(place) / name
        written = write_onnx(
            folder.load(),
            aside,
            folder.manifest.preprocessing,
            variant,
            metadata_of(folder, variant),
            calibration,
            opset,
        )
        evaluation = None if test is None else evaluate_file(folder, aside, variant, test, max_drop)
        if evaluation is not None and evaluation.drop > max_drop:
            _refuse(folder, name, evaluation)
        record = record.model_copy(
            update={"folds": written.folds, "quantization": written.quantization, "evaluation": evaluation}
        )
        weights = data_file(aside)
        path = folder.add(name, lambda kept: _move(aside, kept), record.model_dump(mode="json"), (weights.name,))
    about = f"opset {opset}, {'any batch' if variant.dynamic else f'batch {variant.batch}'}, {variant.precision}"
    if record.folds:
        about += f", {' and '.join(record.folds)} folded"
    return _exported(path, started, about), record


def _refuse(folder: ModelFolder, name: str, evaluation: EvaluationRecord) -> None:
    """Takes an earlier file of that name out of the folder too, and its engine: it is what was found to be bad."""
    engines = [other for other, entry in folder.manifest.exports.items() if entry.get("onnx") == name]
    folder.remove([name, data_file(folder.path / name).name, *engines])
    unit = "points of top-1" if evaluation.top1 is not None else "% of the classes (the images have no labels)"
    raise CheckFailedError(
        f"{name} loses {evaluation.drop:.2f} {unit}, more than --max-drop {evaluation.max_drop:g}: {evaluation}; "
        "it is not kept"
    )


def _export_engine(
    folder: ModelFolder, onnx: OnnxRecord, target: EngineTarget, profile: Profile | None
) -> ExportedFile:
    source, name = onnx.variant.onnx_name, onnx.variant.engine_name(target.flavor)
    say(f"building {name} with {target.flavor} {target.version}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:
        aside = Path(place) / name
        give_memory_back()  # what is left of the model, before TensorRT takes as much for its own
        with writing(aside):
            network, builder = build_engine(folder.path / source, aside, target, profile)
        record = EngineRecord(
            batch=onnx.batch,
            precision=onnx.precision,
            onnx=source,
            onnx_sha256=folder.manifest.files[source].sha256,
            profile=profile,
            flavor=target.flavor,
            version=target.version,
            compute_capabilities=target.compute_capabilities,
            compute_capability=target.compute_capability,
            tf32="TF32" in builder.flags,
            network=network,
            builder=builder,
        )
        path = folder.add(name, lambda kept: _move(aside, kept), record.model_dump(mode="json"))
    capabilities = target.compute_capabilities
    about = f"for {', '.join(capabilities)}" if capabilities else "for this machine's GPU"
    if profile is not None:
        about += f", {profile[0]} to {profile[2]} images"
    return _exported(path, started, f"{target.flavor} {target.version} {about}")


def _move(source: Path, path: Path) -> None:
    """The file, and its weights where they are beside it."""
    shutil.move(source, path)
    if data_file(source).exists():
        shutil.move(data_file(source), data_file(path))


def _exported(path: Path, started: float, about: str) -> ExportedFile:
    size = path.stat().st_size + (data_file(path).stat().st_size if data_file(path).exists() else 0)
    return ExportedFile(path, size, time.perf_counter() - started, about)
