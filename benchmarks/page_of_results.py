"""A page of tables and a plot from the committed results of several studies."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def write_page(
    results: Path,
    out: Path,
    title: str,
    sections: Mapping[str, Callable[[Report], str]],
    plots: Callable[[Report, Path], None],
) -> None:
    """Writes `out`.md, a section for each study whose results are there, and `out`.png, a plot of the first one's.

    Args:
        results: The folder of the results, NAME.json each.
        out: Without a suffix.
        title: Of the page.
        sections: By NAME, what makes Markdown of a study's results.
        plots: Draws the first study's.
    """
    found = {name: json.loads(path.read_text()) for name in sections if (path := results / f"{name}.json").exists()}
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [sections[name](report) for name, report in found.items()]
    out.with_suffix(".md").write_text(f"# {title}\n\n" + "\n".join(parts))
    plots(found[next(iter(sections))], out.with_suffix(".png"))


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Rows below their heads, as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def machines_named(report: Report) -> str:
    """The machines of rows that name one, in their order."""
    return "; ".join(dict.fromkeys(row["machine"] for row in report["rows"] if "machine" in row))
