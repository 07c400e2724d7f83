"""From the accuracy that may be lost to the smallest model that loses no more, on images that nothing was fitted to.

Every model that is judged is made as a whole, for only a recovered one shows what is lost; what the sizes share, such
as the damages that the solver measures, is found once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dcvit.agreement import finite
from dcvit.data import CorruptImages, Images, ImageSource, batches, check_order, fits, held_out, open_source
from dcvit.data.protocols import MaskSource
from dcvit.errors import InputError, TargetError
from dcvit.hardware import accelerator
from dcvit.preprocessing import Preprocessing
from dcvit.progress import say, track
from dcvit.settings import RunSettings
from dcvit.subject import Subject
from dcvit.types import TimmModule

TOLERANCE = 0.01
"""Share of the MACs between the model that is found and a smaller one that loses too much."""

HELD_OUT = 0.2
"""Share of the images that is held out where no others are given to judge by …"""
MOST_HELD_OUT = 5000
"""… and at most so many."""

_BATCH = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """What a model loses against the original.

    Attributes:
        drop: Points of top-1; without labels, percent of the images whose class is another.
        error: Standard error of the drop, in the same unit, for other images of the kind.
        agreement: Images with the same class, in percent.
        top1: In percent; None without labels.
        original: Top-1 of the original.
    """

    drop: float
    error: float
    agreement: float
    top1: float | None
    original: float | None


class Judge:
    """Compares compressed models with the original on images that are used for nothing else.

    Args:
        source: The images. Labels count where they can be the model's.
        words: Which images these are.
        subject: The original.

    Raises:
        InputError: If the model gives no class to an image, or labels are in another order than it knows.
    """

    def __init__(self, source: ImageSource, words: str, subject: Subject) -> None:
        if subject.plan.task != "classification" or subject.architecture.num_classes < 2:
            raise InputError("--max-drop counts the classes of images, and MODEL gives them none")
        self.source, self.words = source, words
        self.labelled = fits(source, subject.architecture.num_classes)
        if self.labelled:
            check_order(subject.classes, source, "MODEL")
        self._preprocessing = subject.preprocessing
        self._original: tuple[Tensor, Tensor] | None = None

    def judge(self, model: TimmModule, original: TimmModule) -> Judged:
        """What a model loses."""
        before, labels = self._classes_of_original(original)
        after, _ = _classes(model, self.source, self._preprocessing)
        n = len(before)
        agreement = 100 * float((before == after).sum()) / n
        if not self.labelled:
            share = agreement / 100
            return Judged(100 - agreement, 100 * math.sqrt(share * (1 - share) / n), agreement, None, None)
        right, still = before == labels, after == labels
        lost, won = int((right & ~still).sum()), int((~right & still).sum())
        error = 100 * math.sqrt(lost + won - (lost - won) ** 2 / n) / n
        top1 = [100 * float(each.sum()) / n for each in (right, still)]
        return Judged(100 * (lost - won) / n, error, agreement, top1[1], top1[0])

    def _classes_of_original(self, model: TimmModule) -> tuple[Tensor, Tensor]:
        if self._original is None:
            self._original = _classes(model, self.source, self._preprocessing)
        return self._original


@torch.no_grad()
def _classes(model: TimmModule, source: ImageSource, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Classes that a model gives, [n], and labels; logits that are not finite give none (−1)."""
    device = accelerator().device
    model = model.eval().to(device)
    found, labels = [], []
    read = batches(source, preprocessing, _BATCH, CorruptImages())
    for batch in track(read, "judging", -(-len(source) // _BATCH)):
        with accelerator().autocast():
            logits = model(batch.images.to(device)).float().cpu()
        found.append(torch.where(finite(logits), logits.argmax(1), -1))
        labels.append(batch.labels)
    return torch.cat(found), torch.cat(labels)


def held_apart(
    source: ImageSource | None, validation: Images | None, max_drop: float | None, run: RunSettings
) -> tuple[ImageSource | None, tuple[ImageSource, str] | None]:
    """The images to fit on, and those to judge by, with words for these; None where nothing is to be judged.

    Args:
        source: Images to fit on.
        validation: Images to judge by; None holds some out from the source.
        max_drop: Points; one image may not count for more.
        run: Its seed draws, its class map numbers the classes.

    Raises:
        InputError: If there are too few, or some are given for nothing.
    """
    if max_drop is None:
        if validation is not None:
            raise InputError("--validation is what --max-drop is measured on; give --max-drop too")
        return source, None
    need = math.ceil(100 / max_drop)
    if validation is not None:
        others = open_source(validation, "test", class_map=run.class_map)
        if len(others) < need:
            raise InputError(f"--max-drop {max_drop:g}: {_few(others, need)}; give more with --validation")
        return source, (others, f"{len(others):,} images of {others.name}")
    if source is None:
        raise InputError("--max-drop is measured on images: give --validation, or --data to hold some out from")
    if isinstance(source, MaskSource):
        raise InputError(f"--max-drop counts the classes of images, and {source.name} has masks")
    count = max(need, min(round(HELD_OUT * len(source)), MOST_HELD_OUT))
    if count > len(source) / 2:
        raise InputError(
            f"--max-drop {max_drop:g}: {_few(source, need)} held out, and more to fit on; give others with --validation"
        )
    rest, out = held_out(source, count, run.seed)
    return rest, (out, f"{count:,} images held out from {source.name}")


def _few(source: ImageSource, need: int) -> str:
    return f"{source.name} has {len(source)} images, and it takes {need}"


@dataclass
class Search(Generic[T]):
    """Bisects the share of the MACs that goes, until a model with `TOLERANCE` of the MACs less loses too much or cannot
    be made.

    Args:
        max_drop: That is allowed.
        make: The model of a share; the second argument is the best one so far, which removes less.
        judge: What it loses.
    """

    max_drop: float
    make: Callable[[float, T | None], T]
    judge: Callable[[T], Judged]
    tried: list[tuple[float, Judged]] = field(default_factory=list)

    def run(self) -> tuple[float, T, Judged]:
        """The largest share that is allowed, its model, and what that loses.

        Raises:
            TargetError: If every model that was made loses more.
        """
        low, high = 0.0, 1.0
        best: tuple[float, T, Judged] | None = None
        while high - low > TOLERANCE:
            share = (low + high) / 2
            try:
                made = self.make(share, None if best is None else best[1])
            except TargetError as error:
                if error.reach is not None and share < error.reach[0]:
                    low = error.reach[0]
                else:
                    high = share if error.reach is None else min(share, error.reach[1])
                continue
            judged = self._judged(share, made)
            if judged.drop <= self.max_drop:
                low, best = share, (share, made, judged)
            else:
                high = share
        if best is None and low > 0:  # the least that can go was not tried yet
            made = self.make(low, None)
            if (judged := self._judged(low, made)).drop <= self.max_drop:
                best = low, made, judged
        if best is None:
            raise TargetError(
                f"--max-drop {self.max_drop:g}: {self._least()}; allow more, or give more images or steps"
            )
        return best

    def _judged(self, share: float, made: T) -> Judged:
        judged = self.judge(made)
        self.tried.append((share, judged))
        say(f"−{share:.1%} MACs: loses {judged.drop:.2f} ± {judged.error:.2f}")
        return judged

    def _least(self) -> str:
        if not self.tried:
            return "no share of the MACs can be removed"
        share, judged = min(self.tried, key=lambda each: each[0])
        return f"even −{share:.1%} MACs loses {judged.drop:.2f}"


def in_metrics(search: Search[Any], found: tuple[float, Any, Judged], judge: Judge) -> dict[str, Any]:
    """What the manifest holds of a search."""
    share, _, judged = found
    return {
        "asked": search.max_drop,
        "measure": "top-1" if judge.labelled else "agreement",
        **vars(judged),
        "images": len(judge.source),
        "images_in_words": judge.words,
        "macs_reduction": share,
        "tolerance": TOLERANCE,
        "at_the_end_of_reach": not any(tried > share for tried, _ in search.tried),
        "tried": [{"macs_reduction": tried, "drop": each.drop} for tried, each in search.tried],
    }


def in_words(found: dict[str, Any]) -> str:
    """The same for the user."""
    within = f"; with {found['tolerance']:.0%} of the MACs less it was more than --max-drop {found['asked']:g}"
    if found["at_the_end_of_reach"]:
        within = "; nothing smaller can be made"
    if found["measure"] == "top-1":
        drop = f"top-1 {found['original']:.2f} → {found['top1']:.2f} % (−{found['drop']:.2f} ± {found['error']:.2f})"
        return f"{drop} on {found['images_in_words']}{within}"
    agreement = f"{found['agreement']:.2f} % (± {found['error']:.2f}) of the classes are the original's"
    return f"{agreement} on {found['images_in_words']}{within}"
