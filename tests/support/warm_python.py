"""A Python that has imported the large libraries, and is forked for each program: what takes seconds is done once.

Run as a program, it reads requests from standard input, a line each, and answers with exit codes. It knows nothing of this
package, so that a program imports whichever copy it is told to.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

LIBRARIES = (
    "torch", "torch.distributed", "torch.testing", "triton", "numpy", "safetensors.torch", "pydantic", "yaml", "networkx",
    "typer.testing", "rich.table", "tokenizers", "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2", "pytest", "hypothesis.strategies",
)  # fmt: skip


class WarmPython:
    """A context manager. `run` is like `subprocess.run([sys.executable, ...])`."""

    def __enter__(self) -> WarmPython:
        self.server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)

    def run(self, arguments: tuple[str, ...], root: Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of Python with these arguments (-m or -c first), in a folder."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([arguments, str(root)]), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return code, (root / "stdout").read_text("utf-8"), (root / "stderr").read_text("utf-8")


def serve() -> tuple[list[str], str]:
    """Fork for each request; what returns is a child, with its request."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            request: tuple[list[str], str] = json.loads(line)
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def become(arguments: list[str], root: str) -> None:
    """Python with these arguments in a folder, as the rest of this process.

    It ends without taking every library apart, which would take a second.
    """
    os.chdir(root)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # further requests are not for it
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ["PYTHONPATH"] = root
    sys.path.insert(0, root)
    (option, what), sys.argv = arguments[:2], arguments[1:]
    code = 0
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            names: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(what, "<string>", "exec"), names)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for library in LIBRARIES:
        with suppress(ModuleNotFoundError):  # triton is for Linux
            importlib.import_module(library)
    gc.freeze()
    become(*serve())
