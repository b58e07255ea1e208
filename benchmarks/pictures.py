"""The pictures of README and docs, from the page, the drawings and the diagrams as they are now, on light and on dark.

python -m benchmarks.pictures                                    # all but those of a real model
python -m benchmarks.pictures --smollm2 MODELS/smollm2-hf        # these too: SmolLM2-135M as a folder
python -m benchmarks.pictures --only page phone

Pages are photographed in headless Chromium. A diagram is drawn by hand once, on light; its dark twin has the same lines in
the colours that the page has on dark.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from itertools import product
from pathlib import Path

from PIL import Image

from benchmarks.common.places import ROOT
from circuit_tracer import ReplacementModel, attribute, explain_edges
from circuit_tracer.circuits import Grouping, keep_grouping
from circuit_tracer.circuits.pictures import draw
from circuit_tracer.demo import FEATURES, PROMPT, load_labels
from circuit_tracer.demo.show import GROUPED, contrast_prompt, explain, load_demo
from circuit_tracer.features.kept import keep_features
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.palette import PALETTES, Theme
from circuit_tracer.viewer import graph_page
from tests.support.browser import Browser, Page
from tests.support.gestures import READY

PICTURES = ROOT / "docs" / "pictures"
DRAWN = {
    theme: ROOT / "circuit_tracer" / "demo" / f"demo{end}.svg" for theme, end in (("light", ""), ("dark", "-dark"))
}
DIAGRAMS = ("replacement", "row")
COLOURS = 256  # of a picture; a page has few, and a file of few is small

LINK = "0_78_7>5_101_8"  # Texas at "Dallas" -> output "Austin"
OUTPUT = "viewer.graph.nodes.find((node) => node.kind === 'target').id"
SENTENCE = "document.querySelectorAll('[data-testid=sentence]')[10]"  # where "say Austin" has its input from


@dataclass(frozen=True)
class Shot:
    """A photograph of a page. steps: what is done first. parts: selectors of what is shown; none: all."""

    name: str
    page: str
    steps: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    size: tuple[int, int] = (1366, 768)
    phone: bool = False


# Steps are expressions of the page's own script, which tests/viewer drive by hand.
SHOTS = (
    Shot("page", "demo"),
    Shot(
        "story",
        "demo",
        (f"{SENTENCE}.click()", f"{SENTENCE}.closest('.sentence').scrollIntoView()"),
        (".subgraph-panel", ".lists-panel"),
        size=(1366, 900),
    ),
    Shot(
        "heads",
        "demo",
        (
            "document.querySelector('main').classList.remove('circuit-first')",
            f"viewer.actions.chooseEdge('{LINK}')",
            "viewer.open('edge')",
        ),
        (".graph-panel", ".lists-panel"),
        size=(1366, 980),
    ),
    Shot(
        "smollm2",
        "smollm2",
        ("document.querySelector('[data-testid=start-routes]').click()", f"viewer.actions.select({OUTPUT})"),
    ),
    Shot("phone", "demo", size=(390, 780), phone=True),
)


def diagram(name: str, theme: Theme) -> Path:
    """Where a diagram lies."""
    return PICTURES / f"{name}-{theme}.svg"


def in_the_dark(drawing: str) -> str:
    """A diagram that is drawn on light, in the dark's colours."""
    for light, dark in zip(astuple(PALETTES["light"]), astuple(PALETTES["dark"]), strict=True):
        drawing = drawing.replace(light, dark)
    return drawing


@cache
def demo() -> tuple[Graph, Grouping]:
    """The graph of the embedded model as `circuit-tracer demo` leaves it, with the heads of its edges."""
    model = load_demo()
    graph = attribute(PROMPT, model)
    keep_features(graph, FEATURES, load_labels())
    _, groups = explain(graph, model, contrast_prompt(PROMPT))
    explain_edges(graph, model)
    keep_grouping(graph, groups)
    return graph, groups


def demo_page() -> str:
    """Its page."""
    return graph_page(demo()[0], slug="demo", labels=load_labels(), node_threshold=GROUPED)


def smollm2_page(folder: Path) -> str:
    """The page of a graph of a real model by its neurons."""
    model = ReplacementModel.from_pretrained(str(folder), "neurons")
    graph = attribute("The capital of France is", model, attribution_targets=[" Paris"], max_feature_nodes=1000)
    return graph_page(graph, slug="smollm2", node_threshold=0.5)


def main() -> None:
    """Write them in place of those that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=[*DIAGRAMS, "demo", *(each.name for each in SHOTS)])
    args = parser.parse_args()
    wanted = set(args.only or [*DIAGRAMS, "demo", *(each.name for each in SHOTS)])
    for name in wanted & set(DIAGRAMS):
        diagram(name, "dark").write_text(in_the_dark(diagram(name, "light").read_text()))
    if "demo" in wanted:
        graph, groups = demo()
        for theme, path in DRAWN.items():
            draw(graph, path, grouping=groups, labels=load_labels(), theme=theme)
    makers = {"demo": demo_page, **({"smollm2": lambda: smollm2_page(args.smollm2)} if args.smollm2 else {})}
    shots = [each for each in SHOTS if each.name in wanted and each.page in makers]
    photograph(shots, {name: makers[name]() for name in {each.page for each in shots}}, PICTURES)


def photograph(shots: Iterable[Shot], texts: Mapping[str, str], folder: Path) -> None:
    """Write each picture on light and on dark; texts: of the pages."""
    with tempfile.TemporaryDirectory() as pages, Browser() as browser:
        for name, text in texts.items():
            (Path(pages) / f"{name}.html").write_text(text, encoding="utf-8")
        for each, theme in product(shots, PALETTES):
            path = folder / f"{each.name}-{theme}.png"
            with opened(browser, Path(pages) / f"{each.page}.html", each, theme) as page:
                print(f"{path.name:24} {write_small(picture(page, each.parts), path) / 1000:4.0f} kB")


@contextmanager
def opened(browser: Browser, path: Path, each: Shot, theme: Theme) -> Iterator[Page]:
    """A page with everything done that comes before the picture."""
    width, height = each.size
    page = browser.page(path.as_uri(), width, height, dark=theme == "dark", phone=each.phone, fine=True)
    page.wait("window.viewer" if each.phone else READY)  # a phone shows one area at a time
    page.frames(3)
    for step in each.steps:
        page.js(step)
        page.frames(3)
    yield page
    assert page.errors() == [], page.errors()
    page.close()


def picture(page: Page, parts: tuple[str, ...]) -> bytes:
    """The PNG of a page, or of the smallest piece of it that holds some of its elements."""
    if not parts:
        return base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
    boxes = [
        page.js(
            f"""(() => {{ const b = document.querySelector('{part}').getBoundingClientRect();
            return [b.left, b.top, b.right, b.bottom]; }})()"""
        )
        for part in parts
    ]
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top, "scale": 1}
    return base64.b64decode(page.call("Page.captureScreenshot", format="png", clip=clip)["data"])


def write_small(png: bytes, path: Path) -> int:
    """Write a picture with few colours; its bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, kmeans=1, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    return path.stat().st_size


if __name__ == "__main__":
    main()
