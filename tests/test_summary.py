from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.summary import summarize


def test_a_summary_says_how_wide_what_is_narrower_is(tiny_plan: CompressionPlan) -> None:
    blocks = (
        BlockPlan(index=0, head_dim=8, mlp_hidden=64),
        BlockPlan(index=1, mlp_hidden=32),
        BlockPlan(index=2, removed="attention", mlp_hidden=16),
    )
    lines = list(summarize(tiny_plan.with_blocks(*blocks), tiny_plan).lines())
    assert "1 blocks without attention, with 16 MLP nodes" in lines
    assert "narrower: heads of 1 blocks (8 channels); MLPs of 2 blocks (32 to 64 nodes)" in lines
    assert not any("narrower" in str(line) for line in summarize(tiny_plan, tiny_plan).lines())
