"""The page of `real_vit.py`: its rows as a table."""

import textwrap
from statistics import mean, stdev
from typing import Any

COLUMNS = {"cls_cosine": "CLS cosine", "cls_mse": "CLS relative MSE", "neighbours": "five nearest",
           "patch_cosine": "patch cosine", "patch_mse": "patch relative MSE"}  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Markdown: a line for each method, size and number of images."""
    lines = ["| method | MACs | images | " + " | ".join(COLUMNS.values()) + " | seconds |"]
    lines.append("|---" * (len(COLUMNS) + 4) + "|")
    by_case: dict[tuple[int, int, int, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        about = round(20 * row["reduction"])  # whole blocks come to about the sizes of the others
        by_case.setdefault((about, row["samples"], row["steps"], row["method"]), []).append(row)
    for (_, samples, steps, method), rows in sorted(by_case.items()):
        rates = {f" at {row['learning_rate']:g}" for row in rows if "learning_rate" in row}
        cells = [
            method + (f", {steps} steps{' or'.join(sorted(rates))}" if steps else ""),
            f"−{100 * mean(row['macs_reduction'] for row in rows):.1f} %",
            str(samples),
        ]
        for column in (*COLUMNS, "seconds"):
            values = [row[column] for row in rows]
            digits = 0 if column == "seconds" else 3
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(report: dict[str, Any]) -> str:
    about = report["about"]
    seeds = sorted({row["seed"] for row in report["rows"]})
    draws = "One draw" if len(seeds) == 1 else f"Up to {len(seeds)} draws"
    machines = " and ".join(sorted({row["machine"] for row in report["rows"]}))
    words = (
        f"`{about['weights']}` ({about['model']}, no head) at {about['size']} pixels, fp32, cut on unlabelled images "
        f"of `{about['fit']}` and judged on {about['judged']} images of `{about['judge']}` that no step has seen. "
        "Nothing is trained unless a row names steps: this is what cuts and closed-form refits alone leave. Steps are "
        "behind each method's cut, alike for all: of 32 augmented views of the same images, on the original's "
        "features, at the best of three learning rates (2e-4, 3e-5, 5e-6), by trials of a tenth of the steps on other "
        "training images. DC-ViT's trials and PRACTISE spend the steps while they search, equally many for each "
        "block, at the 3e-5 of DC-ViT's paper, and have their trials on top; PRACTISE drops whole blocks. "
        f"{draws} of the images to fit on; where a deviation stands, mean and deviation of them. Ours makes its last "
        "fits on augmented views of the same images where these hold less than 40 tokens for each node of an MLP, and "
        "in all of its fits the class token has a quarter of an image's weight; rows without say what that is worth. "
        "Written by `benchmarks/real_vit.py`, which says what the columns are; it takes any weights and images. CORP "
        "(arXiv 2602.05243), GRAIL, VBP (arXiv 2507.12988), low rank (activation-aware, arXiv 2402.06004) and SnapViT "
        "(arXiv 2510.17700) are written from their papers (`benchmarks/real_vit_baselines.py`, "
        "`benchmarks/snapvit.py`), on the same images, of which they see no views. Open: "
        "training steps at other sizes and of the methods without such a row, SnapViT at other sizes, and 224 pixels. "
        f"Seconds are wall time on {machines}, with changing other work beside it: not to be compared. "
        "The first size of a draw pays for the examination of all."
    )
    return f"# A real pretrained Vision Transformer\n\n{textwrap.fill(words, 120)}\n\n{table(report)}"
