"""The README as an index shows it: links to files of this repository lead to where it is, or are plain words."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def long_description(readme: str, source: str | None) -> str:
    """The README with no link that only a checkout can follow.

    Args:
        readme: Its text.
        source: Address of the repository; None leaves the words of such links alone.
    """

    def absolute(link: re.Match[str]) -> str:
        words, target = link.groups()
        if re.match(r"https?:|#", target):
            return link[0]
        return words if source is None else f"[{words}]({source.rstrip('/')}/blob/main/{target})"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", absolute, readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=long_description(
            (HERE / "README.md").read_text(encoding="utf-8"), project["urls"].get("Source")
        ),
        long_description_content_type="text/markdown",
    )
