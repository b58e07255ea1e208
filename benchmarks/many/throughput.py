"""Graphs a minute over many short prompts: together, one by one, and by circuit-tracer 0.5.0; all results compared.

    python -m benchmarks.many.throughput                                         # the embedded default
    python -m benchmarks.many.throughput --model FOLDER --transcoders FOLDER --peer PEER_VENV --work FOLDER

200 prompts of 8 to 20 tokens: statements of the embedded world, or pieces of the texts in benchmarks/inputs. Every graph that
comes of `attribute_together` is compared with that of `attribute`: the same nodes, edges to 1e-5 of the largest of their row;
otherwise no speed is reported. Then, in processes of their own that have traced once: `attribute` in a loop;
`attribute_together` in units, as a run makes them; the same by several workers at once. The peer traces a few of the prompts,
one by one, in the same run; its seconds a prompt stand for the others. Rates are of the clock; CPU seconds are beside them,
since they say more on a busy machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import shutil
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import load, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import INPUTS, RESULTS
from benchmarks.common.processes import peer_command
from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.demo import MODEL, TRANSCODER, world

SHORTEST, LONGEST = 8, 20  # tokens, with the one in front
LIMIT = 1e-5  # of an edge, over the largest of its row


def prompts_for(model: ReplacementModel, count: int, embedded: bool, seed: int = 0) -> list[list[int]]:
    """Token ids of prompts of `SHORTEST` to `LONGEST` tokens, as many of each length as of any other."""
    draw = random.Random(seed)
    if embedded:
        texts = [one.text for one in (*world.one_hops(), *world.two_hops())]
        draw.shuffle(texts)
        stream = " ".join(texts)
    else:
        stream = " ".join(path.read_text() for path in sorted((INPUTS / "texts").glob("*.txt")))
    first = int(model.ensure_tokenized("the")[0])
    ids = model.tokenizer(stream, add_special_tokens=False, verbose=False).input_ids
    found, at = [], 0
    for number in range(count):
        length = SHORTEST + number % (LONGEST - SHORTEST + 1)
        at = at if at + length < len(ids) else draw.randrange(length)
        found.append([first, *ids[at : at + length - 1]])
        at += length
    draw.shuffle(found)
    return found


def units(prompts: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """The prompts in the groups in which a run hands them over."""
    for start in range(0, len(prompts), size):
        yield list(prompts[start : start + size])


def loaded(args: argparse.Namespace, threads: int) -> tuple[ReplacementModel, list[list[int]]]:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model = ReplacementModel.from_pretrained(args.model, args.transcoders, dtype=torch.float32)
    return model, prompts_for(model, args.prompts, args.model == MODEL)


def difference(found: object, expected: Graph) -> float:
    """The largest difference of an edge, over the largest edge of its row; SystemExit for other nodes."""
    same = isinstance(found, Graph) and all(
        torch.equal(getattr(found, name), getattr(expected, name)) for name in ("active_features", "selected_features")
    )
    if not same or not isinstance(found, Graph):
        raise SystemExit(f"no speed reported: a graph made together has other nodes than the one made alone ({found})")
    mine, alone = found.adjacency_matrix, expected.adjacency_matrix
    return float(((mine - alone).abs().amax(1) / alone.abs().amax(1).clamp_min(1e-30)).max())


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Every graph made together against the one made alone."""
    model, prompts = loaded(args, threads_of(args, 1))
    worst, features = 0.0, []
    for unit in units(prompts, args.unit):
        for prompt, found in zip(unit, attribute_together(unit, model), strict=True):
            alone = attribute(torch.tensor(prompt), model)
            worst = max(worst, difference(found, alone))
            features.append(len(alone.active_features))
    if not worst <= LIMIT:
        raise SystemExit(f"no speed reported: an edge differs by {worst:.1e} of the largest of its row")
    print(
        f"{len(prompts)} graphs compared: edges differ by at most {worst:.1e} of the largest of their row", flush=True
    )
    return {"largest_difference": worst, "features": statistics.median(features)}


