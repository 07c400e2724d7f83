"""Tables of made-up times: what the true latency of any plan is, is known."""

from collections.abc import Callable, Sequence
from functools import cache

from dcvit.plan import CompressionPlan
from dcvit.pricing.measure import table_from
from dcvit.pricing.probes import Style, design
from dcvit.pricing.table import LatencyTable, Setting
from dcvit.pricing.timing import Ratio, Timed
from dcvit.subject import Subject, original_of
from dcvit.types import TimmModule

_SETTING = Setting(
    runtime="onnxruntime", precision="fp32", batch=64, threads=2, device="CPU", machine="a made-up CPU", versions={}
)

Milliseconds = Callable[[CompressionPlan], float]


class MadeUp:
    """Made-up latencies."""

    setting = _SETTING
    no_merges = Style()

    def table(self, subject: Subject, style: Style, latency: Milliseconds) -> LatencyTable:
        """The table that times of `latency`, without noise, come to."""

        def time_models(plans: Sequence[CompressionPlan], _description: str) -> Timed:
            base, *others = (latency(plan) for plan in plans)
            return Timed(base, tuple(Ratio(each / base, each / base, each / base, 7) for each in others))

        return table_from(subject, design(subject, style), time_models, style).model_copy(update={"setting": _SETTING})

    def additive(self, subject: Subject) -> Milliseconds:
        """Latency in which everything adds up: 3 ms, each merge 0.5 ms, and blocks by their widths and tokens."""

        @cache
        def original(digest: str) -> TimmModule:
            return original_of(plans[digest])

        plans: dict[str, CompressionPlan] = {}

        def latency(plan: CompressionPlan) -> float:
            whole = plan.original()
            plans[whole.digest] = whole
            model = original(whole.digest)
            total = 3 + 0.5 * len(plan.merges)
            specs = subject.family.architecture(model).blocks
            tokens = subject.family.tokens(model, plan)
            for index, (spec, count) in enumerate(zip(specs, tokens, strict=True)):
                entry = plan.block(index)
                if entry.removed == "block":
                    continue
                total += count * (0.01 + 0.00002 * (entry.mlp_hidden or spec.mlp_hidden))
                if entry.removed != "attention":
                    total += count * 0.0005 * (entry.head_dim or spec.head_dim) + count**2 * 0.00005
            return total

        return latency
