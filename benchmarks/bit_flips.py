"""Is damage noticed? Single bits of every kind of file that this package writes are flipped, and the files are read.

    python -m benchmarks.bit_flips [--flips 1000] [--results bit_flips.json]

Half of the flips of a kind fall anywhere in its files, half into the first or last kilobyte, where their structure is. Each
ends as detected (a CircuitTracerError), as harmless (what is read is the same to the bit), as undetected (something else is
read), or as a failure of ours (any other exception); the last two must be 0.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.files.digests import ChangedFileWarning
from tests.support.written_files import WRITTEN, Written, equal

STRUCTURE = 1024  # bytes at both ends of a file that get half of the flips


def flips(kind: str, count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(outcome, which bit of which file) of each flip in the files of ``kind`` that were made in ``folder``."""
    written = WRITTEN[kind]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    expected, paths = written.read(folder), [path for path in written.paths(folder) if before[path]]
    draw = random.Random(f"{kind} {seed}")
    for number in range(count):
        path = draw.choice(paths)
        size = len(before[path])
        byte = (
            draw.randrange(size) if number % 2 else draw.choice((0, size - 1 - STRUCTURE)) + draw.randrange(STRUCTURE)
        )
        bit, byte = draw.randrange(8), min(max(byte, 0), size - 1)
        damaged = bytearray(before[path])
        damaged[byte] ^= 1 << bit
        for each, content in before.items():  # reading may write
            if each != path and (not each.is_file() or each.read_bytes() != content):
                each.write_bytes(content)
        path.write_bytes(damaged)
        yield _outcome(written, folder, expected), f"bit {bit} of byte {byte} of {path.relative_to(folder)}"
        path.write_bytes(before[path])
    if not equal(written.read(folder), expected):
        raise RuntimeError(f"{kind}: undamaged files are not read as before")


def _outcome(written: Written, folder: Path, expected: object) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ChangedFileWarning)
            found = written.read(folder)
    except (CircuitTracerError, ChangedFileWarning):
        return "detected"
    except Exception as error:  # what must not happen, and is counted
        return f"failed: {type(error).__name__}"
    return "harmless" if equal(found, expected) else "undetected"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--only", nargs="+", choices=list(WRITTEN), default=list(WRITTEN))
    parser.add_argument("--results", default="bit_flips.json")
    args = parser.parse_args()
    conditions, rows = describe(), {}
    for kind in args.only:
        with tempfile.TemporaryDirectory() as folder:
            WRITTEN[kind].make(Path(folder))
            found = list(flips(kind, args.flips, Path(folder)))
        counts = Counter(outcome for outcome, _ in found)
        rows[kind] = {"flips": args.flips, **{name: counts[name] for name in ("detected", "harmless", "undetected")}}
        rows[kind]["failed"] = sum(count for outcome, count in counts.items() if outcome.startswith("failed"))
        print(f"{kind:40}", *(f"{name} {count:5}" for name, count in rows[kind].items()), flush=True)
        for outcome, where in [each for each in found if each[0] not in ("detected", "harmless")][:5]:
            print(f"    {outcome}: {where}", flush=True)
    write_results(RESULTS / args.results, {**conditions, "files": rows})


if __name__ == "__main__":
    main()
