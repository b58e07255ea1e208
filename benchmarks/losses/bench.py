"""Commands in processes of their own on tiny inputs, and a row of the table of losses."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import yaml

from circuit_tracer.graph import Graph
from circuit_tracer.transcoders import save_transcoders
from tests.support.command import WORDS, save_tokenizer
from tests.support.process_cases import CONTEXT, preloaded
from tests.support.tiny import tiny_model, tiny_transcoder

# What commands import: each begins with its work.
LIBRARIES = ("networkx", "lxml.etree", "pydantic")
MODULES = (
    *("replacement_model", "graph.files.formats", "viewer.page", "training.run.trainer", "training.evaluation"),
    *("many.runs.run", "cli.main", "interventions", "features", "demo.show"),
)
CONTEXT.set_forkserver_preload([*preloaded, *LIBRARIES, *(f"circuit_tracer.{name}" for name in MODULES)])
LAYERS, WIDTH, FEATURES = 6, 32, 40
ENDINGS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
INTERRUPTED, REFUSED = 130, 2


@dataclass
class Line:
    """A row of the table. kept: tries after which there was something to go on with; losses: what was lost, in words."""

    what: str
    how: str
    tries: int = 0
    kept: int = 0
    losses: list[str] = field(default_factory=list)

    def lost(self, when: bool, what: str) -> None:
        if when:
            self.losses.append(what)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Command:
    """`circuit-tracer` in a process of its own. largest: bytes of a file, as `ulimit -f` sets them."""

    def __init__(self, folder: Path, *words: object, largest: int | None = None) -> None:
        self.place = Path(tempfile.mkdtemp(dir=folder))
        self.process = CONTEXT.Process(target=_work, args=([str(word) for word in words], self.place, largest))
        self.process.start()

    def end(self, number: int | None = None, after: float = 0.0) -> Ended:
        """Wait for its end, with a signal after some seconds."""
        if number is not None:
            self.process.join(after)
            if self.process.is_alive() and self.process.pid:
                os.kill(self.process.pid, number)
        return self._ended()

    def kill_another(self, after: float) -> Ended:
        """Wait for its end, with SIGKILL for one of the processes that it has started by then, if there are any."""
        self.process.join(after)
        beside = psutil.Process(self.process.pid).parent() if self.process.is_alive() else None
        others = [each for each in beside.children() if each.pid != self.process.pid] if beside else []
        if others:
            others[0].kill()
        return self._ended()

    def _ended(self) -> Ended:
        self.process.join(300)
        code = self.process.exitcode
        assert code is not None, f"it still runs: {self.place}"
        return Ended(code, *((self.place / name).read_text() for name in ("out", "err")))


def _work(words: list[str], folder: Path, largest: int | None) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["circuit-tracer", *words]
    from circuit_tracer.__main__ import main
    from circuit_tracer.features import build

    build.ENTRIES = 2**15  # many stretches of a small corpus

    main()


class Bench:
    """Folders with a tiny model, transcoders, text and a graph; and how each is tried."""

    def __init__(self, work: Path, tries: int, seed: int) -> None:
        self.work, self.tries, self.draw = work, tries, random.Random(seed)
        self.logs = work / "logs"
        self.logs.mkdir()
        self.model, self.transcoder = work / "model", work / "transcoder"
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_key_value_heads": 4}
        tiny_model("llama", torch.float32, **sizes).save_pretrained(self.model)
        save_tokenizer(self.model)
        clt = tiny_transcoder("clt", torch.float32, n_layers=LAYERS, d_model=WIDTH, n_features=FEATURES)
        save_transcoders(clt, self.transcoder, str(self.model))
        words = [self.draw.choice(WORDS[4:]) for _ in range(40)]
        self.prompt = " ".join(words)
        lines = [" ".join(self.draw.choice(WORDS[4:]) for _ in range(12)) for _ in range(3000)]
        (work / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
        self.graph = work / "whole.safetensors"
        self.seconds: dict[str, float] = {}
        self.run("attribute", *self.trace("-o", self.graph))

    def trace(self, *more: object) -> list[object]:
        options = ("-t", self.transcoder, "-p", self.prompt, "--device", "cpu", "--batch-size", 4)
        return [*options, "--max-feature-nodes", 1500, *more]

    def run(self, *words: object, largest: int | None = None) -> Ended:
        start = time.perf_counter()
        ended = Command(self.logs, *words, largest=largest).end()
        self.seconds[str(words[0])] = time.perf_counter() - start
        return ended

    def moment(self, command: str) -> float:
        """Some time while such a command runs."""
        return self.draw.uniform(0.05, 1.05) * self.seconds.get(command, 3.0)

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.work))


def same_graph(path: Path, whole: Graph) -> str | None:
    """What is wrong with a graph's file."""
    try:
        graph = Graph.load(path)
    except Exception as error:  # whatever it is, the file is no graph
        return f"{path.name} cannot be read: {error}"
    same = torch.equal(graph.edges.weight, whole.edges.weight) and torch.equal(graph.edges.source, whole.edges.source)
    return None if same and torch.equal(graph.selected_features, whole.selected_features) else f"{path.name} differs"


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


def configuration(bench: Bench, out: Path, steps: int = 40) -> Path:
    raw = {
        "model": {"name": str(bench.model), "device": "cpu"},
        "data": {"kind": "jsonl", "path": str(bench.work / "text.jsonl"), "context_length": 16, "held_out": 0.1}
        | {"epochs": None, "statistics_tokens": 64, "buffer_tokens": 512},
        "dictionary": {"features": 64},
        "sparsity": {"active": 4.0},
        "optimizer": {"warmup_steps": 1},
        "evaluation": {
            "tokens": 64,
            "replacement_tokens": 32,
            "prompts": [],
            "held_out_prompts": 0,
            "random_baseline": False,
        },
        "run": {"out": str(out), "tokens": 32 * steps, "batch": 32, "log_every": 1, "checkpoint_every_steps": 4}
        | {"threads": 1},
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(raw))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def listed(folder: Path) -> set[str]:
    path = folder / "graph-metadata.json"
    return {entry["slug"] for entry in json.loads(path.read_text())["graphs"]} if path.is_file() else set()
