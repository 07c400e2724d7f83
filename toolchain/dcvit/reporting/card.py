"""The model card: `README.md` beside the model, with front matter as the Hugging Face Hub reads it."""

import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment

from dcvit.files import printable, whole_file
from dcvit.reporting import prose, tables
from dcvit.reporting.facts import Facts
from dcvit.reporting.page import environment
from dcvit.reporting.usage import snippets

CARD = "README.md"

_MEANT = re.compile(r"[\\`*<>\[\]|&]")
"""What Markdown would take for more than a letter."""

_BREAKS = re.compile(r"[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]+")

_SEAL = "<!-- dcvit-tool report {}: a card that was edited is kept as it is -->\n"
_SEALED = re.compile(r"<!-- dcvit-tool report ([0-9a-f]{16}): [^\n]*-->\n\Z")


def model_card(facts: Facts) -> str:
    """The card of a model folder."""
    page = {
        "tags": ["image-classification" if facts.plan.task == "classification" else "image-segmentation"],
        "base_model": _base_model(facts),
        "lead": prose.lead(facts),
        "summary": markdown(tables.summary_table(facts)),
        "depth": prose.depth_in_words(facts),
        "accuracy": markdown(tables.accuracy_table(facts.accuracies)) if facts.accuracies else "",
        "comparisons": markdown(tables.comparison_table(facts)) if facts.comparisons else "",
        "bench": markdown(tables.bench_table(facts)) if facts.bench else "",
        "parity": prose.parity_in_words(facts) if facts.checks else "",
        "snippets": snippets(facts),
    }
    return _environment().get_template("model_card.md").render(title=facts.title, facts=facts, page=page)


def frontier_card(title: str, frontier: dict[str, Any]) -> str:
    """The card of a frontier."""
    table = markdown(tables.point_table(frontier))
    return _environment().get_template("frontier_card.md").render(title=title, frontier=frontier, table=table)


def _environment() -> Environment:
    made = environment()
    made.filters["words"] = words
    return made


def write_card(path: Path, text: str) -> bool:
    """Writes a card, but not over one that somebody wrote or edited.

    Returns:
        Whether it was written.
    """
    text = printable(text)
    if path.exists() and not _is_ours(path.read_text(encoding="utf-8")):
        return False
    with whole_file(path) as aside:
        aside.write_text(text + _SEAL.format(_digest(text)), encoding="utf-8")
    return True


def markdown(table: tables.Table) -> str:
    """A table in Markdown."""
    rule = ["---:" if column.style.startswith("n") else "---" for column in table.columns]
    rows = [[column.name for column in table.columns], rule, *table.rows]
    return "\n".join("| " + " | ".join(words(cell) for cell in row) + " |" for row in rows)


def words(text: object) -> str:
    """Text that Markdown shows as it is, on one line: no link, image, HTML, code, heading or cell begins in it."""
    return _MEANT.sub(r"\\\g<0>", _BREAKS.sub(" ", str(text)))


def _base_model(facts: Facts) -> str:
    """Weights of timm's own have a place on the Hub; what somebody trained has none that is known here."""
    return f"timm/{facts.plan.model}" if facts.manifest.settings.get("weights") == "pretrained" else ""


def _is_ours(text: str) -> bool:
    found = _SEALED.search(text)
    return found is not None and _digest(text[: found.start()]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
