"""Pictures of what a model folder holds: where its tokens merge, and the channels that its blocks keep."""

from pathlib import Path
from typing import TYPE_CHECKING

from dcvit.data import Images, open_source
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.pictures.channels import draw_channels
from dcvit.pictures.matplotlib_needed import require_matplotlib
from dcvit.pictures.tokens import draw_tokens, first_image
from dcvit.subject import open_shapes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS, CHANNELS = "tokens.png", "channels.png"


def write_pictures(folder: ModelFolder, out: Path, data: Images | None = None) -> list[Path]:
    """Draws `channels.png` and, where tokens merge, `tokens.png` into a folder, which is made if need be.

    Args:
        folder: The model.
        out: Where to write.
        data: The first image of it is what the token grids are drawn over; without it they are drawn on white.

    Raises:
        InputError: If there are no images, the folder cannot be written to, or matplotlib is not installed.
    """
    require_matplotlib("--pictures")
    subject = open_shapes(folder.path)
    figures: dict[str, Figure] = {CHANNELS: draw_channels(folder.plan, subject.architecture, subject.family)}
    if folder.plan.merges:
        preprocessing = folder.manifest.preprocessing
        image = None if data is None else first_image(open_source(data, "test"), preprocessing)
        figures[TOKENS] = draw_tokens(folder.plan, subject.architecture, image)
    if out.exists() and not out.is_dir():
        raise InputError(f"--pictures: {out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / name, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)
    return [out / name for name in figures]
