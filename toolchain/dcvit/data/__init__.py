"""Images: where they come from, how they are prepared, and drawing a few of them."""

from dcvit.data.classes import check_order, class_names, fits, names_of
from dcvit.data.digits import DIGITS, DigitsSource
from dcvit.data.few_shot import FewShot, draw_few_shot
from dcvit.data.part import PartSource, held_out
from dcvit.data.protocols import ImageSource
from dcvit.data.randomness import derived_seed, seeded
from dcvit.data.reading import Batch, CorruptImages, batches, check_channels, decode, prepared
from dcvit.data.sources import FileSource, Images, JoinedSource, open_source
from dcvit.data.transforms import evaluation_transform, normalised, preprocessing_of, training_transform

__all__ = [
    "DIGITS",
    "Batch",
    "CorruptImages",
    "DigitsSource",
    "FewShot",
    "FileSource",
    "ImageSource",
    "Images",
    "JoinedSource",
    "PartSource",
    "batches",
    "check_channels",
    "check_order",
    "class_names",
    "decode",
    "derived_seed",
    "draw_few_shot",
    "evaluation_transform",
    "fits",
    "held_out",
    "names_of",
    "normalised",
    "open_source",
    "prepared",
    "preprocessing_of",
    "seeded",
    "training_transform",
]
