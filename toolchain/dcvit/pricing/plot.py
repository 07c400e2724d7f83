"""A latency table as a picture: time against width, where a runtime's steps can be seen."""

from pathlib import Path

from dcvit.pricing.table import LatencyTable, Level

_COLORS = ("#1f5fa8", "#c2571a", "#3c8d40", "#7a4fa3")


def plot_table(table: LatencyTable, path: Path) -> None:
    """Draws milliseconds of one block against the width of its heads and of its MLP into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    heads, mlps = figure.subplots(1, 2, sharey=True)
    lines = [(group, level) for group in table.groups for level in group.levels]
    for color, (group, level) in zip(_COLORS * len(lines), lines, strict=False):
        name = f"{level.tokens} tokens" if len(table.groups) == 1 else f"block {group.blocks[0]}, {level.tokens} tokens"
        for axes, widths, whole in (
            (heads, _with(level, "heads", group.head_dim), group.head_dim),
            (mlps, _with(level, "mlp", group.mlp_hidden), group.mlp_hidden),
        ):
            if not whole:
                continue
            known = sorted(widths)
            times = [widths[width] for width in known]
            axes.errorbar(known, [each[0] for each in times], color=color, marker="o", markersize=4, capsize=2,
                          yerr=[[each[0] - each[1] for each in times], [each[2] - each[0] for each in times]],
                          label=name)  # fmt: skip
    heads.set_xlabel("channels of each head (0: no attention)")
    mlps.set_xlabel("nodes of the MLP")
    heads.set_ylabel(f"ms of one block, batch {table.setting.batch}")
    for axes in (heads, mlps):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    mlps.legend(fontsize=8, loc="lower right")
    setting = table.setting
    figure.suptitle(f"{table.model}, {setting.runtime} {setting.precision}, {setting.machine}; bars: 95 %", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def _with(level: Level, kind: str, whole: int) -> dict[int, tuple[float, float, float]]:
    """Time and interval by width, from nothing to the whole."""
    timed = level.heads if kind == "heads" else level.mlp
    found = {width: (each.ms, each.low, each.high) for width, each in timed.items()}
    if kind == "heads" and level.no_attention is not None:
        each = level.no_attention
        found[0] = each.ms, each.low, each.high
    return found | {whole: (level.block.ms, level.block.low, level.block.high)}
