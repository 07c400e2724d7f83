"""SnapViT (arXiv 2510.17700), written from its paper: scores from gradients without labels, and a search over blocks.

Importance of an MLP node or a head is the mean square of the gradient of a self-supervised loss by its weights, times a
factor of its block (of itself, for a head) that a natural evolution strategy finds: by the cosine between features of
the pruned model and the original. Nodes and heads of all blocks are ranked once. Layers behind what went are corrected
on the pruned model's own activations, front to back; the paper does so column by column (SparseGPT's way), and here the
least squares that this approximates are solved at once.

The paper takes 1,000 images; here it is as many as the other methods see. Its share of heads is the MLPs' less 0.15, as
in its tables, and the search knows the one size that it is made for instead of several.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from dcvit.methods.cuts.wanted_tokens import hooks
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.types import TimmModule

LOCAL_VIEWS = 10
GLOBAL_SCALE, LOCAL_SCALE = (0.25, 1.0), (0.05, 0.25)
BATCH = 16
"""Images whose loss is averaged before its gradient is taken."""
EVALUATIONS = 100
"""Of the search; the paper's job for this loss takes 50."""
FIRST, LAST = 1.2, 0.8
"""Factors that the search starts from, of the first block and the last."""
HEADS_LESS = 0.15
LEAST_NODES, LEAST_HEADS = 0.05, 0.2
"""Shares that every block keeps."""
DAMPING = 0.01
"""Of the mean of the second moments' diagonal."""


@dataclass(frozen=True)
class Kept:
    """What stays of each block: nodes of its MLP and heads, by index."""

    nodes: list[Tensor]
    heads: list[Tensor]


