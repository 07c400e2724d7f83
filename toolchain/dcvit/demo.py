"""The whole path on bundled data: handwritten digits and a small ViT that was trained on them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from dcvit.bench import BenchResult, benchmark
from dcvit.compression import CompressResult, compress
from dcvit.data import DIGITS
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.evaluation import EvaluateResult, evaluate
from dcvit.exporting import ExportResult, export
from dcvit.folder.findings import check_original, note_evaluation
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.progress import say
from dcvit.reporting import ReportResult, report
from dcvit.runtimes.flavors import default_flavor, installed
from dcvit.variant import DEFAULT_BATCH
from dcvit.verification import VerifyResult, verify

MACS_REDUCTION = 0.5
STEPS = 60
SAMPLES = 256


@dataclass(frozen=True)
class DemoResult:
    """What each step found.

    Attributes:
        accuracies: Of the original and the compressed model, through PyTorch and ONNX Runtime.
    """

    compressed: CompressResult
    exports: list[ExportResult]
    verified: VerifyResult
    accuracies: dict[str, EvaluateResult]
    timed: BenchResult
    reported: ReportResult
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every exported file agrees with PyTorch."""
        return self.verified.passed

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "folder": str(self.compressed.folder),
            "compress": self.compressed.to_json(),
            "export": [each.to_json() for each in self.exports],
            "verify": self.verified.to_json(),
            "evaluate": {name: accuracy.to_json() for name, accuracy in self.accuracies.items()},
            "bench": self.timed.to_json(),
            "report": self.reported.to_json(),
            "seconds": self.seconds,
        }

    def lines(self) -> Iterable[Any]:
        summary, row = self.compressed.summary, self.timed.rows[0]
        before, after = self.accuracies["original"], self.accuracies["compressed"]
        low, high = row.speedup_ci95
        table = Table("", "before", "after", "")
        accuracy = f"{before.images} test images, PyTorch fp32"
        table.add_row("top-1", f"{before.top1:.2f} %", f"{after.top1:.2f} %", accuracy)
        for name in ("onnx fp32", "onnx fp16"):
            found = self.accuracies[name]
            table.add_row("", "", f"{found.top1:.2f} %", f"ONNX Runtime {found.precision}, {found.device}")
        table.add_row("MACs", f"{summary.macs_before / 1e6:.2f} M", f"{summary.macs_after / 1e6:.2f} M", "per image")
        table.add_row("parameters", f"{summary.params_before / 1e3:.0f} k", f"{summary.params_after / 1e3:.0f} k", "")
        table.add_row(
            f"latency, batch {row.batch}",
            f"{row.baseline.median_ms:.2f} ms",
            f"{row.latency.median_ms:.2f} ms",
            f"median of {row.runs}, {row.runtime} {row.precision}, {row.device}, {row.threads} threads",
        )
        table.add_row("speed-up", "", f"{row.speedup:.2f}×", f"95 % interval {low:.2f} to {high:.2f}")
        yield table
        checks = len(self.verified.checks)
        yield f"{checks} of {checks} checks of the exported files hold" if self.passed else "checks FAILED, see verify"
        for each in self.exports:
            yield f"  {each.onnx.path}" + (f"\n  {each.engine.path} ({each.engine.about})" if each.engine else "")
        yield f"  {self.reported.html} (open it in a browser)"
        yield f"everything is in {self.compressed.folder}; {self.seconds:.0f} s"


def run_demo(out: Path, *, overwrite: bool = False) -> DemoResult:
    """Compresses, exports, builds an engine, verifies, evaluates, times and reports; writes a model folder.

    Raises:
        InputError: If `out` exists and `overwrite` is not set.
    """
    started = time.perf_counter()
    say("1/6 compress: half of the MACs of a ViT on handwritten digits, from 256 images without labels")
    compressed = compress(
        MODEL,
        DIGITS,
        out=out,
        model_kwargs=MODEL_KWARGS,
        checkpoint=WEIGHTS,
        macs_reduction=MACS_REDUCTION,
        samples=SAMPLES,
        settings=SearchSettings(steps=STEPS),
        overwrite=overwrite,
    )
    engine = installed("tensorrt-rtx") or installed("tensorrt")
    say("2/6 export: ONNX in fp32 and fp16" + (f", and a {default_flavor()} engine" if engine else ""))
    exports = [export(out), export(out, precision="fp16", trt=engine)]
    if not engine:
        say("no engine: TensorRT is not installed; pip install 'dcvit-tool[tensorrt-rtx]' builds one without a GPU")
    say("3/6 verify: every exported file against PyTorch")
    verified = verify(out, DIGITS)
    say("4/6 evaluate: 500 test images, which no step has seen")
    accuracies = {
        "original": evaluate(MODEL, DIGITS, model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS),
        "compressed": evaluate(out, DIGITS),
        "onnx fp32": evaluate(out, DIGITS, runtime="onnxruntime"),
        "onnx fp16": evaluate(out, DIGITS, runtime="onnxruntime", precision="fp16"),
    }
    say("5/6 bench: original and compressed in turn, ONNX Runtime, batch 64")
    timed = benchmark(out, max_seconds=15)
    say("6/6 report: a page to read, and a model card")
    note_evaluation(check_original(out, MODEL), accuracies["original"].to_record(), batch=DEFAULT_BATCH, file=None)
    return DemoResult(compressed, exports, verified, accuracies, timed, report(out), time.perf_counter() - started)
