import torch

from dcvit.families import family_of
from dcvit.methods.cuts.nodes import NodeRanking, mean_activations
from dcvit.model import build
from dcvit.plan import CompressionPlan


def test_importance_is_activation_times_output_weight(tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan)
    mlp = model.blocks[1].mlp
    with torch.no_grad():
        mlp.fc2.weight[:, 5] = 100.0
        mlp.fc2.weight[:, 9] = 0.0
        # A node whose activation is 0 does nothing, whatever its weight: GELU(−50) = 0.
        mlp.fc2.weight[:, 7] = 1000.0
        mlp.fc1.weight[7] = 0.0
        mlp.fc1.bias[7] = -50.0
    images = torch.randn(5, 3, 32, 32)
    ranking = NodeRanking(model, family_of(model), [1], "importance", images=images)
    assert 5 in ranking.best(1, 1)
    kept = ranking.best(1, 126).tolist()
    assert kept == sorted(set(range(128)) - {7, 9})


@torch.no_grad()
def test_mean_activations_do_not_depend_on_the_batch(tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan)
    images = torch.randn(5, 3, 32, 32)
    mlps = {2: model.blocks[2].mlp}
    seen = []
    handle = model.blocks[2].mlp.act.register_forward_hook(lambda *args: seen.append(args[2]) and None)
    model(images)
    handle.remove()
    by_hand = seen[0].abs().mean((0, 1))
    for batch_size in (5, 2):
        torch.testing.assert_close(mean_activations(model, mlps, images, batch_size)[2], by_hand)
    assert not model.blocks[2].mlp.act._forward_hooks


def test_random_nodes_depend_on_seed_and_block(tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan)
    family = family_of(model)

    def draw(seed: int, block: int) -> list[int]:
        return NodeRanking(model, family, [1, 2], "random", seed=seed).best(block, 40).tolist()

    assert draw(0, 1) == draw(0, 1) == sorted(set(draw(0, 1)))
    assert len(draw(0, 1)) == 40
    assert draw(0, 1) != draw(1, 1)
    assert draw(0, 1) != draw(0, 2)


def test_norm_needs_no_images(tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[3] = 50.0
    assert 3 in NodeRanking(model, family_of(model), [1], "norm").best(1, 1)
