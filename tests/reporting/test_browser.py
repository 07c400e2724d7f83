"""The page in headless Chromium: at laptop and phone width, light and dark. Skipped where there is no browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcvit.reporting import report

sync_api = pytest.importorskip("playwright.sync_api")

LAPTOP, PHONE = (1280, 800), (390, 844)

_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = text => {
    canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return rgb(colour);
    }
  };
  const inside = element => element.closest('svg') !== null;
  const shown = [...document.querySelectorAll('body *')].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
    && element.checkVisibility() && !element.classList.contains('on') && !['STYLE', 'title'].includes(element.tagName));
  return shown.map(element => {
    const style = getComputedStyle(element);
    const pair = [light(rgb(inside(element) ? style.fill : style.color)), light(ground(element))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), element.outerHTML.slice(0, 80)];
  }).sort((a, b) => a[0] - b[0])[0];
}"""

_TEXT_OUTSIDE = """drawings => drawings.flatMap(drawing => {
  const place = drawing.getBoundingClientRect();
  return [...drawing.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < place.left - 1 || box.right > place.right + 1;
  }).map(text => text.textContent);
})"""
_WIDER = """[...document.querySelectorAll('.scroll:not(details .scroll), .bars li')]
  .filter(each => each.scrollWidth > each.clientWidth).map(each => each.textContent.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            # As root, which containers run as, Chromium starts without its sandbox only; the page is our own.
            arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
            started = playwright.chromium.launch(executable_path=executable, args=arguments)
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium that starts here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def html(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(full, tmp_path_factory.mktemp("browser") / "small-vit")
    return report(copy).html


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_page_fits_and_can_be_read(browser: Any, html: Path, size: tuple[int, int], scheme: str) -> None:
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, asked, faults = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(html.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [html.as_uri()]
    assert faults == []
    # One drawing of each pair is shown, none of them wider than the screen, and its text not smaller than 10 px.
    for drawn, expected in ((".wide", size == LAPTOP), (".narrow", size == PHONE)):
        visible = page.eval_on_selector_all(f"{drawn} svg", "all => all.map(each => each.checkVisibility())")
        assert len(visible) == 4
        assert set(visible) == {expected}
    shown = ".wide" if size == LAPTOP else ".narrow"
    scales = page.eval_on_selector_all(
        f"{shown} svg", "all => all.map(each => each.getBoundingClientRect().width / each.viewBox.baseVal.width)"
    )
    assert min(scales) > 0.9
    # What is written in a drawing stays in it, and no table that is always open and no bar is wider than its place.
    assert page.eval_on_selector_all(f"{shown} svg", _TEXT_OUTSIDE) == []
    assert page.evaluate(_WIDER) == []
    # WCAG 2.1 AA: at least 4.5 : 1 for text.
    ratio, where = page.evaluate(_CONTRAST)
    assert ratio >= 4.5, where
    red, _, _ = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red > 200) == (scheme == "light")
    context.close()
