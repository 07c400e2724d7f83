"""Some images of a source, such as those that nothing is fitted to."""

from collections.abc import Sequence

import numpy as np

from dcvit.data.protocols import ImageSource


class PartSource:
    """Images of a source by their numbers; names and classes are the whole's."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        """Takes some."""
        self._source, self._indices = source, indices
        self.name = source.name
        self.named: bool = getattr(source, "named", True)
        self.mapped: bool = getattr(source, "mapped", False)
        if (content := getattr(source, "content", None)) is not None:
            self._content = content
            self.content = self._content_of

    @property
    def classes(self) -> list[str]:
        """Of the whole."""
        return self._source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._source.read(self._indices[index])

    def filename(self, index: int) -> str:
        return self._source.filename(self._indices[index])

    def _content_of(self, indices: Sequence[int]) -> str:
        return str(self._content([self._indices[index] for index in indices]))


def held_out(source: ImageSource, count: int, seed: int) -> tuple[PartSource, PartSource]:
    """A source without `count` of its images, drawn at random, and these; each in the source's order."""
    drawn = np.random.default_rng((seed, 1)).permutation(len(source))
    rest, out = np.sort(drawn[count:]), np.sort(drawn[:count])
    return PartSource(source, rest.tolist()), PartSource(source, out.tolist())
