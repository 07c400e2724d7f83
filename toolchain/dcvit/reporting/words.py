"""Figures as a reader of the report sees them; no line is broken between a number and its unit."""

from typing import Any

from markupsafe import Markup, escape


def si(number: float, digits: int = 3) -> str:
    """A count with G, M or k."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:#.{digits}g}".removesuffix(".") + f"\u00a0{unit}"
    return f"{number:,.{digits}g}"


def change(before: float, after: float) -> str:
    """What went or came, in percent of what was there before."""
    share = after / before - 1
    return "±0\u00a0%" if abs(share) < 5e-4 else f"{share:+.1%}".replace("-", "−").replace("%", "\u00a0%")


def points(before: float, after: float) -> str:
    """A difference of two shares in percent, in points."""
    return signed(after - before) + "\u00a0pt"


def signed(number: float) -> str:
    """With two decimals and its sign."""
    return f"{number:+.2f}".replace("-", "−").replace("−0.00", "±0.00").replace("+0.00", "±0.00")


def ms(time: float) -> str:
    """A time in ms, with three or four figures."""
    return f"{time:,.4g}\u00a0ms" if time >= 1 else f"{time:.3g}\u00a0ms"


def seconds(time: float) -> str:
    """A duration: 9.1 s, 3 min 20 s, 2 h 5 min."""
    if time < 90:
        return f"{time:.1f} s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes, in decimal units."""
    return f"{si(count)}B" if count >= 1000 else f"{count} B"


def speedup(row: dict[str, Any]) -> str:
    """A measured ratio with its 95 % interval."""
    low, high = row["speedup_ci95"]
    return f"×{row['speedup']:.3f} [{low:.3f},\u00a0{high:.3f}]"


def broken_at_dots(name: str) -> Markup:
    """A file's name that a narrow column breaks after its dots, not anywhere."""
    return Markup(".<wbr>").join(escape(part) for part in name.split("."))
