"""`circuit-tracer`, as `python -m circuit_tracer` and under `torchrun -m circuit_tracer`, with several processes.

Ctrl-C ends it without a traceback, also while it loads.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The commands of cli/main.py."""
    try:
        from circuit_tracer.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # nothing has begun, or all has ended


if __name__ == "__main__":
    main()
