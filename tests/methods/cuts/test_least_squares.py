import pytest
import torch
from torch import Tensor

from dcvit.methods.cuts.least_squares import Moments, elimination_order, fit_output_layer


@pytest.fixture
def activations() -> Tensor:
    """Correlated activations with a mean: 4 of the 16 nodes are copies of others, up to a factor."""
    torch.manual_seed(0)
    base = torch.randn(500, 12) @ torch.randn(12, 12) + 1.0
    return torch.cat([base, 2.0 * base[:, :4]], dim=1)


def moments_of(activations: Tensor, wanted: Tensor) -> Moments:
    moments = Moments.empty(activations.shape[1], wanted.shape[1])
    for chunk, target in zip(activations.split(200), wanted.split(200), strict=True):
        moments.add(chunk, target)
    return moments


def test_the_fit_is_the_least_squares_solution(activations: Tensor) -> None:
    wanted = torch.randn(500, 5)
    kept = torch.tensor([0, 2, 5, 7, 11])
    weight, bias = fit_output_layer(moments_of(activations, wanted), kept, torch.zeros(5, 5), torch.zeros(5))
    design = torch.cat([activations[:, kept], torch.ones(500, 1)], dim=1).double()
    exact = torch.linalg.lstsq(design, wanted.double()).solution
    # The ridge of 1e-3 of the mean second moment moves the solution by about as much.
    torch.testing.assert_close(weight.double(), exact[:-1].T, rtol=0.02, atol=2e-3)
    error = (activations[:, kept] @ weight.T + bias - wanted).square().mean()
    least = (design @ exact - wanted).square().mean()
    assert error <= least * (1 + 1e-4)


def test_with_few_tokens_the_fit_stays_at_the_prior() -> None:
    moments = moments_of(torch.zeros(3, 8), torch.zeros(3, 4))
    moments.gram[:-1, :-1] += 1e-9 * torch.eye(8, dtype=torch.float64)
    prior = torch.randn(4, 8)
    weight, _ = fit_output_layer(moments, torch.arange(8), prior, torch.zeros(4))
    assert weight.isfinite().all()
    assert weight.abs().max() <= prior.abs().max() * 1.001


@pytest.mark.parametrize("group", [1, 4])
def test_redundant_nodes_go_first_and_cost_nothing(activations: Tensor, group: int) -> None:
    weight = torch.randn(5, 16)
    wanted = activations @ weight.T
    moments = moments_of(activations, wanted)
    order = elimination_order(moments.gram, weight, group)
    assert sorted(order.tolist()) == list(range(16))
    # Of each pair (i, 12 + i) one is superfluous: after four nodes are gone, every pair still has one.
    left = set(order[4:].tolist())
    if group == 1:
        assert all(node in left or node + 12 in left for node in range(4))
        kept = order[4:].sort().values
        fitted, bias = fit_output_layer(moments, kept, weight[:, kept], torch.zeros(5))
        error = (activations[:, kept] @ fitted.T + bias - wanted).square().mean()
        assert error < 1e-5 * wanted.square().mean()


def test_the_order_beats_random_choice_after_the_refit(activations: Tensor) -> None:
    weight = torch.randn(5, 16)
    wanted = activations @ weight.T
    moments = moments_of(activations, wanted)

    def error(kept: Tensor) -> float:
        fitted, bias = fit_output_layer(moments, kept, weight[:, kept], torch.zeros(5))
        return float((activations[:, kept] @ fitted.T + bias - wanted).square().mean())

    order = elimination_order(moments.gram, weight, group=1)
    random = [error(torch.randperm(16)[:8].sort().values) for _ in range(20)]
    assert error(order[8:].sort().values) < sorted(random)[2]


def test_without_a_bias_the_fit_goes_through_zero(activations: Tensor) -> None:
    wanted = torch.randn(500, 5) + 3.0
    kept = torch.tensor([0, 2, 5, 7, 11])
    weight, bias = fit_output_layer(moments_of(activations, wanted), kept, torch.zeros(5, 5), None)
    assert bias is None
    exact = torch.linalg.lstsq(activations[:, kept].double(), wanted.double()).solution
    torch.testing.assert_close(weight.double(), exact.T, rtol=0.02, atol=5e-3)


def test_without_a_bias_a_node_that_is_constant_is_no_longer_free() -> None:
    """Of a node that is always 1 a bias makes up for all; without one it is worth as much as its weight."""
    torch.manual_seed(0)
    activations = torch.cat([torch.randn(500, 3), torch.ones(500, 1)], dim=1)
    weight = torch.tensor([[0.5, 1.0, 1.5, 5.0]])
    moments = moments_of(activations, activations @ weight.T)
    assert elimination_order(moments.gram, weight, group=1)[0] == 3
    assert elimination_order(moments.gram, weight, group=1, bias=False)[-1] == 3
