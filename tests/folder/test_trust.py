"""A folder that somebody else made: names in it lead nowhere else, and its numbers are numbers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcvit.errors import InputError
from dcvit.files import sha256_of
from dcvit.folder.findings import keep, read
from dcvit.folder.model_folder import MANIFEST, WEIGHTS, ModelFolder
from dcvit.folder.records import onnx_records
from dcvit.model import create, load_checkpoint
from dcvit.plan import CompressionPlan
from dcvit.reporting import report
from dcvit.subject import open_subject

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]


def rewrite(folder: ModelFolder, **changes: object) -> None:
    """Changes fields of the manifest as whoever made the folder could."""
    path = folder.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["../precious.txt", "{root}/precious.txt", ".hidden", "sub/file"])
@pytest.mark.parametrize("where", ["files", "exports"])
def test_no_entry_of_a_manifest_leads_out_of_the_folder(
    name: str, where: str, tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan
) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    name = name.format(root=tmp_path)
    entry = {"sha256": sha256_of(precious), "bytes": 8} if where == "files" else {"kind": "onnx"}
    rewrite(folder, **{where: folder.manifest.model_dump(mode="json")[where] | {name: entry}})
    with pytest.raises(InputError, match=r"manifest\.json cannot be read: .* is no name of a file"):
        ModelFolder(folder.path)
    with pytest.raises(InputError, match="is no name of a file"):  # one that was opened before removes nothing either
        folder.remove([name])
    assert precious.read_text() == "precious"


def test_an_engine_is_made_from_a_file_of_its_folder(exported_copy: ModelFolder) -> None:
    from dcvit.folder.records import EngineRecord

    assert onnx_records(exported_copy)
    with pytest.raises(InputError, match="is no name of a file"):
        EngineRecord.model_validate({"onnx": "../model.b4.fp32.onnx"})


def test_a_frontier_writes_into_no_folder_but_its_own(
    tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan
) -> None:
    victim = make_folder(tmp_path / "victim", tiny_plan)
    before = sorted(path.name for path in victim.path.iterdir())
    (tmp_path / "frontier").mkdir()
    (tmp_path / "frontier" / "frontier.json").write_text(json.dumps({"points": [{"folder": "../victim"}]}))
    with pytest.raises(InputError, match=r"frontier\.json: '\.\./victim' is no name"):
        report(tmp_path / "frontier")
    assert sorted(path.name for path in victim.path.iterdir()) == before
    shutil.move(tmp_path / "frontier" / "frontier.json", tmp_path / "frontier.json")
    with pytest.raises(InputError, match="is no name"):  # the one around a folder
        report(victim.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    value: float, tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan
) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    state = load_file(folder.path / WEIGHTS)
    state["blocks.1.mlp.fc1.weight"][3, 5] = value
    folder.add(WEIGHTS, lambda path: save_file(state, path))
    with pytest.raises(InputError, match=r"model\.safetensors: 1 of the .* numbers of 'blocks\.1\.mlp\.fc1\.weight'"):
        folder.load()
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    for name, write in (("a.safetensors", save_file), ("a.pth", torch.save)):
        write(state, tmp_path / name)
        with pytest.raises(InputError, match=r"--checkpoint: .*'blocks\.1\.mlp\.fc1\.weight' are not finite"):
            load_checkpoint(model, tmp_path / name)
    with pytest.raises(InputError, match="are not finite"):
        open_subject(model)


def test_a_number_that_is_finite_in_the_file_alone_is_refused(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    state["head.bias"][0] = 1e200
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"'head\.bias' are not finite"):
        load_checkpoint(model, tmp_path / "a.safetensors")


def test_what_is_kept_is_strict_json(tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    keep(folder, "verify.json", lambda: {"checks": [{"max_abs_error": float("nan")}]})
    assert read(folder, "verify.json") == {"checks": [{"max_abs_error": None}]}
    folder.manifest.metrics["kl"] = float("inf")
    assert '"kl":null' in folder.manifest.model_dump_json()


def test_the_weights_may_be_read_by_whom_the_other_files_may(
    tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan
) -> None:
    before = os.umask(0o027)
    try:
        folder = make_folder(tmp_path / "model", tiny_plan)
    finally:
        os.umask(before)
    assert {(folder.path / name).stat().st_mode & 0o777 for name in (WEIGHTS, "plan.json", MANIFEST)} == {0o640}
