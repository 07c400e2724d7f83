"""`bench --check`: a model folder against a baseline file."""

from pathlib import Path

from dcvit.bench.baseline import DEFAULT_TOLERANCE, Baseline
from dcvit.bench.gate import judge, measure
from dcvit.bench.gate_result import Checked, GateResult, Undecided, Updated
from dcvit.bench.machine import Machine, this_machine
from dcvit.bench.pair import OpenPair, Setting, pair_of
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.progress import say
from dcvit.runtimes import limited_to


def check(folder: Path | str, file: Path, *, max_seconds: float = 60.0, undecided: Undecided = "fail") -> GateResult:
    """Measures whether a folder's speed-up is still what a baseline says.

    Args:
        folder: A model folder that holds what the baseline's runtime runs.
        file: The baseline.
        max_seconds: Of timing; a clear case takes a few seconds.
        undecided: Whether the check holds where the time did not suffice to tell.

    Raises:
        InputError: If the folder or the baseline cannot be used, or they do not belong together.
    """
    baseline, machine = Baseline.read(file), this_machine()
    model = ModelFolder(folder)
    with limited_to(baseline.threads), pair_of(model, baseline.against) as pair:
        _belongs(baseline, file, model)
        pair.prepare(baseline.setting)
        row = checked(file.stem, baseline, model, lambda: pair.open(baseline.setting), machine, max_seconds)
    return GateResult((row,), undecided, machine.measured())


def checked(
    name: str, baseline: Baseline, folder: ModelFolder, open_pair: OpenPair, machine: Machine, max_seconds: float
) -> Checked:
    """The same for sessions that the caller opens."""
    entry, tolerance = baseline.entry(machine)
    notes = []
    if entry.plan_digest != folder.plan.digest:
        notes.append("the folder's plan is not the one that the baseline was measured with")
    if machine.kind not in baseline.machines:
        notes.append(
            f"measured on {' and '.join(baseline.machines)}, and this is another kind of machine: only the ratio is "
            f"compared, and it may differ by {tolerance:.0%}; --update adds this kind"
        )
    threshold = entry.speedup * (1 - tolerance)
    say(f"{name}: is the speed-up still ×{threshold:.3f}?")
    found = judge(open_pair, threshold, entry.group, max_seconds)
    return Checked(name, baseline, entry.speedup, tolerance, found, tuple(notes))


def update(
    folder: Path | str,
    file: Path,
    setting: Setting,
    against: str | None = None,
    *,
    tolerance: float | None = None,
    max_seconds: float = 60.0,
) -> Updated:
    """Measures a folder's speed-up and writes it to a baseline file, in the entry of this kind of machine.

    Entries of other kinds stay if they are of the same comparison and plan.

    Args:
        folder: A model folder that holds what the runtime runs.
        file: The baseline; it need not exist.
        setting: How the models are run.
        against: As in `benchmark`.
        tolerance: Share that the speed-up may fall by; by default what the file says, else 5 %.
        max_seconds: Of timing, but at least eight sessions are opened.

    Raises:
        InputError: If the folder lacks what the runtime runs.
    """
    model, machine = ModelFolder(folder), this_machine()
    setting.file(model)
    earlier = Baseline.read(file) if file.exists() else None
    if tolerance is None:
        tolerance = earlier.tolerance if earlier else DEFAULT_TOLERANCE
    if not 0 < tolerance < 1:
        raise InputError(f"--tolerance {tolerance}: give a share of the speed-up between 0 and 1")
    baseline = Baseline(
        model=model.plan.model,
        against=against,
        runtime=setting.runtime,
        batch=setting.variant.batch,
        precision=setting.variant.precision,
        baseline_precision=setting.baseline_precision,
        threads=setting.threads,
        with_preprocessing=setting.variant.with_preprocessing,
        tolerance=tolerance,
    )
    if earlier is not None:
        same = baseline.model_copy(update={"machines": earlier.machines, "tolerance": earlier.tolerance}) == earlier
        kept = {kind: entry for kind, entry in earlier.machines.items() if entry.plan_digest == model.plan.digest}
        baseline = baseline.model_copy(update={"machines": kept if same else {}})
    with limited_to(setting.threads), pair_of(model, against) as pair:
        pair.prepare(setting)
        say(f"{file}: measuring, at most about {max_seconds:.0f} s")
        found = measure(lambda: pair.open(setting), tolerance / 5, max_seconds)
    baseline = baseline.with_entry(model, found, machine.measured())
    baseline.write(file)
    return Updated(file, baseline, machine.kind)


def _belongs(baseline: Baseline, file: Path, folder: ModelFolder) -> None:
    if baseline.model != folder.plan.model:
        raise InputError(f"{file} is of {baseline.model}, but {folder.path} holds a {folder.plan.model}")
