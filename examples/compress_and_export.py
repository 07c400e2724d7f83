"""A ViT in memory becomes a smaller one on disk, and ONNX files that are checked against it.

python examples/compress_and_export.py
"""

import timm
from safetensors.torch import load_model

import dcvit
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS

OUT = "digits-half"


def main() -> None:
    teacher = timm.create_model(MODEL, **MODEL_KWARGS)  # your own model, with your own weights, goes here
    load_model(teacher, str(WEIGHTS))
    settings = dcvit.SearchSettings(steps=10)  # 200 by default; fewer are enough for digits
    result = dcvit.compress(
        teacher, "digits", out=OUT, macs_reduction=0.5, samples=64, settings=settings, overwrite=True
    )
    before, after = result.summary.macs_before, result.summary.macs_after
    print(f"MACs per image: {before / 1e6:.2f} M, now {after / 1e6:.2f} M")

    for precision in ("fp32", "fp16"):
        print("written:", dcvit.export(OUT, precision=precision).onnx.path)
    verified = dcvit.verify(OUT, "digits")
    print(f"{sum(check.passed for check in verified.checks)} of {len(verified.checks)} checks hold")
    found = dcvit.evaluate(OUT, "digits", runtime="onnxruntime", precision="fp16")
    print(f"top-1: {found.top1:.2f} % of {found.images} test images, {found.runtime} {found.precision}, {found.device}")


if __name__ == "__main__":
    main()
