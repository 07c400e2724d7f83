"""What each rewrite at export gains in ONNX Runtime and OpenVINO on the CPU, fp32: a file with it against one without.

Some minutes on one core. Random weights; both files run in turn, in random order, on one thread, and the time for which
it waited for a core does not count; only ratios are kept. They go to benchmarks/results/folds.json.
"""

import copy
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from dcvit.bench.machine import this_machine
from dcvit.bench.rounds import timed_rounds
from dcvit.bench.statistics import speedup, speedup_interval
from dcvit.bench.timers import undisturbed_timer
from dcvit.exporting.noops import remove_noops
from dcvit.exporting.onnx import trace
from dcvit.layers.folding import fold_attention_scale, fold_layer_scale, fold_patch_embedding
from dcvit.model import stand_in
from dcvit.plan import CompressionPlan
from dcvit.runtimes import RUNTIMES, limited_to
from dcvit.runtimes.onnx_file import OnnxFileRuntime

MODELS = ("deit_tiny_patch16_224", "deit3_small_patch16_224")
RUNTIME_NAMES = ("onnxruntime", "openvino")
BATCH, ROUNDS = 2, 60
FOLDS: dict[str, Callable[[nn.Module], object]] = {
    "patch embedding": fold_patch_embedding,
    "layer scale": fold_layer_scale,
    "attention scale": fold_attention_scale,
}
RESULTS = Path(__file__).parent / "results" / "folds.json"


def write(model: nn.Module, path: Path) -> Path:
    """An fp32 file of a model as it stands."""
    graph = trace(model, torch.zeros(BATCH, 3, 224, 224), 20)
    remove_noops(graph)
    ir.save(graph, path)
    return path


def main() -> None:
    """Measures, and writes after each row."""
    with limited_to(1):
        measure_all()


def measure_all() -> None:
    """Every model, fold and runtime."""
    rows = []
    for name in MODELS:
        model = stand_in(CompressionPlan(model=name)).eval()
        with tempfile.TemporaryDirectory() as place:
            plain = write(model, Path(place) / "plain.onnx")
            for fold, apply in FOLDS.items():
                changed = copy.deepcopy(model)
                if not apply(changed):
                    continue
                folded = write(changed, Path(place) / "folded.onnx")
                for runtime in RUNTIME_NAMES:
                    rows.append({"model": name, "fold": fold, "batch": BATCH} | measure(runtime, plain, folded))
                    print(rows[-1], flush=True)
                    RESULTS.write_text(json.dumps({"machine": this_machine().to_json(), "rows": rows}, indent=1) + "\n")


def measure(name: str, plain: Path, folded: Path) -> dict[str, object]:
    """The ratio of the times, plain ÷ folded."""
    runtime = RUNTIMES[name]
    assert isinstance(runtime, OnnxFileRuntime)
    sessions = [runtime.open_file(path, "fp32") for path in (plain, folded)]
    images = torch.randn(BATCH, 3, 224, 224)
    for session in sessions:
        session.load(images)
    for session in sessions * 3:
        session.execute()
    before, after = sessions
    rounds = timed_rounds(before.execute, after.execute, undisturbed_timer())
    times = tuple(map(list, zip(*itertools.islice(rounds, ROUNDS), strict=True)))
    return {
        "runtime": name,
        "precision": "fp32",
        "threads": sessions[0].threads,
        "speedup": speedup(*times, "default"),
        "speedup_ci95": speedup_interval(*times, "default"),
        "runs": len(times[0]),
    }


if __name__ == "__main__":
    main()
