"""The tables and the plot of the results of `few_shot.py`, `ablation.py` and `stages.py`.

    python benchmarks/plot_few_shot.py benchmarks/results docs/few_shot

Writes `docs/few_shot.md` and `docs/few_shot.png`; results that are not there are left out.
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import matplotlib.pyplot as plt

from page_of_results import machines_named, write_page


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    write_page(results, out, "Few-shot compression, in figures", SECTIONS, plot)


def study(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"""## Methods

DeiT-Tiny (32×32, patch 4) trained on CIFAR-10, {report["teacher_top1"]:.2f} % top-1; compressed on n unlabelled images
of its training set. Top-1 on 5,000 test images, PyTorch fp32, {machine["cores"]} cores of an {machine["cpu"]}. Within a
column all methods have the same images and as many training steps: 24 for each block that DC-ViT compresses; the trials
of DC-ViT and PRACTISE, 24 steps each, come on top. DC-ViT keeps the learning rate of its paper, which was meant for
thousands of steps; one row shows it with our training. Where a deviation stands: three seeds; else one run. PRACTISE
drops whole blocks, so its last cell is at −58.2 %. Rows of ours were made again since: heads keep at least 16 of their
64 channels, ridges are chosen by halves of the images, and the last block is trimmed; the class token's weight in the
fits, and views of few images, came later, and are in the row of n = 50 alone. All were trained at 2e-4 and on all
images; today three rates are tried, and images that are held out judge the training. They are of an
{machines_named(report)}.

{table(report)}
![top-1 against MACs removed](few_shot.png)
"""


def ablation(report: dict[str, Any]) -> str:
    reductions = sorted({row["reduction"] for row in report["rows"]})
    lines = [
        "| | " + " | ".join(f"−{reduction:.0%}: top-1 | agreement" for reduction in reductions) + " |",
        "|---" * (2 * len(reductions) + 1) + "|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in report["rows"]):
        cells = []
        for reduction in reductions:
            found = [row for row in report["rows"] if (row["variant"], row["reduction"]) == (variant, reduction)]
            cells += [f"{found[0]['top1']:.2f}", f"{found[0]['agreement']:.2f}"] if found else ["", ""]
        name = variant.replace("|", "\\|")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    listed = "\n".join(lines)
    fast = "bfloat16" if any("bf16" in each for each in report["machine"]["instructions"]) else "fp32"
    return f"""## What each piece of our search is worth

The same teacher, {report["samples"]} images, seed {report["seed"]}, PyTorch in the precision that the machine
is fast in ({fast} here, where the teacher reads {report["teacher_top1"]:.2f} %); agreement is the share of the
test images (%) on which student and teacher choose the same class. Each row differs from the first in one thing.
`judged` is what `compress` does: one image of eight is held out, chooses the learning rate, and says whether the
training is kept; in the other rows all are trained on, at 2e-4.

{listed}

Heads and MLPs of this teacher hold much that can be spared, as the rows without training and with heads as wide as
before say (one draw of images). How much another model can lose, `dcvit-tool frontier` shows.
"""


def stages(report: dict[str, Any]) -> str:
    lines = ["| run | CPU s | CPU s before | stages (wall s) |", "|---|---|---|---|"]
    for name, run in report["runs"].items():
        spent = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in run["now"]["stages"].items() if seconds >= 0.5)
        before = f"{run['before']['cpu_seconds']:.0f}" if "before" in run else ""
        lines.append(f"| {name} | {run['now']['cpu_seconds']:.0f} | {before} | {spent} |")
    listed = "\n".join(lines)
    return f"""## Where the time goes

CPU seconds of a whole process on one thread with nothing cached, one core of an {report["machine"]["cpu"]} beside other
work, 500 images; `before` is the same command before the speed work (the damage of each cut measured on whole models,
the teacher run again for every size, every size trained from the start). All of it was measured before narrower heads
were examined too, which makes an examination longer.

{listed}
"""


SECTIONS = {"few_shot": study, "ablation": ablation, "stages": stages}


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
