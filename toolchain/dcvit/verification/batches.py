"""Whether an image's row depends on the image alone, and not on where in a batch it stands or on what stands beside it.

Engines of others have been silently wrong exactly there: right for the first row or for batch 1, wrong for the rest.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dcvit.runtimes import Session
from dcvit.variant import Precision
from dcvit.verification.checks import Check
from dcvit.verification.parity import RELATIVE_TOLERANCE, Expected, agrees, check_logits

ALONE = 4
"""Images that are computed one by one."""

QUANTIZED_SHARE = RELATIVE_TOLERANCE["bf16"]
"""For int8 and fp8, which have no bound against PyTorch: between two rows of one runtime the scales are the same and
integer sums are exact, so that only a rounding that tips to the next of 256 steps differs, and that is the share of
bf16's.
"""

TIMES_NEAREST = 2
"""How many times farther than from any other image's row a row may be from its own.

A row in a wrong place is at no distance from another image's row, and as far from its own as the two images are: this
tells it whatever the precision, even where an untrained model gives rows that are closer than a tolerance. Rows of
which rounding alone decides which is nearest are about as far from both.
"""


def check_session(
    name: str,
    session: Session,
    expected: Sequence[Expected],
    precision: Precision,
    batch_of_one: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Check]:
    """Runs a session on all that is expected: parity on each set of images, and rows and batches on the last.

    Args:
        name: The file, and what runs it.
        session: A model in a runtime.
        expected: Images and what PyTorch makes of them.
        precision: Of the computation.
        batch_of_one: Logits of images by the same runtime's file of batch 1, where the folder has one.
    """
    for each in expected:
        logits = session.infer(each.images)
        if logits.shape != each.logits.shape:
            given, wanted = ("×".join(map(str, shape)) for shape in (logits.shape, each.logits.shape))
            yield Check(f"{name}: logits", False, f"they are {given}, and PyTorch's {wanted}")
            return
        yield from check_logits(name, logits, each, precision)
    if bool(torch.isfinite(logits).all()) and bool(torch.isfinite(each.logits).all()):  # else parity has failed
        yield from check_batches(name, session, each, logits, precision, batch_of_one)


def check_batches(
    name: str,
    session: Session,
    expected: Expected,
    logits: Tensor,
    precision: Precision,
    batch_of_one: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Check]:
    """Equal images give equal rows, a permuted batch gives permuted rows, and batch 1 gives what the batch gives.

    Two positions of one batch may be computed by kernels that sum in another order, as two runtimes do: what may differ
    is what may differ between these (`RELATIVE_TOLERANCE`), and mostly nothing does.

    Args:
        name: The file, and what runs it.
        session: A model in a runtime.
        expected: Images and what PyTorch makes of them.
        logits: What the session makes of these images, all of them finite.
        precision: Of the computation.
        batch_of_one: Logits of images by the same runtime's file of batch 1; without it PyTorch computes them alone.
    """
    share = RELATIVE_TOLERANCE.get(precision, QUANTIZED_SHARE)
    tolerance = share * max(logits.abs().max().item(), 1e-6)
    yield _equal_images(f"{name}: equal images", session, expected.images[0], tolerance)
    yield _permuted(f"{name}: permuted batch", session, expected.images, logits, tolerance)
    some = min(ALONE, len(logits))
    if batch_of_one is None:
        alone, what, times = expected.alone[:some], "PyTorch, one image at a time", 1
    else:  # which may be off from PyTorch as much as this file is, the other way
        alone, what, times = batch_of_one(expected.images[:some]), "the file of batch 1", 2
    yield agrees(f"{name}: batch 1", logits[:some], alone, expected, precision, times, f"against {what}: ")


def _equal_images(name: str, session: Session, image: Tensor, tolerance: float) -> Check:
    rows = session.infer(image.expand(max(session.batch, 2), *image.shape).contiguous())
    error = (rows - rows[:1]).abs().max().item()
    return _within(name, error, tolerance, f"{len(rows)} times the same image")


def _permuted(name: str, session: Session, images: Tensor, logits: Tensor, tolerance: float) -> Check:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    rows = session.infer(images[order])
    error = (rows - logits[order]).abs().max().item()
    distances = torch.cdist(rows.flatten(1).double(), logits.flatten(1).double())
    own = distances.gather(1, order[:, None])[:, 0]
    misplaced = int((own > TIMES_NEAREST * distances.min(1).values).sum())
    check = _within(name, error, tolerance, f"{len(rows)} images in another order")
    if misplaced:
        detail = f"{misplaced} of {len(rows)} rows are another image's"
        return Check(name, False, detail, check.max_abs_error, tolerance)
    return check


def _within(name: str, error: float, tolerance: float, found: str) -> Check:
    if not error < float("inf"):  # NaN too, which no JSON holds
        return Check(name, False, f"{found}: logits are NaN or infinite", tolerance=tolerance)
    return Check(name, error <= tolerance, found, error, tolerance)
