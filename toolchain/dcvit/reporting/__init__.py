"""The report: one HTML page that needs no network, and a model card, of a model folder or of a frontier of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from dcvit.errors import InputError, first_line
from dcvit.files import printable, whole_file
from dcvit.folder.lock import adding
from dcvit.folder.model_folder import MANIFEST, ModelFolder
from dcvit.frontiers.result import FRONTIER, read_frontier
from dcvit.reporting.card import CARD, frontier_card, model_card, write_card
from dcvit.reporting.facts import Facts
from dcvit.reporting.page import frontier_page, model_page

__all__ = ["CARD", "REPORT", "ReportResult", "report"]

REPORT = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """The files that were written.

    Attributes:
        html: The page.
        card: The model card.
        card_kept: Whether there was a card that somebody had edited, which stays as it is.
        models: The same of each model of a frontier.
    """

    html: Path
    card: Path
    card_kept: bool = False
    models: tuple["ReportResult", ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        models = {"models": [model.to_json() for model in self.models]} if self.models else {}
        return {"html": str(self.html), "card": str(self.card), "card_kept": self.card_kept} | models

    def lines(self) -> Iterable[Any]:
        """Where they are."""
        yield f"{self.html}  {self.html.stat().st_size / 1e3:.0f} kB"
        yield f"{self.card}" + ("  (it was edited, so it stays as it is)" if self.card_kept else "")
        if self.models:
            yield f"and those of {len(self.models)} models in their folders"


def report(folder: Path | str) -> ReportResult:
    """Writes `report.html` and the model card `README.md` into a model folder, or into a frontier and its folders.

    Nothing is measured: the report shows what compress, export, verify, evaluate and bench left in the folder, and
    which command adds what is not there.

    Raises:
        InputError: If it is neither a model folder nor a frontier, or a file in it has changed or is none of ours.
        WriteError: If the disk is full, or the folder may not be written to.
    """
    path = Path(folder)
    is_frontier = not ModelFolder.is_one(path) and (path / FRONTIER).is_file()
    if not is_frontier and not ModelFolder.is_one(path):
        raise InputError(
            f"{path} is neither a model folder (it has no {MANIFEST}) nor a frontier (no {FRONTIER}); "
            "`dcvit-tool compress` and `dcvit-tool frontier` make them"
        )
    try:
        return _frontier(path) if is_frontier else _model(Facts(ModelFolder(path)))
    except _MALFORMED as error:
        raise InputError(
            f"{path}: something that is kept there for the report is none of ours ({type(error).__name__}: "
            f"{first_line(error)}); --debug shows where"
        ) from error


_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, UndefinedError)
"""What a report runs into where metrics, logs or records are not of the shape that the tool gives them."""


def _model(facts: Facts) -> ReportResult:
    folder = facts.folder
    page = model_page(facts)
    html = folder.add(REPORT, lambda aside: _write(aside, page))
    card = model_card(facts)
    with adding(folder.path):
        written = write_card(folder.path / CARD, card)
    return ReportResult(html, folder.path / CARD, card_kept=not written)


def _frontier(path: Path) -> ReportResult:
    found = read_frontier(path)
    models = [Facts(ModelFolder(path / point["folder"])) for point in found["points"]]
    title = path.resolve().name
    with whole_file(path / REPORT) as aside:
        _write(aside, frontier_page(title, found, models))
    written = write_card(path / CARD, frontier_card(title, found))
    return ReportResult(path / REPORT, path / CARD, not written, tuple(_model(facts) for facts in models))


def _write(path: Path, text: str) -> None:
    path.write_text(printable(text), encoding="utf-8")
