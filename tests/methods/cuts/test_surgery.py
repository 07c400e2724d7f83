"""Refitting in closed form: exact where nothing is lost, and far better than cutting alone where something is."""

import copy

import pytest
import torch
from torch import Tensor

from dcvit.families import family_of
from dcvit.methods.cuts import least_squares
from dcvit.methods.cuts import wanted_tokens as reference_module
from dcvit.methods.cuts.damage import PossibleCuts, examine
from dcvit.methods.cuts.scores import divergence, logits_of
from dcvit.methods.cuts.surgery import Piece, best_nodes, operate
from dcvit.methods.cuts.wanted_tokens import WantedTokens, first_tokens, read_tokens
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.types import TimmModule

# Without and with LayerScale; then blocks that get more than the tokens: rotary embeddings, with gated MLPs in the
# first, and position biases that all blocks share.
TEACHERS: dict[str, dict] = {
    "vit_tiny_patch16_224": {"num_heads": 1},
    "deit3_small_patch16_224": {"num_heads": 1},
    "vit_small_plus_patch16_dinov3": {},
    "beit_base_patch16_224": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
}
BLOCKS, INNER = [0, 1, 2, 3], [1, 2]
CUTS = PossibleCuts(tuple(BLOCKS), (), tuple(INNER))
HEADS = PossibleCuts(tuple(BLOCKS), tuple(INNER), tuple(INNER))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=list(TEACHERS))
def teacher(request: pytest.FixtureRequest, tiny_plan: CompressionPlan) -> tuple[TimmModule, CompressionPlan]:
    """Weights are large enough for every part to matter."""
    torch.manual_seed(0)
    plan = tiny_plan.replace(model=request.param, model_kwargs=tiny_plan.model_kwargs | TEACHERS[request.param])
    model = build(plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False), plan


def cut(
    teacher: tuple[TimmModule, CompressionPlan],
    entries: list[BlockPlan],
    images: Tensor,
    orders: dict,
    *without: Piece,
) -> TimmModule:
    model, plan = teacher
    student = copy.deepcopy(model)
    operate(
        student, WantedTokens(model, family_of(model), images), family_of(model), plan, entries, orders, without=without
    )
    return student


def test_a_reference_that_is_kept_gives_what_one_that_is_not_does(
    teacher: tuple[TimmModule, CompressionPlan], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = teacher
    kept = WantedTokens(model, family_of(model), images)
    first, again = list(kept.outputs(4)), list(kept.outputs(4))
    monkeypatch.setattr(reference_module, "MAX_BYTES", 0)
    anew = list(WantedTokens(model, family_of(model), images).outputs(4))
    for (tokens, output), (same, kept_output), (fresh, fresh_output) in zip(first, again, anew, strict=True):
        assert kept_output is output
        assert torch.equal(tokens, same)
        assert torch.equal(tokens, fresh)
        assert torch.equal(output, fresh_output)


def test_first_tokens_are_what_block_0_gets(teacher: tuple[TimmModule, CompressionPlan], images: Tensor) -> None:
    model, _ = teacher
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0]))
    model(images)
    handle.remove()
    torch.testing.assert_close(first_tokens(model, family_of(model), images), seen[0])
    assert not model.blocks[0]._forward_pre_hooks


