"""What pictures are drawn on: a figure measured in inches, texts that are measured before they are placed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuit_tracer.graph.figures import require_matplotlib
from circuit_tracer.graph.palette import Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For texts that the first does not have; those that are not installed are passed over.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Hiragino Sans",
    "Noto Emoji",
)
_MEASURED_AT, _MEASURED_POINTS = 100, 20.0  # dots an inch, size of a character
_VISIBLE = {**{code: chr(0x2400 + code) for code in range(32)}, 0x0A: "⏎", 0x0D: "↵", 0x09: "⇥", 0x7F: "␡"}


class Rectangle(NamedTuple):
    """An upright rectangle, in inches."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Rectangle:
        """By its middle."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlap(self, other: Rectangle) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def holds(self, points: np.ndarray) -> int:
        """How many of these points (n, 2) are inside."""
        x, y = points[:, 0], points[:, 1]
        return int(((x > self.left) & (x < self.right) & (y > self.bottom) & (y < self.top)).sum())


class Canvas:
    """A figure of so many inches and its axes, whose units are inches too. Leaves matplotlib's backend and settings alone.

    Raises CircuitTracerError without matplotlib.
    """

    def __init__(self, width: float, height: float, palette: Palette) -> None:
        require_matplotlib()
        import matplotlib.figure

        self.palette, self.width = palette, width
        self.figure: Figure = matplotlib.figure.Figure(figsize=(width, height), facecolor=palette.panel)
        self.axes: Any = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float, colour: str | None = None, **more: Any) -> Any:
        """Write a text, middle at (x, y) unless ``ha`` and ``va`` say otherwise; nothing in it is markup."""
        style = {"ha": "center", "va": "center_baseline", "linespacing": 1.1, **more}
        colour = colour or self.palette.ink
        return self.axes.text(
            x, y, visible(text), fontsize=size, color=colour, family=fonts(), parse_math=False, **style
        )


@cache
def fonts() -> list[str]:
    """Families of fonts, in the order in which they are asked for a character."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in _FONTS if name in installed]


def text_size(text: str, size: float, bold: bool = False) -> tuple[float, float]:
    """Width and height of a text of one line, in inches; by its characters, each of which is measured once."""
    return size * sum(_advance(character, bold) for character in visible(text)), 1.2 * size / 72


@cache
def _advance(character: str, bold: bool) -> float:
    """Width of a character in inches a point."""
    from matplotlib.font_manager import FontProperties

    style = FontProperties(family=fonts(), size=_MEASURED_POINTS, weight="bold" if bold else "normal")
    width: float = _measure().get_text_width_height_descent(2 * character, style, False)[0]
    return width / 2 / _MEASURED_AT / _MEASURED_POINTS


@cache
def _measure() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, _MEASURED_AT)


def visible(text: str) -> str:
    """A text with control characters as signs; newlines of ours, between lines, stay."""
    return "\n".join(line.translate(_VISIBLE).encode("utf-8", "replace").decode() for line in text.split("\n"))


def wrapped(text: str, size: float, width: float, bold: bool = False) -> list[str]:
    """A text on as many lines as it needs, four at most."""
    lines = [""]
    for word in " ".join(text.split()).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_size(longer, size, bold)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = lines[:4]
    if len(lines) > 4:
        shown[-1] += " …"
    return [_shortened(line, size, width, bold) for line in shown]


def _shortened(line: str, size: float, most: float, bold: bool) -> str:
    if text_size(line, size, bold)[0] <= most:
        return line
    kept = next((at for at in range(len(line), 0, -1) if text_size(line[:at] + "…", size, bold)[0] <= most), 1)
    return line[:kept].rstrip() + "…"


_ONE_LINE = 0.85  # inches; shorter names are not broken


def token_text(text: str) -> str:
    """A token as pictures show it: without the space in front, white space by signs."""
    return (text.strip(" ") or text.replace(" ", "␣")).translate(_VISIBLE) or "∅"


def two_lines(text: str, size: float, most: float, bold: bool = False) -> list[str]:
    """A name on one line or two, as narrow as it goes. Of what two lines of ``most`` inches cannot hold, the end is cut."""
    words = " ".join(text.split()).split(" ")
    whole = " ".join(words)

    def wide(line: str) -> float:
        return text_size(line, size, bold)[0]

    if wide(whole) <= min(most, _ONE_LINE) or (len(words) == 1 and wide(whole) <= most):
        return [whole]
    splits = [(" ".join(words[:at]), " ".join(words[at:])) for at in range(1, len(words))]
    best = min(splits, key=lambda lines: max(map(wide, lines)), default=(whole, ""))
    if max(map(wide, best)) <= most:
        return list(best)
    first = max((at for at in range(1, len(whole)) if wide(whole[:at]) <= most), default=1)
    first = whole.rfind(" ", 0, first + 1) if " " in whole[: first + 1] else first
    return [whole[:first].strip(), _shortened(whole[first:].strip(), size, most, bold)]
