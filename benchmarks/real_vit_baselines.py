"""Closed-form compressions that others published, written from their papers.

Each narrows or factors every block alike, as its paper does, and is fitted on the original's activations on the
images of the study. None trains.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.families import Family
from dcvit.methods.cuts.wanted_tokens import CHUNK, WantedTokens, hooks
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.plan import BlockPlan
from dcvit.types import TimmModule

RIDGE = 1e-3
"""Of the mean of a Gram matrix's diagonal."""


def variance_based(job: Job[Any], proposal: Proposal) -> TimmModule:
    """VBP (arXiv 2507.12988): of all blocks, the nodes whose activation varies least become their mean, in the bias."""
    variances, means = {}, {}
    for index, block, record in _blocks(job):
        hidden = record(block.mlp.fc2).double()
        variances[index], means[index] = hidden.var(0), hidden.mean(0)
    saved = {index: proposal.blocks[index].mlp(0, len(each)) / len(each) for index, each in variances.items()}
    nodes = sorted((float(value), index, node) for index, each in variances.items() for node, value in enumerate(each))
    gone: dict[int, list[int]] = {index: [] for index in variances}
    total = 0.0
    for _, index, node in nodes:
        if total >= proposal.wanted:
            break
        gone[index].append(node)
        total += saved[index]
    student = job.merged()
    for index, lost in gone.items():
        block = job.family.block(student, index)
        fc2, nodes_lost = block.mlp.fc2, torch.tensor(lost, dtype=torch.long)
        kept = _others(nodes_lost, fc2.in_features)
        fc2.bias += (fc2.weight[:, nodes_lost].double() @ means[index][nodes_lost]).float()
        _narrow_mlp(job, student, index, kept)
    return student


def gram_linear(job: Job[Any], proposal: Proposal) -> TimmModule:
    """GRAIL: nodes of the least weight norm go, and the others' ridge fit of all activations goes into fc2."""
    student = job.merged()
    for index, block, record in _blocks(job):
        hidden = record(block.mlp.fc2).double()
        norms = block.mlp.fc1.weight.norm(dim=1) * block.mlp.fc2.weight.norm(dim=0)
        kept = norms.argsort(descending=True)[: _uniform_width(proposal)].sort().values
        gram = hidden.T @ hidden
        spread = _ridge(gram[kept][:, kept], gram[kept])  # [kept, all]
        fc2 = job.family.block(student, index).mlp.fc2
        folded = fc2.weight.double() @ spread.T
        _narrow_mlp(job, student, index, kept)
        job.family.block(student, index).mlp.fc2.weight.copy_(folded)
    return student


def representation_preserving(job: Job[Any], proposal: Proposal) -> TimmModule:
    """CORP (arXiv 2602.05243): MLP nodes and channels of q and k go by equal shares, the rest makes up affinely.

    The removed activations are an affine function of those that stay, the removed part of the logits a bilinear one of
    the q and k that stay; both by ridge regression. Which go is decided by energy, of a node's part in the output and
    of a channel's in the logits.
    """
    share = _equal_share(job, proposal)
    student = job.merged()
    for index, block, record in _blocks(job):
        hidden = record(block.mlp.fc2).double()
        energy = hidden.square().mean(0) * block.mlp.fc2.weight.double().square().sum(0)
        kept = energy.argsort(descending=True)[: round((1 - share) * len(energy))].sort().values
        lost = _others(kept, len(energy))
        mean = hidden.mean(0)
        centred = hidden - mean
        gram = centred.T @ centred
        spread = _ridge(gram[kept][:, kept], gram[kept][:, lost])  # [kept, lost]
        fc2 = job.family.block(student, index).mlp.fc2
        weight = fc2.weight.double()
        folded = weight[:, kept] + weight[:, lost] @ spread.T
        bias = fc2.bias.double() + weight[:, lost] @ (mean[lost] - spread.T @ mean[kept])
        _narrow_mlp(job, student, index, kept)
        narrow = job.family.block(student, index)
        narrow.mlp.fc2.weight.copy_(folded)
        narrow.mlp.fc2.bias.copy_(bias)
        channels = round((1 - share) * block.attn.head_dim)
        narrow.attn = NarrowLogits(block.attn, record.tokens(block.attn.qkv), channels)
    return student


def low_rank(job: Job[Any], proposal: Proposal) -> TimmModule:
    """Every matrix as a product of two, the best for the activations that it gets (arXiv 2402.06004 and others)."""
    student = job.merged()
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    dense = sum(job.family.block(job.model, 0).get_submodule(name).weight.numel() for name in names)
    tokens = len(job.wanted().first[0])
    share = proposal.wanted / (dense * tokens * job.depth)
    for index, block, record in _blocks(job):
        for name in names:
            layer = block.get_submodule(name)
            rank = int((1 - share) * layer.weight.numel() / sum(layer.weight.shape))
            inputs = record(layer).double()
            parent, _, last = name.partition(".")
            place = getattr(job.family.block(student, index), parent)
            setattr(place, last, _factored(layer, inputs, rank))
    return student


