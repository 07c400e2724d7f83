"""Channel pruning: nothing changes at first, rows really vanish, the target is met, and the fold is exact."""

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.methods.cait.cdcp import ChannelPruning
from dcvit.methods.cait.prunable import PrunableLayer, choose_units, most_macs, prunable_layers
from dcvit.methods.cait.settings import CdcpSettings
from dcvit.methods.target import Target
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.subject import original_of
from dcvit.types import TimmModule

MERGES = parse_merges("horizontal@1,vertical@3")[0]
STARTS = {
    "plain": {},
    "merged, no class token, LayerScale": {"model": "vit_base_patch16_gap_224", "merges": MERGES},
    "from a DC-ViT plan": {
        "model": "deit_tiny_distilled_patch16_224",
        "merges": MERGES,
        "size_aware_attention": True,
        "blocks": (
            BlockPlan(index=1, removed="attention", mlp_hidden=72),
            BlockPlan(index=2, removed="block"),
            BlockPlan(index=3, head_dim=12),
        ),
    },
}
QUICK = CdcpSettings(every=2)


@pytest.fixture(params=list(STARTS))
def plan(request: pytest.FixtureRequest, tiny_plan: CompressionPlan) -> CompressionPlan:
    return tiny_plan.replace(**STARTS[request.param])


def made(plan: CompressionPlan) -> TimmModule:
    """A model whose weights are like trained ones: timm starts biases at 0, which would hide mistakes."""
    torch.manual_seed(0)
    model = build(plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def macs(plan: CompressionPlan, convention: str = "full") -> int:
    return count_macs(build(plan, device="meta"), (3, 32, 32), convention).total  # type: ignore[arg-type]


def pruning_of(student: TimmModule, plan: CompressionPlan, share: float, settings: CdcpSettings = QUICK):
    family = family_of(original_of(plan))
    most = most_macs(prunable_layers(student, family, plan, min_head_dim=8))
    return ChannelPruning(student, family, plan, Target(min_head_dim=8), macs_to_save=share * most, settings=settings)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    while True:
        yield torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)


def train(student: TimmModule, pruning: ChannelPruning, optimizer: torch.optim.Optimizer, span: range, steps: int):
    data = batches()
    for _ in range(span.start):
        next(data)
    for step in span:
        images, labels = next(data)
        F.cross_entropy(student(images), labels).backward()
        pruning.before_step()
        optimizer.step()
        optimizer.zero_grad()
        pruning.after_step(step, steps, 1e-3)


def compactors(student: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in student.named_parameters() if name.endswith("compactor")}


def test_nothing_changes_at_first(plan: CompressionPlan) -> None:
    model = made(plan)
    student = copy.deepcopy(model)
    pruning = pruning_of(student, plan, 0.5)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(student(images), model(images))
    assert pruning.no_weight_decay == set(compactors(student))
    assert pruning.macs_saved == 0
    # Taken out again before anything was masked, for a target of nothing: plain modules and the plan as it was.
    empty = pruning_of(another := copy.deepcopy(model), plan, 0.0)
    assert empty.fold() == ()
    assert {name: tensor.shape for name, tensor in another.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert torch.equal(another(images), model(images))


@pytest.mark.parametrize("convention", ["full", "dcvit"])
def test_a_unit_costs_what_the_folded_model_saves(plan: CompressionPlan, convention: str) -> None:
    family = family_of(original_of(plan))
    layers = prunable_layers(build(plan), family, plan, multiple=4, macs_convention=convention)  # type: ignore[arg-type]
    assert {layer.block for layer in layers} == set(range(4)) - {
        entry.index for entry in plan.blocks if entry.removed == "block"
    }
    for layer in layers:
        entry = plan.block(layer.block).model_copy(update={layer.kind: layer.width - 4})
        assert macs(plan, convention) - macs(plan.with_blocks(entry), convention) == 4 * layer.macs, layer


@torch.no_grad()
def test_the_fold_is_exact(plan: CompressionPlan) -> None:
    """With masked rows at zero the outputs before and after agree to float64 rounding; block widths differ."""
    student = made(plan).double()
    pruning = pruning_of(student, plan, 0.6)
    for _, compactor in sorted(compactors(student).items()):
        compactor.add_(0.2 * torch.randn_like(compactor))
    generator = torch.Generator().manual_seed(5)
    for each in pruning._compacted:
        each.sensitivity = torch.rand(each.sensitivity.shape, generator=generator) * 10 ** (each.layer.block % 3)
    pruning._mask(pruning.macs_to_save)
    for each, block in pruning._with_blocks():
        each.rows(each.linear(block).compactor).mul_(~each.masked())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before, averaged = student(images), copy.deepcopy(student)
    entries = pruning.fold()
    folded = plan.with_blocks(*entries)
    assert pruning.largest_cut == 0
    assert len({(entry.head_dim, entry.mlp_hidden) for entry in folded.blocks}) > 1
    # Sums of some hundred terms through 4 blocks.
    assert (student(images) - before).abs().max() < 1e-10
    rebuilt = build(folded).double()
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(images), student(images))
    assert all(type(module) is nn.Linear for module in student.modules() if isinstance(module, nn.Linear))
    assert macs(plan) - macs(folded) == pruning.macs_saved >= pruning.macs_to_save
    # A copy that was made before folds to the same.
    assert pruning.fold_into(averaged) == entries
    assert torch.equal(averaged(images), student(images))


