"""A compacted layer is the linear layer behind which a second one stands, and folds into one."""

import copy

import torch
from torch import nn

from dcvit.layers.compactor import CompactedLinear


def random_compactor(layer: CompactedLinear) -> CompactedLinear:
    with torch.no_grad():
        layer.compactor.add_(0.3 * torch.randn_like(layer.compactor))
    return layer


def test_it_starts_as_the_layer_itself() -> None:
    linear = nn.Linear(12, 24)
    x = torch.randn(5, 7, 12)
    compacted = CompactedLinear(linear, 6)
    assert torch.equal(compacted(x), linear(x))
    assert {name for name, _ in compacted.named_parameters()} == {"weight", "bias", "compactor"}
    assert compacted.weight is linear.weight


@torch.no_grad()
def test_the_compactor_acts_on_each_group_of_outputs_alone() -> None:
    linear = nn.Linear(12, 24).double()
    compacted = random_compactor(CompactedLinear(linear, 6))
    x = torch.randn(5, 12, dtype=torch.float64)
    by_hand = torch.cat(
        [group @ matrix.T for group, matrix in zip(linear(x).chunk(6, dim=-1), compacted.compactor, strict=True)],
        dim=-1,
    )
    # float64 sums of 12 terms: rounding is around 1e-15.
    assert (compacted(x) - by_hand).abs().max() < 1e-13


def test_folding_keeps_outputs_and_what_is_frozen() -> None:
    linear = nn.Linear(12, 24, bias=False)
    linear.weight.requires_grad_(False)
    compacted = random_compactor(CompactedLinear(linear, 2))
    plain = compacted.folded()
    x = torch.randn(5, 12)
    assert torch.equal(plain(x), compacted(x))
    assert type(plain) is nn.Linear
    assert plain.bias is None
    assert not plain.weight.requires_grad


def test_under_autocast_the_product_keeps_the_precision_of_the_weights() -> None:
    compacted = random_compactor(CompactedLinear(nn.Linear(64, 64)))
    expected, _ = compacted.product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product, _ = compacted.product()
        assert compacted(torch.randn(2, 64)).dtype == torch.bfloat16
    assert torch.equal(product, expected)


def test_a_deep_copy_is_independent() -> None:
    compacted = CompactedLinear(nn.Linear(8, 8), 2)
    copied = copy.deepcopy(compacted)
    random_compactor(compacted)
    assert torch.equal(copied.compactor, torch.eye(4).repeat(2, 1, 1))
    x = torch.randn(3, 8)
    torch.testing.assert_close(copied(x), nn.functional.linear(x, copied.weight, copied.bias))
