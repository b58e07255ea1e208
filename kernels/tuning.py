"""Which configuration of a kernel is the fastest: tried once for sizes of a kind, and kept on disk for the next process.

A kernel has at most `MOST_CONFIGS`; each is timed for some `TRIAL_MS`, but for those that this GPU has no room for or whose
registers spill: a shape of a new kind costs a fraction of a second beside compiling, on a machine that has never seen it. What
was found is one small file a choice in `folder()`, named after everything that it depends on: the kernel's source with all it
calls, the configurations, the GPU, Triton's version, and the kind of shape. Files are put in place whole, so that processes may
write at once; one that cannot be read is as good as none.

Nothing in a configuration may change the order of a sum, or results would depend on the timer: blocks along a summed axis are
constants beside the kernels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError
from triton.testing import do_bench

MOST_CONFIGS = 5
TRIAL_MS = 20  # of timing, after a fourth of that to warm up
SMALL = 64  # sizes up to this are of one kind: no tile is filled by less
LOG = logging.getLogger(__name__)


class Tuned:
    """A kernel that is launched in one of its configurations.

    Args:
        fn: What `triton.jit` made.
        configs: To choose from.
        key: Names of arguments whose every value is a kind of its own.
        sizes: Names of numbers whose `kind` matters.
        adds_to: Tensors updated in place, as they were again after the trials.
        counts_in: Tensors that a launch finds zero.
    """

    def __init__(
        self,
        fn: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        sizes: Sequence[str] = (),
        adds_to: Sequence[str] = (),
        counts_in: Sequence[str] = (),
    ) -> None:
        if not 0 < len(configs) <= MOST_CONFIGS:
            raise ValueError(f"{fn.__name__} has {len(configs)} configurations; 1 to {MOST_CONFIGS} are tried")
        self.fn, self.configs, self.key, self.sizes = fn, list(configs), tuple(key), tuple(sizes)
        self.adds_to, self.counts_in = tuple(adds_to), tuple(counts_in)
        self._chosen: dict[tuple[str, ...], triton.Config] = {}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return partial(self.run, grid=grid)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The call from another kernel."""
        return self.fn(*args, **options)

    def run(self, *args: Any, grid: Any, **constants: Any) -> None:
        """Launch."""
        config = self.configs[0] if len(self.configs) == 1 else self._choose(grid, args, constants)
        self.fn[grid](*args, **constants, **config.all_kwargs())

    def kind(self, arguments: dict[str, Any]) -> tuple[str, ...]:
        """What a choice holds for: arguments of `key`, kinds of sizes, dtypes of tensors."""
        exact = [f"{name}={arguments[name]}" for name in self.key]
        rough = [f"{name}~{kind(arguments[name])}" for name in self.sizes]
        dtypes = [f"{name}:{value.dtype}" for name, value in arguments.items() if isinstance(value, torch.Tensor)]
        return (*exact, *rough, *dtypes)

    def _choose(self, grid: Any, args: Sequence[Any], constants: dict[str, Any]) -> triton.Config:
        arguments = dict(zip(self.fn.arg_names, args, strict=False)) | constants
        wanted = self.kind(arguments)
        if wanted in self._chosen:
            return self._chosen[wanted]
        if torch.cuda.is_current_stream_capturing():
            return self.configs[0]  # within a graph nothing can be timed; the next launch outside of one chooses
        record = folder() / f"{self._name(wanted)}.json"
        number = read(record, len(self.configs))
        if number is None:
            times = self._timed(grid, args, constants, arguments)
            number = min(range(len(times)), key=times.__getitem__)
            if math.isinf(times[number]):
                raise OutOfResources(0, 0, f"{self.fn.__name__}: no configuration fits this GPU")
            said = {"kernel": self.fn.__name__, "kind": wanted, "config": str(self.configs[number])}
            write(record, {"number": number, **said, "milliseconds": [t for t in times if math.isfinite(t)]})
        self._chosen[wanted] = self.configs[number]
        return self.configs[number]

    def _name(self, wanted: tuple[str, ...]) -> str:
        parts = (self.fn.cache_key, gpu(), triton.__version__, *map(str, self.configs), *wanted)
        return f"{self.fn.__name__.strip('_')}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"

    def _timed(
        self, grid: Any, args: Sequence[Any], constants: dict[str, Any], arguments: dict[str, Any]
    ) -> list[float]:
        """Milliseconds of each configuration; infinite for one that is left out."""
        before = {name: arguments[name].clone() for name in self.adds_to}

        def launch(config: triton.Config) -> Any:
            for name in self.counts_in:
                arguments[name].zero_()
            return self.fn[grid](*args, **constants, **config.all_kwargs())

        times, spill = [], []
        for config in self.configs:
            try:
                spill.append(launch(config).n_spills > 0)
                times.append(math.inf if spill[-1] else bench(partial(launch, config)))
            except (OutOfResources, CompileTimeAssertionFailure, PTXASError):
                spill.append(False)
                times.append(math.inf)
        if all(map(math.isinf, times)):  # better one that spills than none
            times = [bench(partial(launch, c)) if s else math.inf for c, s in zip(self.configs, spill, strict=True)]
        for name, value in before.items():
            arguments[name].copy_(value)
        for name in self.counts_in:
            arguments[name].zero_()
        return times


def kind(size: int) -> int:
    """Sizes up to `SMALL` are one kind, and from there on those between powers of eight."""
    return max(SMALL, size - 1).bit_length() // 3


def bench(launch: Callable[[], None]) -> float:
    """Milliseconds of a launch, the median."""
    return float(do_bench(launch, warmup=TRIAL_MS // 4, rep=TRIAL_MS, return_mode="median"))


def gpu() -> str:
    """The current one's name."""
    return torch.cuda.get_device_name()


def folder() -> Path:
    """Below the package's cache folder (CIRCUIT_TRACER_CACHE_DIR, or ~/.cache/circuit_tracer)."""
    return Path(os.environ.get("CIRCUIT_TRACER_CACHE_DIR") or "~/.cache/circuit_tracer").expanduser() / "tuned"


def read(record: Path, n_configs: int) -> int | None:
    """The number of the configuration that was the fastest; None if that is not known, or not to be read."""
    try:
        number = json.loads(record.read_bytes())["number"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int and 0 <= number < n_configs else None


def write(record: Path, found: dict[str, Any]) -> None:
    """Put the file in place whole; where that cannot be done, say so and go on: only time is lost."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=record.parent, prefix=".", suffix=".json")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(found, file)
            os.replace(name, record)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        LOG.warning("cannot keep how a kernel runs fastest, the next process will try again: %s", error)
