"""What of a graph the page shows at once, and how smoothly it moves, in Chromium at three widths.

    python -m benchmarks.viewer --model M --transcoders clt-2048 [--graph smollm2.safetensors] [--screenshots FOLDER]

Three graphs: the embedded demo; SmolLM2's on a prompt of 22 tokens, at least 1,500 nodes (--graph: traced before, else it is
traced, and kept there); the random one of 10,000 nodes that `tests/viewer/test_viewer_large.py` opens. At load, of each:

- nodes and tokens whose glyph is wholly in the panel, beside all that are shown; the same after the slider was moved;
- names of outputs that are written uncut, in the panel and as far apart as lines of text, beside all outputs;
- boxes of the Circuit panel that one sees of the 34 most influential nodes, pinned;
- milliseconds until the graph is seen, and frames a second while it is dragged, at twice its size, for some seconds. A
  machine with other work shows fewer; what that does not change is the processor time of a frame, of all of Chromium's
  processes together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.viewer import graph_page
from tests.support.browser import Browser, Page
from tests.support.documents import large_document
from tests.support.gestures import panned, set_slider

PROMPT = (
    "Fact: the capital of the state containing Dallas is Austin, and the capital of the state containing Oakland is"
)
PRUNING = {"node_threshold": 0.9, "edge_threshold": 0.9}
SIZES: dict[str, dict[str, Any]] = {
    "390": {"width": 390, "height": 844, "phone": True},
    "1366": {"width": 1366, "height": 768},
    "1920": {"width": 1920, "height": 1080},
}
PINS = 34
LINE = 10  # pixels between neighbouring names that one can tell apart

IN_PANEL = """(() => { const { graph, shown, layout, width, height } = viewer.view, count = {};
    for (const node of graph.nodes) {
      if (!shown[node.index]) continue;
      const { x, y } = viewer.view.place(node), r = layout.radius * layout.size[node.index];
      const across = x - r >= layout.margin.left - 6 && x + r <= width;
      const inside = across && y - r >= 0 && y + r <= height - layout.margin.bottom + 4;
      for (const kind of node.kind === 'token' ? ['nodes', 'tokens'] : ['nodes']) {
        count[kind] ??= [0, 0]; count[kind][0] += inside; count[kind][1] += 1;
      }
    }
    return count; })()"""
OUTPUT_NAMES = """(() => { const { graph, names, width, height } = viewer.view;
    const outputs = names.filter(({ id }) => graph.byId.get(id).kind === 'target');
    const lengths = ([[x1, y1], [x2, y2]]) => Math.hypot(x2 - x1, y2 - y1);
    const good = outputs.filter(({ text, corners }, at) => {
      const [[x1, y1], [x2, y2]] = corners, next = outputs[at + 1]?.corners[0];
      const inside = [x1, x2].every((x) => x >= 0 && x <= width) && [y1, y2].every((y) => y >= 0 && y <= height);
      // how far the next name's line is from this one's
      const across = next && Math.abs((x2 - x1) * (next[1] - y1) - (y2 - y1) * (next[0] - x1)) / (lengths(corners) || 1);
      const apart = !next || across >= LINE || (y1 === y2 && next[0] >= x2);
      return inside && !text.endsWith('\\u2026') && apart;
    });
    return [good.length, graph.nodes.filter(({ kind }) => kind === 'target').length]; })()""".replace("LINE", str(LINE))
PIN = """(() => { const own = viewer.graph.nodes.filter(({ influence }) => influence !== null);
    own.sort((a, b) => a.influence - b.influence);
    viewer.actions.pin(own.slice(0, PINS).map(({ id }) => id)); viewer.areas.open('circuit'); })()""".replace(
    "PINS", str(PINS)
)
BOXES = """(() => { const room = document.querySelector('[data-testid=subgraph]').getBoundingClientRect();
    const boxes = [...document.querySelectorAll('[data-testid=box]')].map((box) => box.getBoundingClientRect());
    const across = (b) => b.left >= room.left - 1 && b.right <= room.right + 1;
    const seen = boxes.filter((b) => across(b) && b.top >= room.top - 1 && b.bottom <= room.bottom + 1);
    return [seen.length, boxes.length]; })()"""


def pages(args: argparse.Namespace, folder: Path) -> dict[str, tuple[Path, dict[str, int]]]:
    """A file and its counts for each graph."""
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.demo import PROMPT as DEMO_PROMPT
    from circuit_tracer.demo import load_labels
    from circuit_tracer.demo.show import load_demo

    demo = graph_document(attribute(DEMO_PROMPT, load_demo()), "demo", labels=load_labels())
    documents = {
        "demo": json.loads(demo.text),
        "SmolLM2": json.loads(graph_document(smollm2(args), "smollm2", **PRUNING).text),
        "10,000 nodes": large_document(10_000, 100_000),
    }
    made = {}
    for name, document in documents.items():
        path = folder / f"{name.replace(',', '').replace(' ', '-')}.html"
        path.write_text(graph_page(document), encoding="utf-8")
        sizes = {
            "nodes": document["nodes"],
            "links": document["links"],
            "tokens": document["metadata"]["prompt_tokens"],
        }
        made[name] = path, {what: len(each) for what, each in sizes.items()}
    return made


def smollm2(args: argparse.Namespace) -> Graph:
    """The graph of the file, or a new one."""
    if args.graph and args.graph.exists():
        return Graph.load(args.graph)
    if not (args.model and args.transcoders):
        raise SystemExit("name --graph, a file that is there, or --model and --transcoders to trace with")
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.replacement_model import ReplacementModel

    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders))
    graph = attribute(PROMPT, model, max_feature_nodes=2500)
    if args.graph:
        graph.save(args.graph)
    return graph


def measure(page: Page, path: Path, seconds: float, picture: Path | None) -> dict[str, Any]:
    """All numbers of one graph at one width."""
    page.call("Page.navigate", url=path.as_uri())
    page.wait("window.viewer?.view.picture", 60)
    found: dict[str, Any] = {"opened_ms": round(page.js("performance.now()"))}
    page.frames(3)
    if picture:
        page.screenshot(picture)
    found |= {"at load": page.js(IN_PANEL), "output names": page.js(OUTPUT_NAMES)}
    set_slider(page, "pruning", 0.5)
    found["after a filter"] = page.js(IN_PANEL)
    set_slider(page, "pruning", 1)
    page.js("viewer.view.zoom(2)")
    page.wait("!viewer.view.job && viewer.view.picture.camera.zoom === 2", 60)
    before = processor_seconds(page.browser)
    found["frames_per_second"], found["slowest_5_percent_ms"] = (round(each, 1) for each in panned(page, seconds))
    used = processor_seconds(page.browser) - before
    found["processor_ms_per_frame"] = round(1000 * used / page.js("stamps.length"), 1)
    page.js(PIN)
    page.frames(5)
    found["pins"] = page.js(BOXES)
    if errors := page.errors():
        raise SystemExit(f"{path.name}: the page had errors: {errors}")
    return found


def processor_seconds(browser: Browser) -> float:
    """What all of the browser's processes have used."""
    first = psutil.Process(browser.process.pid)
    return sum(sum(each.cpu_times()[:2]) for each in [first, *first.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="SmolLM2 as a Hugging Face folder")
    parser.add_argument("--transcoders", type=Path, help="the random cross-layer transcoder of 2,048 features")
    parser.add_argument("--graph", type=Path, help="the native file of SmolLM2's graph, made if it is not there")
    parser.add_argument("--seconds", type=float, default=3, help="how long each graph is dragged")
    parser.add_argument("--screenshots", type=Path, help="a folder for a picture of each page at load")
    parser.add_argument("--results", type=Path, default=RESULTS / "viewer.json")
    args = parser.parse_args()
    if args.screenshots:
        args.screenshots.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = describe(versions=versions(), sizes=SIZES, graphs={})
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        results["browser"] = browser.call("Browser.getVersion")["product"]
        for name, (path, counts) in pages(args, Path(folder)).items():
            results["graphs"][name] = {**counts, "widths": {}}
            for width, size in SIZES.items():
                page = browser.page("about:blank", **size)
                picture = args.screenshots / f"{path.stem}-{width}.png" if args.screenshots else None
                found = results["graphs"][name]["widths"][width] = measure(page, path, args.seconds, picture)
                page.close()
                print(f"  {name:13} {width:>5} px  {found}", flush=True)
    write_results(args.results, results)


if __name__ == "__main__":
    main()
