"""Drawing inline SVG: shapes styled by class, so that the page's style sheet colours them for light and dark alike."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDE, NARROW = 760, 350
"""Widths that a figure is drawn in, in CSS pixels: the text column of a laptop, and that of a phone."""


@dataclass
class Drawing:
    """A figure under construction, in CSS pixels with the origin at the top left.

    Attributes:
        label: What the figure shows, for those who do not see it.
    """

    width: float
    height: float
    label: str
    parts: list[Markup] = field(default_factory=list)

    def rect(self, x: float, y: float, width: float, height: float, style: str, title: str = "") -> None:
        """A rectangle; `style` is its class, `title` what hovering over it shows."""
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self._add("rect", box, style, title)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._add("line", f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"', style)

    def path(self, points: list[tuple[float, float]], style: str, *, closed: bool = False) -> None:
        """Straight lines through points."""
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", f'd="M{steps}{"Z" if closed else ""}"', style)

    def circle(self, x: float, y: float, radius: float, style: str, title: str = "") -> None:
        """A disc."""
        self._add("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"', style, title)

    def diamond(self, x: float, y: float, radius: float, style: str, title: str = "") -> None:
        """A square on its tip."""
        tips = f"M{x:.1f} {y - radius:.1f}L{x + radius:.1f} {y:.1f}L{x:.1f} {y + radius:.1f}L{x - radius:.1f} {y:.1f}Z"
        self._add("path", f'd="{tips}"', style, title)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """Text whose baseline is at y; `anchor` is start, middle or end."""
        self.parts.append(
            Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
                f"{x:.1f}", f"{y:.1f}", style, anchor, text
            )
        )

    def render(self) -> Markup:
        """The element; a screen reader hears the label alone."""
        body = Markup("").join(self.parts)
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            f"{self.width:g}", f"{self.height:g}", self.label, body
        )

    def _add(self, kind: str, geometry: str, style: str, title: str = "") -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(Markup(f'<{kind} {geometry} class="{style}">{told}</{kind}>'))  # noqa: S704 (our own numbers)


def both(draw: Callable[[float], Drawing]) -> Markup:
    """A figure drawn twice, for wide and for narrow screens; the style sheet shows one of them."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        draw(WIDE).render(), draw(NARROW).render()
    )


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._flat(number) for number in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def _flat(self, number: float) -> float:
        return math.log10(max(number, 1e-12)) if self.logarithmic else number


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    return list(_steps(math.ceil(low / step - 1e-9) * step, high, step))


def _steps(value: float, high: float, step: float) -> Iterator[float]:
    while value <= high + 1e-9 * step:
        yield round(value, 12)
        value += step


def tick_label(value: float) -> str:
    """A tick's number without superfluous zeros."""
    return f"{value:,.6g}".replace("-", "−")


def power_label(exponent: int) -> str:
    """10 to a whole power, such as 10⁻³."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
