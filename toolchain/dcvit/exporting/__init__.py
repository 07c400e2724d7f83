"""From a model folder to an ONNX file and an engine, which go into the folder."""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from dcvit.data import ImageSource, draw_few_shot, open_source
from dcvit.errors import CheckFailedError, InputError
from dcvit.exporting.accuracy_limit import MAX_DROP, evaluate_file
from dcvit.exporting.explicit import FP8_CAPABILITY
from dcvit.exporting.onnx import opset_for, write_onnx
from dcvit.exporting.quantization import Calibration
from dcvit.exporting.result import ExportedFile, ExportResult
from dcvit.exporting.tensorrt import EngineTarget, build_engine, engine_target
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import EngineRecord, EvaluationRecord, OnnxRecord
from dcvit.progress import say
from dcvit.variant import DEFAULT_BATCH, QUANTIZED, Flavor, Precision, Variant

__all__ = ["METADATA", "ExportResult", "ExportedFile", "calibration_from", "export", "metadata_of"]

METADATA = "dcvit."
"""What the keys of our metadata in an ONNX file start with."""
CALIBRATION_IMAGES = 192
"""Drawn for int8 and fp8; two thirds set the ranges, one third measures the agreement."""


def export(
    folder: ModelFolder | Path | str,
    batch: int = DEFAULT_BATCH,
    precision: Precision = "fp32",
    *,
    with_preprocessing: bool = False,
    data: str | Path | ImageSource | Calibration | None = None,
    evaluate: str | Path | ImageSource | None = None,
    max_drop: float | None = None,
    trt: bool = False,
    flavor: Flavor | None = None,
    compute_capabilities: tuple[str, ...] | None = None,
    opset: int | None = None,
) -> ExportResult:
    """Writes the folder's model as ONNX, every dimension fixed, and with `trt` builds an engine from it.

    Args:
        folder: A model folder; the files are added to it.
        batch: Images in every batch.
        precision: Is in the graph itself; images, logits and layer norms stay fp32, and so does the softmax of
            attention that is not one operator. int8 is in the form of ONNX Runtime's CPU kernels, and with `trt` in
            that of TensorRT, as fp8 always is.
        with_preprocessing: The graph takes pixels, uint8 [B, H, W, C], and normalises them.
        data: Images that int8 and fp8 are calibrated on; labels are not used.
        evaluate: Images to compare the file with the fp32 model on, by top-1 where they have labels of the model.
        max_drop: Points of top-1 (without labels: percent of the images whose class changes) that the file may lose
            there; one that loses more does not stay in the folder. 1 by default.
        trt: Build an engine too.
        flavor: `tensorrt` or `tensorrt-rtx`; by default the one that is installed.
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine is for, such as "8.9".
        opset: Of the ONNX file; by default 23 for what is made for GPUs, where attention is one operator, else 20.

    Raises:
        InputError: If the batch is empty, the precision cannot have the opset, the folder is not whole, images are
            missing, or no engine can be built here or has the precision.
        CheckFailedError: If too little of the model can be int8 or fp8, or the file loses more than `max_drop`.
    """
    variant = Variant.of(batch, precision, with_preprocessing=with_preprocessing)
    variant = variant.of_engine() if trt else variant
    opset = opset_for(variant, opset)
    _check_images(precision, data, evaluate, max_drop)
    # All that can be wrong is found before the first file is written.
    least = FP8_CAPABILITY if precision == "fp8" else None
    target = engine_target(flavor, compute_capabilities, least) if trt else None
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    test = None if evaluate is None else open_source(evaluate, "test")
    calibration = None if data is None else calibration_from(folder.manifest, data)
    limit = MAX_DROP if max_drop is None else max_drop
    onnx, record = _export_onnx(folder, variant, opset, calibration, test, limit)
    engine = _export_engine(folder, record, target) if target else None
    return ExportResult(onnx, record, engine)


def calibration_from(manifest: Manifest, data: str | Path | ImageSource | Calibration) -> Calibration:
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
    """What an ONNX file says about itself in `metadata_props`: plan, preprocessing, batch, precision and input."""
    return {
        METADATA + "plan_sha256": folder.plan.digest,
        METADATA + "model": folder.plan.model,
        METADATA + "preprocessing": json.dumps(folder.manifest.preprocessing.model_dump(mode="json")),
        METADATA + "batch": str(variant.batch),
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
        path = folder.add(name, lambda kept: _copy(aside, kept), record.model_dump(mode="json"))
    about = f"opset {opset}, batch {variant.batch}, {variant.precision}"
    if record.folds:
        about += f", {' and '.join(record.folds)} folded"
    return _exported(path, started, about), record


def _refuse(folder: ModelFolder, name: str, evaluation: EvaluationRecord) -> None:
    """Takes an earlier file of that name out of the folder too, and its engine: it is what was found to be bad."""
    engines = [other for other, entry in folder.manifest.exports.items() if entry.get("onnx") == name]
    folder.remove([name, *engines])
    unit = "points of top-1" if evaluation.top1 is not None else "% of the classes (the images have no labels)"
    raise CheckFailedError(
        f"{name} loses {evaluation.drop:.2f} {unit}, more than --max-drop {evaluation.max_drop:g}: {evaluation}; "
        "it is not kept"
    )


def _export_engine(folder: ModelFolder, onnx: OnnxRecord, target: EngineTarget) -> ExportedFile:
    source, name = onnx.variant.onnx_name, onnx.variant.engine_name(target.flavor)
    say(f"building {name} with {target.flavor} {target.version}")
    started = time.perf_counter()
    engine, network, builder = build_engine(folder.path / source, target)
    record = EngineRecord(
        batch=onnx.batch,
        precision=onnx.precision,
        onnx=source,
        onnx_sha256=folder.manifest.files[source].sha256,
        flavor=target.flavor,
        version=target.version,
        compute_capabilities=target.compute_capabilities,
        compute_capability=target.compute_capability,
        tf32="TF32" in builder.flags,
        network=network,
        builder=builder,
    )
    path = folder.add(name, lambda aside: _write(aside, engine), record.model_dump(mode="json"))
    capabilities = target.compute_capabilities
    about = f"for {', '.join(capabilities)}" if capabilities else "for this machine's GPU"
    return _exported(path, started, f"{target.flavor} {target.version} {about}")


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _exported(path: Path, started: float, about: str) -> ExportedFile:
    return ExportedFile(path, path.stat().st_size, time.perf_counter() - started, about)
