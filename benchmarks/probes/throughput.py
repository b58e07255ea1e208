"""What a monitor costs: tokens a second beside the bare forward pass, and beside the same model asked as a judge.

    python -m benchmarks.probes.throughput --model MODEL --transcoders CLT [--texts 120] [--results FILE]

In one run, on one thread: texts with personal data (`personal.py`), batched alike, each way several times in turn; the median
of processor times counts, which others on the machine disturb least. Probes are random directions: what they find is not
asked, only what looking costs.

| way | what it is |
|---|---|
| bare | the forward pass up to the monitor's deepest place, nothing kept |
| whole | the forward pass with logits of every token, the transformers model as it is called |
| monitor | `Monitor.watch` with 1 and 100 probes, and with thresholds of 20 features at that layer; texts in, verdicts out |
| reading | the bare pass and tokenising, which any way must do |
| judge | a question about each text (`judge.py`), one token's logits |

The gate: scores that the monitor gives are those of one pass a text, to 1e-4 of their size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.probes.judge import judged
from benchmarks.probes.personal import personal_texts
from circuit_tracer.models.run import fast_attention, read
from circuit_tracer.probes.monitor import Monitor, Watching, feature_watch
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import BATCH_TOKENS, Subject, Tokens, batches, tokens_of
from circuit_tracer.replacement_model import ReplacementModel

QUIET = 1e9  # a threshold above all scores: what flags cost is measured by itself


def random_probes(count: int, d_model: int, layer: int, threshold: float = QUIET) -> list[Probe]:
    """Directions, all read at one layer."""
    weights = torch.randn(count, d_model, generator=torch.Generator().manual_seed(0)) / d_model**0.5
    return [
        Probe(f"probe {number}", "hook_resid_post", layer, weight, 0.0, threshold, "token")
        for number, weight in enumerate(weights)
    ]


def padded(texts: Sequence[Tokens]) -> list[torch.Tensor]:
    """The batches that a monitor makes of the texts, as ids (B, P)."""
    found = []
    for numbers in batches([len(text.ids) for text in texts], BATCH_TOKENS):
        chosen = [texts[number].ids for number in numbers]
        longest = max(map(len, chosen))
        found.append(torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in chosen]))
    return found


def ways(model: ReplacementModel, texts: Sequence[str], layer: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    subject = Subject.of(model)
    found = padded([tokens_of(text, subject) for text in texts])
    width, features = model.parts.config.d_model, range(0, 200, 10)

    def bare(batched: Sequence[torch.Tensor]) -> None:
        with torch.no_grad(), fast_attention(model.parts):
            for ids in batched:
                read(model.parts, ids, [("hook_resid_post", layer)], norms=None, own_attention=False)

    def whole() -> None:
        with torch.no_grad(), fast_attention(model.parts):
            for ids in found:
                model.parts.model(input_ids=ids, use_cache=False)

    def watching(probes: Sequence[Probe], named: int = 0) -> Callable[[], Any]:
        monitor = Monitor(model, probes, Watching(ahead=len(texts), features=named))
        return lambda: sum(verdict.flagged for verdict in monitor.watch(texts))

    return {
        "bare": lambda: bare(found),
        "reading": lambda: bare(padded([tokens_of(text, subject) for text in texts])),
        "whole": whole,
        "monitor, 1 probe": watching(random_probes(1, width, layer)),
        "monitor, 100 probes": watching(random_probes(100, width, layer)),
        "monitor, 20 features": watching([feature_watch(f"{layer}/{feature}>{QUIET}") for feature in features]),
        "monitor, every text flagged": watching(random_probes(1, width, layer, 0.0), 5),
        "judge": lambda: judged(model.parts.model, model.tokenizer, texts, "personal"),
    }


def timed(calls: dict[str, Callable[[], Any]], rounds: int, slow: Sequence[str] = ("judge",)) -> dict[str, list[float]]:
    """Processor seconds of each round, all ways in turn; slow ones in the first round alone."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            if number and name in slow:
                continue
            started = time.process_time()
            call()
            found[name].append(time.process_time() - started)
    return found


def gate(model: ReplacementModel, texts: Sequence[str], layer: int) -> float:
    """The largest difference from scores of a text by itself, over the largest score; SystemExit if that is too much."""
    probes = random_probes(3, model.parts.config.d_model, layer)
    together, alone = (
        torch.tensor([list(verdict.scores.values()) for verdict in Monitor(model, probes, watching).watch(texts)])
        for watching in (Watching(), Watching(ahead=1))
    )
    worst = float((together - alone).abs().max() / alone.abs().max())
    if worst > 1e-4:
        raise SystemExit(f"batches change scores by {worst:.1e}: nothing is measured")
    return worst


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "monitor_throughput.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), device="cpu", dtype=torch.float32)
    texts = [one.text for one in personal_texts(0, -(-args.texts // 30))][: args.texts]
    subject = Subject.of(model)
    tokens = sum(len(tokens_of(text, subject).ids) for text in texts)
    worst = gate(model, texts[:24], args.layer)
    seconds = timed(ways(model, texts, args.layer), args.rounds)
    rates = {name: tokens / median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:30} {rate:8.0f} tokens/s   {rate / rates['bare']:.3f} of the bare pass", flush=True)
    settings = {"layer": args.layer, "layers": model.parts.config.n_layers, "texts": len(texts), "tokens": tokens}
    results = describe(versions={"ours": versions()}, settings=settings)
    write_results(args.results, results | {"tokens_a_second": rates, "seconds": seconds, "largest_difference": worst})


if __name__ == "__main__":
    main()
