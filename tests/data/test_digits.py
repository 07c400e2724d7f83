"""The bundled digits are the UCI set's."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from dcvit.data.digits import FILE, DigitsSource


def test_they_are_those_of_the_uci_set() -> None:
    """Counts of the set's own description (optdigits.names, test part)."""
    found = load_file(FILE)
    assert found["images"].shape == (1797, 8, 8)
    assert (found["images"].min(), found["images"].max()) == (0, 16)
    assert np.bincount(found["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    first = found["images"][0]  # the first line of optdigits.tes: a 0
    assert first[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert found["labels"][0] == 0


def test_they_are_scikit_learns_where_that_is_installed() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    ours = load_file(FILE)
    assert np.array_equal(ours["images"], theirs.images)
    assert np.array_equal(ours["labels"], theirs.target)


def test_splits_share_nothing_and_hold_all() -> None:
    train, test = (DigitsSource(split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (1297, 500)
    labels = [source.read(index)[1] for source in (train, test) for index in range(len(source))]
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
