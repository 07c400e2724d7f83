"""A table of latencies, measured here or put together from times that another machine measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from dcvit.bench.machine import this_machine
from dcvit.data import seeded
from dcvit.errors import CheckFailedError
from dcvit.exporting.for_runtime import export_for
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.model import stand_in
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.pricing.probes import Design, Group, Probe, Style, design
from dcvit.pricing.table import BlockTimes, LatencyTable, Level, Setting, Time, WholeModel
from dcvit.pricing.timing import Ratio, Timed, time_in_turn
from dcvit.progress import say
from dcvit.runtimes import Runtime, Session, limited_to, runtime_named
from dcvit.subject import Subject, original_of
from dcvit.variant import Variant
from dcvit.versions import package_versions

AT_ONCE = 8
"""Models that are open together, for memory: each is compared with the base, which is among them."""

TimeModels = Callable[[Sequence[CompressionPlan], str], Timed]
"""Times models in turn; the first is what the others are compared with."""


def measured_table(
    subject: Subject, runtime: str, variant: Variant, threads: int | None = None, style: Style | None = None
) -> LatencyTable:
    """Measures what every cut of a model costs here.

    Args:
        subject: The model; shapes are enough.
        runtime: Name of the runtime.
        variant: Batch and precision.
        threads: CPU threads; None takes all cores.
        style: How tokens merge; by default they do not.

    Raises:
        InputError: If the runtime cannot run here, or not in this precision, or the model cannot merge so.
    """
    chosen, started = runtime_named(runtime), time.perf_counter()
    chosen.require(variant.precision)
    wanted = design(subject, style or Style())
    seen: list[Session] = []

    def time_models(plans: Sequence[CompressionPlan], description: str) -> Timed:
        with _sessions(subject, plans, chosen, variant, keep) as sessions:
            seen[:] = sessions[:1]
            return time_in_turn([session.execute for session in sessions], description)

    with limited_to(threads), _kept_exports() as keep:
        table = table_from(subject, wanted, time_models, style or Style())
        setting = Setting(
            runtime=chosen.name,
            precision=variant.precision,
            batch=variant.batch,
            threads=seen[0].threads,
            device=seen[0].device,
            machine=this_machine().kind,
            versions=package_versions(),
        )
    return table.model_copy(update={"setting": setting, "seconds": time.perf_counter() - started})


def time_plans(
    subject: Subject, plans: Sequence[CompressionPlan], runtime: str, variant: Variant, threads: int | None = None
) -> Timed:
    """Times whole models with random weights in turn, all of them open at once; the first is what others are shares of.

    Args:
        subject: The model.
        plans: Of it.
        runtime: Name of the runtime.
        variant: Batch and precision.
        threads: CPU threads; None takes all cores.

    Raises:
        InputError: If the runtime cannot run here, or not in this precision.
    """
    chosen = runtime_named(runtime)
    chosen.require(variant.precision)
    with limited_to(threads), _kept_exports() as keep, _sessions(subject, plans, chosen, variant, keep) as sessions:
        return time_in_turn([session.execute for session in sessions], "timing models")


def table_from(subject: Subject, wanted: Design, time_models: TimeModels, style: Style) -> LatencyTable:
    """Puts a table together; its setting is left open.

    Args:
        subject: The model.
        wanted: What has to be timed.
        time_models: Times some of it.
        style: That the design is of.
    """
    ratios: dict[str, Ratio] = {}
    bases: list[float] = []
    *parts, whole = parts_of(wanted)
    for number, part in enumerate(parts, 1):
        say(f"timing blocks, {number} of {len(parts)}: {len(part) - 1} small models against the base")
        timed = time_models(part, "timing blocks")
        bases.append(timed.base_ms)
        ratios |= {plan.digest: ratio for plan, ratio in zip(part[1:], timed.ratios, strict=True)}
    base_ms = float(np.median(bases))
    ratios[wanted.base.plan.digest] = Ratio(1.0, 1.0, 1.0, min(each.rounds for each in ratios.values()))
    table = _solved(subject, wanted, ratios, base_ms, style)
    say(f"timing {len(wanted.whole)} whole models")
    timed = time_models(whole, "timing whole models")
    # The base ties both together: a machine that has become slower since would else pass for an error of the sums.
    return corrected(subject, table, wanted.whole, [_times(ratio, base_ms) for ratio in timed.ratios])


def parts_of(wanted: Design) -> list[list[CompressionPlan]]:
    """Models that are timed together, few at once, the base in front of each part; the last part is of whole models."""
    plans = [probe.plan for probe in wanted.probes]
    small = [plans[at : at + AT_ONCE - 1] for at in range(0, len(plans), AT_ONCE - 1)]
    return [[wanted.base.plan, *part] for part in (*small, wanted.whole)]


def _solved(subject: Subject, wanted: Design, ratios: dict[str, Ratio], base_ms: float, style: Style) -> LatencyTable:
    groups = tuple(_group(number, group, wanted, ratios, base_ms) for number, group in enumerate(wanted.groups))

    def whole_ms(probe: Probe) -> float:
        return ratios[probe.plan.digest].value * base_ms

    architecture = subject.family.architecture(original_of(wanted.base.plan))
    counted = {index: group for group in groups for index in group.blocks}
    tokens = [subject.family.tokens(original_of(wanted.base.plan), probe.plan) for probe in wanted.bare]
    short = len(wanted.groups) == 1 and architecture.depth < len(subject.architecture.blocks)
    blocks = [groups[0] if short else counted[index] for index in range(architecture.depth)]
    sums = [sum(group.saved("block", 0, count) for group, count in zip(blocks, each, strict=True)) for each in tokens]
    fixed = whole_ms(wanted.base) - sums[0]
    merged = [whole_ms(probe) - sum_ for probe, sum_ in zip(wanted.bare, sums, strict=True)]
    trimmed = None
    if wanted.trimmed is not None:
        trimmed = max(whole_ms(wanted.trimmed) - whole_ms(wanted.base) + blocks[-1].saved("block", 0, tokens[0][-1]), 0)
    return LatencyTable(
        model=subject.plan.model,
        model_kwargs=subject.plan.model_kwargs,
        setting=Setting(runtime="", precision="fp32", batch=1, threads=None, device="", machine="", versions={}),
        style=style.name,
        fixed_ms=fixed,
        groups=groups,
        merges_ms=tuple(float(step) for step in np.diff(merged)),
        trimmed_ms=trimmed,
    )


def _group(number: int, group: Group, wanted: Design, ratios: dict[str, Ratio], base_ms: float) -> BlockTimes:
    levels = []
    for level, (bare, tokens) in enumerate(zip(wanted.bare, group.tokens, strict=True)):
        cuts = {
            (probe.kind, probe.width): probe for probe in wanted.cuts if (probe.group, probe.level) == (number, level)
        }

        def one(probe: Probe, gone: Probe = cuts["block", 0]) -> Time:
            """What a block costs with the probe's cut: what the probe takes beyond one whose blocks are gone."""
            of_probe, of_gone = ratios[probe.plan.digest], ratios[gone.plan.digest]
            ms = (of_probe.value - of_gone.value) * base_ms / gone.blocks
            spread = base_ms / gone.blocks * np.hypot(of_probe.high - of_probe.low, of_gone.high - of_gone.low) / 2
            return Time(ms=ms, low=ms - spread, high=ms + spread)

        by_kind = {
            kind: {width: one(probe) for (each, width), probe in cuts.items() if each == kind}
            for kind in ("attention", "heads", "mlp")
        }
        levels.append(
            Level(
                tokens=tokens,
                block=one(bare),
                no_attention=by_kind["attention"].get(0),
                heads=by_kind["heads"],
                mlp=by_kind["mlp"],
            )
        )
    return BlockTimes(
        blocks=group.blocks, head_dim=group.spec.head_dim, mlp_hidden=group.spec.mlp_hidden, levels=tuple(levels)
    )


