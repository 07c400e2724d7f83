"""A target in time, in the currency of a table: what a plan costs is predicted, not counted in MACs."""

import hashlib
from typing import Any

from dcvit.errors import TargetError
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.pricing.kept import check_table, read_table, table_for
from dcvit.pricing.probes import Style
from dcvit.pricing.table import LatencyTable
from dcvit.progress import say
from dcvit.subject import Subject, original_of

SETTING = ("runtime", "precision", "batch", "threads", "latency_table")
"""Fields of a target that say which table it means."""

TABLE = "latency.json"
"""The table that a plan was chosen by, in the model folder."""


def latency_table(subject: Subject, target: Target, style: Style) -> LatencyTable:
    """The table that a target means: a given one, one that was kept, or one that is measured now; doubts are said.

    Args:
        subject: The model.
        target: Says where the latency counts.
        style: Of the merges that the table knows.

    Raises:
        InputError: If a given table is of another model or other merges, or none can be measured here.
    """
    if target.latency_table is None:
        table = table_for(subject, target.runtime, target.variant, target.threads, style)
    else:
        table = read_table(target.latency_table)
        check_table(table, subject, style)
    if table.warning:
        say(table.warning)
    return table


def latency_share(target: Target, total_ms: float) -> float:
    """The share of the latency that a target removes, of a model that takes `total_ms`.

    Raises:
        TargetError: If the model is as fast already.
    """
    if target.speedup is not None:
        return 1 - 1 / target.speedup
    assert target.latency is not None
    if target.latency >= total_ms:
        raise TargetError(
            f"--latency {target.latency:g}ms: the model takes {total_ms:.3g} ms already, as the table says"
        )
    return 1 - target.latency / total_ms


def predicted(subject: Subject, plan: CompressionPlan, table: LatencyTable) -> dict[str, Any]:
    """What a table says of a plan: milliseconds of a batch before and after, and what the table is of."""
    before, after = (predicted_ms(subject, each, table) for each in (subject.plan, plan))
    return {
        "before_ms": before,
        "after_ms": after,
        "speedup": before / after,
        "table": hashlib.sha256(table.model_dump_json().encode()).hexdigest(),
        **table.setting.model_dump(mode="json", include={"runtime", "precision", "batch", "threads", "machine"}),
    }


def predicted_ms(subject: Subject, plan: CompressionPlan, table: LatencyTable) -> float:
    """Latency of a batch that a table predicts."""
    return table.predict(plan, subject.family.tokens(original_of(subject.plan), plan))
