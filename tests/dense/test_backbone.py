"""Feature maps: timm's own where nothing merges, and with merging undone elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dcvit.dense import DenseBackbone
from dcvit.dense.head import Upsample
from dcvit.dense.unmerge import interpolation
from dcvit.errors import InputError
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
    maps = DenseBackbone(model)(images)
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
    maps = DenseBackbone(random_model(plan), indices=[1, 3])(torch.randn(1, 3, 40, 56))
    assert [tuple(each.shape) for each in maps] == [(1, 32, 5, 7)] * 2
    assert torch.equal(maps[0][:, :, 0, 0], maps[0][:, :, 1, 3])
    assert not torch.equal(maps[0][:, :, 0, 0], maps[0][:, :, 0, 4])


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
