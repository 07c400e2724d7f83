"""DeiT-Tiny made faster in different ways, measured in one interleaved run: ours, ToMe, Torch-Pruning, a smaller model.

    python benchmarks/peers/compare.py -o benchmarks/results/peers.json      # when nothing else runs

All models have random weights, none of them 0 or 1, as if trained, and, as close as each can come, the same MACs. Every
round runs each model once, in an order drawn for it: ONNX Runtime fp32 on the CPU, batch 64. TensorRT-RTX builds an
engine of each file, without a GPU, or says why not. Accuracy is that of `benchmarks/cait.py` or `accuracy.py`, where
one of them trained a model of the same kind; latency and MACs here are those at 224 × 224. Writes the table in
`docs/peers.md` and `docs/peers.png` too.
"""

import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # `peers`, however this file is started

from dcvit.bench.machine import this_machine
from dcvit.bench.rounds import collector_paused
from dcvit.bench.statistics import Latency, speedup, speedup_interval
from dcvit.bench.timers import wall_timer
from dcvit.compression import compress
from dcvit.cost import count_macs, count_params
from dcvit.errors import InputError
from dcvit.exporting.onnx import write_onnx
from dcvit.exporting.targets import engine_target
from dcvit.exporting.tensorrt import build_engine
from dcvit.files import whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.cait.proposal import propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.target import Target
from dcvit.model import as_if_trained, build, create
from dcvit.runtimes import limited_to
from dcvit.runtimes.flavors import installed
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.subject import Subject, open_subject
from dcvit.types import TimmModule
from dcvit.variant import Variant
from dcvit.versions import package_versions
from peers.page import put
from peers.pruned import prune
from peers.tome import ToMe
from peers.trained import Trained, trained

MODEL, MERGE, MACS_REDUCTION = "deit_tiny_patch16_224", "horizontal@4,vertical@8", 0.45
DOCS = Path(__file__).parents[2] / "docs" / "peers"
ACCURACY = [Path(__file__).parents[1] / "results" / name for name in ("cait.json", "peers_accuracy.json")]
CAPABILITIES = ("8.6",)
ORIGINAL = "original"
FIRST_WEIGHTS = "random weights with biases of 0, which ONNX Runtime leaves out, in all rows"
"""Of results that do not say what theirs were."""


@dataclass(frozen=True)
class Study:
    """What the peers start from, and what they are to save."""

    subject: Subject
    place: Path
    macs_reduction: float

    @property
    def size(self) -> tuple[int, int, int]:
        return self.subject.architecture.input_size

    def macs(self, model: TimmModule) -> int:
        return count_macs(model, self.size).total

    def share(self, model: TimmModule) -> float:
        """Of the MACs, that the model saves."""
        return 1 - self.macs(model) / self.macs(self.subject.model)

    def closest(self, models: Mapping[float, Callable[[], TimmModule]]) -> tuple[float, TimmModule]:
        """The setting whose model comes closest to the reduction."""
        shares = {setting: self.share(make()) for setting, make in models.items()}
        best = min(shares, key=lambda setting: abs(shares[setting] - self.macs_reduction))
        return best, models[best]()

    def compressed(self, name: str, settings: CaitSettings | None = None, **target: Any) -> TimmModule:
        out = self.place / name
        compress(MODEL, out=out, settings=settings, recover="none", weights="random", **target)
        return ModelFolder(out).load()


@dataclass
class Row:
    """One model.

    Attributes:
        whose: `ours`, a `peer`'s, or a smaller model of `timm`.
        trained_as: Its method in the results of the trainings; None where they have none of its kind.
    """

    name: str
    whose: str
    setting: str
    trained_as: str | None
    macs: int
    params: int
    engine: str = "not tried"
    latency: dict[str, float] = field(default_factory=dict)
    speedup: float = 1.0
    speedup_ci95: tuple[float, float] = (1.0, 1.0)


Made = tuple[str, TimmModule]
"""The setting in words, and the model."""


