"""--batch of commands that take any number of images for one."""

from dcvit.errors import InputError
from dcvit.variant import Batch


def batch_named(word: str | int) -> Batch:
    """A number of images, or the word for any.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(word, int):
        return word
    if word == "dynamic":
        return "dynamic"
    if not word.isdecimal():
        raise InputError(f"--batch {word}: give a number of images, or 'dynamic'")
    return int(word)