def snapvit(job: Job[Any], proposal: Proposal) -> TimmModule:
    """The paper's method at one size."""
    torch.manual_seed(job.seed)
    blocks = [job.family.block(job.model, index) for index in range(job.depth)]
    images = job.calibration
    nodes, heads = _scores(job.model, blocks, images)
    counts = _counts(blocks, _tokens(job.model, images), proposal.wanted)
    features = _features(job.model, images)
    centre = features.mean(0)
    basis = torch.linalg.svd(features - centre, full_matrices=False).Vh[: features.shape[1] // 2]
    wanted = (features - centre) @ basis.T

    def kept(factors: Tensor) -> Kept:
        by_block, by_head = factors.abs()[: job.depth], factors.abs()[job.depth :].unflatten(0, (job.depth, -1))
        return Kept(
            _ranked([score * factor for score, factor in zip(nodes, by_block, strict=True)], counts[0], LEAST_NODES),
            _ranked([score * factor for score, factor in zip(heads, by_head, strict=True)], counts[1], LEAST_HEADS),
        )

    def loss(factors: Tensor) -> float:
        found = _features(_masked(job, kept(factors)), images)
        return 1 - float(F.cosine_similarity((found - centre) @ basis.T, wanted).mean())

    start = torch.linspace(FIRST, LAST, job.depth)
    start = torch.cat([start, start.repeat_interleave(len(heads[0]))])
    return _cut(job, kept(evolve(loss, start, EVALUATIONS)), images)


def _scores(model: TimmModule, blocks: list[TimmModule], images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Mean squares of gradients, of each node [M] and each head [h] of every block."""
    size = images.shape[-2:]
    wide, narrow = (v2.RandomResizedCrop(size, scale=scale, antialias=True) for scale in (GLOBAL_SCALE, LOCAL_SCALE))
    parts = [weight for block in blocks for weight in (block.mlp.fc1.weight, block.attn.qkv.weight)]
    gradients = [torch.zeros_like(part) for part in parts]
    with torch.enable_grad():
        for part in parts:
            part.requires_grad_(True)
        for chunk in images.split(BATCH):
            views = [torch.stack([crop(image) for image in chunk]) for crop in [wide] * 2 + [narrow] * LOCAL_VIEWS]
            with torch.no_grad():
                sure = [F.normalize(model(view)).softmax(-1) for view in views[:2]]
            for number, view in enumerate(views):  # one view's graph at a time
                guess = F.normalize(model(view)).log_softmax(-1)
                others = [target for other, target in enumerate(sure) if other != number]
                loss = -sum((target * guess).sum(-1) for target in others).mean()  # type: ignore[union-attr]
                for total, each in zip(gradients, torch.autograd.grad(loss, parts), strict=True):
                    total += each
        for part in parts:
            part.requires_grad_(False)
    of_heads = [
        gradient.chunk(3)[2].unflatten(0, (block.attn.num_heads, -1)).square().mean((1, 2))
        for block, gradient in zip(blocks, gradients[1::2], strict=True)
    ]
    return [gradient.square().mean(1) for gradient in gradients[::2]], of_heads


def evolve(loss: Callable[[Tensor], float], start: Tensor, evaluations: int) -> Tensor:
    """The best point that an exponential natural evolution strategy (xNES) finds, with its usual rates."""
    size = len(start)
    population = 4 + int(3 * math.log(size))
    weights = torch.tensor([max(0.0, math.log(population / 2 + 1) - math.log(1 + rank)) for rank in range(population)])
    weights = weights / weights.sum() - 1 / population
    rate = 0.6 * (3 + math.log(size)) / (size * math.sqrt(size))
    mean, root = start.clone(), torch.eye(size)
    best, least, spent = start, loss(start), 1
    while spent + population <= evaluations:
        steps = torch.randn(population, size)
        points = mean + steps @ root.T
        losses = [loss(point) for point in points]
        spent += population
        order = sorted(range(population), key=losses.__getitem__)
        if losses[order[0]] < least:
            best, least = points[order[0]], losses[order[0]]
        sorted_ = steps[order]
        mean = mean + root @ (weights @ sorted_)
        around = torch.einsum("k,ki,kj->ij", weights, sorted_, sorted_) - weights.sum() * torch.eye(size)
        root = root @ torch.matrix_exp(rate / 2 * around)
    return best


def _counts(blocks: list[TimmModule], tokens: int, wanted: float) -> tuple[int, int]:
    """Nodes and heads that go, of all blocks, so that so many MACs are saved; heads by a smaller share."""
    attention, mlp = blocks[0].attn, blocks[0].mlp
    width, head_dim = attention.qkv.in_features, attention.head_dim
    node, head = 2 * tokens * width, 4 * tokens * width * head_dim + 2 * tokens**2 * head_dim
    all_nodes, all_heads = len(blocks) * mlp.fc1.out_features, len(blocks) * attention.num_heads
    share = next(
        step / 1000
        for step in range(1001)
        if node * step / 1000 * all_nodes + head * int(max(0.0, step / 1000 - HEADS_LESS) * all_heads) >= wanted
    )
    heads = int(max(0.0, share - HEADS_LESS) * all_heads)
    return math.ceil((wanted - head * heads) / node), heads


def _ranked(scores: list[Tensor], gone: int, least: float) -> list[Tensor]:
    """Indices that stay in each block when so many of the least go, and every block keeps a share."""
    safe = [score.clone() for score in scores]
    for score in safe:
        score[score.argsort(descending=True)[: int(least * len(score))]] = torch.inf
    lost = torch.zeros(sum(map(len, safe)), dtype=torch.bool)
    lost[torch.cat(safe).argsort()[:gone]] = True
    return [(~each).nonzero().flatten() for each in lost.split([len(score) for score in safe])]


def _masked(job: Job[Any], kept: Kept) -> TimmModule:
    """The whole model with zeros for what goes: what the search runs."""
    student = copy.deepcopy(job.model)
    for index, (nodes, heads) in enumerate(zip(kept.nodes, kept.heads, strict=True)):
        block = job.family.block(student, index)
        columns = _columns(heads, block.attn.head_dim)
        for layer, stay in ((block.mlp.fc2, nodes), (block.attn.proj, columns)):
            mask = torch.zeros(layer.in_features)
            mask[stay] = 1
            layer.weight.data.mul_(mask)
    return student


def _cut(job: Job[Any], kept: Kept, images: Tensor) -> TimmModule:
    """The small model, front to back: each layer behind what went refitted to what it gave on its own inputs."""
    student = copy.deepcopy(job.model)
    for index, (nodes, heads) in enumerate(zip(kept.nodes, kept.heads, strict=True)):
        block = job.family.block(student, index)
        attention, mlp = block.attn, block.mlp
        columns = _columns(heads, attention.head_dim)
        moments = _moments(student, (attention.proj, mlp.fc2), images)
        _narrow_input(attention.proj, columns, moments[0])
        _narrow_input(mlp.fc2, nodes, moments[1])
        _narrow_output(mlp.fc1, nodes)
        whole = attention.num_heads * attention.head_dim
        _narrow_output(attention.qkv, torch.cat([columns + side * whole for side in range(3)]))
        attention.num_heads = len(heads)
        attention.attn_dim = len(columns)
    return student


@torch.no_grad()
def _moments(model: TimmModule, layers: tuple[torch.nn.Linear, ...], images: Tensor) -> list[Tensor]:
    """Second moments [K, K] of what each layer gets."""
    found = [torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for layer in layers]

    def seen(number: int) -> Callable[..., None]:
        def hook(_layer: Any, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            found[number] += rows.T @ rows

        return hook

    with hooks(*(layer.register_forward_pre_hook(seen(number)) for number, layer in enumerate(layers))):
        _features(model, images)
    return found


@torch.no_grad()
def _narrow_input(layer: torch.nn.Linear, kept: Tensor, moments: Tensor) -> None:
    damped = moments[kept][:, kept] + DAMPING * moments.diagonal().mean() * torch.eye(len(kept), dtype=moments.dtype)
    # What stays of the weights is a fit already: what is left to make up for is the part of those that went.
    lost = torch.ones(len(moments), dtype=torch.bool)
    lost[kept] = False
    made_up = torch.linalg.solve(damped, moments[kept][:, lost]) @ layer.weight[:, lost].double().T
    layer.weight = torch.nn.Parameter((layer.weight[:, kept].double() + made_up.T).float(), requires_grad=False)
    layer.in_features = len(kept)


@torch.no_grad()
def _narrow_output(layer: torch.nn.Linear, kept: Tensor) -> None:
    layer.weight = torch.nn.Parameter(layer.weight[kept].clone(), requires_grad=False)
    layer.bias = torch.nn.Parameter(layer.bias[kept].clone(), requires_grad=False)
    layer.out_features = len(kept)


def _columns(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


@torch.no_grad()
def _features(model: TimmModule, images: Tensor) -> Tensor:
    return torch.cat([model(chunk) for chunk in images.split(50)])


def _tokens(model: TimmModule, images: Tensor) -> int:
    count: int = model.patch_embed(images[:1]).shape[1] + model.num_prefix_tokens
    return count
