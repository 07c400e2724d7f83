"""The plan of the DC-ViT search in figures, before any image is seen; and whether it trims the last block."""

from collections.abc import Callable
from dataclasses import replace

from dcvit.errors import InputError
from dcvit.methods.few_shot.proposal import Proposal, priced, propose, stand_in_notes, survey
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.milliseconds import latency_share, latency_table, predicted, predicted_ms
from dcvit.methods.target import ANY_MERGES, NO_MERGES, Target
from dcvit.methods.trimming import costs_nothing
from dcvit.plan import BlockPlan
from dcvit.pricing.table import LatencyTable, style_of
from dcvit.subject import Subject
from dcvit.summary import PlanSummary
from dcvit.summary import summarize as in_figures

_TRIES = 5
_CLOSE = 0.01
"""Share of the latency that stand-ins may be off."""


def trimming(
    subject: Subject,
    target: Target,
    settings: SearchSettings,
    surveyed: Callable[[Target], Proposal],
    *,
    stand_in: bool,
) -> Target:
    """The target, with a last block that is trimmed where it may be, and where no less is asked for than that saves.

    Args:
        subject: The model.
        target: Whose plan is to be found.
        settings: Of the search.
        surveyed: What a target's base plan saves, in milliseconds for one that is measured.
        stand_in: Whether DC-ViT's structure stands in for what images choose: it cannot take just a little more.
    """
    if target.trim_last_block is not None or settings.search != "solver" or subject.family.removes != "attention":
        return target
    asked = target.macs_reduction is not None or target.latency_reduction is not None or target.measured is not None
    if not asked or target.plan is not None or not costs_nothing(subject):
        return target
    trims = target.model_copy(update={"trim_last_block": True})
    plain = {"merge": None, "size_aware": None} if target.merge in (ANY_MERGES, NO_MERGES) else {}
    proposal = surveyed(trims.model_copy(update=plain))
    if target.latency is not None and target.latency >= proposal.total:
        return target  # as fast already, as the table says
    share = target.macs_reduction or target.latency_reduction or latency_share(target, proposal.total)
    saved = proposal.saved / proposal.total
    if stand_in and proposal.units and saved < share < proposal.reach().least:
        return target
    return trims if saved <= share else target


def summarize(subject: Subject, target: Target, settings: SearchSettings) -> PlanSummary:
    """The plan in figures; which blocks are compressed is a stand-in until images have chosen them.

    A target in time is met as a table of this machine predicts it, which is measured first where none was kept.
    """
    target = trimming(subject, target, settings, lambda asked: _surveyed(subject, asked)[0], stand_in=True)
    latency, notes = None, []
    if target.merge == ANY_MERGES:
        target = target.model_copy(update={"merge": None, "size_aware": None})
        notes = ["Your images choose the merges; none stand in for them here."]
    elif target.merge == NO_MERGES:
        target = target.model_copy(update={"merge": None})
    if target.measured:
        proposal, latency = _propose_in_time(subject, target)
    else:
        proposal = propose(subject, target)
    entries = stand_ins(proposal)
    notes += stand_in_notes(target)
    if entries:
        listed = ", ".join(str(index) for index in sorted(entry.index for entry in entries))
        notes.append(
            f"DC-ViT's structure; trials on your images choose the blocks (here {listed} stand in for them), and the "
            "solver, the default search, chooses other widths at the same MACs."
        )
    plan = proposal.base.with_blocks(*entries)
    found = in_figures(plan, subject.plan, target.macs_convention, " ".join(notes))
    return found if latency is None else replace(found, latency=predicted(subject, plan, latency))


def _propose_in_time(subject: Subject, target: Target) -> tuple[Proposal, LatencyTable]:
    """What a target in time asks for, and the table that says so; stand-ins then meet it within 1 %, or are nearest.

    Raises:
        InputError: If it is out of reach, or the model's latency cannot be predicted block by block.
    """
    if subject.family.removes != "attention":
        raise InputError(f"{target.measured} has to be measured for this model; `dcvit-tool compress` does so")
    proposal, table = _surveyed(subject, target)
    assert table is not None
    wanted = share = latency_share(target, proposal.total)
    for _ in range(_TRIES):  # structures are made as if time fell with the width in a line
        made = proposal.removing(share)
        plan = made.base.with_blocks(*stand_ins(made))
        miss = wanted - (1 - predicted_ms(subject, plan, table) / proposal.total)
        if abs(miss) < _CLOSE:
            break
        share = min(max(share + miss, 1e-3), 1 - 1e-3)
    return made, table


def _surveyed(subject: Subject, target: Target) -> tuple[Proposal, LatencyTable | None]:
    """A survey, in milliseconds for a target that is measured."""
    counted = survey(subject, target)
    if not target.measured:
        return counted, None
    table = latency_table(subject, target, style_of(counted.base))
    return priced(counted, subject, table), table


def stand_ins(proposal: Proposal) -> list[BlockPlan]:
    """Plan entries of DC-ViT's structure, its blocks spread evenly over the depth."""
    return [entry for unit in proposal.chosen(proposal.spread_out()) for entry in unit] if proposal.wanted > 0 else []
