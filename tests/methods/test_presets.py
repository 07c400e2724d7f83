"""Presets: targets that tables of latencies decided, and what a model folder says of them."""

from pathlib import Path
from typing import Any

import pytest

from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.cait.proposal import summarize_jointly
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.milliseconds import predicted
from dcvit.methods.presets import ASSETS, presets
from dcvit.methods.target import Target
from dcvit.pricing.kept import read_table
from dcvit.subject import open_shapes


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_as_fast_as_its_table_says(name: str) -> None:
    preset = presets()[name]
    subject = open_shapes(preset.model)
    table = read_table(ASSETS / f"{name}.json")
    asked = Target(merge=preset.merge, macs_reduction=preset.macs_reduction)
    plan = summarize_jointly(subject, asked, CaitSettings()).plan
    found = predicted(subject, plan, table)
    assert found == pytest.approx(found | preset.made_for.model_dump(exclude={"preset"}))
    assert preset.made_for.preset == name


def test_a_folder_says_which_preset_it_is_of_and_holds_the_table(tmp_path: Path) -> None:
    made = compress("deit_tiny_patch16_224", out=tmp_path / "out", preset="cait-tiny", weights="random", recover="none")
    folder = ModelFolder(made.folder)
    made_for = presets()["cait-tiny"].made_for
    assert folder.manifest.settings["target"]["made_for"] == made_for.model_dump(mode="json")
    assert read_table(folder.path / "latency.json").setting.machine == made_for.machine
    assert folder.manifest.method == "cait"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "cait-huge"}, "there is no preset 'cait-huge'; there are cait-small"),
        ({"preset": "cait-small"}, "--preset cait-small is for deit_small_patch16_224"),
        ({"preset": "cait-tiny", "macs_reduction": 0.3}, "leave these out"),
        ({"preset": "cait-tiny", "settings": SearchSettings()}, "leave these out"),
    ],
)
def test_a_preset_that_cannot_be_is_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compress("deit_tiny_patch16_224", out=tmp_path / "out", weights="random", recover="none", **options)