def threads_of(args: argparse.Namespace, workers: int) -> int:
    """Threads of a process, if so many work at once: one for a narrow model."""
    narrow = args.model == MODEL
    return 1 if narrow else max(1, args.threads // workers)


def work(args: argparse.Namespace, way: str, workers: int, ready: Any, taken: Any, answers: Any) -> None:
    """What one process does when all are ready: one unit after the other that nobody else has taken."""
    model, prompts = loaded(args, threads_of(args, workers))
    every = list(units(prompts, args.unit))
    attribute_together(every[0][:2], model)
    gc.freeze()  # as a run's processes do
    ready.wait()
    began, cpu = time.perf_counter(), time.process_time()
    while (number := _next(taken)) < len(every):
        if way == "loop":
            for prompt in every[number]:
                attribute(torch.tensor(prompt), model)
        else:
            attribute_together(every[number], model)
    answers.put((time.perf_counter() - began, time.process_time() - cpu))


def _next(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def timed(args: argparse.Namespace, way: str, workers: int) -> dict[str, float]:
    """Graphs a minute of some processes that work at once, and the CPU seconds a graph."""
    context = multiprocessing.get_context("spawn")
    ready, taken, answers = context.Barrier(workers), context.Value("i", 0), context.Queue()
    processes = [context.Process(target=work, args=(args, way, workers, ready, taken, answers)) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    seconds, cpu = max(one for one, _ in found), sum(one for _, one in found)
    rate = {
        "processes": workers,
        "threads": threads_of(args, workers),
        "graphs_a_minute": 60 * args.prompts / seconds,
        "cpu_seconds_a_graph": cpu / args.prompts,
    }
    label = f"{way}, {workers} process{'es' * (workers > 1)} of {threads_of(args, workers)} threads"
    print(
        f"  {label:40}{rate['graphs_a_minute']:9.0f} graphs/min {1e3 * rate['cpu_seconds_a_graph']:9.1f} ms CPU",
        flush=True,
    )
    return rate


def peer(args: argparse.Namespace) -> dict[str, Any]:
    """circuit-tracer's seconds a prompt, on some of the same prompts."""
    model, prompts = loaded(args, 1)
    chosen = prompts[: args.peer_prompts]
    texts = {f"prompt-{number}": model.tokenizer.decode(ids[1:]) for number, ids in enumerate(chosen)}
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "throughput.json").write_text(json.dumps(texts))
    out = args.work / "throughput"
    model_folder = readable_by_peer(Path(args.model), args.work)
    command = [*peer_command(args.peer, "run_peer.py"), "--model", model_folder, "--transcoders", args.transcoders]
    command += ["--prompts", str(args.work / "throughput.json"), "--out", str(out), "--threads", str(args.threads)]
    subprocess.run([*command, "--timing-only"], check=True)
    records = [load(out / f"{name}.npz")[1] for name in texts]
    seconds = [record["seconds"] for record in records]
    rate = 60 / statistics.mean(seconds)
    print(f"  circuit-tracer 0.5.0, {len(seconds)} prompts one by one {rate:9.1f} graphs/min", flush=True)
    return {
        "graphs_a_minute": rate,
        "seconds": seconds,
        "threads": args.threads,
        "versions": records[0]["versions"],
    }


def readable_by_peer(model: Path, work: Path) -> str:
    """The model's folder, or a copy whose tokenizer has the name by which the peer's older transformers knows its class."""
    named = json.loads((model / "tokenizer_config.json").read_text())
    if named.get("tokenizer_class") != "TokenizersBackend":
        return str(model)
    copy = work / "model"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    (copy / "tokenizer_config.json").write_text(json.dumps({**named, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(copy)


def goals_of(args: argparse.Namespace) -> dict[str, float]:
    """What is aimed at: a small model gains more, as more of its time is overhead."""
    return {"against_peer": 200, "against_loop": 3 if args.model == MODEL else 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="Hugging Face folder (default: the embedded one)")
    parser.add_argument("--transcoders", default=TRANSCODER, help="folder of its dictionary")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--unit", type=int, default=16, help="prompts that are handed over together")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of one process that works alone, for a wide model")
    parser.add_argument("--peer", type=Path, help="virtual environment of peer/setup_peer.sh")
    parser.add_argument("--peer-prompts", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the peer's records")
    parser.add_argument("--results", type=Path, help="default: results/throughput_MODEL.json")
    args = parser.parse_args()
    began = time.perf_counter()
    with torch.no_grad():
        results: dict[str, Any] = {
            **describe(versions={"ours": versions()}),
            "prompts": args.prompts,
            "unit": args.unit,
            **compared(args),
        }
    print(
        f"\n{args.prompts} prompts of {SHORTEST} to {LONGEST} tokens, {results['features']:.0f} active features (median)"
    )
    results["loop"] = timed(args, "loop", 1)
    results["together"] = timed(args, "together", 1)
    results["workers"] = timed(args, "together", args.workers)
    fastest = results["workers"]["graphs_a_minute"]
    results["against_loop"] = fastest / results["loop"]["graphs_a_minute"]
    results["cpu_against_loop"] = results["loop"]["cpu_seconds_a_graph"] / results["together"]["cpu_seconds_a_graph"]
    if args.peer is not None:
        results["peer"] = peer(args)
        results["versions"]["peer"] = results["peer"].pop("versions")
        results["against_peer"] = fastest / results["peer"]["graphs_a_minute"]
    for name, goal in goals_of(args).items():
        if name in results:
            print(f"  {name.replace('_', ' '):40}{results[name]:9.1f} (goal {goal})")
    print(f"  CPU seconds, one by one over together   {results['cpu_against_loop']:9.2f}")
    results["duration"] = time.perf_counter() - began
    print(f"took {results['duration']:.0f} s")
    name = "embedded" if args.model == MODEL else Path(args.model).name
    write_results(args.results or RESULTS / f"throughput_{name}.json", results)


if __name__ == "__main__":
    main()