class NarrowLogits(nn.Module):
    """Attention whose q and k have fewer channels than v.

    Args:
        attention: timm's, which it is made from.
        inputs: Of qkv, [n, N, C].
        channels: Of q and k that stay in each head.
    """

    def __init__(self, attention: TimmModule, inputs: Tensor, channels: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.channels = attention.num_heads, attention.head_dim, channels
        self.scale, self.proj = attention.scale, attention.proj
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
        sides = zip(weights[:2], biases[:2], strict=True)
        q, k = (F.linear(inputs, *side).unflatten(-1, (self.num_heads, -1)).double() for side in sides)
        energy = q.square().mean((0, 1)) * k.square().mean((0, 1))  # [h, d]
        turned: list[list[Tensor]] = [[], []]
        for head in range(self.num_heads):
            kept = energy[head].argsort(descending=True)[:channels].sort().values
            turn = torch.eye(channels, dtype=torch.float64) + _logit_fit(q[:, :, head], k[:, :, head], kept)
            for side, (weight, bias) in enumerate(zip(weights[:2], biases[:2], strict=True)):
                rows = torch.cat([weight, bias[:, None]], 1).unflatten(0, (self.num_heads, -1))[head][kept].double()
                turned[side].append(turn.T @ rows if side == 0 else rows)
        query, key = (torch.cat(each).float() for each in turned)
        stacked = torch.cat([query, key, torch.cat([weights[2], biases[2][:, None]], 1)])
        self.qkv = nn.Linear(stacked.shape[1] - 1, len(stacked))
        self.qkv.weight.data.copy_(stacked[:, :-1])
        self.qkv.bias.data.copy_(stacked[:, -1])

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens [n, N, C]."""
        narrow = self.num_heads * self.channels
        parts = self.qkv(x).split([narrow, narrow, self.num_heads * self.head_dim], dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        weights = (self.scale * q @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


METHODS: dict[str, Callable[[Job[Any], Proposal], TimmModule]] = {
    "CORP": representation_preserving,
    "GRAIL": gram_linear,
    "VBP": variance_based,
    "low rank": low_rank,
}


class _Record:
    """What layers of one block get, on the calibration images."""

    def __init__(self, block: TimmModule, tokens: Tensor, arguments: dict[str, Any]) -> None:
        self._block, self._tokens, self._arguments = block, tokens, arguments

    def tokens(self, layer: nn.Module) -> Tensor:
        """[n, N, C]."""
        seen: list[Tensor] = []
        with torch.no_grad(), hooks(layer.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))):
            for chunk in self._tokens.split(CHUNK):
                self._block.forward(chunk, **self._arguments)
        return torch.cat(seen)

    def __call__(self, layer: nn.Module) -> Tensor:
        """[n · N, C]."""
        return self.tokens(layer).flatten(0, -2)


def _blocks(job: Job[Any]) -> Iterator[tuple[int, TimmModule, _Record]]:
    """Blocks of the original, and what their layers get."""
    wanted: WantedTokens = job.wanted()
    family: Family = job.family
    for index, (tokens, _) in enumerate(wanted.outputs(job.depth)):
        block = family.block(job.model, index)
        yield index, block, _Record(block, tokens, wanted.arguments)


def _narrow_mlp(job: Job[Any], student: TimmModule, index: int, kept: Tensor) -> None:
    entry = BlockPlan(index=index, mlp_hidden=len(kept))
    job.family.apply(student, job.start.original().with_blocks(entry), {index: kept})


def _uniform_width(proposal: Proposal) -> int:
    """Of MLPs that alone save what is wanted."""
    whole = proposal.whole.mlp_hidden
    share = proposal.wanted / sum(price.mlp(0, whole) for price in proposal.blocks.values())
    return int((1 - share) * whole)


def _equal_share(job: Job[Any], proposal: Proposal) -> float:
    """Of MLP nodes and of channels of q and k alike: both save in a line, the latter two thirds of heads' or less."""
    whole, tokens = proposal.whole, len(job.wanted().first[0])
    attention = job.family.block(job.model, 0).attn
    inner, width = attention.num_heads * attention.head_dim, attention.qkv.in_features
    logits = (2 * width * inner * tokens + inner * tokens**2) * job.depth
    return proposal.wanted / (sum(price.mlp(0, whole.mlp_hidden) for price in proposal.blocks.values()) + logits)


def _logit_fit(q: Tensor, k: Tensor, kept: Tensor) -> Tensor:
    """M [d', d'] for which q_keptᵀ M k_kept is the ridge fit of what the other channels add to the logits.

    Over images the normal equations do not factor, so they are solved as a system of d'² unknowns.
    """
    lost = _others(kept, q.shape[-1])
    queries, keys = q.transpose(1, 2) @ q, k.transpose(1, 2) @ k  # [n, d, d]
    left, right = queries[:, kept][:, :, kept], keys[:, kept][:, :, kept]
    size = len(kept)
    system = torch.einsum("nac,nbd->abcd", left, right).reshape(size**2, size**2)
    wanted = torch.einsum("nap,npb->ab", queries[:, kept][:, :, lost], keys[:, lost][:, :, kept])
    return _ridge(system, wanted.reshape(-1, 1)).reshape(size, size)


def _ridge(gram: Tensor, cross: Tensor) -> Tensor:
    strength = RIDGE * gram.diagonal().mean() + 1e-12
    return torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=gram.dtype), cross)


def _others(chosen: Tensor, count: int) -> Tensor:
    rest = torch.ones(count, dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().flatten()


def _factored(layer: nn.Linear, inputs: Tensor, rank: int) -> nn.Sequential:
    """Two layers, the best of their rank for the second moments of the inputs."""
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    root = values.clamp_min(1e-9 * float(values[-1])).sqrt()
    left, strength, right = torch.linalg.svd(layer.weight.double() @ (vectors * root), full_matrices=False)
    first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
    first.weight.data.copy_((right[:rank] / root) @ vectors.T)
    second.weight.data.copy_(left[:, :rank] * strength[:rank])
    second.bias.data.copy_(layer.bias)
    return nn.Sequential(first, second)