def test_training_shrinks_rows_until_the_target_is_met(plan: CompressionPlan) -> None:
    student = made(plan)
    pruning = pruning_of(student, plan, 0.5)
    average = ModelEmaV3(student, decay=0.5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    seen = []
    for step in range(40):
        train(student, pruning, optimizer, range(step, step + 1), 40)
        average.update(student)
        seen.append(sum(map(sum, pruning.widths().values())))
    assert seen[0] > seen[10] > seen[23] == seen[-1]
    widths = pruning.widths()
    for each, block in pruning._with_blocks():
        norms = each.rows(each.linear(block).compactor).norm(dim=-1, keepdim=True)
        assert (norms[each.masked()] == 0).all()
        assert (norms[~each.masked()] > 0).all()
    images = torch.randn(4, 3, 32, 32)
    trained, averaged = student(images), average.module(images)
    folded = plan.with_blocks(*pruning.fold())
    assert pruning.largest_cut == 0
    assert pruning.widths() == widths
    assert all(width % 8 == 0 or width == 12 for kind in widths.values() for width in kind)
    saved = macs(plan) - macs(folded)
    # The last chunk of 8 nodes that was taken is needed: without it the target would be missed.
    assert pruning.macs_to_save <= saved <= pruning.macs_to_save + 8 * max(e.layer.macs for e in pruning._compacted)
    torch.testing.assert_close(student(images), trained, rtol=1e-4, atol=1e-4)
    assert folded == plan.with_blocks(*pruning.fold_into(average.module))
    # Half a lifetime of one step: what the average still holds of masked rows is below 2⁻¹⁰ of them.
    torch.testing.assert_close(average.module(images), averaged, rtol=1e-2, atol=1e-2)


def test_a_masked_unit_returns_when_the_loss_asks_for_it(tiny_plan: CompressionPlan) -> None:
    student = made(tiny_plan)
    settings = CdcpSettings(warmup=0, every=1)
    pruning = pruning_of(student, tiny_plan, 0.3, settings)
    name, steps = "blocks.0.mlp.fc1.compactor", 100
    compactor = dict(student.named_parameters())[name]
    wanted = torch.arange(0, 128, 2)

    def step_with(important: Tensor, step: int) -> Tensor:
        """One step in which some nodes of block 0, and all of attention, matter far more than other nodes."""
        for other in (each.linear(block).compactor for each, block in pruning._with_blocks()):
            other.grad = torch.eye(other.shape[-1]).repeat(len(other), 1, 1)
            other.grad *= 1e-3 if len(other) == 1 else 1.0
        assert compactor.grad is not None
        compactor.grad[:, important] *= 1e3
        pruning.before_step()
        dropped = compactor.grad.abs().sum(-1)[0] == 0
        pruning.after_step(step, steps, 1e-3)
        return dropped

    for step in range(24):
        dropped = step_with(wanted, step)
    others = torch.arange(1, 128, 2)
    masked = others[dropped[others]]
    assert len(masked) > 0
    assert not dropped[wanted].any()
    last = int(masked[-1])  # ranked last, so masked last, and not gone yet
    norm = float(compactor[0, last].detach().norm())
    assert 0 < norm < 1
    for step in range(24, 28):
        dropped = step_with(torch.tensor([last]), step)
    assert not dropped[last]
    returned = float(compactor[0, last].detach().norm())
    step_with(torch.tensor([last]), 28)
    assert float(compactor[0, last].detach().norm()) == returned > 0


def test_a_restored_state_continues_identically(tiny_plan: CompressionPlan) -> None:
    plan = tiny_plan.replace(merges=MERGES)
    student = made(plan)
    pruning = pruning_of(student, plan, 0.5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    train(student, pruning, optimizer, range(13), 40)
    saved = copy.deepcopy((student.state_dict(), pruning.state_dict(), optimizer.state_dict()))
    train(student, pruning, optimizer, range(13, 40), 40)

    restored = made(plan)
    again = pruning_of(restored, plan, 0.5)
    second = torch.optim.AdamW(restored.parameters(), lr=1e-3)
    for holder, state in zip((restored, again, second), saved, strict=True):
        holder.load_state_dict(state)
    train(restored, again, second, range(13, 40), 40)
    assert again.widths() == pruning.widths()
    assert again.fold() == pruning.fold()
    for name, tensor in student.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name


def test_without_training_the_weakest_units_are_cut(tiny_plan: CompressionPlan) -> None:
    student = made(tiny_plan)
    with torch.no_grad():
        student.blocks[1].mlp.fc2.weight[:, 32:96] *= 1e-3
        student.blocks[2].attn.qkv.weight.view(3, 2, 16, 32)[1, :, 8:] *= 1e-3  # k alone makes logits vanish
        student.blocks[2].attn.proj.weight.view(32, 2, 16)[:, :, :8] *= 1e-3
    images = torch.randn(4, 3, 32, 32)
    before = student(images)
    pruning = pruning_of(student, tiny_plan, 0.16)
    entries = {entry.index: entry for entry in pruning.fold()}
    assert pruning.macs_saved >= pruning.macs_to_save
    assert entries[2].head_dim == 8
    assert entries[1].mlp_hidden == 64
    assert set(entries) == {1, 2}
    torch.testing.assert_close(student(images), before, rtol=0, atol=0.02)
    assert pruning.largest_cut == pytest.approx(1)


def test_units_of_least_score_a_mac_go_first() -> None:
    heads = PrunableLayer(0, "head_dim", 20, 8, 100)
    nodes = PrunableLayer(0, "mlp_hidden", 32, 8, 10)
    assert heads.chunks(8) == [4, 8]
    assert nodes.chunks(8) == [8, 8, 8]
    # A head's channel is worth 5 nodes and costs 10, so heads go first.
    cheap = [torch.full((20,), 5.0), torch.full((32,), 1.0)]
    assert choose_units([heads, nodes], cheap, 400, 8) == [4, 0]
    assert choose_units([heads, nodes], cheap, 401, 8) == [12, 0]
    dear = [torch.full((20,), 20.0), torch.full((32,), 1.0)]
    assert choose_units([heads, nodes], dear, 100, 8) == [0, 16]
    # 240 of the nodes, then 400 of the heads: the first 160 nodes are needless.
    assert choose_units([heads, nodes], dear, 480, 8) == [4, 8]
    assert choose_units([heads, nodes], dear, 1440, 8) == [12, 24]


def test_heads_with_a_norm_of_q_and_k_keep_their_width(tiny_plan: CompressionPlan) -> None:
    plan = tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"qk_norm": True})
    layers = prunable_layers(build(plan), family_of(build(plan)), plan)
    assert {layer.kind for layer in layers} == {"mlp_hidden"}


