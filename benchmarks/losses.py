"""Is work ever lost? Real processes are interrupted, ended and killed at random moments, run into full and read-only disks, and
several write into one folder: a table of tries and losses.

A loss is: a file that is neither what it was nor whole; work that a run said it kept and a resumed one does not end with, to
the bit; an entry of an index that is gone; a file left that no process will finish; an error without a word on what to do.

    python -m benchmarks.losses --tries 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common.machine import commit, describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.graph import Graph
from circuit_tracer.transcoders import save_transcoders
from tests.support.command import WORDS, save_tokenizer
from tests.support.process_cases import CONTEXT, preloaded
from tests.support.tiny import tiny_model, tiny_transcoder

# What commands import: each begins with its work.
LIBRARIES = ("networkx", "lxml.etree", "pydantic")
MODULES = (
    *("replacement_model", "graph.files.formats", "viewer.page", "training.run.trainer", "training.evaluation"),
    *("cli.main", "interventions", "features", "demo.show"),
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


def interrupted_traces(bench: Bench, how: str) -> Line:
    """Ended once or twice at random moments, then resumed to the end."""
    line, whole = Line("attribute, to a graph file and the viewer's folder", how), Graph.load(bench.graph)
    for _ in range(bench.tries):
        place = bench.folder()
        wanted = bench.trace("-o", place / "g.safetensors", "--slug", "g", "--graph-file-dir", place / "v")
        for number in range(bench.draw.choice([1, 1, 2])):
            resume = ["--resume"] if number else []
            ended = Command(bench.logs, "attribute", *wanted, *resume).end(ENDINGS[how], bench.moment("attribute"))
            line.tries += 1
            kept = (place / "g.safetensors").is_file()
            line.kept += kept
            if how != "SIGKILL":
                line.lost(ended.code not in (0, INTERRUPTED), f"exit {ended.code}: {ended.err[-200:]}")
                line.lost("holds what was done" in ended.err and not kept, "it said that it kept what is not there")
                line.lost(ended.code == 0 and not kept, "it ended well without its file")
        ended = bench.run("attribute", *wanted, "--resume")
        line.lost(ended.code != 0, f"resuming: exit {ended.code}: {ended.err[-300:]}")
        line.lost(bool(problem := same_graph(place / "g.safetensors", whole)), str(problem))
        line.lost(not _listed(place / "v") >= {"g"}, "the index lacks the graph")
        line.lost("interrupted" in _metadata(place / "v" / "g.json"), "the page says interrupted of a whole graph")
        line.lost(bool(left := leftovers(place)), f"left: {left}")
        shutil.rmtree(place)
    return line


def interrupted_writers(bench: Bench, how: str) -> Line:
    """prune and convert over older files: each is afterwards what it was, or new and whole."""
    line = Line("prune and convert over older files", how)
    for number in range(bench.tries):
        place = bench.folder()
        older = place / "old.safetensors"
        command = ("prune", "convert")[number % 2]
        target = place / ("out.safetensors", "out.graphml", "out.pt", "v/out.json")[number % 4]
        shutil.copy(bench.graph, older)
        if command == "prune":
            words: list[object] = ["prune", older, "-o", target.with_suffix(".safetensors"), "--node-threshold", 0.5]
            target = target.with_suffix(".safetensors")
        else:
            words = ["convert", older, target, *(["--overwrite"] if target.suffix == ".json" else [])]
        bench.run(*words)
        before = target.read_bytes()
        Command(bench.logs, *words).end(ENDINGS[how], bench.moment(command))
        line.tries += 1
        line.lost(not target.is_file(), f"{target.name} is gone")
        line.lost(not _whole(target, before), f"{target.name} is neither old nor new")
        line.lost(older.read_bytes() != bench.graph.read_bytes(), "the source changed")
        line.lost(bench.run(*words).code != 0, "the same command fails afterwards")
        line.lost(bool(left := leftovers(place)), f"left: {left}")
        shutil.rmtree(place)
    return line


def interrupted_builds(bench: Bench, how: str) -> Line:
    """features build, ended once or twice, then run to the end: the bytes of a build left in peace."""
    line, text = Line("features build", how), bench.work / "text.jsonl"

    def words(place: Path) -> list[object]:
        given = ["build", "-t", bench.transcoder, "--data", text, "-o", place, "--context-length", 32]
        return ["features", *given, "--device", "cpu", "--batch-tokens", 256]

    peace = bench.work / "features"
    if not peace.is_dir():
        bench.run(*words(peace))
    expected = _contents(peace)
    for _ in range(bench.tries):
        place = bench.folder()
        for _ in range(bench.draw.choice([1, 2])):
            ended = Command(bench.logs, *words(place)).end(ENDINGS[how], bench.moment("features"))
            line.tries += 1
            line.kept += (place / ".build" / "progress.json").is_file()
            if how != "SIGKILL":
                line.lost(ended.code not in (0, INTERRUPTED), f"exit {ended.code}: {ended.err[-200:]}")
        ended = bench.run(*words(place))
        line.lost(ended.code != 0, f"going on: exit {ended.code}: {ended.err[-300:]}")
        line.lost(_contents(place) != expected, "other bytes than a build left in peace")
        shutil.rmtree(place)
    return line


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


def interrupted_training(bench: Bench, how: str) -> Line:
    """train, ended once or twice, then resumed: the dictionary of a run left in peace, and a log without gaps."""
    line, peace = Line("train", how), bench.work / "run"
    if not peace.is_dir():
        bench.run("train", configuration(bench, peace))
    expected = {name: data for name, data in _contents(peace / "transcoder").items() if name.endswith(".safetensors")}
    for _ in range(bench.tries):
        place = bench.folder() / "run"
        config, resume = configuration(bench, place), list[str]()
        for _ in range(bench.draw.choice([1, 2])):
            ended = Command(bench.logs, "train", config, *resume).end(ENDINGS[how], bench.moment("train"))
            resume = ["--resume"] if any(place.glob("checkpoints/step-????????")) else []
            line.tries += 1
            line.kept += bool(resume)
            if how != "SIGKILL":
                line.lost(ended.code not in (0, INTERRUPTED), f"exit {ended.code}: {ended.err[-200:]}")
                line.lost("is kept" in ended.err and not resume, "it said that it kept what is not there")
        ended = bench.run("train", config, *resume)
        line.lost(ended.code != 0, f"resuming: exit {ended.code}: {ended.err[-300:]}")
        found = _contents(place / "transcoder")
        line.lost(any(found.get(name) != data for name, data in expected.items()), "another dictionary")
        steps = [json.loads(row)["step"] for row in (place / "log.jsonl").read_text().splitlines() if "loss" in row]
        line.lost(sorted(set(steps)) != list(range(1, 41)), "the log has gaps")
        line.lost(bool(left := leftovers(place)), f"left: {left}")
        shutil.rmtree(place.parent)
    return line


def writers(bench: Bench, place: Path) -> dict[str, list[object]]:
    """Every command that writes, into a folder."""
    features = bench.work / "features"
    trace = bench.trace("--max-n-logits", 2)
    return {
        "attribute -o": ["attribute", *trace, "-o", place / "g.safetensors"],
        "attribute -o .pt": ["attribute", *trace, "-o", place / "g.pt"],
        "attribute --slug": ["attribute", *trace, "--slug", "g", "--graph-file-dir", place / "v"],
        "prune": ["prune", bench.graph, "-o", place / "p.safetensors", "--slug", "p", "--graph-file-dir", place / "v"],
        "convert to .json": ["convert", bench.graph, place / "c.json", "--overwrite"],
        "convert to .pt": ["convert", bench.graph, place / "c.pt"],
        "convert to .graphml": ["convert", bench.graph, place / "c.graphml"],
        "convert transcoders": ["convert", bench.transcoder, place / "t"],
        "view": ["view", bench.graph, "-o", place / "page.html"],
        "features build": [
            *("features", "build", "-t", bench.transcoder, "--data", bench.work / "text.jsonl", "-o", place / "f"),
            *("--context-length", 32, "--device", "cpu", "--tokens", 4000),
        ],
        "features export": ["features", "export", features, "-o", place / "e"],
        "evaluate": [
            *(
                "evaluate",
                "-t",
                bench.transcoder,
                "--data",
                bench.work / "text.jsonl",
                "-o",
                place / "r",
                "--no-graphs",
            ),
            *("--tokens", 200, "--replacement-tokens", 0, "--device", "cpu", "--no-random-baseline"),
        ],
        "patch": [
            *("patch", "-t", bench.transcoder, "-p", "the capital of Texas", "-c", "the capital of France"),
            *("-o", place / "patch.csv", "--device", "cpu"),
        ],
        "train": ["train", configuration(bench, bench.work / "full-run", 8), "--run.out", place / "run"],
        "demo": ["demo", "-o", place / "demo"],
    }


def full_disks(bench: Bench, name: str) -> Line:
    """A command on a disk with too little room: refused with a word on it, older files as they were."""
    line = Line(name, "full disk")
    with small_disk(bench.folder()) as disk:
        for number in range(max(4, bench.tries // 2)):
            place = disk.folder / f"try-{number}"
            words, largest = writers(bench, place)[name], disk.leave(bench.draw, number)
            ended = Command(bench.logs, *words, largest=largest).end()
            line.tries += 1
            if ended.code == 0:  # there was room after all
                disk.clear(place)
                continue
            line.kept += 1
            line.lost(ended.code != REFUSED or "error: " not in ended.err, f"exit {ended.code}: {ended.err[-300:]}")
            line.lost(bool(left := leftovers(place) if place.is_dir() else []), f"left: {left}")
            disk.clear(place)
    return line


class SmallDisk:
    """A folder on a disk of its own where that can be made, else one whose files may not grow."""

    def __init__(self, folder: Path, own: bool, size: int) -> None:
        self.folder, self.own, self.size = folder, own, size

    def leave(self, draw: random.Random, number: int) -> int | None:
        """Leave some bytes free; returns the largest size of a file, where that is what is limited."""
        room = 0 if number == 0 else int(2 ** draw.uniform(9, 17))
        if not self.own:
            return max(2048, room)
        filler = self.folder / "filler"
        filler.unlink(missing_ok=True)
        handle = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while True:
                os.write(handle, bytes(4096))
        os.ftruncate(handle, max(0, os.fstat(handle).st_size - room))
        os.close(handle)
        return None

    def clear(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def small_disk(folder: Path, size: int = 2**21) -> Iterator[SmallDisk]:
    own = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode
        == 0
    )
    try:
        yield SmallDisk(folder, own, size)
    finally:
        if own:
            subprocess.run(["umount", folder], check=True)


def read_only(bench: Bench) -> Line:
    """Every command on a disk that is read-only, and with a file where its folder should be: refused before work is spent."""
    line = Line("every command that writes", "read-only folder; a file in its place")
    folder = bench.folder()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode == 0
    blocked = bench.folder() / "file"
    blocked.write_text("a file")
    try:
        if not mounted:
            folder.chmod(0o555)
        for place in [folder / "x", blocked] if mounted or os.geteuid() else [blocked]:
            for name, words in writers(bench, place).items():
                ended = bench.run(*words)
                line.tries += 1
                line.lost(
                    ended.code != REFUSED or "error: " not in ended.err, f"{name}: {ended.code} {ended.err[-300:]}"
                )
        line.lost(blocked.read_text() != "a file", "the file in its place changed")
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return line


def one_folder(bench: Bench, processes: int = 8) -> Line:
    """Processes that write graphs into one folder: all are in its index; those of one name get a name each."""
    line = Line("prune --slug", f"{processes} processes into one folder, half of them under one name")
    for _ in range(max(2, bench.tries // 2)):
        place = bench.folder()
        names = [f"g{number}" if number % 2 else "same" for number in range(processes)]
        running = [
            Command(bench.logs, "prune", bench.graph, "--slug", name, "--graph-file-dir", place) for name in names
        ]
        ended = [each.end() for each in running]
        line.tries += processes
        wrote = {
            Path(row.split()[1]).stem for each in ended for row in each.out.splitlines() if row.startswith("wrote")
        }
        for each in ended:
            line.lost(each.code not in (0, REFUSED), f"exit {each.code}: {each.err[-300:]}")
        line.kept += len(wrote)
        line.lost(len(wrote) != sum(each.code == 0 for each in ended), "two processes wrote one file")
        line.lost(_listed(place) != wrote, f"the index lists {sorted(_listed(place))} of {sorted(wrote)}")
        line.lost(wrote != {path.stem for path in place.glob("*.json")} - {"graph-metadata"}, "a file is gone")
        shutil.rmtree(place)
    return line


def one_run(bench: Bench) -> Line:
    """Two trainings, and two resumes, on one run.out, and two builds into one folder: one works, the other is refused."""
    line = Line("train, train --resume, features build", "two processes on one folder")
    for number in range(max(3, bench.tries // 2)):
        place = bench.folder() / "run"
        config = configuration(bench, place)
        words: list[object] = ["train", config]
        if number % 3 == 1:
            Command(bench.logs, *words).end(signal.SIGTERM, bench.moment("train"))
            words += ["--resume"] if any(place.glob("checkpoints/step-????????")) else []
        if number % 3 == 2:
            words = ["features", "build", "-t", bench.transcoder, "--data", bench.work / "text.jsonl", "-o", place]
            words += ["--context-length", 32, "--device", "cpu", "--batch-tokens", 256]
        running = [Command(bench.logs, *words) for _ in range(2)]
        ended = [each.end() for each in running]
        line.tries += 2
        codes = sorted(each.code for each in ended)
        said = any("another process" in each.err or "holds a run" in each.err for each in ended)
        done = codes == [0, 0] and number % 3 == 2  # the second came when the first had ended
        line.lost(not done and not (codes == [0, REFUSED] and said), f"exits {codes}: {[e.err[-200:] for e in ended]}")
        line.kept += codes[0] == 0
        shutil.rmtree(place.parent)
    return line


def _listed(folder: Path) -> set[str]:
    path = folder / "graph-metadata.json"
    return {entry["slug"] for entry in json.loads(path.read_text())["graphs"]} if path.is_file() else set()


def _metadata(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["metadata"] if path.is_file() else {}
    return found


def _whole(path: Path, before: bytes) -> bool:
    data = path.read_bytes()
    if path.suffix == ".json":  # the time in it differs
        return len(json.loads(data)["nodes"]) == len(json.loads(before)["nodes"])
    return data == before or (path.suffix == ".pt" and len(data) == len(before))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), args.tries, args.seed)
        kinds: dict[str, Callable[[], Line]] = {}
        for how in ENDINGS:
            kinds[f"attribute {how}"] = lambda how=how: interrupted_traces(bench, how)
            kinds[f"write {how}"] = lambda how=how: interrupted_writers(bench, how)
            kinds[f"features build {how}"] = lambda how=how: interrupted_builds(bench, how)
            kinds[f"train {how}"] = lambda how=how: interrupted_training(bench, how)
        kinds["several in one folder"] = lambda: one_folder(bench)
        kinds["two of a run"] = lambda: one_run(bench)
        kinds["read-only"] = lambda: read_only(bench)
        for name in writers(bench, bench.work):
            kinds[f"full disk {name}"] = lambda name=name: full_disks(bench, name)
        lines = []
        for name, kind in kinds.items():
            if args.only in name:
                lines.append(line := kind())
                print(
                    f"{line.what:52} {line.how:60} {line.tries:4} tries {line.kept:4} {len(line.losses):3} lost",
                    flush=True,
                )
                for loss in line.losses[:3]:
                    print(f"    {loss}", flush=True)
    _write(args.out, lines)
    sys.exit(any(line.losses for line in lines))


def _write(path: Path, lines: list[Line]) -> None:
    """Write the table; rows of an earlier run that was of others stay."""
    rows = {(line.what, line.how): asdict(line) | {"commit": commit()} for line in lines}
    before = json.loads(path.read_text())["lines"] if path.is_file() else []
    table = [row for row in before if (row["what"], row["how"]) not in rows] + list(rows.values())
    total = {"tries": sum(row["tries"] for row in table), "losses": sum(len(row["losses"]) for row in table)}
    print(f"{total['tries']} tries, {total['losses']} losses")
    write_results(path, describe(total=total, lines=table))


if __name__ == "__main__":
    main()
