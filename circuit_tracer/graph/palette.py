"""The colours of pictures, which are those of the page (viewer/static/colours.css); a test compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from circuit_tracer.errors import InputError

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """Colours as #rrggbb, by the names that the style sheet gives them."""

    panel: str  # behind everything
    ink: str
    muted: str
    rule: str
    band: str
    accent: str
    positive: str  # edges that raise their target ...
    negative: str  # ... and that lower it
    node: str
    target: str


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        panel="#ffffff",
        ink="#1d2125",
        muted="#5c646c",
        rule="#e4e5e3",
        band="#f8f8f6",
        accent="#2457c5",
        positive="#1b7837",
        negative="#762a83",
        node="#e9ebee",
        target="#d3dcec",
    ),
    "dark": Palette(
        panel="#1b1f23",
        ink="#e6e8ea",
        muted="#9aa3ab",
        rule="#2b3036",
        band="#1f2327",
        accent="#86aaff",
        positive="#63c884",
        negative="#c592dc",
        node="#3a4149",
        target="#35435f",
    ),
}


def palette_of(theme: str) -> Palette:
    """Raises InputError for a theme that there is not."""
    for name, palette in PALETTES.items():
        if name == theme:
            return palette
    raise InputError(f"theme is {theme!r}; pictures are light or dark")
