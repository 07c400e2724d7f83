"""Plans for well-known models: merges that are fixed, and the share of the MACs that pruning brings them to."""

from dataclasses import dataclass
from pathlib import Path

from dcvit.errors import InputError


@dataclass(frozen=True)
class Preset:
    """A target of CAIT for one model of timm.

    Attributes:
        model: timm name; its number of classes and its weights are free.
        merge: The schedule.
        macs_reduction: Share of the MACs to remove, merges included.
    """

    model: str
    merge: str
    macs_reduction: float

    def check(self, name: str, model: str | Path) -> None:
        """Checks that a model, a timm name or a folder, is the one that the preset is for.

        Raises:
            InputError: If it is not.
        """
        from dcvit.folder.model_folder import ModelFolder

        found = ModelFolder(model).plan.model if ModelFolder.is_one(model) else str(model)
        if found.split(".", 1)[0] != self.model:
            raise InputError(
                f"--preset {name} is for {self.model}, and the model is {found}; give --merge and a target"
            )


PRESETS = {
    "cait-tiny": Preset("deit_tiny_patch16_224", "horizontal@4,vertical@8", 0.45),
    "cait-small": Preset("deit_small_patch16_224", "horizontal@4,vertical@8", 0.5),
}
"""At 224 × 224 they are at least ×1.7 and ×1.9 as fast in ONNX Runtime on a CPU (fp32, batch 64)."""
