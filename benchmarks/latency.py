"""From a timm name to a measured latency, with random weights: merging, CAIT's presets, Swin and ResNet.

    python benchmarks/latency.py -o benchmarks/results/latency.json

Each case is compressed without data, exported in fp32 and fp16, built into an engine where TensorRT-RTX is there,
verified, and timed against the original in turn: ONNX Runtime fp32, batch 64. About ten minutes on two cores. With
--case the file keeps its other cases. The presets have uniform widths here; training finds others at the same MACs.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from dcvit.bench import benchmark
from dcvit.compression import compress
from dcvit.exporting import export
from dcvit.files import whole_file
from dcvit.methods.cait.settings import CaitSettings
from dcvit.runtimes.flavors import installed
from dcvit.verification import verify
from dcvit.versions import package_versions

MERGE = "horizontal@4,vertical@8"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT-Tiny, merged": ("deit_tiny_patch16_224", {"merge": MERGE}),
    "DeiT-Tiny, CAIT": ("deit_tiny_patch16_224", {"merge": MERGE, "macs_reduction": 0.45, "settings": CaitSettings()}),
    "DeiT-Small, CAIT": ("deit_small_patch16_224", {"merge": MERGE, "macs_reduction": 0.5, "settings": CaitSettings()}),
    "Swin-Tiny, a pair of blocks removed": ("swin_tiny_patch4_window7_224", {"macs_reduction": 0.15}),
    "ResNet-50, blocks removed": ("resnet50", {"macs_reduction": 0.15}),
}


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--max-seconds", default=90.0, show_default=True, help="Of timing, for each case.")
def main(out: Path, cases: tuple[str, ...], max_seconds: float) -> None:
    found: dict[str, Any] = json.loads(out.read_text())["cases"] if out.exists() else {}
    for case in cases:
        model, target = CASES[case]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "small"
            made = compress(model, out=folder, recover="none", weights="random", **target)
            export(folder)
            engine = export(folder, precision="fp16", trt=installed("tensorrt-rtx")).engine
            checked = verify(folder)
            timed = benchmark(folder, max_seconds=max_seconds)
        row = timed.rows[0]
        found[case] = {
            "model": model,
            "target": {name: value for name, value in target.items() if name != "settings"},
            "macs_ratio": made.summary.macs_before / made.summary.macs_after,
            "verify_passed": checked.passed,
            "checks": len(checked.checks),
            "engine": engine and engine.about,
            "bench": timed.to_json() | {"folder": "temporary"},
        }
        low, high = row.speedup_ci95
        click.echo(
            f"{case}: MACs ×{found[case]['macs_ratio']:.3f}, latency ×{row.speedup:.3f} [{low:.3f}, {high:.3f}], "
            f"{row.runs} runs, batch {row.batch}, {row.runtime} {row.precision}; {found[case]['engine']}; "
            f"verify {'passed' if checked.passed else 'FAILED'}"
        )
        with whole_file(out) as aside:
            aside.write_text(json.dumps({"cases": found, "versions": package_versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
