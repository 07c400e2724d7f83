"""Writes the digits that ship with the package, from scikit-learn's copy of the UCI set ('dcvit-tool[bench]').

python benchmarks/bundle_digits.py            # a second
"""

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from dcvit.data.digits import FILE


def main() -> None:
    found = load_digits()
    save_file({"images": found.images.astype(np.uint8), "labels": found.target.astype(np.uint8)}, FILE)
    FILE.chmod(0o644)  # it was written for its owner alone


if __name__ == "__main__":
    main()
