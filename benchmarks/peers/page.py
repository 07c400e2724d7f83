"""Parts of a Markdown page that scripts write, each between two comments; the rest of the page is written by hand."""

from pathlib import Path

from dcvit.files import whole_file


def put(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`; a page without them gets them at its end."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before = page.read_text() if page.exists() else ""
    if start not in before:
        before += ("\n" if before else "") + start + end
    head, rest = before.split(start, 1)
    tail = rest.split(end, 1)[1]
    with whole_file(page) as aside:
        aside.write_text(head + start + text + end + tail)
