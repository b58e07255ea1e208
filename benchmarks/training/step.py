"""Times our training step on synthetic activations; prints one json object. Run by speed.py, in a process of its own.

A step is everything the training loop does for a batch: normalisation, loss, backward, Adam, bookkeeping. First come warm-up
steps, then steps that are timed as a whole, then steps in which each phase is timed, beside its floor:

    encode              operations over the rate of matrix products (the scan works in bfloat16 where that is faster), or bytes
    select              entries read and written
    decode, value gradients, weight gradients
                        2 operations an entry and column over the float32 rate, or the bytes of every row that is touched, once
                        (outputs once a step); or, on a CPU, a row for every entry from a core's second cache: less than that
                        no order of work reads, as no column of all rows fits into the first
    adam                weights, gradients of encoders and two moments, read and written

Rates are those measured on this machine just before: of copies of arrays that are larger than all caches, and of one of
`CACHED_BYTES`, a thread alone, times the threads. A floor assumes nothing is read twice and nothing else happens.
``memory_floor_ms`` is the same without the caches.

Letters: S source layers, B tokens, F features, D width, C columns of a decoder row, n entries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.common.harness import process_peak_gb, versions
from benchmarks.training.synthetic import SyntheticActivations
from circuit_tracer.kernels.decode import Written
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import machine
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import selection
from circuit_tracer.training.sparsity.batch_topk import BatchTopK
from circuit_tracer.training.step import outputs, step
from circuit_tracer.training.step.normalisation import Normalisation

ENTRY_BYTES = 12  # feature and value of an entry
# Of the run of which these are the first steps: after a tenth of so short a one, most features would be dead.
SCHEDULE_TOKENS = 10**8
CACHED_BYTES = 2**19  # of an array that stays in a core's second cache while it is copied
PHASES = ("encode", "select", "decode", "value gradients", "weight gradients", "adam")


Work = tuple[float, float, float]


class Stopwatch:
    """Seconds, operations and bytes by phase. Off until `start`; operations and bytes are those no engine can avoid."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.cached: dict[str, float] = defaultdict(float)
        self.overhead = 0.0  # spent on counting

    def wait(self) -> float:
        """The time, once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, phase: str, call: Callable[..., Any], work: Callable[..., Work]) -> Callable[..., Any]:
        """`call`, timed; `work(result, *arguments)` tells its operations, bytes, and bytes that entries read from a cache."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return call(*args, **kwargs)
            start = self.wait()
            result = call(*args, **kwargs)
            end = self.wait()
            flops, moved, cached = work(result, *args)
            self.seconds[phase] += end - start
            self.flops[phase] += flops
            self.bytes[phase] += moved
            self.cached[phase] += cached
            self.overhead += self.wait() - end
            return result

        return measured

    @contextmanager
    def watching(self, state: TrainingState) -> Iterator[None]:
        """Inside, the functions that a step calls are timed."""
        with ExitStack() as stack:
            for owner, name, phase, work in (
                (selection, "encode", "encode", _encode_work),
                (BatchTopK, "select", "select", _select_work),
                (outputs, "decode_sources_", "decode", _decode_work),
                (step, "value_gradients", "value gradients", _value_work),
                (step, "weight_gradients", "weight gradients", _weight_work),
                (step, "gradients", "weight gradients", _both_work),
                (state.adam, "gradient", "adam", _adam_work(state)),
                (state.adam, "decoder_gradient", "adam", _adam_decoder_work(state)),
            ):
                stack.enter_context(patch.object(owner, name, self.timed(phase, getattr(owner, name), work)))
            yield


def _encode_work(found: SparseActivations, x_BD: Tensor, weight_FD: Tensor, *_: Any) -> Work:
    moved = _size(x_BD) + _size(weight_FD) + ENTRY_BYTES * len(found.feature)
    return 2 * x_BD.shape[0] * weight_FD.numel(), moved, 0.0


def _select_work(chosen: selection.Selection, *_: Any) -> Work:
    return 0.0, 2 * ENTRY_BYTES * sum(len(one.feature) for one in chosen.entries), 0.0


def _decode_work(_: None, out_BC: Tensor, sources: Sequence[Written]) -> Work:
    flops = sum(_flops(one.entries, one.weight_FC) for one in sources)
    moved = sum(_touched(one.entries, one.weight_FC) for one in sources) + 2 * _size(out_BC)
    return flops, moved, flops / 2 * out_BC.element_size()


def _value_work(_: Tensor, grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor) -> Work:
    flops = _flops(entries, weight_FC)
    return flops, _touched(entries, weight_FC) + _size(grad_BC), flops / 2 * grad_BC.element_size()


def _weight_work(found_nC: Tensor, grad_BC: Tensor, entries: SparseActivations, start: int, stop: int, *_: Any) -> Work:
    """Gradients of outputs are read once a source."""
    pointers = entries.columns.feature_ptr
    n = int(pointers[stop] - pointers[start])
    read = n * grad_BC.shape[1]
    moved = _size(found_nC) + (_size(grad_BC) if start == 0 else 0.0)
    return 2.0 * read, moved, float(read * grad_BC.element_size())


def _both_work(
    found: tuple[Tensor, Tensor], grad_BC: Tensor, entries: SparseActivations, weight_FC: Tensor, *_: Any
) -> Work:
    """A GPU's way, whose time is not shared out."""
    return 2 * _flops(entries, weight_FC), _touched(entries, weight_FC) + _size(grad_BC) + _size(found[1]), 0.0


def _adam_work(state: TrainingState) -> Callable[..., Work]:
    def work(_: None, name: str, grad: Tensor) -> Work:
        return 0.0, 2 * (_size(state.adam.weights[name]) + 2 * _size(state.adam.first[name])) + _size(grad), 0.0

    return work


