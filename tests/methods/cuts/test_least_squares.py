import pytest
import torch
from torch import Tensor

from dcvit.methods.cuts.least_squares import READ_SHARE, RIDGE, RIDGES, Moments, elimination_order, fit_output_layer


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
    wanted = activations @ torch.randn(16, 5) + 0.1 * torch.randn(500, 5)
    kept = torch.tensor([0, 2, 5, 7, 11])
    weight, bias = fit_output_layer(moments_of(activations, wanted), kept, torch.zeros(5, 5), torch.zeros(5))
    design = torch.cat([activations[:, kept], torch.ones(500, 1)], dim=1).double()
    exact = torch.linalg.lstsq(design, wanted.double()).solution
    # The ridge of 1e-3 of the mean second moment moves the solution by about as much.
    torch.testing.assert_close(weight.double(), exact[:-1].T, rtol=0.02, atol=1e-2)
    error = (activations[:, kept] @ weight.T + bias - wanted).square().mean()
    least = (design @ exact - wanted).square().mean()
    assert error <= least * (1 + 1e-4)


def test_with_few_tokens_the_fit_stays_at_the_prior() -> None:
    moments = moments_of(torch.zeros(3, 8), torch.zeros(3, 4))
    moments.grams[:, :-1, :-1] += 0.5e-9 * torch.eye(8, dtype=torch.float64)
    prior = torch.randn(4, 8)
    weight, _ = fit_output_layer(moments, torch.arange(8), prior, torch.zeros(4))
    assert weight.isfinite().all()
    assert weight.abs().max() <= prior.abs().max() * 1.001


def test_nodes_go_in_the_order_of_what_is_lost_without_them() -> None:
    """Against every remaining node tried in full, all weights refitted each time."""
    generator = torch.Generator().manual_seed(3)
    hidden = 24
    activations = torch.randn(300, hidden, generator=generator) @ torch.randn(hidden, hidden, generator=generator) + 1
    design = torch.cat([activations, torch.ones(300, 1)], dim=1).double()
    gram = design.T @ design
    weight = torch.randn(5, hidden, generator=generator)
    metric = gram + RIDGE * gram.diagonal()[:-1].mean() * torch.eye(hidden + 1, dtype=torch.float64)
    wanted = torch.cat([weight.T.double(), torch.zeros(1, 5, dtype=torch.float64)])

    def lost(kept: list[int]) -> float:
        rest = torch.zeros_like(wanted)
        rest[kept] = torch.linalg.solve(metric[kept][:, kept], metric[kept] @ wanted)
        return float(((wanted - rest) * (metric @ (wanted - rest))).sum())

    left, expected = list(range(hidden + 1)), []
    for _ in range(hidden):
        node = min(left[:-1], key=lambda each: lost([other for other in left if other != each]))
        left.remove(node)
        expected.append(node)
    assert elimination_order(gram, weight, group=1).tolist() == expected


def test_moments_that_rounding_has_made_indefinite_are_solved() -> None:
    moments = Moments.empty(2, 1)
    moments.grams[:] = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    moments.crosses[:] = torch.tensor([[4.0], [5.0], [3.0]])
    weight, bias = fit_output_layer(moments, torch.arange(2), torch.zeros(1, 2), torch.zeros(1))
    torch.testing.assert_close(weight, torch.tensor([[2.0, 1.0]]), rtol=0.01, atol=0.01)
    torch.testing.assert_close(bias, torch.tensor([3.0]), rtol=0.01, atol=0.01)


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
    wanted = activations @ torch.randn(16, 5) + 3.0
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


def test_the_ridge_is_the_one_that_serves_images_that_were_not_fitted_to() -> None:
    """Few images with much noise are pulled to the prior, many are not; and the choice is made once for all widths."""
    torch.manual_seed(0)
    prior = torch.randn(5, 40)

    def found(images: int, noise: float) -> Moments:
        moments = Moments.empty(40, 5)
        activations = torch.randn(images, 3, 40)
        wanted = activations @ (prior + 0.02 * torch.randn(5, 40)).T + noise * torch.randn(images, 3, 5)
        for chunk, target in zip(activations.split(7), wanted.split(7), strict=True):
            moments.add(chunk, target)
        assert moments.images == images
        fit_output_layer(moments, torch.arange(40), prior, torch.zeros(5))
        return moments

    few, many = found(20, noise=3.0), found(4000, noise=0.01)
    assert few.ridge(torch.arange(40), prior, 0) == RIDGES[-1]
    assert many.ridge(torch.arange(40), prior, 0) == RIDGES[0]
    assert many.ridge(torch.arange(3), prior[:, :3], 0) == RIDGES[0]


def test_one_image_tells_nothing_about_the_ridge() -> None:
    moments = Moments.empty(4, 2)
    moments.add(torch.randn(1, 9, 4), torch.randn(1, 9, 2))
    assert moments.ridge(torch.arange(4), torch.zeros(2, 4), 0) == RIDGE
    assert moments.gram[-1, -1] == 9


def test_halves_take_images_in_turn_over_all_chunks() -> None:
    activations, wanted = torch.randn(7, 2, 4), torch.randn(7, 2, 3)
    whole, pieces = Moments.empty(4, 3), Moments.empty(4, 3)
    whole.add(activations, wanted)
    for image in range(7):
        pieces.add(activations[image : image + 1], wanted[image : image + 1])
    torch.testing.assert_close(whole.grams, pieces.grams, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.crosses, pieces.crosses, rtol=1e-5, atol=1e-5)
    assert whole.grams[0, -1, -1] == 8  # four images of two tokens


def test_the_tokens_that_the_head_reads_hold_their_share_of_the_weight() -> None:
    """As if each was there as often as it weighs; the mean weight is 1, so that ridges mean what they did."""
    torch.manual_seed(0)
    activations, wanted = torch.randn(6, 9, 4), torch.randn(6, 9, 2)
    read = Moments.empty(4, 2, read=1)
    for chunk, target in zip(activations.split(4), wanted.split(4), strict=True):
        read.add(chunk, target)
    weights = torch.full((9, 1), (1 - READ_SHARE) * 9 / 8)
    weights[0] = READ_SHARE * 9
    rows = torch.cat([activations, torch.ones(6, 9, 1)], dim=2)
    torch.testing.assert_close(read.gram.float(), torch.einsum("bnk,bnl->kl", rows * weights, rows))
    torch.testing.assert_close(read.cross.float(), torch.einsum("bnk,bnc->kc", rows * weights, wanted))
    assert float(read.gram[-1, -1]) == pytest.approx(6 * 9)


@pytest.mark.parametrize(("read", "tokens"), [(0, 9), (2, 2), (3, 4)])
def test_nothing_is_weighed_where_all_tokens_are_read_or_hold_more_anyway(read: int, tokens: int) -> None:
    torch.manual_seed(0)
    activations, wanted = torch.randn(5, tokens, 4), torch.randn(5, tokens, 2)
    alike, found = Moments.empty(4, 2), Moments.empty(4, 2, read=read)
    alike.add(activations, wanted)
    found.add(activations, wanted)
    torch.testing.assert_close(found.grams, alike.grams)
