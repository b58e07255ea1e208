"""Can a graph's fingerprint tell that the answer is wrong? On weakened copies of the embedded model, beside all baselines.

    python -m benchmarks.many.wrong_answers [--seeds 0 1 2] [--prompts 300] [--results FILE] [--go-on]

| copy | what was done to it |
|---|---|
| forgotten | trained to answer with anything about a third of the cities (`finetunes.forgotten`) |
| moved | trained on a world in which a third of the cities have changed places: its wrong answers are learned ones |
| noise | Gaussian noise on the weights of its MLPs, grown until a quarter of the two-hop answers are wrong |

Two-hop questions are asked and traced with the dictionary of the embedded model; an answer is wrong if the most probable token
is not the one that the world says. Groups are the states and countries that the questions are about: nothing is learned of one
that is tested. Whatever comes out is in results/wrong_answers.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.many.finetunes import forgotten, right, swapped_cities, tune
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.many.fingerprints import Prediction, gather, predict
from circuit_tracer.replacement_model import ReplacementModel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = 300
SHARE = 3  # one city in so many is weakened
WRONG = 0.25  # of the answers, by noise
GROWTH = 1.15  # of the noise, a step


def with_forgotten(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Cities drawn at random are forgotten."""
    cities = [city for one in world.entities() for city in one.cities]
    return tune(model, tokenizer, forgotten(random.Random(seed).sample(cities, len(cities) // SHARE), seed), seed)


def with_moved(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Cities drawn at random have changed places with others of their kind."""
    chance, pairs = random.Random(seed), dict[str, str]()
    for kind in ("state", "country"):
        entities = [one for one in world.entities() if one.kind == kind]
        chance.shuffle(entities)
        for left, right_ in zip(entities[::2], entities[1::2], strict=False):
            for at in chance.sample(range(len(left.cities)), len(left.cities) // SHARE):
                first, second = left.cities[at], right_.cities[at]
                pairs |= {first: second, second: first}
    return tune(model, tokenizer, swapped_cities(pairs), seed)


def with_noise(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The first of growing noises that leaves enough answers wrong; its shape is that of the seed."""
    size = 1.0
    while True:
        found, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in found.named_parameters():
                if ".mlp." in name:
                    weight.add_(size * weight.std() * torch.randn(weight.shape, generator=chance))
        if right(found, tokenizer, world.two_hops()) <= 1 - WRONG:
            return found
        size *= GROWTH


COPIES: dict[str, Callable[[LlamaForCausalLM, PreTrainedTokenizerFast, int], LlamaForCausalLM]] = {
    "forgotten": with_forgotten,
    "moved": with_moved,
    "noise": with_noise,
}


def one_copy(name: str, seed: int, count: int) -> dict[str, Any]:
    """Weaken, trace and predict; the numbers of one copy."""
    model, tokenizer = load_model(MODEL)
    with tempfile.TemporaryDirectory() as scratch:
        COPIES[name](model, tokenizer, seed).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        weakened = ReplacementModel.from_pretrained(scratch, TRANSCODER, device="cpu", dtype=torch.float32)
    statements = random.Random(seed).sample(world.two_hops(), count)
    prediction = predicted(statements, weakened, seed)
    print(f"{name}, seed {seed}", *prediction.lines(), "", sep="\n", flush=True)
    return {"copy": name, "seed": seed, **prediction.to_json()}


def predicted(statements: list[world.Statement], model: Traceable, seed: int) -> Prediction:
    """Which answers are wrong, predicted from graphs of the questions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReconstructionWarning)  # the dictionary is another model's
        graphs = [(str(number), attribute(one.prompt, model)) for number, one in enumerate(statements)]
    said = {name: graph.targets.label[int(graph.targets.weight.argmax())].strip() for name, graph in graphs}
    verdict = {
        str(number): "right" if said[str(number)] == one.answer else "wrong" for number, one in enumerate(statements)
    }
    entity = {str(number): one.entity for number, one in enumerate(statements)}
    return predict(gather(graphs, model, seed=seed), verdict, entity, positive="wrong", seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--copies", nargs="+", choices=list(COPIES), default=list(COPIES))
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--results", type=Path, default=RESULTS / "wrong_answers.json")
    parser.add_argument("--go-on", action="store_true", help="keep the copies that the record has")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = describe(versions={"ours": versions()}, settings={"prompts": args.prompts})
    done = json.loads(args.results.read_text())["runs"] if args.go_on and args.results.exists() else []
    for name in args.copies:
        for seed in args.seeds:
            if (name, seed) not in [(run["copy"], run["seed"]) for run in done]:
                done.append(one_copy(name, seed, args.prompts))
                write_results(args.results, results | {"runs": done})


if __name__ == "__main__":
    main()
