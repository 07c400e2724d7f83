"""The model of the demo: a small ViT for the bundled digits, whose weights ship with the package."""

from pathlib import Path
from typing import Any

MODEL = "deit_tiny_patch16_224"
MODEL_KWARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 64,
    "depth": 8,
    "num_heads": 4,
    "num_classes": 10,
    "pretrained_cfg_overlay": {"mean": [0.3, 0.3, 0.3], "std": [0.35, 0.35, 0.35], "crop_pct": 1.0},
}
WEIGHTS = Path(__file__).parent / "assets" / "digits_vit.safetensors"
"""Trained by `benchmarks/train_digits_vit.py`."""
