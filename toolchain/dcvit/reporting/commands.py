"""The commands that add what a report lacks."""

import json
import shlex

from dcvit.reporting.facts import Facts
from dcvit.variant import Variant, argument


def verify(facts: Facts) -> str:
    """Compares every exported file with PyTorch; exports one first where there is none."""
    command = f"dcvit-tool verify {argument(facts.title)}"
    return command if facts.onnx else f"{_export(facts)} && {command}"


def bench(facts: Facts) -> str:
    """Measures latency in ONNX Runtime; exports its file first where it is not there."""
    command = f"dcvit-tool bench {argument(facts.title)}"
    return command if Variant().onnx_name in facts.onnx else f"{_export(facts)} && {command}"


def accuracy(facts: Facts) -> list[tuple[str, str]]:
    """What is not known of the accuracy, and the command that finds it out."""
    missing = []
    if not any(not row.original for row in facts.accuracies):
        missing.append(
            ("The accuracy has not been measured.", f"dcvit-tool evaluate {argument(facts.title)} --data IMAGES")
        )
    if not any(row.original for row in facts.accuracies) and facts.manifest.settings.get("weights") != "random":
        command = f"dcvit-tool evaluate {_original(facts)} --data IMAGES --as-original-of {argument(facts.title)}"
        missing.append(("The original’s accuracy is not known here.", command))
    measured = {row.file for row in facts.comparisons}
    for name, record in facts.onnx.items():
        known = any(not row.original and row.precision == record.precision for row in facts.accuracies)
        if record.precision != "fp32" and name not in measured and not known:
            command = f"{record.variant.export_command(facts.title)} --evaluate IMAGES"
            missing.append((f"What {record.precision} loses has not been measured.", command))
    return missing


def _export(facts: Facts) -> str:
    return Variant().export_command(facts.title)


def _original(facts: Facts) -> str:
    """The model that the folder was made from, as the command line names it."""
    weights = str(facts.manifest.settings.get("weights", ""))
    if weights.startswith("model folder "):
        return argument(weights.removeprefix("model folder "))
    parts = [facts.plan.model]
    if weights.startswith("checkpoint "):
        parts += ["--checkpoint", argument(weights.removeprefix("checkpoint "))]
    if facts.plan.model_kwargs:
        parts += ["--model-kwargs", shlex.quote(json.dumps(facts.plan.model_kwargs, separators=(",", ":")))]
    return " ".join(parts)
