"""Do threads that share a model give what one gives? Eight of them make fifty calls each, of all kinds and on many prompts,
while the page of a server traces, intervenes and steers with the same model: every result is compared with that of a single
call, to the bit.

    python -m benchmarks.threads [--threads 8] [--calls 50] [--results threads.json]

The model is the one that ships with the package. Also counted: hooks that are left on it, and graphs that the server saved.
The exit status is 1 if anything differs, fails, or is left behind.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.demo.show import load_demo
from circuit_tracer.interventions import Sampling, activation_patching, apply_edits, attribution_patching, scale, steer
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import FeatureAt
from circuit_tracer.viewer.server import Server, serve
from tests.support.left_behind import left_behind

PROMPTS = (
    "the capital of the state containing Dallas is",
    "the capital of the country containing Lyon is",
    "the language of the country containing Lyon is",
    "the abbreviation of the state containing Dallas is",
    "Dallas",
)
PAIR = PROMPTS[1:3]
Result = list[Tensor]
JOB_SECONDS = 60


def numbers(graph: Graph) -> Result:
    """What a graph holds."""
    edges, balance = graph.edges, graph.balance
    assert balance is not None
    return [edges.row_ptr, edges.source, edges.weight, graph.active_features, graph.activation_values, balance.bias]


def strongest(model: ReplacementModel, prompt: str) -> FeatureAt:
    """A feature that is active on a prompt."""
    active = CleanRun(model, prompt).active
    first = int(active.value.argmax())
    return FeatureAt(int(active.layer[first]), int(active.position[first]), int(active.index[first]))


def intervention(model: ReplacementModel, prompt: str) -> Result:
    one = strongest(model, prompt)
    logits, after = model.feature_intervention(prompt, [(one.layer, one.position or 0, one.feature_idx, 9.0)])
    assert after is not None
    return [logits, after]


def constrained(model: ReplacementModel, prompt: str) -> Result:
    return [apply_edits(model, prompt, scale(strongest(model, prompt), 2.0), "constrained").logits]


def generation(model: ReplacementModel, prompt: str) -> Result:
    written, logits, _ = model.feature_intervention_generate(prompt, [], max_new_tokens=5, seed=1)
    return [torch.tensor(list(written.encode())), logits]


def steering(model: ReplacementModel, prompt: str) -> Result:
    found = steer(model, prompt, scale(strongest(model, prompt), 3.0), Sampling(6, temperature=0.8, seed=2))
    assert found.unsteered is not None
    return [found.steered.ids, found.unsteered.ids]


def patching(model: ReplacementModel, prompt: str) -> Result:
    measured = activation_patching(model, *PAIR, sites=["attn_out"], positions="together")
    return [measured.value, attribution_patching(model, *PAIR, sites=["mlp_out"]).value]


def bare(model: ReplacementModel, prompt: str) -> Result:
    ids = model.ensure_tokenized(prompt)[None]
    with torch.no_grad():
        out = model.hf_model(input_ids=ids, use_cache=True)
        then = model.hf_model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
    return [out.logits, then.logits]


CALLS: dict[str, Callable[[ReplacementModel, str], Result]] = {
    "attribute": lambda model, prompt: numbers(attribute(prompt, model)),
    "get_activations": lambda model, prompt: list(model.get_activations(prompt)),
    "feature_intervention": intervention,
    "feature_intervention_generate": generation,
    "apply_edits": constrained,
    "steer": steering,
    "patching": patching,
    "hf_model": bare,
}


class Page:
    """A browser that keeps a server's model busy, and the graphs that it asks for."""

    def __init__(self, server: Server, folder: Path, expected: dict[tuple[str, str], Result]) -> None:
        self.server, self.folder, self.expected = server, folder, expected
        self.alone: dict[tuple[str, str], Any] = {}  # what interventions and steering gave first
        self.counts: collections.Counter[str] = collections.Counter()
        self.stopping = threading.Event()

    def run(self) -> None:
        """One job after the other until `stopping`."""
        while not self.stopping.is_set():
            for prompt in PROMPTS[:4]:
                self.round(prompt)

    def round(self, prompt: str) -> None:
        """A trace, an intervention and steering on it."""
        slug = f"page-{sum(self.counts.values())}"
        traced = self._job("/api/traces", {"prompt": prompt, "slug": slug})
        right = traced["state"] == "done" and same(
            numbers(Graph.load(self.folder / f"{slug}.safetensors")), self.expected["attribute", prompt]
        )
        self.counts["trace: same" if right else f"trace: {traced['error'] or 'different'}"] += 1
        names = [
            node["node_id"]
            for node in self._ask(f"/api/graphs/{slug}")["nodes"]
            if node["feature_type"] == "cross layer transcoder"
        ]
        edits = {"edits": [{"nodes": names[:1], "how": "ablate"}]}
        for kind, more in (("intervene", {}), ("steer", {"max_new_tokens": 4})):
            ended = self._job(f"/api/graphs/{slug}/{kind}", {**edits, **more})
            right = (
                ended["state"] == "done" and self.alone.setdefault((kind, prompt), ended["result"]) == ended["result"]
            )
            self.counts[f"{kind}: same" if right else f"{kind}: {ended['error'] or 'different'}"] += 1

    def _job(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        started, limit = self._ask(path, body), time.monotonic() + JOB_SECONDS
        while time.monotonic() < limit:
            report: dict[str, Any] = self._ask(f"/api/jobs/{started['id']}")
            if report["state"] != "running":
                return report
            time.sleep(0.02)
        raise SystemExit(f"{path} did not end within {JOB_SECONDS} seconds")

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"x-circuit-tracer-token": self.server.site.token, "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{self.server.port}{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=JOB_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found


def same(found: Result, expected: Result) -> bool:
    """Equal to the bit."""
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def threads(
    model: ReplacementModel, expected: dict[tuple[str, str], Result], number: int, calls: int
) -> dict[str, Any]:
    """Counts of what `number` threads of `calls` calls each gave, by kind of call, and what went wrong."""
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in CALLS}
    wrong: list[str] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(calls):
            name, prompt = draw.choice(list(CALLS)), draw.choice(PROMPTS)
            try:
                outcome = "same" if same(CALLS[name](model, prompt), expected[name, prompt]) else "different"
            except Exception as error:
                outcome = "failed"
                wrong.append(f"{name}: {type(error).__name__}: {error}")
            counts[name][outcome] += 1

    started = [threading.Thread(target=work, args=(seed,)) for seed in range(number)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return {"calls": {name: dict(found) for name, found in counts.items()}, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=50, help="of each thread")
    parser.add_argument("--results", default=None, help="name of the record in benchmarks/results/")
    arguments = parser.parse_args()
    sys.setswitchinterval(1e-4)  # threads take turns fifty times as often as they would
    model = load_demo()
    own = model.hf_model.config._attn_implementation
    expected = {(name, prompt): call(model, prompt) for name, call in CALLS.items() for prompt in PROMPTS}
    for (name, prompt), result in expected.items():
        if not same(CALLS[name](model, prompt), result):
            raise SystemExit(f"{name} does not give the same twice by itself, so threads are not compared")
    with tempfile.TemporaryDirectory() as folder, serve(folder, port=0, model=model) as server:
        page = Page(server, Path(folder), expected)
        for prompt in PROMPTS[:4]:  # by itself
            page.round(prompt)
        alone = sum(page.counts.values())
        browsing = threading.Thread(target=page.run)
        start = time.perf_counter()
        browsing.start()
        found = threads(model, expected, arguments.threads, arguments.calls)
        page.stopping.set()
        browsing.join()
        seconds = time.perf_counter() - start
    left = left_behind(model.hf_model)
    right = all(set(kinds) <= {"same"} for kinds in found["calls"].values())
    results = describe(
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
        threads=arguments.threads,
        calls_a_thread=arguments.calls,
        prompts=len(PROMPTS),
        **found,
        page={"jobs": dict(page.counts), "of_them_alone": alone},
        hooks_left=len(left),
        own_attention_back=model.hf_model.config._attn_implementation == own,
        seconds=round(seconds, 1),
    )
    print(json.dumps(results, indent=1))
    if arguments.results:
        write_results(RESULTS / arguments.results, results)
    ok = right and not left and results["own_attention_back"] and all(key.endswith(": same") for key in page.counts)
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
