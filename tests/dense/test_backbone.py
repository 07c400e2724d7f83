"""Feature maps: timm's own where nothing merges, and with merging undone elsewhere."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dcvit_kernels
from dcvit.dense import DenseBackbone
from dcvit.dense.head import Upsample
from dcvit.dense.unmerge import interpolation
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.layers import TokenMerge
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.types import TimmModule

RandomModel = Callable[[CompressionPlan], TimmModule]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"indices": 2, "norm": True},
        {"indices": [-1, 0], "intermediates_only": True},
        {"indices": [1], "return_prefix_tokens": True},
        {"indices": [2], "output_fmt": "NLC", "stop_early": True, "intermediates_only": True},
        {"indices": 3, "output_dict": True, "return_prefix_tokens": True},
    ],
)
def test_without_merges_everything_is_timms(
    odd_plan: CompressionPlan, random_model: RandomModel, arguments: dict[str, Any]
) -> None:
    model, images = random_model(odd_plan.original()), torch.randn(2, 3, 40, 56)
    expected = model.forward_intermediates(images, **arguments)
    found = DenseBackbone(model).forward_intermediates(images, **arguments)
    flat, wanted = _flat(found), _flat(expected)
    assert len(flat) == len(wanted) > 0
    assert all(torch.equal(one, other) for one, other in zip(flat, wanted, strict=True))


def _flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in _flat(part)]


def test_every_patch_gets_the_token_that_it_went_into(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    model, images = random_model(odd_plan), torch.randn(2, 3, 40, 56)
    maps = DenseBackbone(model, unmerge="repeat")(images)
    tokens = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert [each.shape[1] for each in tokens] == [5 * 4, 3 * 2, 3 * 2, 3 * 2]
    for found, merged, (down, across, width) in zip(
        maps, tokens, [(1, 2, 4), (2, 4, 2), (2, 4, 2), (2, 4, 2)], strict=True
    ):
        assert found.shape == (2, 32, 5, 7)
        for row in range(5):
            for column in range(7):
                token = merged[:, (row // down) * width + column // across]
                assert torch.equal(found[:, :, row, column], token)


def test_a_removed_block_keeps_its_merges(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    plan = odd_plan.with_blocks(BlockPlan(index=1, removed="block"), BlockPlan(index=2, removed="attention"))
    maps = DenseBackbone(random_model(plan), indices=[1, 3], unmerge="repeat")(torch.randn(1, 3, 40, 56))
    assert [tuple(each.shape) for each in maps] == [(1, 32, 5, 7)] * 2
    assert torch.equal(maps[0][:, :, 0, 0], maps[0][:, :, 1, 3])
    assert not torch.equal(maps[0][:, :, 0, 0], maps[0][:, :, 0, 4])


@pytest.mark.parametrize("operator", ["mean", "linear"])
def test_a_patch_keeps_what_it_was_and_gets_what_its_token_has_gained(
    odd_plan: CompressionPlan, random_model: RandomModel, operator: Any
) -> None:
    model, images = random_model(odd_plan.replace(merge_operator=operator)), torch.randn(2, 3, 40, 56)
    found = DenseBackbone(model, [1, 3], norm=True)(images)
    # By hand: the merges stand behind blocks 0 and 1, two behind the latter; columns 7 → 4 → 2, rows 5 → 3.
    blocks, (first,), (second, third) = model.blocks, *([*_merges(block)] for block in model.blocks[:2])
    with torch.no_grad():
        embedded = model.patch_embed(images)
        start = model.norm_pre(model._pos_embed(embedded))
        before = [_unhooked(blocks[0], start)]
        after = [first(before[0])]
        before.append(_unhooked(blocks[1], after[0]))
        after.append(second(before[1]))
        before.append(after[1])
        after.append(third(before[2]))
        for block, tokens in ((1, after[2]), (3, blocks[3](blocks[2](after[2])))):
            for merge, was, became in zip((third, second, first), before[::-1], after[::-1], strict=True):
                (height, width), (_, narrow) = merge.grid, merge.merged_grid
                across, down = (2, 1) if merge.axis == "horizontal" else (1, 2)
                patches = [
                    (row // down) * narrow + column // across for row in range(height) for column in range(width)
                ]
                tokens = was + torch.cat([tokens[:, :1], (tokens - became)[:, 1:][:, patches]], 1)
            expected = model.norm(tokens[:, 1:]).transpose(1, 2).unflatten(2, (5, 7))
            assert torch.allclose(found[(1, 3).index(block)], expected, atol=1e-5)


def test_what_is_put_back_merges_to_the_same_tokens(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    """Nothing is lost: the mean of what a token's patches became is the token."""
    model, images = random_model(odd_plan), torch.randn(2, 3, 40, 56)
    (restored,) = DenseBackbone(model, [3])(images)
    (tokens,) = model.forward_intermediates(images, indices=[3], output_fmt="NLC", intermediates_only=True)
    assert not torch.equal(restored[:, :, 0, 0], restored[:, :, 0, 1])
    for block in model.blocks:
        for merge in _merges(block):
            flat = restored.flatten(2).transpose(1, 2)
            flat = dcvit_kernels.merge_mean(flat, merge.grid, merge.axis, 0)
            restored = flat.transpose(1, 2).unflatten(2, merge.merged_grid)
    assert torch.allclose(restored.flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_where_no_block_follows_a_merge_nothing_is_lost(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    gone = (BlockPlan(index=index, removed="block") for index in (1, 2, 3))
    merged, whole = random_model(odd_plan), random_model(odd_plan.original())
    for model, plan in ((merged, odd_plan), (whole, odd_plan.original())):
        family_of(model).apply(model, plan.original().with_blocks(*gone))
        gone = (BlockPlan(index=index, removed="block") for index in (1, 2, 3))
    images = torch.randn(2, 3, 40, 56)
    found, wanted = (DenseBackbone(model, [3], norm=True)(images)[0] for model in (merged, whole))
    assert torch.allclose(found, wanted, atol=1e-5)
    (repeated,) = DenseBackbone(merged, [3], norm=True, unmerge="repeat")(images)
    assert not torch.allclose(repeated, wanted, atol=0.1)


def test_it_compiles_whole_and_keeps_no_tensor(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    dense, images = DenseBackbone(random_model(odd_plan), [3]).eval(), torch.randn(1, 3, 40, 56)
    compiled = torch.compile(dense, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(images)[0], dense(images)[0], atol=1e-5)
    again = copy.deepcopy(dense)
    assert torch.equal(again(images)[0], dense(images)[0])
    assert all(merge.seen == {} for block in dense.model.blocks for merge in _merges(block))
    with pytest.raises(RuntimeError):
        dense(images[:, :2])
    assert all(merge.seen == {} for block in dense.model.blocks for merge in _merges(block))


def test_threads_do_not_see_each_others_merges(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    dense = DenseBackbone(random_model(odd_plan), [3]).eval()
    batches = [torch.randn(2, 3, 40, 56) for _ in range(24)]
    with torch.no_grad():
        expected = [dense(images)[0] for images in batches]

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            (found,) = dense(images)
        return found

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, batches))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def _merges(block: TimmModule) -> list[TokenMerge]:
    return [child for child in block.children() if isinstance(child, TokenMerge)]


def _unhooked(block: TimmModule, tokens: torch.Tensor) -> torch.Tensor:
    """What the block makes of tokens before its merges."""
    output: torch.Tensor = block.forward(tokens)
    return output


def test_bilinear_is_smooth_where_repetition_is_not(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    model, images = random_model(odd_plan), torch.randn(1, 3, 40, 56)
    (repeated,), (smooth,) = (
        DenseBackbone(model, 1, unmerge=how)(images)
        for how in ("repeat", "bilinear")  # type: ignore[arg-type]
    )
    merged = repeated[:, :, ::2, ::4]
    # Columns merged to 4 and 3, whose centres are 2 and 5.5; rows to 2, 2 and 1, with centres 1, 3 and 4.5.
    assert torch.allclose(smooth[:, :, 0, 0], merged[:, :, 0, 0])
    share = (3.5 - 2) / 3.5
    expected = 0.5 * (1 - share) * merged[:, :, 0, 0] + 0.5 * share * merged[:, :, 0, 1]
    down = 0.25 * (expected * 2) + 0.75 * (expected * 2)
    assert torch.allclose(smooth[:, :, 0, 3], down)
    between = 0.75 * merged[:, :, 0, 0] + 0.25 * merged[:, :, 1, 0]  # row 1 has its centre at 1.5
    assert torch.allclose(smooth[:, :, 1, 0], between, atol=1e-6)


def test_interpolation_is_torchs_for_equal_cells_and_keeps_lines_straight() -> None:
    values = torch.randn(2, 3, 4, 6)
    expected = F.interpolate(values, (32, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(Upsample((4, 6), (32, 24))(values), expected, atol=1e-6)
    sizes = (2, 4, 1, 3)
    matrix = interpolation(sizes, torch.empty(0, dtype=torch.float64))
    assert torch.allclose(matrix.sum(1), torch.ones(10, dtype=torch.float64))
    centres = torch.tensor([1.0, 4.0, 6.5, 8.5], dtype=torch.float64)
    assert torch.allclose(matrix @ centres, (torch.arange(10.0).double() + 0.5).clamp(1.0, 8.5))


def test_what_has_no_merges_or_no_such_block_is_refused(odd_plan: CompressionPlan) -> None:
    with pytest.raises(InputError, match="its own forward_intermediates"):
        DenseBackbone(build(CompressionPlan(model="resnet18"), device="meta"))
    model = build(odd_plan, device="meta")
    for indices in ([4], 5, 0):
        with pytest.raises(InputError, match="0 to 3|1 to 4"):
            DenseBackbone(model, indices)