def _adam_decoder_work(state: TrainingState) -> Callable[..., Work]:
    def work(_: None, source: int, rows: slice, grad_nC: Tensor) -> Work:
        weight = state.dictionary.W_dec[source]
        return 0.0, 2 * grad_nC.numel() * (weight.element_size() + 2 * 4) + _size(grad_nC), 0.0

    return work


def _flops(entries: SparseActivations, weight_FC: Tensor) -> float:
    return 2.0 * len(entries.feature) * weight_FC.shape[1]


def _touched(entries: SparseActivations, weight_FC: Tensor) -> float:
    rows = int((torch.bincount(entries.feature, minlength=1) > 0).sum())
    return rows * weight_FC.shape[1] * weight_FC.element_size()


def _size(tensor: Tensor) -> float:
    return float(tensor.numel() * tensor.element_size())


class TimedStream:
    """Hands out batches and marks the time: from one batch handed out to the next one asked for is a step."""

    def __init__(self, args: argparse.Namespace, watch: Stopwatch) -> None:
        source = SyntheticActivations(args.layers, args.width, device=args.device)
        self.batches = source.batches(args.batch)
        self.watch, self.first_watched = watch, args.warmup + args.steps
        self.seconds: list[float] = []
        self._start: float | None = None

    def next(self) -> ActivationBatch:
        """Ends a step and begins the next."""
        self.stop()
        batch = ActivationBatch(*next(self.batches))
        self.watch.on = len(self.seconds) >= self.first_watched
        self._start = self.watch.wait()
        return batch

    def stop(self) -> None:
        """Ends a step."""
        if self._start is not None:
            self.seconds.append(self.watch.wait() - self._start)

    def state(self) -> dict[str, Any]:
        """Nothing is resumed here."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is resumed here."""


def configuration(args: argparse.Namespace, folder: Path) -> TrainingConfig:
    """The default recipe at k active features from the first step on."""
    steps = args.warmup + args.steps + args.phase_steps
    return TrainingConfig.model_validate(
        {
            "model": {"name": "synthetic"},
            "data": {"path": "synthetic"},
            "dictionary": {"features": args.features, "dtype": args.dtype},
            "sparsity": {"active": float(args.active), "anneal": 0.0},
            "optimizer": {"warmup_steps": 0, "decay": 0.0},
            "run": {
                "out": folder,
                "tokens": steps * args.batch,
                "schedule_tokens": max(SCHEDULE_TOKENS, steps * args.batch),
                "batch": args.batch,
                "log_every": 10**6,
            },
        }
    )


def cache_rate(device: torch.device, threads: int) -> float:
    """Bytes a second, read and written, of copies in the cores' second caches; infinite on a GPU, which has another order."""
    if device.type != "cpu":
        return float("inf")
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        source = torch.ones(CACHED_BYTES // 4)
        target = torch.zeros_like(source)
        for _ in range(200):
            start = time.perf_counter()
            target.copy_(source)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return threads * 2 * CACHED_BYTES / statistics.median(times)


def phases(
    watch: Stopwatch, rates: machine.Machine, cached: float, seconds: float, n_steps: int
) -> list[dict[str, Any]]:
    """Milliseconds of a step by phase, and their floors. ``seconds``: of those steps in all, without counting."""
    watch.seconds["select"] -= watch.seconds["encode"]
    product = rates.flops["float32"]
    best = {"encode": max(rates.flops.values())}
    lines = []
    for name in PHASES:
        memory = max(watch.flops[name] / best.get(name, product), watch.bytes[name] / rates.bytes_per_second)
        floor = max(memory, watch.cached[name] / cached)
        found = {"ms": watch.seconds[name], "floor_ms": floor, "memory_floor_ms": memory}
        lines.append({"phase": name, **{unit: 1e3 * value / n_steps for unit, value in found.items()}})
    rest = seconds - sum(watch.seconds[name] for name in PHASES)
    return [*lines, {"phase": "rest", "ms": 1e3 * rest / n_steps, "floor_ms": 0.0, "memory_floor_ms": 0.0}]


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything about the steps of one size."""
    device = torch.device(args.device)
    rates = machine.measure(device, ("float32", "bfloat16"), folder, args.threads)
    cached = cache_rate(device, torch.get_num_threads())
    zeros, ones = torch.zeros(args.layers, args.width), torch.ones(args.layers)
    space = Normalisation(zeros, ones, zeros.clone(), ones.clone())  # the activations are normalised already
    config = configuration(args, folder)
    state = TrainingState.initial(config, space, None, device, FeatureRanks(device=device))
    watch = Stopwatch(device)
    stream = TimedStream(args, watch)
    loop = Loop(config, state, stream, FeatureRanks(device=device), NullListener(), folder, {})
    with watch.watching(state):
        loop.run()
    stream.stop()
    timed = stream.seconds[args.warmup : args.warmup + args.steps]
    watched = stream.seconds[args.warmup + args.steps :]
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else process_peak_gb()
    return {
        "tokens_per_second": args.batch / statistics.median(timed),
        "batch": args.batch,
        "step_seconds": timed,
        "peak_gb": peak,
        "phases": phases(watch, rates, cached, sum(watched) - watch.overhead, len(watched)) if watched else [],
        "gflops": {name: rate / 1e9 for name, rate in rates.flops.items()},
        "copy_gb_per_second": rates.bytes_per_second / 1e9,
        **({"cache_gb_per_second": cached / 1e9} if device.type == "cpu" else {}),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 4), ("width", 64), ("features", 256), ("batch", 128), ("active", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=5, help="steps timed as a whole")
    parser.add_argument("--phase-steps", type=int, default=2, help="steps timed by phase")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(args, Path(folder))))


if __name__ == "__main__":
    main()
