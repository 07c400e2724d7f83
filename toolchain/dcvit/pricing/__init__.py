"""What every cut costs in milliseconds: a table for one model, runtime, precision, batch and machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.errors import InputError
from dcvit.plan import CompressionPlan, parse_merges
from dcvit.pricing.kept import table_for, write_table
from dcvit.pricing.plot import plot_table
from dcvit.pricing.portable import SCRIPT, table_of_times, write_probes
from dcvit.pricing.table import LatencyTable, style_of
from dcvit.subject import open_shapes
from dcvit.variant import DEFAULT_BATCH, Precision, Variant

__all__ = ["LatencyTable", "latency"]


@dataclass(frozen=True)
class Probes:
    """Files for another device to time.

    Attributes:
        folder: Where they are.
        files: How many.
    """

    folder: Path
    files: int

    def to_json(self) -> dict[str, Any]:
        """Both."""
        return {"folder": str(self.folder), "files": self.files}

    def lines(self) -> Iterable[Any]:
        yield f"{self.files} ONNX files and {SCRIPT} in {self.folder}; on the device: python {SCRIPT} -o times.json"


def latency(
    model: str | Path,
    *,
    runtime: str | None = None,
    precision: Precision = "fp32",
    batch: int = DEFAULT_BATCH,
    threads: int | None = None,
    merge: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    out: str | Path | None = None,
    again: bool = False,
    probes: str | Path | None = None,
    times: str | Path | None = None,
) -> LatencyTable | Probes:
    """What each block costs at each width and number of tokens, on this machine or another one.

    Measured once for a model, runtime, precision, batch, number of threads and machine; then kept in the user's cache.

    Args:
        model: A timm name or a model folder, whose uncompressed model is meant.
        runtime: Name out of `dcvit.runtimes.RUNTIMES`; None takes ONNX Runtime on the CPU.
        precision: Of the computation.
        batch: Images in every batch.
        threads: CPU threads; None takes all cores.
        merge: A schedule, such as `horizontal@4,vertical@8`: blocks are timed behind such merges too.
        model_kwargs: Arguments of `timm.create_model`.
        out: A JSON file to write; a plot of the same name (.png) comes beside it.
        again: Measure even where a table was kept.
        probes: A folder to write instead: ONNX files and a script, for a device without the tool.
        times: What that script wrote there: the table is made of it.

    Raises:
        InputError: If there is no such model, the runtime cannot run here, or the model cannot merge so.
    """
    subject, variant = open_shapes(model, model_kwargs), Variant.of(batch, precision)
    style = style_of(_merging(subject.plan.original(), merge))
    if probes is not None:
        if times is not None or out is not None:
            raise InputError("--write-probes writes a folder for another device; leave out --times and -o")
        return Probes(Path(probes), write_probes(subject, variant, style, Path(probes)))
    if times is not None:
        table = table_of_times(subject, style, Path(times))
    else:
        table = table_for(subject, runtime, variant, threads, style, again=again)
    if out is not None:
        write_table(table, Path(out))
        plot_table(table, Path(out).with_suffix(".png"))
    return table


def _merging(plan: CompressionPlan, merge: str | None) -> CompressionPlan:
    if merge is None:
        return plan
    merges, operator = parse_merges(merge)
    return plan.replace(merges=merges, merge_operator=operator)
