"""Probes for a device that the tool is not installed on, and a table of the times that come back from it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcvit.data import seeded
from dcvit.errors import InputError, first_line
from dcvit.exporting.for_runtime import export_for
from dcvit.files import json_text, whole_folder
from dcvit.folder.temporary import temporary_folder
from dcvit.model import stand_in
from dcvit.plan import CompressionPlan
from dcvit.pricing import time_probes
from dcvit.pricing.measure import parts_of, table_from
from dcvit.pricing.probes import Style, design
from dcvit.pricing.table import LatencyTable, Setting
from dcvit.pricing.timing import Timed, timed_of
from dcvit.progress import say, track
from dcvit.runtimes import runtime_named
from dcvit.subject import Subject
from dcvit.variant import Variant

PROBES, SCRIPT = "probes.json", "time_probes.py"


def write_probes(subject: Subject, variant: Variant, style: Style, folder: Path) -> int:
    """Writes the ONNX files that a device has to time, and the script that does so.

    Args:
        subject: The model; shapes are enough.
        variant: Batch and precision of the files.
        style: How tokens merge.
        folder: To be made.

    Returns:
        How many files there are.

    Raises:
        InputError: If the folder exists, or the model cannot merge so.
    """
    wanted, runtime = design(subject, style), runtime_named("onnxruntime")
    parts = parts_of(wanted)
    plans = {plan.digest: plan for part in parts for plan in part}
    files = {digest: f"probe{number:02d}.onnx" for number, digest in enumerate(plans)}
    with whole_folder(folder, overwrite=False) as aside:
        for digest, plan in track(list(plans.items()), "exporting probes"):
            with seeded(0), temporary_folder(stand_in(plan), plan, subject.preprocessing) as made:
                export_for(runtime, made, variant, latency_only=True)
                shutil.copyfile(made.path / variant.onnx_name, aside / files[digest])
        about = {
            "design": _named(subject, style),
            "batch": variant.batch,
            "precision": variant.precision,
            "files": files,
            "parts": [[plan.digest for plan in part] for part in parts],
        }
        (aside / PROBES).write_text(json_text(about, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(time_probes.__file__, aside / SCRIPT)
    return len(files)


def table_of_times(subject: Subject, style: Style, file: Path) -> LatencyTable:
    """A table of what `time_probes.py` wrote.

    Args:
        subject: The model that the probes are of.
        style: How its tokens merge.
        file: The times.

    Raises:
        InputError: If they cannot be read, or are of other probes.
    """
    wanted = design(subject, style)
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["design"] != _named(subject, style):
            raise InputError(f"{file}: these are times of {found['design']}, not of {_named(subject, style)}")
        times = {tuple(part["probes"]): part["times_ms"] for part in found["parts"]}
        setting = Setting(
            runtime=found["runtime"],
            precision=found["precision"],
            batch=found["batch"],
            threads=found["threads"],
            device=found["machine"],
            machine=found["machine"],
            versions={},
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as times of probes ({first_line(error)})") from error

    def time_models(plans: Sequence[CompressionPlan], description: str) -> Timed:  # noqa: ARG001
        key = tuple(plan.digest for plan in plans)
        if key not in times:
            raise InputError(f"{file}: times of some probes are missing; write the probes again, and time them")
        return timed_of(times[key])

    say(f"times of {setting.machine}")
    return table_from(subject, wanted, time_models, style).model_copy(update={"setting": setting})


def _named(subject: Subject, style: Style) -> dict[str, Any]:
    return {
        "model": subject.plan.model,
        "model_kwargs": subject.plan.model_kwargs,
        "merges": [*style.axes],
        "style": style.name,
    }