def test_keeping_every_node_changes_nothing(teacher: tuple[TimmModule, CompressionPlan], images: Tensor) -> None:
    model, _ = teacher
    orders = dict.fromkeys(BLOCKS, torch.arange(128))
    student = cut(teacher, [BlockPlan(index=index, mlp_hidden=128) for index in BLOCKS], images, orders)
    # The fit solves for weights that are there already; fp32 products of the moments leave about 1e-4.
    torch.testing.assert_close(student(images), model(images), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("removed", [None, "attention"])
def test_refitting_beats_cutting_alone(
    teacher: tuple[TimmModule, CompressionPlan], images: Tensor, removed: str | None
) -> None:
    model, plan = teacher
    family = family_of(model)
    found = examine(model, family, plan, CUTS, images, images, multiple=8)
    entries = [BlockPlan.model_validate({"index": index, "removed": removed, "mlp_hidden": 64}) for index in INNER]
    fresh = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    wanted = logits_of(model, fresh)
    plain, refitted = (
        divergence(logits_of(cut(teacher, entries, images, found.orders, *without), fresh), wanted)
        for without in (("refit",), ())
    )
    assert refitted < 0.8 * plain


def test_damage_grows_with_the_cut(teacher: tuple[TimmModule, CompressionPlan], images: Tensor) -> None:
    model, plan = teacher
    found = examine(model, family_of(model), plan, CUTS, images, images[:32], multiple=8)
    assert sorted(found.damages) == sorted(found.orders) == BLOCKS
    for index, damage in found.damages.items():
        assert sorted(damage.mlp) == [8, 16, 32, 64, 96]
        assert damage.mlp[8] > damage.mlp[64] > 0
        assert (damage.attention is not None) == (index in INNER)
        assert sorted(found.orders[index].tolist()) == list(range(128))


@pytest.mark.parametrize(
    "entry",
    [{"index": 0, "mlp_hidden": 32}, {"index": 2, "removed": "attention"}, {"index": 1, "head_dim": 16}],
    ids=lambda entry: "-".join(map(str, entry.values())),
)
def test_damage_is_that_of_the_whole_cut_model(
    teacher: tuple[TimmModule, CompressionPlan], images: Tensor, entry: dict
) -> None:
    model, plan = teacher
    family = family_of(model)
    if "head_dim" in entry and not family.cost_modules(model, 1).heads:
        pytest.skip("its heads keep their width")
    cuts = HEADS if family.cost_modules(model, 1).heads else CUTS
    found = examine(model, family, plan, cuts, images, images[:32], multiple=8)
    student = cut(teacher, [BlockPlan.model_validate(entry)], images, found.orders)
    damage = found.damages[entry["index"]]
    measured = {"removed": damage.attention, "head_dim": damage.heads.get(16), "mlp_hidden": damage.mlp[32]}[
        list(entry)[1]
    ]
    whole = divergence(logits_of(student, images[:32]), logits_of(model, images[:32]))
    assert measured == pytest.approx(whole, rel=1e-3, abs=1e-9)


def test_best_nodes_are_the_last_of_the_order() -> None:
    order = torch.tensor([3, 0, 2, 1])
    assert best_nodes(order, 2).tolist() == [1, 2]
    assert best_nodes(order, 4).tolist() == [0, 1, 2, 3]


def test_divergence_is_zero_for_equal_logits_and_positive_else() -> None:
    logits = torch.randn(5, 7)
    assert divergence(logits, logits + 3.0) == pytest.approx(0, abs=1e-12)
    assert divergence(torch.randn(5, 7), logits) > 0


@pytest.mark.parametrize("entry", [{"mlp_hidden": 16}, {"removed": "attention"}, {"head_dim": 8}])
def test_the_class_token_comes_closer_than_where_all_weigh_alike(
    tiny_plan: CompressionPlan, images: Tensor, monkeypatch: pytest.MonkeyPatch, entry: dict
) -> None:
    """Its error is less, and that of the patches, which share what is left of the weight, is more."""
    torch.manual_seed(0)
    model = build(tiny_plan).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    wanted = model.forward_features(images)
    last = len(model.blocks) - 1

    def errors(share: float) -> Tensor:
        monkeypatch.setattr(least_squares, "READ_SHARE", share)
        entries = [BlockPlan.model_validate({"index": last, **entry})]
        student = cut((model, tiny_plan), entries, images, {last: torch.arange(128)})
        return (student.forward_features(images) - wanted).square().mean((0, 2))

    alike, weighed = errors(0), errors(0.5)
    assert weighed[0] < alike[0]
    assert weighed[1:].mean() > alike[1:].mean()


@pytest.mark.parametrize(
    ("pool", "head", "read"), [("token", {}, 1), ("token", {"num_classes": 0}, 1), ("avg", {}, 0), ("map", {}, 0)]
)
def test_what_the_head_reads(pool: str, head: dict, read: int, tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"global_pool": pool} | head))
    assert read_tokens(model, family_of(model)) == read
