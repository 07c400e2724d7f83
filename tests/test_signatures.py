"""One model of each odd kind that `benchmarks/signatures.py` found among all that timm registers in our families."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("signatures", ROOT / "benchmarks" / "signatures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


signatures = load()

TAKEN = [
    "vit_tiny_r_s16_p8_224",  # behind a convolutional backbone
    "vit_base_patch16_siglip_224",  # an attention pool, no class token
    "eva02_tiny_patch14_224",  # rotary positions, a gated MLP
    "vit_small_patch16_dinov3",  # images of any size
    "beitv2_base_patch16_224",
    "cait_xxs24_224",
    "swinv2_tiny_window8_256",
]
REFUSED = {
    "beit3_base_patch16_224": "a norm inside the MLP",
    "vit_base_patch16_rpn_224": "blocks of type ResPostBlock",
    "vit_dlittle_patch16_reg1_gap_256": "attention of type DiffAttention",
    "vit_base_patch16_rope_mixed_224": "rotary embeddings that differ from block to block",
}


@pytest.mark.parametrize("name", TAKEN)
def test_nothing_cut_is_equal_and_tokens_are_counted(name: str) -> None:
    assert signatures.identity(name, signatures.shrunk(name)) == "ok"


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_plan_can_handle_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    steps = signatures.try_model(name, tmp_path, tmp_path)
    assert signatures.outcome(steps) == "refused"
    assert all(REFUSED[name] in each for each in steps.values())


@pytest.mark.parametrize("name", ["aimv2_large_patch14_224", "vit_tiny_r_s16_p8_224"])
def test_layers_without_bias_and_hybrids_go_the_whole_way(name: str, tmp_path: Path) -> None:
    steps = signatures.try_model(name, signatures.random_images(tmp_path / "images"), tmp_path)
    assert steps == dict.fromkeys(signatures.STEPS, "ok")
