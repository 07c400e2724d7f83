"""How an image becomes a model's input, as data."""

from pydantic import BaseModel, ConfigDict


class Preprocessing(BaseModel):
    """How an image becomes the model's input; mean and std are in units of pixel values scaled to [0, 1].

    Attributes:
        input_size: (channels, height, width).
        crop_pct: Share of the resized image that the centre crop keeps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"
