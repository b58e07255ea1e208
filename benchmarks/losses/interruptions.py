"""Commands that are interrupted, ended and killed at random moments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.losses.bench import (
    ENDINGS,
    INTERRUPTED,
    Bench,
    Command,
    Line,
    configuration,
    contents,
    leftovers,
    listed,
    same_graph,
)
from circuit_tracer.graph import Graph
from tests.support.command import WORDS


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
        line.lost(not listed(place / "v") >= {"g"}, "the index lacks the graph")
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
            words = ["convert", older, "-o", target, *(["--overwrite"] if target.suffix == ".json" else [])]
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
    expected = contents(peace)
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
        line.lost(contents(place) != expected, "other bytes than a build left in peace")
        shutil.rmtree(place)
    return line


def interrupted_training(bench: Bench, how: str) -> Line:
    """train, ended once or twice, then resumed: the dictionary of a run left in peace, and a log without gaps."""
    line, peace = Line("train", how), bench.work / "run"
    if not peace.is_dir():
        bench.run("train", configuration(bench, peace))
    expected = {name: data for name, data in contents(peace / "transcoder").items() if name.endswith(".safetensors")}
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
        found = contents(place / "transcoder")
        line.lost(any(found.get(name) != data for name, data in expected.items()), "another dictionary")
        steps = [json.loads(row)["step"] for row in (place / "log.jsonl").read_text().splitlines() if "loss" in row]
        line.lost(sorted(set(steps)) != list(range(1, 41)), "the log has gaps")
        line.lost(bool(left := leftovers(place)), f"left: {left}")
        shutil.rmtree(place.parent)
    return line


def _metadata(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["metadata"] if path.is_file() else {}
    return found


def _whole(path: Path, before: bytes) -> bool:
    data = path.read_bytes()
    if path.suffix == ".json":  # the time in it differs
        return len(json.loads(data)["nodes"]) == len(json.loads(before)["nodes"])
    return data == before or (path.suffix == ".pt" and len(data) == len(before))


def interrupted_runs(bench: Bench, how: str) -> Line:
    """A file of prompts traced by two processes, ended once to three times: the files of a run left in peace, and what was
    finished is not written again. "SIGKILL of a worker": one of the two is killed, and its run goes on by itself.
    """
    line, prompts, whole = Line("run, two processes", how), bench.work / "prompts.jsonl", bench.work / "whole-run"
    words = ["run", prompts, "-t", bench.transcoder, "--device", "cpu", "--workers", 2, "--unit-rows", 2, "-o"]
    if not whole.exists():
        texts = [" ".join(bench.draw.choice(WORDS[4:]) for _ in range(4 + number % 9)) for number in range(24)]
        rows = [*({"prompt": text} for text in texts), {"prompt": ""}, {"prompt": "Texas is", "targets": "nowhere"}]
        prompts.write_text("\n".join(map(json.dumps, rows)))
        bench.run(*words, whole)
    for _ in range(bench.tries):
        place, finished = bench.folder() / "x", dict[Path, int]()
        for _ in range(bench.draw.choice([1, 1, 2, 3])):
            command = Command(bench.logs, *words, place)
            if how in ENDINGS:
                command.end(ENDINGS[how], bench.moment("run"))
            else:
                command.kill_another(bench.moment("run"))
            line.tries += 1
            finished |= {path: path.stat().st_mtime_ns for path in place.glob("units/*.json")}
            line.kept += bool(finished)
        ended = bench.run(*words, place)
        line.lost(ended.code != 0, f"going on: exit {ended.code}: {ended.err[-300:]}")
        differing = _differing(place, whole)
        line.lost(bool(differing), f"other files than those of a run left in peace: {differing[:5]}")
        again = [path.name for path, stamp in finished.items() if path.stat().st_mtime_ns != stamp]
        line.lost(bool(again), f"finished and done again: {again}")
        line.lost(bool(left := leftovers(place)), f"left: {left}")
        shutil.rmtree(place)
    return line


def _differing(place: Path, whole: Path) -> list[str]:
    """Names of a run's files that are not the same; times, and the table that has them, are another every time."""
    varying = ("times/", "results.parquet", ".claims/")
    here, there = (
        {name: data for name, data in contents(folder).items() if not name.startswith(varying)}
        for folder in (place, whole)
    )
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
