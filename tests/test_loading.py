"""A compressed model is trained by its user's own loop, and shipped."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data import resolve_model_data_config
from torch.nn import functional as F

import dcvit
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import BlockPlan, CompressionPlan, Merge

MakeFolder = Callable[..., ModelFolder]


@pytest.fixture
def small(tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> ModelFolder:
    """Narrower heads and MLPs, no attention in a block, and merged tokens."""
    blocks = (BlockPlan(index=0, mlp_hidden=64, head_dim=8), BlockPlan(index=2, removed="attention", mlp_hidden=32))
    merges = (Merge(after=1, axis="horizontal"),)
    return make_folder(tmp_path / "small", tiny_plan.with_blocks(*blocks).replace(merges=merges))


def trained(folder: ModelFolder) -> torch.nn.Module:
    model = dcvit.load(folder.path).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def test_loading_is_light() -> None:
    """timm needs torchvision; nothing else of what other verbs need comes with it."""
    heavy = {"onnxruntime", "onnx", "onnxscript", "sklearn", "matplotlib", "torchmetrics", "polygraphy", "accelerate",
             "openvino", "tensorrt", "tensorrt_rtx", "rich", "jinja2"}  # fmt: skip
    code = f"import sys, dcvit\ndcvit.load, dcvit.save\nprint(sorted({heavy!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


def test_timm_finds_the_real_preprocessing_of_a_loaded_model(small: ModelFolder) -> None:
    model = dcvit.load(small.path)
    wanted = small.manifest.preprocessing
    found = resolve_model_data_config(model)
    assert found["input_size"] == wanted.input_size == (3, 32, 32)
    assert (found["mean"], found["std"], found["crop_pct"]) == (wanted.mean, wanted.std, wanted.crop_pct)
    assert model.pretrained_cfg["num_classes"] == model.num_classes == 10
    assert resolve_model_data_config(model, use_test_size=True)["input_size"] == (3, 32, 32)


def test_trained_saved_exported_and_verified(small: ModelFolder, tmp_path: Path) -> None:
    model = trained(small)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = dcvit.save(model, tmp_path / "small2", like=small.path)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dcvit.load(out)(images), model(images))
        assert not torch.allclose(dcvit.load(small.path)(images), model(images), atol=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    manifest = ModelFolder(out).manifest
    assert manifest.settings["trained_on"]["from"] == "model folder small"
    assert (manifest.repeat, manifest.preprocessing) == ({}, small.manifest.preprocessing)
    dcvit.export(out, 2)
    assert dcvit.verify(out).passed
    dcvit.report(out)


def test_wrapped_half_and_other_models(small: ModelFolder, tmp_path: Path) -> None:
    model = dcvit.load(small.path)

    class DistributedDataParallel(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    out = dcvit.save(DistributedDataParallel(model), tmp_path / "wrapped", like=small.path)
    assert all(torch.equal(a, b) for a, b in zip(dcvit.load(out).parameters(), model.parameters(), strict=True))
    half = dcvit.load(dcvit.save(dcvit.load(small.path).half(), tmp_path / "half", like=small.path))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}

    with pytest.raises(InputError, match="exists; pass --overwrite"):
        dcvit.save(model, out, like=small.path)
    dcvit.save(model, out, like=small.path, overwrite=True)
    with pytest.raises(InputError, match=r"save: 'head.weight' is \[10, 32\] in .*small, and the model has \[3, 32\]"):
        other = dcvit.load(small.path)
        other.reset_classifier(3)
        dcvit.save(other, tmp_path / "other", like=small.path)
    with pytest.raises(InputError, match=r"the model has 'extra.weight', and .*small does not"):
        model.extra = torch.nn.Linear(1, 1)
        dcvit.save(model, tmp_path / "other", like=small.path)
    with pytest.raises(InputError, match="save: 1 of the .* numbers of 'head.bias' are not finite"):
        broken = dcvit.load(small.path)
        broken.head.bias.data[0] = torch.nan
        dcvit.save(broken, tmp_path / "other", like=small.path)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_of_any_training_becomes_a_folder(small: ModelFolder, tmp_path: Path, wrapped: bool) -> None:
    """With the prefix of a wrapper and beside an optimizer's state too, as training scripts write it."""
    model = trained(small)
    state = model.state_dict()
    kept = {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3} if wrapped else state
    torch.save(kept, tmp_path / "trained.pth")
    result = dcvit.compress(
        small.path, out=tmp_path / "small2", checkpoint=tmp_path / "trained.pth", recover="none"
    )  # fmt: skip
    assert result.summary.plan == small.plan
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dcvit.load(tmp_path / "small2")(images), model(images))
    assert "and trained on by its user, from model folder small: the checkpoint trained.pth" in [
        str(line) for line in dcvit.inspect(tmp_path / "small2").lines()
    ]
    assert ModelFolder(tmp_path / "small2").manifest.settings["trained_on"]["checkpoint"] == "trained.pth"
    json.dumps(result.to_json())


def test_a_checkpoint_of_a_folder_is_compressed_further(small: ModelFolder, tmp_path: Path) -> None:
    model = trained(small)
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    asked = {"checkpoint": tmp_path / "trained.pth", "recover": "none", "macs_reduction": 0.1}
    dcvit.compress(small.path, out=tmp_path / "smaller", **asked)
    kept = dcvit.load(tmp_path / "smaller").state_dict()
    assert torch.equal(kept["head.weight"], model.state_dict()["head.weight"])


def test_a_loaded_model_is_evaluated_and_compressed_in_memory(small: ModelFolder, tmp_path: Path) -> None:
    """Before it is saved, to see what a training was worth."""
    model = trained(small)
    data = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), [index % 10 for index in range(20)]
    found = dcvit.evaluate(model, data)
    saved = dcvit.save(model, tmp_path / "small2", like=small.path)
    assert found.figures == dcvit.evaluate(saved, data).figures
    dcvit.compress(model, out=tmp_path / "smaller", recover="none", macs_reduction=0.1)
    assert ModelFolder(tmp_path / "smaller").plan.merges == small.plan.merges
    model.reset_classifier(3)
    with pytest.raises(InputError, match="'head.weight' of the model is not what it was when dcvit.load gave it"):
        dcvit.evaluate(model, data)


def test_what_a_folder_does_not_take(small: ModelFolder, tmp_path: Path) -> None:
    for option in ({"model_kwargs": {"num_classes": 3}}, {"weights": "random"}):
        with pytest.raises(InputError, match="is a model folder; leave out --model-kwargs and --random-init"):
            dcvit.compress(small.path, out=tmp_path / "other", recover="none", macs_reduction=0.1, **option)
    with pytest.raises(InputError, match="nothing to do: give a target, such as --macs-reduction 0.3"):
        dcvit.compress(small.path, out=tmp_path / "other", recover="none")