def _merged(study: Study) -> Made:
    return MERGE, study.compressed("merged", merge=MERGE)


def _cait(study: Study) -> Made:
    made = study.compressed("cait", CaitSettings(), merge=MERGE, macs_reduction=MACS_REDUCTION)
    return f"{MERGE}, then widths", made


def _uniform(study: Study) -> Made:
    target = Target(macs_reduction=study.macs_reduction, merge="none")
    whole = CaitSettings(trim=False)
    proposal = propose_jointly(
        study.subject, target, whole, stand_in_merges(study.subject, target, whole), trained=True
    )
    plan = proposal.uniform()
    block = plan.blocks[0]
    return f"heads of {block.head_dim}, MLPs of {block.mlp_hidden}", build(plan)


def _dcvit(study: Study) -> Made:
    made = study.compressed("dcvit", macs_reduction=study.macs_reduction)
    attention = sum(hasattr(block, "attn") for block in made.blocks)
    return f"attention in {attention} of {len(made.blocks)} blocks, narrower MLPs", made


def _tome(study: Study) -> Made:
    model = study.subject.model
    r, made = study.closest({r / 2: lambda r=r: ToMe(model, r / 2) for r in range(2, 40)})  # type: ignore[misc]
    return f"r = {r:g}", made


def _torch_pruning(study: Study) -> Made:
    model = study.subject.model
    share, made = study.closest({s / 64: lambda s=s: prune(model, s / 64, round_to=8) for s in range(20, 40, 2)})  # type: ignore[misc]
    block = made.blocks[0]
    return f"{share:.0%}: heads of {block.attn.head_dim}, MLPs of {block.mlp.fc1.out_features}", made


def _narrower(study: Study) -> Made:
    dim, made = study.closest({dim: lambda dim=dim: create(MODEL, {"embed_dim": dim}) for dim in range(96, 192, 6)})  # type: ignore[misc]
    return f"embed_dim {dim:g} in place of 192", made


def _shallower(study: Study) -> Made:
    depth, made = study.closest({depth: lambda depth=depth: create(MODEL, {"depth": depth}) for depth in range(4, 12)})  # type: ignore[misc]
    return f"{depth:g} blocks in place of 12", made


PEERS: dict[str, tuple[str, str | None, Callable[[Study], Made]]] = {
    ORIGINAL: ("timm", None, lambda study: (MODEL, study.subject.model)),
    "merging": ("ours", "merging alone", _merged),
    "CAIT": ("ours", "CAIT", _cait),
    "uniform widths": ("ours", "uniform widths", _uniform),
    "DC-ViT's structure": ("ours", None, _dcvit),
    "ToMe": ("peer", "ToMe", _tome),
    "Torch-Pruning": ("peer", "Torch-Pruning", _torch_pruning),
    "narrower": ("timm", "narrower", _narrower),
    "shallower": ("timm", "shallower", _shallower),
}
"""Whose each is, what the trainings call its kind, and how it is made."""


def engine_of(onnx: Path) -> str:
    """`builds`, or why not."""
    if not installed("tensorrt-rtx"):
        return "not tried"
    try:
        build_engine(onnx, onnx.with_suffix(".engine"), engine_target("tensorrt-rtx", CAPABILITIES))
    except InputError as error:
        return str(error)
    return "builds"


def interleaved(
    passes: Mapping[str, Callable[[], object]], runs: int, max_seconds: float, warm_up: int = 3
) -> dict[str, list[float]]:
    """Times in ms: in every round each model runs once, in an order drawn for it.

    Args:
        passes: One forward pass of each model.
        runs: Rounds, at most.
        max_seconds: After which no further round begins, once there are five.
        warm_up: Untimed rounds.
    """
    order, timer = random.Random(0), wall_timer()
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(warm_up):
        for forward in passes.values():
            forward()
    started = time.perf_counter()
    with collector_paused():
        for done in range(runs):
            if done >= 5 and time.perf_counter() - started > max_seconds:
                break
            names = list(passes)
            order.shuffle(names)
            for name in names:
                times[name].append(1000 * timer(passes[name]))
    return times


