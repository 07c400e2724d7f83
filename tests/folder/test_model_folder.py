import json
from pathlib import Path

import pytest
import torch

from dcvit.errors import InputError
from dcvit.files import whole_file, whole_folder
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=1.0
)


def manifest_of(plan: CompressionPlan) -> Manifest:
    return Manifest(model=plan.model, method="none", plan_digest="", seed=0, preprocessing=PREPROCESSING)


@pytest.fixture
def plan(tiny_plan: CompressionPlan) -> CompressionPlan:
    return tiny_plan.with_blocks(BlockPlan(index=1, removed="attention", mlp_hidden=40)).replace(
        merges=(Merge(after=2, axis="horizontal"),), merge_operator="linear", size_aware_attention=True
    )


@pytest.fixture
def folder(tmp_path: Path, plan: CompressionPlan) -> ModelFolder:
    return ModelFolder.create(tmp_path / "out", build(plan), plan, manifest_of(plan))


def test_round_trip_gives_equal_outputs(tmp_path: Path, plan: CompressionPlan) -> None:
    model = build(plan)
    images = torch.randn(2, 3, 32, 32)
    folder = ModelFolder.create(tmp_path / "out", model, plan, manifest_of(plan))
    assert torch.equal(folder.load()(images), model(images))
    assert set(folder.manifest.files) == {"plan.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
def test_a_changed_file_is_refused_by_name(folder: ModelFolder, name: str) -> None:
    path = folder.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{name} has changed"):
        ModelFolder(folder.path)


def test_a_missing_file_and_a_broken_manifest_are_refused(folder: ModelFolder) -> None:
    (folder.path / "model.safetensors").rename(folder.path / "elsewhere")
    with pytest.raises(InputError, match="is missing"):
        ModelFolder(folder.path)
    (folder.path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        ModelFolder(folder.path)


def test_a_plan_that_is_not_the_manifests_is_refused(folder: ModelFolder) -> None:
    manifest = json.loads((folder.path / "manifest.json").read_text())
    (folder.path / "manifest.json").write_text(json.dumps(manifest | {"plan_digest": "0" * 64}))
    with pytest.raises(InputError, match="is not the plan of"):
        ModelFolder(folder.path)


def test_add_lists_the_file_and_survives_reopening(folder: ModelFolder) -> None:
    folder.add("bench.json", lambda path: path.write_text("{}") and None, export={"batch": 64})
    again = ModelFolder(folder.path)
    assert again.manifest.files["bench.json"].bytes == 2
    assert again.manifest.exports["bench.json"] == {"batch": 64}
    assert again.file("bench.json", made_by="x").is_file()
    with pytest.raises(InputError, match="make it with `dcvit-tool export"):
        again.file("model.b64.fp32.onnx", made_by="dcvit-tool export …")


def test_an_existing_folder_needs_overwrite(folder: ModelFolder, plan: CompressionPlan) -> None:
    with pytest.raises(InputError, match="--overwrite"):
        ModelFolder.create(folder.path, build(plan), plan, manifest_of(plan))
    ModelFolder.create(folder.path, build(plan), plan, manifest_of(plan), overwrite=True)
    assert [path.name for path in folder.path.parent.iterdir()] == ["out"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as aside:
        aside.write_text("half of the n")
        raise RuntimeError
    assert target.read_text() == "old"
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder", overwrite=False) as aside:
        (aside / "x").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
