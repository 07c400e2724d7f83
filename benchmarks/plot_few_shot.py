"""The table and the plot of `few_shot.py`'s results.

python benchmarks/plot_few_shot.py benchmarks/results/few_shot.json docs/few_shot
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import matplotlib.pyplot as plt


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    report = json.loads(results.read_text())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(table(report))
    plot(report, out.with_suffix(".png"))


def table(report: dict[str, Any]) -> str:
    cases = sorted({(row["reduction"], -row["samples"]) for row in report["rows"]})
    methods = list(dict.fromkeys(row["method"] for row in report["rows"]))
    head = "| method | " + " | ".join(f"−{reduction:.1%}, n = {-samples}" for reduction, samples in cases) + " |"
    lines = [head, "|---" * (len(cases) + 1) + "|"]
    for method in methods:
        cells = []
        for reduction, samples in cases:
            found = [
                row["top1"]
                for row in report["rows"]
                if (row["method"], row["reduction"], row["samples"]) == (method, reduction, -samples)
            ]
            spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{mean(found):.2f}{spread}" if found else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in report["rows"]):
        points: dict[float, list[float]] = {}
        for row in report["rows"]:
            if row["method"] == method and row["samples"] == 500:
                points.setdefault(row["macs_reduction"], []).append(row["top1"])
        ordered = sorted((100 * reduction, mean(found)) for reduction, found in points.items())
        axes.plot(*zip(*ordered, strict=True), marker="o", label=method)
    axes.axhline(report["teacher_top1"], color="grey", linestyle=":", label="uncompressed")
    axes.set(
        xlabel="MACs removed (%)", ylabel="top-1 on 5,000 test images (%)", title="DeiT-Tiny on CIFAR-10, 500 images"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
