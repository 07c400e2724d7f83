"""Rewrites of a module that compute the same for less, exactly but for rounding.

Each changes the module that it is given, so whoever wants to keep that one copies it first, and says whether (or where)
there was something to do. A layer that an adaptor hangs on stays as it is.
"""

import torch
from timm.layers import Attention, Format, LayerScale, PatchEmbed
from torch import Tensor, nn

from dcvit.layers.narrow import qkv_layers
from dcvit.layers.prefix_block import PrefixAttention
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule


class PatchProduct(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product.

    No pixel is in two patches, so cutting an image into patches is a transposition; a GPU's convolution kernels take
    many times what the product takes (docs/gpu.md).

    Args:
        convolution: Its weights are taken over, flattened to [E, C·p·p].
        tokens: Gives [B, N, E] instead of [B, H/p, W/p, E].
    """

    def __init__(self, convolution: nn.Conv2d, *, tokens: bool) -> None:
        super().__init__()
        self.kernel_size: tuple[int, int] = (convolution.kernel_size[0], convolution.kernel_size[1])
        self.channels, self.tokens, self.channels_last = convolution.in_channels, tokens, False
        self.product = _linear(convolution.weight.flatten(1), convolution.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, C, H, W] to patch embeddings."""
        height, width = self.kernel_size
        if self.channels_last:
            grid = images.permute(0, 2, 3, 1).unflatten(2, (-1, width)).unflatten(1, (-1, height))
            patches = grid.permute(0, 1, 3, 2, 4, 5)
        else:
            grid = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))
            patches = grid.permute(0, 2, 4, 1, 3, 5)
        patches = patches.flatten(3)
        embedded: Tensor = self.product(patches.flatten(1, 2) if self.tokens else patches)
        return embedded

    def read_channels_last(self) -> None:
        """For images that are a view of [B, H, W, C], as pixels are: a patch is then read in whole rows.

        The images stay [B, C, H, W] to the eye; the weights get the order (p, p, C).
        """
        kernel = self.product.weight.unflatten(1, (self.channels, *self.kernel_size))
        self.product.weight = nn.Parameter(kernel.permute(0, 2, 3, 1).flatten(1), requires_grad=False)
        self.channels_last = True


def fold_patch_embedding(model: nn.Module) -> bool:
    """Makes every patch embedding whose stride is its kernel a matrix product."""
    found: list[TimmModule] = [each for each in model.modules() if type(each) is PatchEmbed and _is_a_product(each)]
    for embedding in found:
        tokens = bool(embedding.flatten)
        embedding.proj = PatchProduct(embedding.proj, tokens=tokens)
        # The product's output is in the order that timm would bring the convolution's into.
        embedding.flatten, embedding.output_fmt = False, Format.NCHW
    return bool(found)


@torch.no_grad()
def fold_normalisation(model: nn.Module, preprocessing: Preprocessing) -> bool:
    """Lets the patch embedding take pixels 0 … 255, [B, C, H, W], instead of images normalised by `preprocessing`.

    W((x/255 − µ)/σ) + b = (W/255σ)x + (b − Wµ/σ), which holds at the border too, because nothing is padded there.
    """
    embeddings: list[TimmModule] = [module for module in model.modules() if type(module) is PatchEmbed]
    if len(embeddings) != 1 or not (type(embeddings[0].proj) is PatchProduct or _is_a_product(embeddings[0])):
        return False
    proj: TimmModule = embeddings[0].proj
    layer: TimmModule = proj.product if type(proj) is PatchProduct else proj
    weight = layer.weight
    mean, std = (
        torch.tensor(numbers, dtype=torch.float64, device=weight.device).view(1, -1, 1, 1)
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    kernel = weight.double().view(weight.shape[0], mean.shape[1], *proj.kernel_size)
    bias = -(kernel * (mean / std)).sum((1, 2, 3))
    if layer.bias is not None:
        bias += layer.bias
    layer.weight = nn.Parameter((kernel / (255 * std)).view_as(weight).to(weight), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight), requires_grad=False)
    if type(proj) is PatchProduct:
        proj.read_channels_last()
    return True


