"""What a precision loses against fp32, and whether that is too much."""

from pathlib import Path

import torch

from dcvit.agreement import finite
from dcvit.data import CorruptImages, ImageSource, batches, check_order, fits
from dcvit.errors import InputError
from dcvit.files import base_name
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EvaluationRecord
from dcvit.progress import track
from dcvit.runtimes import Session, onnx_runtimes
from dcvit.runtimes.onnx_runtime import CPU, OrtSession
from dcvit.runtimes.pytorch import TorchSession
from dcvit.subject import original_of
from dcvit.variant import Variant

MAX_DROP = 1.0
"""Points of top-1 that a precision may cost, if nothing else is asked for."""


def evaluate_file(
    folder: ModelFolder, path: Path, variant: Variant, source: ImageSource, max_drop: float
) -> EvaluationRecord:
    """Compares an ONNX file with the folder's fp32 model in PyTorch on images, by their labels where they have some.

    Args:
        folder: Of the model.
        path: The file, which need not be in the folder yet.
        variant: Of the file.
        source: The images. Labels count if there are as many classes as the model has.
        max_drop: For the record.

    Raises:
        InputError: If no image can be decoded, or the model is no classifier.
    """
    if folder.plan.task != "classification":
        raise InputError(f"--evaluate compares classes, and {folder.path} is for {folder.plan.task}; use `evaluate`")
    runtime, session = _open(folder, path, variant)
    reference = TorchSession(folder.load(), variant.batch, device="cpu")
    classes = original_of(folder.plan).num_classes
    labelled = fits(source, classes)
    if labelled:
        check_order(folder.manifest.classes, source, str(folder.path))
    seen = right = right_fp32 = same = 0
    read = batches(source, folder.manifest.preprocessing, variant.batch, CorruptImages())
    for images in track(read, f"comparing {path.name} with fp32", -(-len(source) // variant.batch)):
        logits, expected = session.infer(images.images), reference.infer(images.images)
        ours, theirs = logits.argmax(1), expected.argmax(1)
        # Logits that are not finite have no class, and agree with none.
        ours, theirs = torch.where(finite(logits), ours, -1), torch.where(finite(expected), theirs, -2)
        seen += len(ours)
        same += int((ours == theirs).sum())
        right += int((ours == images.labels).sum())
        right_fp32 += int((theirs == images.labels).sum())
    return EvaluationRecord(
        data=base_name(source.name),
        images=seen,
        runtime=runtime,
        top1=100 * right / seen if labelled else None,
        top1_fp32=100 * right_fp32 / seen if labelled else None,
        agreement=100 * same / seen,
        max_drop=max_drop,
    )


def _open(folder: ModelFolder, path: Path, variant: Variant) -> tuple[str, Session]:
    """The first runtime here that computes the file as it is written.

    Only TensorRT does so with bf16; elsewhere PyTorch computes everything in bf16, which loses no less than the file.
    """
    precision = variant.precision
    if variant.explicit:
        return "onnxruntime", OrtSession(path, CPU, folder.manifest.preprocessing, batch=variant.batch, as_written=True)
    for runtime in onnx_runtimes():
        if precision in runtime.precisions and runtime.source(precision) == precision:
            return runtime.name, runtime.open_file(path, precision, folder.manifest.preprocessing, variant.batch)
    return "torch", TorchSession(folder.load(), variant.batch, precision, device="cpu")
