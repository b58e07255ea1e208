"""The pictures of the README: the grouped circuit that `make demo` draws, on light and on dark.

python -m benchmarks.pictures
"""

from __future__ import annotations

from pathlib import Path

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.circuits.pictures import draw
from circuit_tracer.demo import PROMPT, load_labels
from circuit_tracer.demo.show import load_demo, named_groups

FOLDER = Path(__file__).parents[1] / "circuit_tracer" / "demo"
THEMES = {"light": "demo.svg", "dark": "demo-dark.svg"}


def main() -> None:
    """Write them in place of those that there are."""
    model = load_demo()
    graph = attribute(PROMPT, model)
    groups = named_groups(graph, model)
    for theme, name in THEMES.items():
        draw(graph, FOLDER / name, grouping=groups, labels=load_labels(), theme=theme)
        print(f"wrote {FOLDER / name}")


if __name__ == "__main__":
    main()