def _is_a_product(embedding: TimmModule) -> bool:
    proj: nn.Module = embedding.proj
    if type(proj) is not nn.Conv2d or _has_hooks(proj):
        return False
    plain = proj.stride == proj.kernel_size and proj.dilation == (1, 1) and proj.groups == 1
    if not plain or proj.padding not in ((0, 0), "valid"):
        return False
    size = embedding.img_size
    divides = size is not None and all(side % patch == 0 for side, patch in zip(size, proj.kernel_size, strict=True))
    return divides and (embedding.flatten or embedding.output_fmt == Format.NHWC)


@torch.no_grad()
def fold_layer_scale(model: nn.Module) -> bool:
    """Multiplies LayerScale (arXiv 2103.17239) into the weights of the layer in front of it, proj or fc2.

    In fp16 a weight may become subnormal and lose digits, up to 2⁻²⁵ of it. That error reaches the residual stream with
    the branch, where it is thousands of times smaller than the stream's own rounding.
    """
    found = False
    for block in model.modules():
        for number, layer in (("1", _last_of(block, "attn", "proj")), ("2", _last_of(block, "mlp", "fc2"))):
            module, parameter = getattr(block, f"ls{number}", None), getattr(block, f"gamma_{number}", None)
            if layer is None:
                continue
            if isinstance(module, LayerScale):
                _multiply(layer, module.gamma)
                setattr(block, f"ls{number}", nn.Identity())
            elif isinstance(parameter, nn.Parameter):
                _multiply(layer, parameter)
                # timm multiplies by it whatever it is; an exported file does not.
                setattr(block, f"gamma_{number}", nn.Parameter(torch.ones_like(parameter)))
            else:
                continue
            found = True
    return found


def _last_of(block: nn.Module, branch: str, name: str) -> nn.Linear | None:
    """The linear layer that a branch ends with, if its output is the branch's."""
    module = getattr(block, branch, None)
    layer = getattr(module, name, None)
    if not isinstance(layer, nn.Linear) or _has_hooks(layer) or not isinstance(module, nn.Module):
        return None
    return None if module._forward_hooks else layer


@torch.no_grad()
def fold_attention_scale(model: nn.Module) -> bool:
    """Multiplies d^-½ into the weights of q, and lets attention be written in pieces: for where no kernel does it all.

    A norm of q and k would undo it, so such attention stays as it is.
    """
    found = False
    attention: TimmModule
    for attention in model.modules():
        if type(attention) not in (Attention, PrefixAttention) or not isinstance(attention.q_norm, nn.Identity):
            continue
        layer = qkv_layers(attention)[0]
        if _has_hooks(layer):
            continue
        factors = torch.ones_like(layer.weight[:, 0])
        factors[: attention.num_heads * attention.head_dim] = attention.scale
        _multiply(layer, factors)
        attention.fused_attn, attention.scale = False, 1.0
        found = True
    return found


def join_attention(model: nn.Module) -> None:
    """Lets attention that timm can compute in one call or in pieces be computed in one.

    Not that of windows (Swin, whose blocks have a mask): TensorRT-RTX had no fused kernel for it, and the mask of every
    window of every image would become a constant of the file.
    """
    for block in model.modules():
        attention = getattr(block, "attn", None)
        if attention is not None and hasattr(attention, "fused_attn") and not hasattr(block, "attn_mask"):
            attention.fused_attn = True


def _has_hooks(layer: nn.Module) -> bool:
    """Whether something hangs on a layer's output or input."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _multiply(layer: nn.Linear, factors: Tensor) -> None:
    """Multiplies the outputs of a layer by factors [out]."""
    layer.weight = nn.Parameter(layer.weight * factors[:, None], requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * factors, requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
