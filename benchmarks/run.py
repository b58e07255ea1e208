"""Every benchmark, one command: sets up what is missing, measures, writes `results/` and the README's tables.

    python -m benchmarks.run cpu --work WORK                       # everything: some hours, most of them the peers'
    python -m benchmarks.run cpu --work WORK --only speed kernels  # some of it
    python -m benchmarks.run gpu --work WORK                       # under ten minutes on one GPU; downloads nothing
    python -m benchmarks.run cpu --list

WORK keeps models, dictionaries, the peers' environments and their records, so that a run which was stopped goes on. The
equality tests come first: if they are red, nothing is measured. Each benchmark runs in a process of its own and has a gate of
its own besides (what it compares must agree). One that fails does not keep the others from running; the exit status is then 1.

On a GPU the peer is measured beside if WORK has its environment (`--only speed` on a CPU machine with a network makes it).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.places import PEER, ROOT
from benchmarks.common.processes import gate, our_command

GATE = ["tests/attribution", "tests/kernels", "tests/training/test_step.py", "tests/training/test_adam.py"]


@dataclass(frozen=True)
class Benchmark:
    """A module, its words ({WORK} is the folder), what it needs of MADE, and about how long it takes on two cores."""

    name: str
    module: str
    words: str
    needs: tuple[str, ...] = ()
    minutes: float = 1


MODEL, CLT, WIDE = "{WORK}/smollm2-hf", "{WORK}/clt-256", "{WORK}/clt-2048"
GEMMA = "{WORK}/files/gemma-3-270m-q4_k_m.gguf"
DICTIONARIES = f"{CLT} {{WORK}}/plt-256 {{WORK}}/plt-256-skip"
SMALL = ("smollm2-hf", "clt-256", "plt-256", "plt-256-skip")

CPU = (
    Benchmark(
        "startup",
        "tracing.startup",
        f"--peer {{WORK}}/peer --model {MODEL} --transcoders {WIDE}",
        ("smollm2-hf", "clt-2048", "peer"),
        3,
    ),
    Benchmark("waits", "tracing.waits", "", (), 0.5),
    Benchmark("upstream", "upstream", "--peer {WORK}/peer", ("peer",), 1),
    Benchmark(
        "agreement",
        "agreement",
        f"--model {MODEL} --transcoders {DICTIONARIES} --peer {{WORK}}/peer --work {{WORK}}/records",
        (*SMALL, "peer"),
        12,
    ),
    Benchmark(
        "interventions",
        "comparison.interventions",
        f"--model {MODEL} --transcoders {DICTIONARIES} --peer {{WORK}}/peer --work {{WORK}}/records",
        (*SMALL, "peer"),
        10,
    ),
    Benchmark(
        "speed",
        "tracing.speed",
        f"--model {MODEL} --transcoders {WIDE} --peer {{WORK}}/peer --work {{WORK}}/records",
        ("smollm2-hf", "clt-2048", "peer"),
        10,
    ),
    Benchmark("busy", "tracing.busy", f"--model {MODEL} --transcoders {WIDE}", ("smollm2-hf", "clt-2048"), 4),
    Benchmark("memory", "tracing.memory_plan", f"--model {MODEL} --transcoders {{WORK}}", (*SMALL, "clt-2048"), 15),
    Benchmark(
        "long-prompts",
        "tracing.long_prompts",
        f"--model {MODEL} --transcoders {WIDE} --per-layer {{WORK}}/plt-256 --memory 12GB",
        ("smollm2-hf", "clt-2048", "plt-256"),
        20,
    ),
    Benchmark("kernels", "kernels.speed", "", (), 5),
    Benchmark("kernels-compiled", "kernels.compiled", "", (), 4),
    Benchmark("encoding", "kernels.screening", f"--model {MODEL} --transcoders {WIDE}", ("smollm2-hf", "clt-2048"), 2),
    Benchmark(
        "viewer",
        "viewer",
        f"--model {MODEL} --transcoders {WIDE} --graph {{WORK}}/viewer.safetensors",
        ("smollm2-hf", "clt-2048"),
        3,
    ),
    Benchmark("losses", "losses", "", (), 60),
    Benchmark("bit-flips", "bit_flips", "", (), 3),
    Benchmark("threads", "threads", "--results threads.json", (), 1),
    Benchmark("ground-truth", "faithfulness.ground_truth", "", (), 5),
    Benchmark("explanations", "explanations", "", (), 2),
    Benchmark("doubts", "explanations.doubts", "", (), 2),
    Benchmark("validation", "faithfulness.validation", "--demo", (), 10),
    Benchmark(
        "validation-smollm2",
        "faithfulness.validation",
        f"--model {MODEL} --transcoders {CLT} --per-layer {{WORK}}/plt-256 --max-feature-nodes 600",
        SMALL,
        10,
    ),
    *(
        Benchmark(
            f"attention-{name}",
            f"attention.{name}",
            f"--model {MODEL} --transcoders {{WORK}}/{clt} --results attention_{name}.json",
            ("smollm2-hf", clt),
            minutes,
        )
        for name, clt, minutes in (("cost", "clt-2048", 2), ("scores", "clt-2048", 1), ("induction", "clt-256", 4))
    ),
    Benchmark("attention-world", "attention.world", "--results attention_world.json", (), 3),
    *(
        Benchmark(
            f"neurons-{name}",
            f"neurons.{name}",
            f"{models} --results neurons_{name}.json",
            ("smollm2-hf", "files"),
            minutes,
        )
        for name, models, minutes in (
            ("cost", f"--models {MODEL} {GEMMA}", 2),
            ("ablation", f"--models {MODEL} {GEMMA}", 8),
            ("agreement", f"--model {MODEL}", 4),
        )
    ),
    Benchmark(
        "throughput", "many.throughput", "--peer {WORK}/peer --peer-prompts 10 --work {WORK}/records", ("peer",), 2
    ),
    Benchmark(
        "throughput-smollm2",
        "many.throughput",
        f"--model {MODEL} --transcoders {CLT} --prompts 26 --unit 13 --peer {{WORK}}/peer --peer-prompts 2 --work {{WORK}} "
        "--results throughput_smollm2.json",
        ("smollm2-hf", "clt-256", "peer"),
        6,
    ),
    Benchmark("triggers", "many.triggers", "", (), 8),
    Benchmark("moved-city", "many.moved_city", "", (), 5),
    Benchmark("wrong-answers", "many.wrong_answers", "", (), 8),
    Benchmark(
        "monitor-throughput",
        "probes.throughput",
        f"--model {MODEL} --transcoders {CLT}",
        ("smollm2-hf", "clt-256"),
        5,
    ),
    *(
        Benchmark(f"monitor-{name}", f"probes.{module}", f"--model {MODEL}", ("smollm2-hf",), minutes)
        for name, module, minutes in (("personal", "personal_data", 15), ("truth", "truth", 8), ("wrong", "wrong", 12))
    ),
    Benchmark("training-speed", "training.speed", "--peer {WORK}/decode", ("decode",), 8),
    Benchmark(
        "training-quality",
        "training.quality",
        f"--peer {{WORK}}/decode --work {{WORK}}/quality --data demo smollm2 --model {MODEL} "
        "--corpus {WORK}/corpus/corpus.jsonl",
        ("smollm2-hf", "decode", "corpus"),
        180,
    ),
    Benchmark("training-roofline", "training.roofline", "", (), 1),
    Benchmark("training-export", "training.export", "", (), 3),
    Benchmark("training-warm-start", "training.warm_start", "", (), 4),
    Benchmark(
        "training-rates",
        "training.rates",
        f"--work {{WORK}}/rates --model {MODEL} --corpus {{WORK}}/corpus/corpus.jsonl",
        ("smollm2-hf", "corpus"),
        40,
    ),
    Benchmark(
        "training-kinds",
        "training.kinds",
        f"--work {{WORK}}/kinds --model {MODEL} --corpus {{WORK}}/large-corpus",
        ("smollm2-hf", "large-corpus"),
        8,
    ),
)
# what needs neither network nor files comes first, so that ten minutes suffice for it
GPU = (
    Benchmark("kernels", "kernels.speed", "--device cuda --seconds 0.5", (), 3),
    Benchmark("gemma-shaped", "tracing.gemma_shaped", "--device cuda --memory 80GB", (), 2),
    Benchmark("training-speed", "training.speed", "--device cuda", (), 2),
    Benchmark("training-roofline", "training.roofline", "--device cuda", (), 2),
    Benchmark(
        "speed",
        "tracing.speed",
        f"--model {MODEL} --transcoders {WIDE} --peer {{WORK}}/peer --work {{WORK}}/records-cuda --device cuda",
        ("smollm2-hf", "clt-2048", "peer"),
        3,
    ),
)
SETS = {"cpu": CPU, "gpu": GPU}

# What benchmarks need, and the commands that make it, in the order in which they depend on each other.
MADE: dict[str, list[str]] = {
    "peer": [str(PEER / "setup_peer.sh"), "{WORK}/peer"],
    "decode": [str(PEER / "setup_decode_clt.sh"), "{WORK}/decode"],
    "corpus": [str(ROOT / "recipes" / "smollm2" / "corpus.sh"), "{WORK}/corpus"],
    "large-corpus": [str(ROOT / "recipes" / "smollm2" / "corpus.sh"), "{WORK}/large-corpus", "1200000"],
    "smollm2-hf": [*our_command("inputs.prepare_models"), MODEL],
    "files": [sys.executable, str(ROOT / "tests" / "fetch_models.py"), "{WORK}/files"],
}
for _name, _words in (
    ("clt-256", "--kind clt --features 256 --active 4"),
    ("plt-256", "--kind plt --features 256 --active 4"),
    ("plt-256-skip", "--kind plt --features 256 --active 4 --skip"),
    ("clt-2048", "--kind clt --features 2048 --active 16"),
):
    MADE[_name] = [
        *our_command("inputs.make_random_transcoders"),
        MODEL,
        f"{{WORK}}/{_name}",
        *_words.split(),
    ]


def placed(words: Sequence[str], work: Path) -> list[str]:
    return [word.replace("{WORK}", str(work)) for word in words]


def make(name: str, work: Path) -> None:
    """Make what a benchmark needs, unless it is there whole: a mark is written last."""
    mark = work / "made" / name
    if mark.exists():
        return
    print(f"making {name}", flush=True)
    subprocess.run(placed(MADE[name], work), check=True)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def measure(one: Benchmark, work: Path, device: str) -> str:
    """Run one; how it ended, in a word or two."""
    lacking = [name for name in one.needs if not (work / "made" / name).exists()]
    if lacking and device == "gpu":
        return f"left out: {', '.join(lacking)} not in {work}"
    try:
        for name in (each for each in MADE if each in one.needs):
            make(name, work)
        command = [*our_command(one.module), *placed(one.words.split(), work)]
        print(f"\n== {one.name}: {' '.join(command[2:])}", flush=True)
        started = time.perf_counter()
        status = subprocess.run(command).returncode
    except (subprocess.CalledProcessError, OSError) as error:
        return f"failed: {error}"
    return f"{'done' if status == 0 else f'failed with status {status}'} in {time.perf_counter() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=list(SETS))
    parser.add_argument("--work", type=Path, help="folder for models, dictionaries, environments and records")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some benchmarks (default: all)")
    parser.add_argument("--list", action="store_true", help="name them, and stop")
    args = parser.parse_args()
    known = {one.name: one for one in SETS[args.device]}
    if args.list:
        for one in known.values():
            print(f"{one.name:20} {one.minutes:5g} min   {one.module} {one.words}")
        return
    if args.work is None:
        parser.error("name a folder with --work")
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    print(f"equality tests: {' '.join(GATE)}", flush=True)
    print(gate(GATE, "no benchmark was run: the equality tests are red"))
    ended = {name: measure(known[name], work, args.device) for name in args.only or known}
    print()
    for name, how in ended.items():
        print(f"{name:20} {how}")
    subprocess.run(our_command("readme"), check=True)
    if any(how.startswith("failed") for how in ended.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
