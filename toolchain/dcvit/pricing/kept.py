"""Tables that were measured once: read again for the same model, runtime and machine."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from pydantic import ValidationError

from dcvit.bench.machine import this_machine
from dcvit.errors import InputError, first_line
from dcvit.files import json_text, whole_file
from dcvit.hardware import accelerator
from dcvit.plan import CompressionPlan
from dcvit.pricing.measure import measured_table
from dcvit.pricing.probes import Style
from dcvit.pricing.table import LatencyTable
from dcvit.progress import say
from dcvit.runtimes import runtime_named
from dcvit.runtimes.caches import cache_folder
from dcvit.subject import Subject, open_shapes
from dcvit.variant import Variant
from dcvit.versions import package_versions

DEFAULT_RUNTIME = "onnxruntime"

_RUNTIMES_OF = {
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "torch",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "timm",
    "dcvit-tool",
}
"""Packages whose version decides a latency."""


def table_for(
    subject: Subject,
    runtime: str | None = None,
    variant: Variant | None = None,
    threads: int | None = None,
    style: Style | None = None,
    *,
    again: bool = False,
) -> LatencyTable:
    """The table of a model here: what was kept of it, or measured now and kept.

    Of several processes the first measures.

    Args:
        subject: The model; shapes are enough.
        runtime: Name of the runtime; None takes ONNX Runtime on the CPU.
        variant: Batch and precision; None is batch 64 in fp32.
        threads: CPU threads; None takes all cores.
        style: How tokens merge; None: they do not.
        again: Measure even if there is one.

    Raises:
        InputError: If the runtime cannot run here, or not in this precision, or the model cannot merge so.
    """
    chosen, variant, style = runtime_named(runtime or DEFAULT_RUNTIME), variant or Variant(), style or Style()
    place = _place(subject.plan.original(), chosen.name, variant, threads, style)
    shared: list[LatencyTable | None] = [None]
    if accelerator().is_main_process:
        found = None if again else _kept(place)
        if found is None:
            say(f"measuring what blocks cost in {chosen.name} {variant.precision}, batch {variant.batch}; it is kept")
            found = measured_table(subject, chosen.name, variant, threads, style)
            write_table(found, place)
        shared = [found]
    (table,) = broadcast_object_list(shared)
    assert table is not None
    return table


def read_table(path: Path) -> LatencyTable:
    """A table from a file that `write_table` or `dcvit-tool latency -o` made.

    Raises:
        InputError: If it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {name: found[name] for name in LatencyTable.model_fields if name in found}
        return LatencyTable.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is no latency table: {where}: {first['msg']}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a latency table ({first_line(error)})") from error


def write_table(table: LatencyTable, path: Path) -> None:
    """Writes a table, whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(json_text(table.to_json(), indent=1) + "\n", encoding="utf-8")


def check_table(table: LatencyTable, subject: Subject, style: Style) -> None:
    """Whether a table is of a model of these shapes, and of such merges; its number of classes is free.

    Raises:
        InputError: If it is not.
    """
    ours = subject.plan.original()
    theirs = open_shapes(table.model, table.model_kwargs)
    shapes = [replace(each.architecture, num_classes=0) for each in (theirs, subject)]
    if shapes[0] != shapes[1] or type(theirs.family) is not type(subject.family):
        raise InputError(
            f"--latency-table is of {table.model} {table.model_kwargs or ''}, and the model is {ours.model} "
            f"{ours.model_kwargs or ''}: their blocks or images differ"
        )
    if style.name not in (table.style, "none"):
        raise InputError(
            f"--latency-table knows merges of the kind '{table.style}', the plan's are '{style.name}'; make it again "
            "with `dcvit-tool latency --merge`"
        )


def _place(original: CompressionPlan, runtime: str, variant: Variant, threads: int | None, style: Style) -> Path:
    key: dict[str, Any] = {
        "plan": original.digest,
        "weights": "as if trained",
        "runtime": runtime,
        "variant": variant.model_dump(mode="json"),
        "threads": threads,
        "style": [style.name, *style.axes],
        "machine": this_machine().kind,
        "versions": {name: each for name, each in package_versions().items() if name in _RUNTIMES_OF},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder("latency") / f"{digest[:32]}.json"


def _kept(place: Path) -> LatencyTable | None:
    try:
        return read_table(place)
    except InputError:
        return None
