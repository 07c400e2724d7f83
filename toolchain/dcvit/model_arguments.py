"""Which models a plan may name, and which arguments it may give them: those that shape a model, and no others.

timm takes much more at the same place: files to load weights from, places to keep downloads in, configurations to
fetch. A plan comes from anywhere, so what is not known to be harmless is refused.
"""

import math
import re
from typing import Any

from dcvit.errors import InputError

_SHAPING = {
    "input and output": """
        img_size patch_size in_chans num_classes global_pool dynamic_img_size dynamic_img_pad strict_img_size
        ref_feat_shape head_init_scale
    """,
    "widths and depths": """
        embed_dim depth depths num_heads num_kv_heads head_dim mlp_ratio layers channels cardinality
        base_width stem_width depth_token_only mlp_ratio_token_only swiglu_mlp swiglu_align_to
        attn_pool_num_heads attn_pool_mlp_ratio
    """,
    "attention and positions": """
        qkv_bias qkv_fused qk_norm scale_attn_norm scale_attn_inner scale_mlp_norm scale_mlp attn_type
        proj_bias class_token pos_embed no_embed_class reg_tokens num_reg_tokens use_abs_pos_emb
        use_rot_pos_emb use_rel_pos_bias use_shared_rel_pos_bias rope_type rope_grid_offset rope_grid_indexing
        rope_temperature rope_rotate_half rope_shift_coords rope_jitter_coords rope_rescale_coords
        rope_mrope_section rel_pos_type rel_pos_dim shared_rel_pos window_size always_partition
        pretrained_window_sizes
    """,
    "norms, activations and layers, by name": """
        init_values attn_only_layer_scale pre_norm final_norm fc_norm pool_include_prefix use_post_norm
        use_pre_transformer_norm use_post_transformer_norm use_fc_norm embed_layer embed_norm_layer norm_layer
        act_layer mlp_layer attn_layer block_fn block_layers block_layers_token patch_layer attn_block
        mlp_block attn_block_token_only mlp_block_token_only aa_layer block block_args output_stride stem_type
        replace_stem_pool block_reduce_first down_kernel_size avg_down
    """,
    "what only a training or an initialisation sees": """
        drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate drop_block_rate
        weight_init fix_init zero_init_last
    """,
}

SHAPING = frozenset(name for names in _SHAPING.values() for name in names.split())
"""Arguments of the constructors of timm's Vision Transformers, EVA, BEiT, CaiT, Swin and ResNet."""

OVERLAY = "pretrained_cfg_overlay"
"""The one argument besides, whose own fields are these."""

PREPROCESSING = frozenset({
    "input_size", "min_input_size", "fixed_input_size", "test_input_size", "pool_size", "mean", "std", "crop_pct",
    "test_crop_pct", "crop_mode", "interpolation", "num_classes",
})  # fmt: skip

LARGEST, DEEPEST = 1 << 20, 1024
"""Limits of a number, and of one that counts layers: what lies beyond is no model but a way to fill the memory."""

_LAYERS = frozenset({"depth", "depths", "layers", "depth_token_only"})
_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)


def check_name(name: str) -> None:
    """Whether a name is one of timm's own, by its letters.

    Raises:
        InputError: If it says where to load from (`hf-hub:`, `local-dir:`), or is a path.
    """
    if ":" in name:
        raise InputError(
            f"'{name}' says where to load from, and only timm's own names are taken; name the architecture, "
            "and your weights with --checkpoint FILE"
        )
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is neither a model folder nor a timm model; `timm.list_models()` lists them")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Whether arguments do nothing but shape a model.

    Raises:
        InputError: By the name of the first that may do more, or whose value is beyond all bounds.
    """
    for name, value in arguments.items():
        if name == OVERLAY:
            _check_overlay(value)
        elif name not in SHAPING:
            raise InputError(
                f"model_kwargs: '{name}' does not shape a model, so it is refused; weights are given with --checkpoint "
                "FILE, and what timm's constructors call the sizes and layers of a model is taken"
            )
        _check_values(name, value, DEEPEST if name in _LAYERS else LARGEST)


def _check_overlay(overlay: Any) -> None:
    if not isinstance(overlay, dict):
        raise InputError(f'model_kwargs: {OVERLAY} must be an object, such as {{"mean": [0.5, 0.5, 0.5]}}')
    if unknown := [name for name in overlay if name not in PREPROCESSING]:
        raise InputError(
            f"model_kwargs: '{unknown[0]}' of {OVERLAY} says nothing of how images are prepared, so it is refused; "
            f"it may have {', '.join(sorted(PREPROCESSING))}"
        )


def _check_values(name: str, value: Any, largest: int) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check_values(name, inner, largest)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_values(name, inner, largest)
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= largest):
        raise InputError(f"model_kwargs: {name} {value:.3g} is no size that a model can have (at most {largest})")
