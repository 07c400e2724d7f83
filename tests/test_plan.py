import json

import pytest
from pydantic import ValidationError

from dcvit.errors import InputError
from dcvit.plan import BlockPlan, CompressionPlan, HeadPlan, Merge, parse_merges


def test_json_round_trip_keeps_the_digest() -> None:
    plan = CompressionPlan(
        model="deit_tiny_patch16_224",
        model_kwargs={"img_size": (32, 32)},
        blocks=(BlockPlan(index=1, removed="attention", mlp_hidden=64), BlockPlan(index=3, removed="block")),
        merges=(Merge(after=2, axis="horizontal"),),
        merge_operator="linear",
        size_aware_attention=True,
    )
    again = CompressionPlan.from_json(plan.to_json())
    assert again.digest == plan.digest
    assert json.loads(plan.to_json())["schema_version"] == 1


def test_digests_of_plans_from_before_heads_stand() -> None:
    plan = CompressionPlan(
        model="deit_tiny_patch16_224",
        model_kwargs={"num_classes": 10},
        blocks=(BlockPlan(index=1, removed="attention", mlp_hidden=64),),
        merges=(Merge(after=2, axis="horizontal"),),
        merge_operator="linear",
    )
    assert plan.digest == "9a0de2a1ccd73b12e5027700f1d4b3f4c55505eb14c0851ff4bbb12670598d9d"
    head = plan.replace(head=HeadPlan(num_classes=2))
    assert (plan.task, head.task) == ("classification", "segmentation")
    assert len({plan.digest, head.digest, plan.replace(head=HeadPlan(num_classes=3)).digest}) == 3
    assert CompressionPlan.from_json(head.to_json()).digest == head.digest


def test_digest_tells_plans_apart() -> None:
    plan = CompressionPlan(model="deit_tiny_patch16_224")
    assert plan.with_blocks(BlockPlan(index=1, mlp_hidden=8)).digest != plan.digest
    assert plan.replace(model="deit_small_patch16_224").digest != plan.digest


def test_with_blocks_replaces_and_sorts() -> None:
    plan = CompressionPlan(model="m", blocks=(BlockPlan(index=2, mlp_hidden=8),))
    plan = plan.with_blocks(BlockPlan(index=2, mlp_hidden=16), BlockPlan(index=0, mlp_hidden=4))
    assert [(block.index, block.mlp_hidden) for block in plan.blocks] == [(0, 4), (2, 16)]
    assert plan.block(1) == BlockPlan(index=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"blocks": [{"index": 2}, {"index": 1}]},
        {"blocks": [{"index": 1}, {"index": 1}]},
        {"blocks": [{"index": 1, "removed": "block", "mlp_hidden": 8}]},
        {"blocks": [{"index": 1, "removed": "attention", "head_dim": 8}]},
        {"merges": [{"after": 4, "axis": "vertical"}, {"after": 2, "axis": "vertical"}]},
        {"merges": [{"after": 0, "axis": "vertical"}]},
        {"unknown": 1},
    ],
)
def test_plans_that_cannot_be_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        CompressionPlan.model_validate({"model": "m"} | fields)


def test_a_bad_file_is_one_line_with_the_field() -> None:
    with pytest.raises(InputError, match=r"p\.json: blocks\.0\.index: ") as caught:
        CompressionPlan.from_json('{"model": "m", "blocks": [{"index": -1}]}', where="p.json")
    assert "\n" not in str(caught.value)


def test_parse_merges() -> None:
    merges, operator = parse_merges("vertical@8, horizontal@4")
    assert [(merge.after, merge.axis) for merge in merges] == [(4, "horizontal"), (8, "vertical")]
    assert operator == "mean"
    assert parse_merges("horizontal@4,linear")[1] == "linear"


@pytest.mark.parametrize(
    "text", ["diagonal@4", "horizontal", "horizontal@0", "horizontal@-1", "horizontal@4;vertical@8"]
)
def test_parse_merges_names_what_it_cannot_read(text: str) -> None:
    with pytest.raises(InputError, match="AXIS@BLOCK"):
        parse_merges(text)
