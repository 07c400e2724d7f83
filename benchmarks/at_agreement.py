"""How fast a method is at equal agreement with the original, read off the sizes that it was measured at."""

from collections.abc import Iterable

import numpy as np


def at_agreement(sizes: Iterable[tuple[float, float]], agreement: float) -> float | None:
    """Speed-up at which a method still agrees so far; None beyond its sizes.

    Between two sizes it is read off a line, and a size agrees no better than a slower one.

    Args:
        sizes: Speed-up and agreement of each.
        agreement: In the unit of theirs.
    """
    found = sorted(sizes)
    speeds = [speed for speed, _ in found]
    agreements = np.minimum.accumulate([each for _, each in found])
    if not agreements[-1] <= agreement <= agreements[0]:
        return None
    return float(np.interp(-agreement, -agreements, speeds))
