"""Many prompts: runs over a file of them, comparison, what a set has in common, fingerprints, reports.

    from circuit_tracer.many import open_run
    run = open_run("runs/x")                 # what `circuit-tracer run prompts.jsonl -o runs/x` made
    for row, graph in run.graphs():
        ...

`README.md` holds the methods.
"""

from __future__ import annotations

from circuit_tracer.many.row_files import read_rows
from circuit_tracer.many.rows import Row
from circuit_tracer.many.runs.opened import Run, open_run

__all__ = ["Row", "Run", "open_run", "read_rows"]
