"""From facts to pages: what each section shows, and the templates that set it."""

from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from dcvit.folder.records import error_measure
from dcvit.frontiers.curves import MACS
from dcvit.frontiers.result import table_in_words
from dcvit.reporting import commands, prose, tables
from dcvit.reporting.curves import curves_of, draw_pareto, draw_training, training_series
from dcvit.reporting.depth import draw_damage, draw_depth, draw_trials
from dcvit.reporting.facts import Facts
from dcvit.reporting.latency import draw_latencies, setting_of
from dcvit.reporting.svg import both
from dcvit.reporting.usage import snippets
from dcvit.reporting.words import broken_at_dots, change, points, seconds, si, signed
from dcvit.versions import package_versions


@dataclass(frozen=True)
class Figure:
    """One of the large figures on top."""

    name: str
    value: str
    note: str


def environment() -> Environment:
    """The templates: what is put in is escaped in pages, and nothing that is missing passes unnoticed."""
    made = Environment(
        loader=PackageLoader("dcvit.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["seconds"] = seconds
    made.filters["broken_at_dots"] = broken_at_dots
    made.globals.update(
        version=package_versions().get("dcvit-tool", ""),
        style=Markup(resources.files("dcvit.reporting").joinpath("templates/style.css").read_text(encoding="utf-8")),  # noqa: S704
    )
    return made


def model_page(facts: Facts) -> str:
    """The page of a model folder."""
    return environment().get_template("model.html").render(title=facts.title, facts=facts, page=_model(facts))


def frontier_page(title: str, frontier: dict[str, Any], models: list[Facts]) -> str:
    """The page of a frontier.

    Args:
        title: Of the page.
        frontier: `frontier.json`.
        models: The model folders in it.
    """
    images = frontier["data"]["images"]
    page = {
        "lead": f"{len(models)} sizes of {frontier['model']}, compressed with {images:,} unlabelled images.",
        "pareto": _pareto(frontier, None),
        "curves": _curve_keys(frontier),
        "accurate": "top1" in frontier["original"],
        "points": _linked(tables.point_table(frontier)),
        "points_in_words": f"MACs and parameters per image, MACs in the ‘{frontier['macs_convention']}’ convention. "
        f"Made in {seconds(frontier['seconds'])}.",
        "depths": [(facts.title, both(partial(draw_depth, facts.depth))) for facts in models],
        "origin": [
            ("model", frontier["model"]),
            ("images", f"{images:,}"),
            ("seed", str(frontier["seed"])),
            *prose.machine_in_words(frontier["machine"]),
        ],
        "settings": models[0].settings if models else [],
    }
    return environment().get_template("frontier.html").render(title=title, page=page)


def _linked(points: tables.Table) -> tables.Table:
    """Each model's name leads to its own report."""
    rows: list[tuple[str, ...]] = [points.rows[0]]
    rows += [(Markup('<a href="{0}/report.html">{0}</a>').format(row[0]), *row[1:]) for row in points.rows[1:]]
    return tables.Table(points.columns, rows)


def _model(facts: Facts) -> dict[str, Any]:
    page: dict[str, Any] = {
        "lead": prose.lead(facts),
        "figures": _figures(facts),
        "frontier_link": "One of a frontier of sizes" if facts.point else "",
        "summary": tables.summary_table(facts),
        "latency_in_words": prose.latency_in_words(facts),
        "pareto": _pareto(facts.frontier, facts.folder.path.resolve().name) if facts.point else [],
        "depth": both(partial(draw_depth, facts.depth)),
        "removed": facts.depth.removed,
        "heads": any(block.heads for block in facts.damage),
        "depth_in_words": prose.depth_in_words(facts),
        "blocks": tables.block_table(facts),
        "damage": both(partial(draw_damage, facts.damage, error_measure(facts.metrics))) if facts.damage else "",
        "damage_table": tables.damage_table(facts),
        "trials": both(partial(draw_trials, facts.trials)) if facts.trials else "",
        "largest_cut": prose.largest_cut_in_words(facts),
        "training": both(partial(draw_training, facts.training)) if facts.training else "",
        "training_names": training_series(facts.training) if facts.training else [],
        "training_in_words": prose.training_in_words(facts),
        "accuracy": tables.accuracy_table(facts.accuracies),
        "comparisons": tables.comparison_table(facts),
        "accuracy_missing": commands.accuracy(facts),
        "parity": tables.parity_tables(facts),
        "parity_in_words": prose.parity_in_words(facts),
        "unverified": facts.unverified,
        "verify_command": commands.verify(facts),
        "bench_command": commands.bench(facts),
        "latencies": [both(partial(draw_latencies, rows)) for rows in facts.bench_by_batch],
        "bench": tables.bench_table(facts),
        "batches": tables.batches_table(facts),
        "protocol_in_words": "Times in ms, original → this model: one forward pass of a batch, both models in turn in "
        "one process, in random order. The interval is a bootstrap over rounds.",
        "machine": prose.machine_in_words(facts.machine),
        "snippets": snippets(facts),
        "origin": prose.origin_in_words(facts),
        "files": tables.file_table(facts),
    }
    shown = {
        "summary": "Before and after",
        **({"frontier": "Frontier"} if page["pareto"] else {}),
        "depth": "Along the depth",
        **({"recoverability": "Recoverability"} if page["damage"] or page["trials"] or page["largest_cut"] else {}),
        **({"training": "Training"} if page["training"] else {}),
        "accuracy": "Accuracy",
        "parity": "Parity",
        "latency": "Latency",
        "serve": "Load and serve",
        "origin": "How it was made",
    }
    return page | {"contents": list(shown.items())}


def _figures(facts: Facts) -> list[Figure]:
    costs, row = facts.summary, facts.headline
    before, after = facts.before_and_after
    figures = [
        Figure(
            "MACs", change(costs.macs_before, costs.macs_after), f"{si(costs.macs_before)} → {si(costs.macs_after)}"
        ),
        Figure(
            "Parameters",
            change(costs.params_before, costs.params_after),
            f"{si(costs.params_before)} → {si(costs.params_after)}",
        ),
    ]
    if row is None:
        figures.append(Figure("Speed-up", "", "not measured"))
    else:
        low, high = row["speedup_ci95"]
        of = f" of {row['file']}" if "file" in row else ""
        told = f"95 % interval {low:.3f} to {high:.3f}{of}, {row['runtime']} {row['precision']}, {row['device']}"
        alike = low <= 1 <= high
        figures.append(Figure("Speed-up", f"×{row['speedup']:.3f}", f"no difference: {told}" if alike else told))
    if after is None:
        figures.append(Figure("Accuracy", "", "not measured"))
    else:
        was = f"was {before.value:.2f} % ({points(before.value, after.value)}); " if before else ""
        if before and (change_ := after.change_from(before)):
            was = f"{was.removesuffix('; ')}, 95 % interval {signed(change_[0])} to {signed(change_[1])} pt, paired; "
        value = f"{after.value:.2f} %"
        figures.append(Figure(after.name[0].upper() + after.name[1:], value, f"{was}{after.images:,} images"))
    return figures


def _pareto(frontier: dict[str, Any], here: str | None) -> list[tuple[Markup, str]]:
    curves = curves_of(frontier)
    labels = {MACS: "the share of the MACs to be removed", **dict.fromkeys(frontier.get("curves", {}), "the speed-up")}
    told = f"Labels: {', or '.join(dict.fromkeys(labels[curve] for curve in curves))} that was asked for."
    figures = [(both(partial(draw_pareto, frontier, MACS, here)), told)]
    for curve, where in frontier.get("curves", {}).items():
        told = f"{curve}: {table_in_words(where)}."
        figures.append((both(partial(draw_pareto, frontier, curve, here)), told))
    if rows := [point["bench"] for point in frontier["points"] if "bench" in point]:
        settings = dict.fromkeys(f"{setting_of(row)}, {row['device']}" for row in rows)
        told = f"Latency: {'; '.join(settings)}; bars are 95 % intervals."
        figures.append((both(partial(draw_pareto, frontier, "latency", here)), told))
    return figures


def _curve_keys(frontier: dict[str, Any]) -> list[tuple[str, str]]:
    """Style and name of each curve; nothing where there is one."""
    curves = curves_of(frontier)
    if len(curves) == 1:
        return []
    return [
        (f"dot-line{min(3, number)}", "solved in MACs" if curve == MACS else f"solved in ms of {curve}")
        for number, curve in enumerate(curves)
    ]