def accuracies(*paths: Path) -> dict[str, Any]:
    """What was found by training: the teacher's top-1, and that of each method.

    Only trainings of one length are set beside each other: the one that most methods have, the longest of these. Of a
    method's learning rates the best counts.
    """
    reports = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if not reports:
        return {"teacher": None, "methods": {}}
    kinds = trained([row for report in reports for row in report["rows"]])
    lengths = {(found.method, found.images_seen) for found in kinds}
    having = Counter(length for _, length in lengths)
    common = max(having, key=lambda length: (having[length], length))
    best: dict[str, Trained] = {}
    for found in kinds:
        if found.images_seen == common and (found.method not in best or found.top1 > best[found.method].top1):
            best[found.method] = found
    methods = {
        name: {"top1": found.top1, "macs_ratio": found.macs_ratio, "lr": found.lr} for name, found in best.items()
    }
    return {"teacher": reports[0]["teacher_top1"], "test_images": reports[0]["test_images"], "methods": methods}


def table(report: dict[str, Any]) -> str:
    accuracy = report["accuracy"]
    lines = [
        "| model | setting | MACs | speed-up [95 %] | p50 ms | speed-up ÷ MACs ratio | TensorRT-RTX | CIFAR-10 top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = report["rows"][0]
    for row in report["rows"]:
        ratio = whole["macs"] / row["macs"]
        low, high = row["speedup_ci95"]
        times = f"×{row['speedup']:.2f} [{low:.2f}, {high:.2f}]" if row is not whole else "1"
        trained = accuracy["methods"].get(row["trained_as"], {}).get("top1")
        top1 = accuracy["teacher"] if row is whole else trained
        # What failed stands in full in the JSON.
        engine = row["engine"] if row["engine"] in ("builds", "not tried") else "**does not build**"
        macs = f"{row['macs'] / 1e9:.3f} G (×{ratio:.2f})"
        lines.append(
            f"| {row['name']} ({row['whose']}) | {row['setting']} | {macs} | {times} | "
            f"{row['latency']['median_ms']:.0f} | {row['speedup'] / ratio:.2f} | {engine} | "
            f"{'–' if top1 is None else f'{top1:.2f}'} |"
        )
    machine, versions = report["machine"], report["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions.get("onnxruntime")
    busy = f"; the machine was busy (load {machine['load']:.1f})" if report["busy"] else ""
    lines += [
        "",
        f"{MODEL} at 224 × 224, {report.get('weights', FIRST_WEIGHTS)}; ONNX Runtime {runtime}, fp32, batch "
        f"{report['batch']}, {report['runs']} interleaved rounds, {machine['cpu']}, {report['threads']} threads{busy}. "
        f"Times are medians; intervals are of their ratio. TensorRT-RTX {versions.get('tensorrt-rtx-cu12', '–')}.",
    ]
    refused = {row["name"]: row["engine"] for row in report["rows"] if row["engine"] not in ("builds", "not tried")}
    lines += [f"{name} does not build: {why}" for name, why in refused.items()]
    if accuracy["methods"]:
        lines.append(
            f"Top-1 is of the same kind of model at 32 × 32, on {accuracy['test_images']:,} test images: trained "
            "equally long, at the better of their learning rates; MACs there differ from those here (see below)."
        )
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Speed-up of each model with its interval, and the one that its MACs promise."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    whole, *rows = report["rows"]
    rows = sorted(rows, key=lambda row: row["speedup"])
    colours = dict(zip(sorted({row["whose"] for row in rows}), plt.cm.tab10.colors, strict=False))
    for place, row in enumerate(rows):
        (low, high), x = row["speedup_ci95"], row["speedup"]
        marker = "o" if row["engine"] in ("builds", "not tried") else "X"
        interval = [[max(0.0, x - low)], [max(0.0, high - x)]]
        axes.errorbar(x, place, xerr=interval, color=colours[row["whose"]], marker=marker, markersize=7, capsize=3)
        axes.plot(whole["macs"] / row["macs"], place, "|", color="grey", markersize=18, zorder=0)
    axes.plot([], [], "|", color="grey", markersize=12, label="if time followed MACs")
    if any(row["engine"] not in ("builds", "not tried") for row in rows):
        axes.plot([], [], "X", color="black", label="does not build in TensorRT-RTX")
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{row['name']} ({row['whose']})" for row in rows])
    axes.set(xlabel="speed-up", title=f"DeiT-Tiny, ONNX Runtime fp32 on a CPU, batch {report['batch']}")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True, help="Without a suffix.")
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Only these, and the original.")
@click.option("--macs-reduction", default=MACS_REDUCTION, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--runs", default=60, show_default=True, help="Rounds, at most.")
@click.option("--max-seconds", default=600.0, show_default=True, help="Of timing, in all.")
@click.option("--threads", type=int, help="By default one for each core.")
@click.option("--plot", "only_plot", is_flag=True, help="Only table and plot anew, of the results that are there.")
def main(
    out: Path, docs: Path, peers: tuple[str, ...], macs_reduction: float, batch: int, runs: int, max_seconds: float,
    threads: int | None, only_plot: bool,
) -> None:  # fmt: skip
    if only_plot:
        report = json.loads(out.read_text())
        report["accuracy"] = accuracies(*ACCURACY)
        for row in report["rows"]:  # a kind may have been trained since
            row["trained_as"] = PEERS[row["name"]][1]
    else:
        with tempfile.TemporaryDirectory() as place, limited_to(threads):
            study = Study(open_subject(MODEL, weights="random"), Path(place), macs_reduction)
            chosen = [ORIGINAL, *(peer for peer in peers or PEERS if peer != ORIGINAL)]
            report = measure(study, chosen, batch, runs, max_seconds)
    with whole_file(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    put(docs.with_suffix(".md"), "latency", table(report))
    plot(report, docs.with_suffix(".png"))
    click.echo(table(report))


def measure(study: Study, names: list[str], batch: int, runs: int, max_seconds: float) -> dict[str, Any]:
    machine = this_machine()
    rows: dict[str, Row] = {}
    sessions: dict[str, OrtSession] = {}
    images = torch.randn(batch, *study.size, generator=torch.Generator().manual_seed(0))
    for number, name in enumerate(names):
        whose, trained_as, make = PEERS[name]
        setting, made = make(study)
        model = as_if_trained(copy.deepcopy(made))
        onnx = study.place / f"{number}.onnx"
        write_onnx(model, onnx, study.subject.preprocessing, Variant.of(batch), {})
        rows[name] = Row(name, whose, setting, trained_as, study.macs(model), count_params(model), engine_of(onnx))
        click.echo(f"{name}: {setting}, {rows[name].macs / 1e9:.3f} G MACs; engine: {rows[name].engine}", err=True)
        sessions[name] = OrtSession(onnx)
        sessions[name].load(images)
    times = interleaved({name: session.execute for name, session in sessions.items()}, runs, max_seconds)
    for name, row in rows.items():
        row.latency = asdict(Latency.of(times[name]))
        if name != ORIGINAL:
            row.speedup = speedup(times[ORIGINAL], times[name])
            row.speedup_ci95 = speedup_interval(times[ORIGINAL], times[name])
    return {
        "rows": [asdict(row) for row in rows.values()],
        "accuracy": accuracies(*ACCURACY),
        "macs_reduction": study.macs_reduction,
        "weights": "random weights as if trained",
        "batch": batch,
        "runs": len(times[ORIGINAL]),
        "threads": sessions[ORIGINAL].threads,
        "times_ms": times,
        "machine": machine.measured().to_json(),
        "busy": machine.busy,
        "versions": package_versions(),
    }


if __name__ == "__main__":
    main()
