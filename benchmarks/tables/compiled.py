"""The table of compiled kernels: what they take of a multiprocessor, and the least time of their launches."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

ABOUT = (
    "Compiled, not run: no GPU was there. A cell is registers of a thread, kilobytes of shared memory, and programs × warps "
    "of each that a multiprocessor holds at once (of 64 warps), with what there is not enough of for one more; of the "
    "configurations that the kernel is tuned over, the one with the most warps. Those whose registers spill, or for which "
    "there is no room, are left out by the tuning: how many of all, for the three together, says the last column. Least times "
    "are operations and bytes over the data sheet's rates of an H200 (4.8 TB/s; 990 TFLOP/s in bfloat16, 495 in TF32); "
    "products of digits count as often as they are made."
)


def compiled(record: dict[str, Any]) -> list[str]:
    """A row a use and kernel."""
    names = list(record["uses"][0]["compiled"])
    rows = []
    for use in record["uses"]:
        kernels = dict.fromkeys(row["kernel"] for found in use["compiled"].values() for row in found)
        for number, kernel in enumerate(kernels):
            of = {name: [r for r in use["compiled"][name] if r["kernel"] == kernel] for name in names}
            every = [row for found in of.values() for row in found]
            out = sum(not usable(row) for row in every)
            least = (f"{use['least_ms']:.3f}", use["bound"]) if number == 0 else ("", "")
            title = use["use"] if number == 0 else f"{use['use']}: {kernel.replace('_', ' ')}"
            cells = [cell(found) for found in of.values()]
            rows.append([title, f"{use['where']}: {use['shape']}", *cells, *least, f"{out} of {len(every)}"])
    return [ABOUT, "", *table(["kernel", "shape", *names, "least ms", "bound", "left out"], rows)]


def usable(row: dict[str, Any]) -> bool:
    """Whether a kernel that is tuned may choose this configuration."""
    return row["programs"] > 0 and row["spilled"] == 0


def cell(found: list[dict[str, Any]]) -> str:
    """The configuration with the most warps."""
    fitting = [row for row in found if usable(row)]
    if not fitting:
        return "spills"
    best = max(fitting, key=lambda row: row["occupancy"])
    return (
        f"{best['registers']}, {best['shared'] / 1024:.0f} KB, {best['programs']} × {best['warps']} ({best['limit']})"
    )
