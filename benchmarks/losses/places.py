"""Full and read-only disks, and several processes in one folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.losses.bench import REFUSED, Bench, Command, Line, configuration, leftovers, listed


def writers(bench: Bench, place: Path) -> dict[str, list[object]]:
    """Every command that writes, into a folder."""
    features = bench.work / "features"
    trace = bench.trace("--max-n-logits", 2)
    return {
        "attribute -o": ["attribute", *trace, "-o", place / "g.safetensors"],
        "attribute -o .pt": ["attribute", *trace, "-o", place / "g.pt"],
        "attribute --slug": ["attribute", *trace, "--slug", "g", "--graph-file-dir", place / "v"],
        "prune": ["prune", bench.graph, "-o", place / "p.safetensors", "--slug", "p", "--graph-file-dir", place / "v"],
        "convert to .json": ["convert", bench.graph, "-o", place / "c.json", "--overwrite"],
        "convert to .pt": ["convert", bench.graph, "-o", place / "c.pt"],
        "convert to .graphml": ["convert", bench.graph, "-o", place / "c.graphml"],
        "convert transcoders": ["convert", bench.transcoder, "-o", place / "t"],
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
        line.lost(listed(place) != wrote, f"the index lists {sorted(listed(place))} of {sorted(wrote)}")
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
