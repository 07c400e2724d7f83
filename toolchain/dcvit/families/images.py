"""The images that a timm model of patches takes, and the grid that it makes of them."""

from dcvit.types import TimmModule


def input_size(model: TimmModule) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model is built for."""
    patches = model.patch_embed
    # Behind a convolutional backbone `proj` reads the backbone's channels, and `in_chans` are the images'.
    channels = patches.in_chans if hasattr(patches, "backbone") else patches.proj.in_channels
    return (channels, *patches.img_size)


def unfit_images(model: TimmModule) -> str | None:
    """Why the model cannot take images of the size that it is built for, in words; None where it can."""
    patches = model.patch_embed
    if patches.img_size is None:
        return "images of any size; give img_size in --model-kwargs: it"
    if len(patches.img_size) != 2 or len(patches.patch_size) != 2:
        return f"images of {list(patches.img_size)} in patches of {list(patches.patch_size)}, not two sides each,"
    sides = tuple(zip(patches.img_size, patches.patch_size, strict=True))
    divided = all(side % patch == 0 for side, patch in sides)
    if divided or hasattr(patches, "backbone"):
        return None
    height, width = patches.img_size
    asked = f"{height}×{width}, which its patches of {patches.patch_size[0]}×{patches.patch_size[1]} do not divide"
    if not patches.strict_img_size and not patches.dynamic_img_pad:
        return f"dynamic_img_size and images of {asked}, without dynamic_img_pad,"
    if patches.strict_img_size and patches.dynamic_img_pad:
        return f"dynamic_img_pad and images of {asked}, without dynamic_img_size,"
    return None