def test_what_cannot_be_is_refused(tiny_plan: CompressionPlan) -> None:
    with pytest.raises(InputError, match=r"cannot save .* M MACs: with every head and MLP"):
        pruning_of(made(tiny_plan), tiny_plan, 1.01)
    swin = CompressionPlan(model="swin_tiny_patch4_window7_224")
    with torch.device("meta"):
        model = create(swin.model)
    with pytest.raises(InputError, match="swin_tiny_patch4_window7_224 is a swin"):
        ChannelPruning(model, family_of(model), swin, Target(min_head_dim=8), macs_to_save=1)
    with pytest.raises(InputError, match=r"do not vanish by the end; take at least 3\.75"):
        CdcpSettings(shrink=3)
    with pytest.raises(InputError, match="must be less than reached_by"):
        CdcpSettings(warmup=0.7)


def test_a_unit_counts_as_the_loss_that_its_gate_feels(tiny_plan: CompressionPlan) -> None:
    """Importance is the squared derivative of the loss along a gate on the unit, as finite differences give it."""
    student = made(tiny_plan).double()
    pruning = pruning_of(student, tiny_plan, 0.5)
    images, labels = next(batches())

    def loss() -> Tensor:
        return F.cross_entropy(student(images.double()), labels)

    loss().backward()
    pruning.before_step()
    importance = dict(zip((e.name for e in pruning._compacted), pruning._importance(), strict=True))
    for name, path, row, index in (
        ("blocks.1.head_dim", "blocks.1.attn.qkv", (1, 5), (0, 1, 5)),  # head 1 of q: group 1
        ("blocks.1.head_dim", "blocks.1.attn.qkv", (3, 5), (0, 1, 5)),  # the same gate on k
        ("blocks.1.head_dim", "blocks.1.attn.qkv", (4, 7), (1, 0, 7)),  # head 0 of v: group 4
        ("blocks.2.mlp_hidden", "blocks.2.mlp.fc1", (0, 99), (0, 0, 99)),
    ):
        compactor = student.get_submodule(path).compactor
        with torch.no_grad():
            ahead, behind = [], []
            for gate, seen in ((1 + 1e-4, ahead), (1 - 1e-4, behind)):
                kept = compactor[row].clone()
                compactor[row] *= gate
                seen.append(float(loss()))
                compactor[row] = kept
        derivative = (ahead[0] - behind[0]) / 2e-4
        # One step of a running mean that starts at 0.
        assert float(importance[name][index]) == pytest.approx(0.02 * derivative**2, rel=1e-4)


def test_a_copy_made_by_timm_builds_plain_modules(tiny_plan: CompressionPlan) -> None:
    """What is left is timm's own attention with `attn_head_dim`: it loads into one."""
    student = made(tiny_plan)
    pruning = pruning_of(student, tiny_plan, 0.4)
    for entry in pruning.fold():
        if entry.head_dim is None:
            continue
        attention = student.blocks[entry.index].attn
        plain = timm.layers.Attention(32, num_heads=2, attn_head_dim=entry.head_dim, qkv_bias=True)
        plain.load_state_dict(attention.state_dict())
        x = torch.randn(1, 17, 32)
        assert torch.equal(plain(x), attention(x))
        break
    else:
        pytest.fail("no head was narrowed")
