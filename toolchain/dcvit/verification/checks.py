"""One check, and what it found."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """Whether something holds.

    Attributes:
        name: The file, and what was checked about it.
        max_abs_error: Largest difference between two outputs, in logits; None where numbers are not compared.
        tolerance: What it may be.
        detail: What was found, in words.
    """

    name: str
    passed: bool
    detail: str = ""
    max_abs_error: float | None = None
    tolerance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {
            "name": self.name,
            "passed": self.passed,
            "max_abs_error": self.max_abs_error,
            "tolerance": self.tolerance,
            "detail": self.detail,
        }


def holds(name: str, faults: list[str], otherwise: str) -> Check:
    """A check that passes when there are no faults; the first of them is the detail, else `otherwise`."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Check(name, not faults, faults[0] + more if faults else otherwise)
