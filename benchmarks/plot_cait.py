"""The tables and the plot of the results of `cait.py`, `training_free.py` and `segmentation.py`.

    python benchmarks/plot_cait.py benchmarks/results docs/cait

Writes `docs/cait.md` and `docs/cait.png`; results that are not there are left out.
"""

import json
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    parts = []
    for name, section in SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            parts.append(section(json.loads(path.read_text())))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("# Merging, pruning and dense tasks, in figures\n\n" + "\n".join(parts))
    plot(json.loads((results / "cait.json").read_text()), out.with_suffix(".png"))


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def study(report: dict[str, Any]) -> str:
    rows = []
    for row in report["rows"]:
        bench = row.get("bench")
        speedup = (
            f"×{bench['speedup']:.3f} [{bench['speedup_ci95'][0]:.3f}, {bench['speedup_ci95'][1]:.3f}]" if bench else ""
        )
        control = _control_of(row, report)
        drop = f"{row['top1'] - control:+.2f}" if control is not None and row["method"] != "control" else ""
        rows.append([row["method"], f"{row['lr']:g}", f"×{row['macs_ratio']:.3f}", speedup, f"{row['top1']:.2f}", drop])
    first, machine = report["rows"][0], report["machine"]
    listed = table(["method", "peak lr", "MACs", "speed-up, 95 %", "top-1", "against its control"], rows)
    return f"""## CAIT with training

DeiT-Tiny (32×32, patch 4) trained on CIFAR-10, {report["teacher_top1"]:.2f} % top-1; every row is
trained for {first["epochs"]:g} epoch of 50,000 images ({first["steps"]} steps of 128), one seed,
half on labels and half on the teacher's outputs. The control is the teacher, trained on alike.
Top-1 on {report["test_images"]} test images, PyTorch fp32. Speed-up: ONNX Runtime fp32, batch 64,
{machine["cores"]} cores of an {machine["cpu"]}, against the teacher, interleaved. The variants of
CAIT were tried after the first rows were known, and all that were finished are shown.

{listed}

![top-1 against MACs](cait.png)
"""


def _control_of(row: dict[str, Any], report: dict[str, Any]) -> float | None:
    same = ("epochs", "shards", "lr", "seed")
    found = [
        other["top1"]
        for other in report["rows"]
        if other["method"] == "control" and all(other[name] == row[name] for name in same)
    ]
    return found[0] if found else None


def training_free(report: dict[str, Any]) -> str:
    rows = [
        [
            row["merge"] + (" (chosen)" if row["chosen"] else ""),
            f"×{row['macs_ratio']:.3f}",
            f"{row['top1_size_aware']:.2f}",
            f"{row['top1_plain']:.2f}",
        ]
        for row in report["rows"]
    ]
    listed = table(["merges", "MACs", "size-aware", "plain"], rows)
    return f"""## Merging without training

The same teacher, {report["top1_uncompressed"]:.2f} % uncompressed; top-1 on {report["test_images"]}
test images with tokens merged by their mean and no weight changed. `chosen` schedules were found by
the tool on training images.

{listed}
"""


def segmentation(report: dict[str, Any]) -> str:
    rows = []
    for head, found in report["heads"].items():
        whole = found["rows"]["teacher"]["macs"]
        for name, row in found["rows"].items():
            bench = row["bench"]["results"][0] if "bench" in row else None
            speedup = (
                f"×{bench['speedup']:.3f} [{bench['speedup_ci95'][0]:.3f}, {bench['speedup_ci95'][1]:.3f}]"
                if bench
                else ""
            )
            rows.append([head, name, f"×{whole / row['macs']:.3f}", speedup, f"{row['miou']:.2f}"])
    listed = table(["head", "model", "MACs", "speed-up, 95 %", "mIoU (%)"], rows)
    return f"""## Segmentation

A ViT of 6 blocks, width 96, 64×64 pixels in patches of 4, trained from scratch on the bundled
shapes; mIoU on 500 test images. Every file passed `verify`, has no Scatter, Resize, TopK or
NonZero, and builds as a
TensorRT-RTX engine. Trained rows and the control have 3 more epochs than the teacher.

{listed}
"""


SECTIONS = {"cait": study, "training_free": training_free, "segmentation": segmentation}


def plot(report: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    rows = report["rows"][::-1]
    axes.scatter([row["top1"] for row in rows], range(len(rows)), color="#4477aa", zorder=2)
    for place, row in enumerate(rows):
        axes.annotate(f"{row['top1']:.2f}", (row["top1"], place), (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(
        range(len(rows)), [f"{row['method']}, lr {row['lr']:g}, MACs ×{row['macs_ratio']:.2f}" for row in rows]
    )
    axes.axvline(report["teacher_top1"], color="grey", linestyle=":", zorder=1)
    axes.set(
        ylim=(-0.5, len(rows) - 0.2),
        xlabel="top-1 (%); dotted: the teacher",
        title="DeiT-Tiny on CIFAR-10, one epoch of training",
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