def corrected(
    subject: Subject, table: LatencyTable, plans: Sequence[CompressionPlan], measured: Sequence[Time]
) -> LatencyTable:
    """The table whose sums of blocks are scaled so that they agree best, in relative terms, with whole models.

    Raises:
        CheckFailedError: If blocks seem to cost nothing: the machine did too much beside it.
    """
    original = original_of(subject.plan)
    counted = [subject.family.tokens(original, plan) for plan in plans]
    raw = np.array([table.predict(plan, tokens) for plan, tokens in zip(plans, counted, strict=True)])
    times = np.array([each.ms for each in measured])
    blocks = (raw - table.fixed_ms) / times
    squares = float(np.square(blocks).sum())
    scale = float((blocks * (1 - table.fixed_ms / times)).sum()) / squares if squares else 0.0
    if scale <= 0:
        raise CheckFailedError(
            "blocks seem to cost no time at all: this machine was too busy, or the model is too small at this batch; "
            "try again when it is quiet, or with a larger --batch"
        )
    scaled = table.model_copy(update={"scale": scale})
    whole = tuple(
        WholeModel(plan=plan.model_dump(mode="json", exclude_defaults=True), measured=each,
                   predicted_ms=scaled.predict(plan, tokens))
        for plan, tokens, each in zip(plans, counted, measured, strict=True)
    )  # fmt: skip
    return scaled.model_copy(update={"whole": whole})


def _times(ratio: Ratio, base_ms: float) -> Time:
    return Time(ms=ratio.value * base_ms, low=ratio.low * base_ms, high=ratio.high * base_ms)


class _Exports:
    """Folders of models that are timed more than once, as the base is."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._folders = stack, dict[str, ModelFolder]()

    def folder(self, plan: CompressionPlan, make: Callable[[ExitStack], ModelFolder]) -> ModelFolder:
        if plan.digest not in self._folders:
            self._folders[plan.digest] = make(self._stack)
        return self._folders[plan.digest]


@contextmanager
def _kept_exports() -> Iterator[_Exports]:
    with ExitStack() as stack:
        yield _Exports(stack)


@contextmanager
def _sessions(
    subject: Subject, plans: Sequence[CompressionPlan], runtime: Runtime, variant: Variant, keep: _Exports
) -> Iterator[list[Session]]:
    with ExitStack() as stack:
        yield [stack.enter_context(_session(runtime, plan, subject.preprocessing, variant, keep)) for plan in plans]


@contextmanager
def _session(
    runtime: Runtime, plan: CompressionPlan, preprocessing: Preprocessing, variant: Variant, keep: _Exports
) -> Iterator[Session]:
    """A model with random weights (`stand_in`), open in a runtime with images loaded."""

    def make(stack: ExitStack) -> ModelFolder:
        with seeded(0):
            folder = stack.enter_context(temporary_folder(stand_in(plan), plan, preprocessing))
            export_for(runtime, folder, variant, latency_only=True)
        return folder

    session = runtime.open(keep.folder(plan, make), variant)
    images = torch.randn(variant.batch, *preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    session.load(images)
    yield session
