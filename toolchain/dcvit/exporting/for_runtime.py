"""A model that is in no folder, put into one for a while: every runtime and every export works on folders."""

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.exporting.quantization import Calibration
from dcvit.exporting.targets import Profile
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import Runtime
from dcvit.variant import QUANTIZED, Flavor, Variant


def export_for(
    runtime: Runtime,
    folder: ModelFolder,
    variant: Variant,
    compute_capabilities: tuple[str, ...] | None = None,
    profile: Profile | None = None,
    *,
    latency_only: bool = False,
) -> None:
    """Exports what a runtime needs of a folder: nothing, an ONNX file, or an engine too.

    Args:
        runtime: That will open the folder.
        folder: A model folder.
        variant: That it will be opened as.
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine is for.
        profile: Of an engine that takes any number of images.
        latency_only: Nobody looks at the logits, so the ranges of int8 and fp8 may be made up.

    Raises:
        InputError: If no engine can be built here, the runtime has no such precision, or int8 or fp8 lack images.
    """
    runtime.require(variant.precision)
    if runtime.artifact == "weights":
        return
    flavor: Flavor | None = None
    if runtime.artifact == "engine":
        flavor = "tensorrt-rtx" if runtime.name == "tensorrt-rtx" else "tensorrt"
    source = variant.at(runtime.source(variant.precision))
    data: Calibration | None = None
    if source.precision in QUANTIZED:
        if not latency_only:
            raise InputError(
                f"--precision {source.precision} is calibrated on images, so it is for model folders: "
                f"`dcvit-tool export FOLDER --precision {source.precision} --data IMAGES`"
            )
        data = Calibration.made_up()
    export(
        folder,
        "dynamic" if source.dynamic else source.batch,
        source.precision,
        with_preprocessing=source.with_preprocessing,
        data=data,
        trt=flavor is not None,
        flavor=flavor,
        compute_capabilities=compute_capabilities,
        profile=profile,
    )
