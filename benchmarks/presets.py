"""Makes the presets: what share of its MACs a model has to lose to be so many times as fast in a runtime.

    python benchmarks/presets.py
    python benchmarks/presets.py --precision int8
    python benchmarks/presets.py --from benchmarks/results/gpu.json    # those that gpu.py measured

On a quiet machine that is the runtime's kind. For each of `MODELS` a table of latencies is measured (random weights:
widths alone decide them). Merges are `MERGE`; heads and MLPs are cut alike, and the last block is trimmed, until the
table says that the goal is reached. The plan is then timed in turn with the original. Presets and tables are written to
`toolchain/dcvit/assets/presets`, where the command line finds them, and what was measured to
`benchmarks/results/presets.json`.
"""

import json
from pathlib import Path
from typing import Any

import click

from dcvit.files import json_text, whole_file
from dcvit.methods.cait.proposal import JointProposal, propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.milliseconds import predicted
from dcvit.methods.presets import ASSETS, INDEX, MadeFor, Preset
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.pricing.kept import table_for, write_table
from dcvit.pricing.measure import time_plans
from dcvit.pricing.table import LatencyTable, style_of
from dcvit.subject import Subject, open_shapes
from dcvit.variant import Precision, Variant

MODELS: dict[str, tuple[str, float, int]] = {
    "cait-tiny": ("deit_tiny_patch16_224", 1.9, 64),
    "cait-small": ("deit_small_patch16_224", 2.1, 16),
}
"""timm name, goal, and the batch that a CPU is timed at."""

MERGE = "horizontal@4,vertical@8"
STEP = 0.0025
RESULTS = Path(__file__).parent / "results" / "presets.json"
DEFAULT = ("onnxruntime", "fp32")


def name_of(base: str, runtime: str, precision: Precision) -> str:
    """`cait-tiny` in the default runtime and precision, else with what differs: `cait-tiny-int8`, `cait-tiny-torch`."""
    more = [each for each, usual in zip((runtime, precision), DEFAULT, strict=True) if each != usual]
    return "-".join([base, *more])


def smallest_share(subject: Subject, table: LatencyTable, proposal: JointProposal, goal: float) -> float:
    """The smallest share of the MACs, in steps, whose uniform plan is predicted to be as fast as the goal.

    Raises:
        click.ClickException: If none is.
    """
    reach = proposal.reach
    share = -(-reach.least // STEP) * STEP
    while share <= reach.most:
        if predicted(subject, proposal.removing(share).uniform(), table)["speedup"] >= goal:
            return round(share, 4)
        share += STEP
    raise click.ClickException(f"{subject.plan.model} cannot be ×{goal:g} as fast in {table.setting.runtime}")


def make(
    base: str, runtime: str, precision: Precision, batch: int | None = None
) -> tuple[Preset, LatencyTable, CompressionPlan]:
    """One preset, its table, and the plan with uniform widths."""
    model, goal, usual = MODELS[base]
    subject, settings = open_shapes(model), CaitSettings()
    asked = Target(merge=MERGE)
    proposal = propose_jointly(subject, asked, settings, stand_in_merges(subject, asked, settings), trained=True)
    table = table_for(subject, runtime, Variant.of(batch or usual, precision), style=style_of(proposal.base))
    share = smallest_share(subject, table, proposal, goal)
    plan = proposal.removing(share).uniform()
    found = predicted(subject, plan, table)
    kept = ("runtime", "precision", "batch", "threads", "machine", "table", "speedup")
    made_for = MadeFor(preset=name_of(base, runtime, precision), **{each: found[each] for each in kept})
    return Preset(method="cait", model=model, merge=MERGE, macs_reduction=share, made_for=made_for), table, plan


def keep(preset: Preset, table: LatencyTable, speedup: float, ci95: list[float]) -> None:
    """Puts a preset and its table where the command line finds them, notes what was measured, and keeps the others."""
    name = preset.made_for.preset
    ASSETS.mkdir(exist_ok=True)
    write_table(table, ASSETS / f"{name}.json")
    _put(ASSETS / INDEX, name, preset.model_dump(mode="json"))
    _put(RESULTS, name, preset.model_dump(mode="json") | {"speedup": speedup, "ci95": ci95})


def _put(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Adds or replaces one entry of a JSON object in a file."""
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[name] = entry
    with whole_file(path) as aside:
        aside.write_text(json_text(dict(sorted(entries.items())), indent=2) + "\n", encoding="utf-8")


def measure(base: str, runtime: str, precision: Precision, batch: int | None = None) -> dict[str, Any]:
    """A preset, its table, and how fast its plan with uniform widths is beside the original."""
    preset, table, plan = make(base, runtime, precision, batch)
    variant = Variant.of(preset.made_for.batch, precision)
    ratio = time_plans(open_shapes(preset.model), [plan.original(), plan], runtime, variant).ratios[0]
    return {
        "preset": preset.model_dump(mode="json"), "table": table.model_dump(mode="json"),
        "speedup": 1 / ratio.value, "ci95": [1 / ratio.high, 1 / ratio.low],
    }  # fmt: skip


@click.command()
@click.option("--model", "bases", type=click.Choice(list(MODELS)), multiple=True, default=list(MODELS))
@click.option("--runtime", default=DEFAULT[0], show_default=True)
@click.option("--precision", default=DEFAULT[1], show_default=True)
@click.option(
    "--from", "measured", type=click.Path(path_type=Path, exists=True), help="Take those that gpu.py measured."
)
def main(bases: tuple[str, ...], runtime: str, precision: Precision, measured: Path | None) -> None:
    """Makes presets for one runtime, and keeps the others."""
    if measured is None:
        rows = (measure(base, runtime, precision) for base in bases)
    else:
        found = json.loads(measured.read_text(encoding="utf-8"))["rows"]
        rows = (row for name, row in found.items() if name.startswith("preset: "))
    for row in rows:
        preset = Preset.model_validate(row["preset"])
        keep(preset, LatencyTable.model_validate(row["table"]), row["speedup"], row["ci95"])
        low, high = row["ci95"]
        click.echo(
            f"{preset.made_for.preset}: −{preset.macs_reduction:.2%} MACs, ×{preset.made_for.speedup:.3f} predicted, "
            f"×{row['speedup']:.3f} [{low:.3f}, {high:.3f}] measured"
        )


if __name__ == "__main__":
    main()
