"""From a timm name and a plan to a module, and back from a module to its name."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropBlock2d, DropPath, PatchDropout
from timm.models import load_state_dict as read_state_dict
from torch import nn

from dcvit.dense import attach_head
from dcvit.errors import InputError, first_line
from dcvit.families import family_of, matching_family
from dcvit.files import require_utf8
from dcvit.model_arguments import check_arguments, check_name
from dcvit.no_weights import no_weights
from dcvit.plan import CompressionPlan


def build(plan: CompressionPlan, *, device: str = "cpu") -> nn.Module:
    """Builds the compressed module of a plan, with random weights, in evaluation mode.

    Args:
        plan: What to build.
        device: `meta` builds the shapes alone, at no cost.

    Raises:
        InputError: If timm has no such model, its architecture is not supported, or the plan does not fit it.
    """
    with no_weights() if device == "meta" else torch.device(device):
        model = create(plan.model, plan.model_kwargs)
        family = family_of(model)
        family.check(model, plan)
        family.apply(model, plan)
        if plan.head is not None:
            attach_head(model, plan.head)
    return model.eval()


def stand_in(plan: CompressionPlan) -> nn.Module:
    """Builds the module of a plan to be timed: random weights, as if trained."""
    return as_if_trained(build(plan))


@torch.no_grad()
def as_if_trained(model: nn.Module) -> nn.Module:
    """Moves random weights in place, so that none is 0 or 1, as in a trained model; returns the module.

    timm starts with biases of 0 and norms of 1. A runtime leaves such an addition out, and takes another kernel for
    the product in front of it: in ONNX Runtime on a CPU such a model is a tenth faster than one that was trained.
    """
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def create(name: str, model_kwargs: dict[str, Any] | None = None, *, pretrained: bool = False) -> nn.Module:
    """Creates an uncompressed timm model in evaluation mode.

    Raises:
        InputError: If the name is unknown, an argument is refused, or pretrained weights cannot be had.
    """
    check_name(name)
    check_arguments(model_kwargs or {})
    base = name.split(".", 1)[0]
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "; `timm.list_models()` lists them"
        raise InputError(f"'{name}' is neither a model folder nor a timm model{hint}")
    try:
        model = timm.create_model(name, pretrained=pretrained, **(model_kwargs or {}))
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InputError(f"timm cannot create {name} with {model_kwargs or {}}: {first_line(error)}") from error
    except Exception as error:
        if not pretrained and not model_kwargs:
            raise
        if not pretrained:  # a wrong argument is an error of any kind, wherever in timm or torch it is met
            raise InputError(f"timm cannot create {name} with {model_kwargs}: {first_line(error)}") from error
        raise InputError(
            f"the pretrained weights of {name} cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            "give local ones with --checkpoint FILE, or --random-init for a latency study"
        ) from error
    if pretrained:
        check_finite(model.state_dict(), f"the pretrained weights of {name}")
    return model.eval()


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Loads a `.safetensors` file, or a `.pth`/`.pt` file of tensors alone (no pickled code is ever run), into a model.

    A Vision Transformer that was built for images of another size than the file's gets the file's position embedding
    resampled, as timm does with pretrained weights; the grid of the file's model is taken for square.

    Raises:
        InputError: If the file cannot be read, its names and shapes are not the model's, or a number in it is not
            finite (the first one is named).
    """
    if not path.is_file():
        raise InputError(f"--checkpoint: there is no file {path}")
    require_utf8(path)
    try:
        state = read_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # torch interprets a pickle itself, and raises whatever a broken one leads to
        reason = first_line(error)
        if "weights_only" in reason:  # timm's words for pickled objects
            reason = "it holds more than tensors, and pickled code is never run; save its state dict as safetensors"
        raise InputError(f"--checkpoint: {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"--checkpoint: {path} holds no state dict (tensors by name)")
    expected = model.state_dict()
    if family := matching_family(model):
        state = family.fit_positions(model, state)
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(f"--checkpoint: {path} has no '{name}' {list(tensor.shape)}, which the model needs")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"--checkpoint: '{name}' is {list(state[name].shape)} in {path} and {list(tensor.shape)} in the model; "
                "check the model name and --model-kwargs (num_classes, img_size, patch_size, …)"
            )
    if extra := [name for name in state if name not in expected]:
        raise InputError(f"--checkpoint: {path} has '{extra[0]}', which the model does not know")
    model.load_state_dict(state)
    check_finite(model.state_dict(), f"--checkpoint: {path}")


