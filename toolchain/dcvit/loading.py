"""A model out of its folder, and a trained one into a folder of its own. Nothing heavier than timm is imported."""

from pathlib import Path
from typing import Any

from torch import nn

from dcvit.errors import InputError
from dcvit.files import base_name, sha256_of
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.model import build, check_finite, load_checkpoint

_WRAPPERS = ("module", "_orig_mod")
"""Where DistributedDataParallel and torch.compile keep the model that they wrap."""


def load(folder: str | Path) -> nn.Module:
    """Loads a compressed model, in evaluation mode: a timm module with `forward`, `forward_features`, `forward_head`.

    Its `pretrained_cfg` holds its real input size, mean, std and number of classes, so timm's
    `resolve_model_data_config` gives the transforms that it wants.

    Raises:
        InputError: If there is no model folder at the path, or a file in it has changed.
    """
    return ModelFolder(folder).load()


def save(model: nn.Module, out: str | Path, *, like: str | Path, overwrite: bool = False) -> Path:
    """Writes a model folder of a model that was loaded with `load` and trained on, to be exported like any other.

    Args:
        model: With the weights to keep, on any device; may be wrapped by torch.compile or DistributedDataParallel. It
            stays as it is. Weights are kept in fp32.
        out: The model folder to write; it appears whole or not at all.
        like: The model folder that it was loaded from; plan, preprocessing and class names are that one's.
        overwrite: Replace the model folder at `out`.

    Raises:
        InputError: If the model's weights are not those of the plan by name and shape, one is not finite, or something
            stands at `out`.
    """
    before = ModelFolder(like)
    made = build(before.plan)
    state = {name: tensor.detach().cpu() for name, tensor in _unwrapped(model).state_dict().items()}
    expected = made.state_dict()
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            found = f"has {list(state[name].shape)}" if name in state else "has none"
            raise InputError(
                f"save: '{name}' is {list(tensor.shape)} in {like}, and the model {found}; give the folder that the "
                "model was loaded from as like=…"
            )
    if extra := [name for name in state if name not in expected]:
        raise InputError(f"save: the model has '{extra[0]}', and {like} does not; give the trained model alone")
    check_finite(state, "save")
    made.load_state_dict(state)
    return _write(made, before, Path(out), {}, overwrite=overwrite)


def adopt(folder: str | Path, checkpoint: Path, out: Path, *, overwrite: bool = False) -> ModelFolder:
    """The same for a file that a training of the folder's model wrote.

    Args:
        folder: The model folder that was trained on.
        checkpoint: `.safetensors`, or a `.pth` of tensors alone.
        out: The model folder to write.
        overwrite: Replace the model folder at `out`.

    Raises:
        InputError: If the file's names and shapes are not the model's, or something stands at `out`.
    """
    before = ModelFolder(folder)
    model = build(before.plan)
    load_checkpoint(model, checkpoint)
    about = {"checkpoint": checkpoint.name, "checkpoint_sha256": sha256_of(checkpoint)}
    return ModelFolder(_write(model, before, out, about, overwrite=overwrite))


def _write(model: nn.Module, before: ModelFolder, out: Path, about: dict[str, Any], *, overwrite: bool) -> Path:
    manifest = before.manifest.model_copy(deep=True)
    manifest.settings["trained_on"] = {
        "from": f"model folder {base_name(before.path)}",
        "weights_sha256": before.manifest.files[WEIGHTS].sha256,
        **about,
    }
    # What was measured was of other weights; and no run of the tool gives these.
    manifest.metrics = {name: value for name, value in manifest.metrics.items() if name.startswith("macs_")}
    manifest.repeat, manifest.exports = {}, {}
    ModelFolder.create(out, model, before.plan, manifest, overwrite=overwrite)
    return out


def _unwrapped(model: nn.Module) -> nn.Module:
    for name in _WRAPPERS:
        if isinstance(inner := getattr(model, name, None), nn.Module):
            return _unwrapped(inner)
    return model
