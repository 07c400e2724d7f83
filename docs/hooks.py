"""For the site: what lies beside docs/ in a checkout is no page of it."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead out of docs/ become the words that they stand for."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)\s]+\)", r"\1", markdown)