def check_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Whether all numbers of a state dict are finite.

    Raises:
        InputError: By the name of the first tensor that holds a NaN or an infinity.
    """
    for name, tensor in state.items():
        broken = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if broken:
            raise InputError(
                f"{where}: {broken} of the {tensor.numel()} numbers of '{name}' are not finite (NaN or infinity); the "
                "training that made them diverged, so take an earlier checkpoint"
            )


def identify(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Finds the timm name and arguments that build a model already in memory.

    Raises:
        InputError: If the model is not timm's, or the arguments cannot be told from it.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture")
    if not name or not timm.is_model(name):
        raise InputError(f"{type(model).__name__} is not a model made by timm.create_model, so it cannot be rebuilt")
    overlay = _changed_preprocessing(name, cfg)
    with no_weights():
        default = _visible_arguments(create(name))
        visible = _visible_arguments(model)
        arguments: dict[str, Any] = {key: value for key, value in visible.items() if value != default.get(key)}
        if overlay:
            arguments["pretrained_cfg_overlay"] = overlay
        try:
            rebuilt = create(name, arguments)
        except InputError:
            rebuilt = nn.Identity()
    same = all(read(rebuilt) == read(model) for read in (_shapes, _layers, _visible_arguments))
    if not same:
        raise InputError(
            f"the arguments that {name} was created with cannot be told from the model; "
            "pass model_kwargs=… (the same as to timm.create_model)"
        )
    return name, arguments


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _layers(model: nn.Module) -> dict[str, str]:
    """The innermost modules by name, in words: these tell an activation, a stride or an epsilon that no shape shows.

    What does nothing in evaluation mode is left out.
    """
    inert = (nn.Identity, nn.Dropout, DropPath, DropBlock2d, PatchDropout)
    leaves = {name: module for name, module in model.named_modules() if not any(True for _ in module.children())}
    return {name: repr(leaf) for name, leaf in leaves.items() if not isinstance(leaf, inert)}


def _changed_preprocessing(name: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """What of a model's preprocessing differs from its name's default."""
    default = timm.models.get_pretrained_cfg(name)
    keys = ("mean", "std", "crop_pct", "interpolation", "input_size")
    return {key: cfg[key] for key in keys if key in cfg and cfg[key] != getattr(default, key, cfg[key])}


def _visible_arguments(model: nn.Module) -> dict[str, Any]:
    """Constructor arguments that a timm model keeps as attributes, as far as its class takes them."""
    patch_embed = getattr(model, "patch_embed", None)
    pool = getattr(model, "global_pool", None)  # a name, or in a ResNet the layer
    visible = {
        "num_classes": getattr(model, "num_classes", None),
        "in_chans": getattr(model, "in_chans", None),
        "embed_dim": getattr(model, "embed_dim", None),
        "global_pool": getattr(pool, "pool_type", pool),
        "img_size": getattr(patch_embed, "img_size", None),
        "patch_size": getattr(patch_embed, "patch_size", None),
        "reg_tokens": getattr(model, "num_reg_tokens", None),
    }
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len(blocks):
        visible["depth"] = len(blocks)
        visible["num_heads"] = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
        fc1 = getattr(getattr(blocks[0], "mlp", None), "fc1", None)
        if isinstance(fc1, nn.Linear):
            visible["mlp_ratio"] = fc1.out_features / fc1.in_features
    if family := matching_family(model):
        visible |= family.constructor_arguments(model)
    accepted = inspect.signature(type(model).__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        visible = {key: value for key, value in visible.items() if key in accepted}
    return visible
