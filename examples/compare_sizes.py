"""Two sizes of one model from one examination, beside each other and beside the original.

python examples/compare_sizes.py
"""

import dcvit
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS

OUT = "digits-sizes"


def main() -> None:
    found = dcvit.frontier(
        MODEL,
        "digits",
        out=OUT,
        reductions=(0.3, 0.6),
        evaluate="digits",
        samples=64,
        settings=dcvit.SearchSettings(steps=0),  # weights are refitted in closed form, and not trained
        model_kwargs=MODEL_KWARGS,
        checkpoint=WEIGHTS,
        overwrite=True,
    )
    whole = found.original
    print(f"top-1 of {whole['images']} test images, PyTorch fp32; MACs are those of one image")
    print(f"{'folder':>10} {'MACs':>10} {'parameters':>11} {'top-1':>8}")
    print(f"{'original':>10} {whole['macs'] / 1e6:>8.2f} M {whole['params']:>11,} {whole['top1']:>6.2f} %")
    for point in found.points:
        print(f"{point.folder:>10} {point.macs / 1e6:>8.2f} M {point.params:>11,} {point.top1:>6.2f} %")
    print(f"{OUT}/{found.points[0].folder} is a model folder like any other: export, verify and bench take it")


if __name__ == "__main__":
    main()
