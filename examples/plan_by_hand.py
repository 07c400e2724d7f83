"""A plan is data: this one is written by hand and built, and its MACs are counted beside the original's.

python examples/plan_by_hand.py
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

import dcvit
from dcvit.model import build

ORIGINAL = dcvit.CompressionPlan(model="deit_tiny_patch16_224")
PLAN = dcvit.CompressionPlan.from_json("""{
    "model": "deit_tiny_patch16_224",
    "blocks": [
        {"index": 2, "mlp_hidden": 512, "head_dim": 48},
        {"index": 5, "removed": "attention", "mlp_hidden": 384},
        {"index": 9, "removed": "block"}
    ],
    "merges": [{"after": 6, "axis": "horizontal"}],
    "size_aware_attention": true
}""")


def main() -> None:
    for name, plan in (("original", ORIGINAL), ("by hand", PLAN)):
        print(f"{name}: {macs(plan) / 1e9:.3f} G MACs per image, plan {plan.digest[:12]}")
    model = build(PLAN)  # random weights; `dcvit.compress(…, plan=PLAN)` cuts trained ones to it
    print("logits:", tuple(model(torch.randn(2, 3, 224, 224)).shape))
    print(PLAN.to_json())


def macs(plan: dcvit.CompressionPlan) -> int:
    """Of one image at 224 × 224, counted on the meta device, where nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(plan, device="meta")(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
