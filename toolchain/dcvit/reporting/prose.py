"""What a report says in words."""

from typing import Any

from dcvit.folder.records import error_measure
from dcvit.methods.registry import METHODS
from dcvit.reporting.facts import Facts
from dcvit.reporting.latency import setting_of
from dcvit.reporting.words import ms, seconds


def lead(facts: Facts) -> str:
    """What the model is, in a sentence."""
    method = METHODS.get(facts.manifest.method)
    how = f", compressed by {method.title}" if method else ""
    size = "×".join(map(str, facts.manifest.preprocessing.input_size[1:]))
    return f"{facts.plan.model}{how} with {facts.source}. Input {size}, {facts.architecture.depth} blocks."


def depth_in_words(facts: Facts) -> str:
    """What the plan does, in a sentence or two."""
    whole = [str(block.index) for block in facts.plan.blocks if block.removed == "block"]
    attention = [str(block.index) for block in facts.plan.blocks if block.removed == "attention"]
    narrowed = [block for block in facts.plan.blocks if block.mlp_hidden is not None]
    heads = [block for block in facts.plan.blocks if block.head_dim is not None]
    count = facts.architecture.depth
    said = []
    if whole:
        said.append(f"Removed as a whole: block {', '.join(whole)}.")
    if attention:
        said.append(f"Without attention: block {', '.join(attention)}.")
    if narrowed:
        said.append(f"{len(narrowed)} of {count} MLPs are narrower.")
    if heads:
        said.append(f"{len(heads)} of {count} blocks have narrower heads.")
    if facts.plan.merges:
        first, last = facts.tokens_before[-1], facts.summary.tokens[-1]
        operator = "a linear map" if facts.plan.merge_operator == "linear" else "the mean"
        said.append(f"Merging leaves {last} of {first} tokens ({operator} of each pair).")
    if facts.plan.trims_last_block:
        said.append("The last block works on the tokens that the head reads alone, which changes no output.")
    return " ".join(said) or "Nothing is cut: this is the original model."


def largest_cut_in_words(facts: Facts) -> str:
    cut = facts.metrics.get("largest_cut")
    if cut is None:
        return ""
    vanished = "had shrunk to nothing" if cut < 1e-3 else f"still had a norm of up to {cut:.2g}"
    return (
        f"Channels were pruned while the model trained: those that were cut {vanished} when they went. "
        "Blocks that stayed wide are those that training could not do without."
    )


def latency_in_words(facts: Facts) -> str:
    row = facts.headline
    if row is None:
        return ""
    machine = facts.machine or {}
    device = machine.get("gpu") if row["threads"] is None else machine.get("cpu")
    of = f", {row['file']}" if "file" in row else ""
    return f"Latency: median of {row['runs']} runs, {setting_of(row)}, {device or row['device']}{of}."


def training_in_words(facts: Facts) -> str:
    if not facts.training:
        return ""
    last = facts.training[-1]
    return (
        f"{last['step']:,} steps, {last['epoch']:.2f} epochs in {seconds(last['seconds'])}, "
        f"{last['images_per_second']:,.0f} images a second; final loss {last['loss']:.4g}."
    )


def parity_in_words(facts: Facts) -> str:
    """How many checks hold."""
    failed = sum(not check["passed"] for check in facts.checks)
    count = len(facts.checks)
    held = f"{failed} of {count} checks FAILED." if failed else f"All {count} checks hold."
    every = "Exported files" if facts.unverified else "Every exported file"
    return f"{every} against PyTorch at fp32: shapes, operators, types and outputs. {held}"


def machine_in_words(machine: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The machine that latency was measured on."""
    if not machine:
        return []
    rows = [("machine", machine["gpu"] or machine["cpu"])]
    if machine["gpu"]:
        rows += [("compute capability", str(machine["compute_capability"])), ("processor", machine["cpu"])]
    if machine.get("instructions"):
        rows.append(("instructions", ", ".join(machine["instructions"])))
    rows.append(("cores", str(machine["cores"])))
    if machine.get("memory_gib"):
        rows.append(("memory", f"{machine['memory_gib']:g} GiB"))
    rows.append(("system", machine["system"]))
    load = machine.get("load")
    if load is not None:
        busy = load > 0.5 * machine["cores"]
        told = "; the machine was busy: trust the ratios more than the times" if busy else ""
        rows.append(("load before", f"{load:.1f}{told}"))
    return rows


def origin_in_words(facts: Facts) -> list[tuple[str, str]]:
    rows = [("model", facts.plan.model), ("architecture", facts.family)]
    if weights := facts.manifest.settings.get("weights"):
        rows.append(("weights", str(weights)))
    rows.append(("images", facts.source))
    if data := facts.manifest.data:
        rows.append(("fingerprint", data["sha256"][:16] + "…"))
    measure = error_measure(facts.metrics)
    if error := facts.metrics.get(measure.key):
        rows.append((f"{measure.name} to the original", f"{error:.3g}{measure.unit}, on images it was made with"))
    if trained := facts.metrics.get("training"):
        kept = f"kept, learning rate {trained['lr']:g}" if trained["kept"] else "taken back"
        rows.append(
            ("training", f"{measure.name} {trained['before']:.3g} → {trained['after']:.3g}{measure.unit} on "
             f"{trained['images']} images that were neither fitted nor trained on: {kept}")
        )  # fmt: skip
    if found := facts.metrics.get("speedup"):
        rows.append(("speed-up when made", f"×{found['speedup']:.2f} ({ms(found['median_ms'])}, {setting_of(found)})"))
    rows.append(("plan", facts.plan.digest[:16] + "…"))
    return rows
