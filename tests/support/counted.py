"""What a GPU would have to do for a step of training, counted on a machine that has none.

The step runs on tensors without memory ("meta"), on the path and with the kernels of a GPU; a dispatch mode sees what it calls.
What the host hears is made up: as many entries as the rule keeps, as many dead features as asked for. Whatever cannot be done
without asking the device raises, since there is nothing to ask.

    counted(config, n_layers=12, d_model=768)      # at full size, in a second

Letters: S source layers, B tokens, F features, D width, C columns, n entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from circuit_tracer.kernels.device import kernels_on
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import loop
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of, selection
from circuit_tracer.training.sparsity.batch_topk import BatchTopK
from circuit_tracer.training.step import dead_features, step
from circuit_tracer.training.step.adam import Adam
from circuit_tracer.training.step.dead_features import Silence
from circuit_tracer.training.step.dictionary import Dictionary, row_norms
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.questions import Questions

CANDIDATES = 1.25  # entries above the lowered cut for each that is kept


@dataclass
class Work:
    """What one step does."""

    operations: Counter[str] = field(default_factory=Counter)  # launches on the device, by name
    flops: Counter[str] = field(default_factory=Counter)  # of products, by phase and number format: "encoders/bfloat16"
    bytes: Counter[str] = field(default_factory=Counter)  # read and written, by phase, as if no cache held anything
    least: Counter[str] = field(default_factory=Counter)  # the same if what is read again were still in a cache
    waits: int = 0  # times that the host waits for the device
    host_bytes: int = 0  # copied either way

    @property
    def launches(self) -> int:
        """All operations."""
        return sum(self.operations.values())


def nbytes(*values: Any) -> int:
    """Of all tensors among them."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


@dataclass
class Launched:
    """What one of our kernels does."""

    launches: int
    flops: float = 0.0
    bytes: float = 0.0
    least: float | None = None  # None: the same
    product: str = "float32"


Given = dict[str, Any]  # arguments by name


def _listed(given: Given, n: Callable[[Tensor], int]) -> Launched:
    x_BD, weight_FD = given["x_BD"], given["weight_FD"]
    moved = nbytes(x_BD, weight_FD, *(given[name] for name in ("count_BK", "slot_BK", "value", "listed")))
    return Launched(1, 2.0 * len(x_BD) * weight_FD.numel(), moved, product=_product(x_BD, weight_FD))


def _floor(given: Given, n: Callable[[Tensor], int]) -> Launched:
    x_BD, weight_FD = given["x_BD"], given["weight_FD"]
    groups = len(x_BD) * len(weight_FD) / 16 * 4  # written, then read by top-k
    flops = 2.0 * len(x_BD) * weight_FD.numel()
    return Launched(5, flops, nbytes(x_BD, weight_FD) + 3 * groups, product=_product(x_BD, weight_FD))


def _placed(given: Given, n: Callable[[Tensor], int]) -> Launched:
    parts = [given[name] for name in ("feature", "value", "listed_value", "listed")]
    return Launched(1, 0.0, nbytes(*parts) + 12.0 * len(parts[0]))


def _decoded(given: Given, n: Callable[[Tensor], int]) -> Launched:
    """Rows of the weights are read for every entry."""
    out_BC, weight_FC, count = given["out_BC"], given["weight_FC"], n(given["feature"])
    width = out_BC.shape[1]
    rows = count * width * weight_FC.element_size()
    once = 2.0 * nbytes(out_BC)
    return Launched(1, 2.0 * count * width, rows + once, min(rows, nbytes(weight_FC)) + once)


def _gradients(given: Given, n: Callable[[Tensor], int]) -> Launched:
    """Rows of the gradients are read for every entry, those of the weights once."""
    grad_BC, weight_FC, count = given["grad_BC"], given["weight_FC"], n(given["value"])
    values, weights, width = weight_FC is not None, given["weights"], grad_BC.shape[1]
    workspace = 2.0 * 4 * len(given["slot_feature"]) * width if weights else 0.0  # a bound
    rows = count * width * grad_BC.element_size()
    once = nbytes(weight_FC, given["out_nC"]) + workspace
    flops = 2.0 * (values + weights) * count * width
    return Launched(2 + 2 * values, flops, rows + once, min(rows, nbytes(grad_BC)) + once)


def _updated(given: Given, n: Callable[[Tensor], int]) -> Launched:
    kept = [value for name, value in given.items() if name != "grad_RC"]
    return Launched(1, 0.0, 2.0 * nbytes(*kept) + nbytes(given["grad_RC"]))


def _counted_digits(given: Given, n: Callable[[Tensor], int]) -> Launched:
    return Launched(1, 0.0, nbytes(*given.values()))


def _product(left: Tensor, right: Tensor) -> str:
    return f"{str(left.dtype)[6:]} by {str(right.dtype)[6:]}"


KERNELS: dict[str, Callable[[Given, Callable[[Tensor], int]], Launched]] = {
    "encode_list": _listed,
    "encode_place": _placed,
    "encode_floor": _floor,
    "decode": _decoded,
    "decode_gradients": _gradients,
    "adam": _updated,
    "digits": _counted_digits,
}
# operations that a GPU cannot do without answering the host; those that tensors without memory refuse are not among them
WAITING = {"_local_scalar_dense", "index_put_.bool", "nonzero", "bincount", "unique", "masked_select", "equal"}
FREE = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh", "new_empty_strided", "device"}
SOURCE_ONLY = {"index", "index_select", "gather"}  # read as much as they write, not the whole table
TARGET_ONLY = {"index_add_", "index_copy_", "searchsorted", "scatter_"}


class CountingMode(TorchDispatchMode):
    """Adds what is called to ``work``, under the phase that is set."""

    def __init__(self) -> None:
        super().__init__()
        self.work, self.phase = Work(), "rest"
        self.real: dict[int, int] = {}  # entries by room, of those that are not exact

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if namespace == "circuit_tracer_kernels":
            names = [each.name for each in func._schema.arguments]
            self._kernel(name, dict.fromkeys(names) | dict(zip(names, args, strict=False)) | kwargs)
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and self._crosses(args, kwargs):
            self.work.waits += 1
            self.work.host_bytes += nbytes(args[-1] if name == "copy_" else args[0])
            if kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name in WAITING:
            self.work.waits += 1
        result = func(*args, **kwargs)
        if name not in FREE and not self._is_view(func) and self._on_device(args, kwargs, result):
            self.work.operations[f"{self.phase}/{name}"] += 1
            moved = self._moved(name, args, kwargs, result)
            self.work.bytes[self.phase] += moved
            self.work.least[self.phase] += moved
            if name in ("mm", "addmm", "addmm_", "bmm"):
                left, right = args[-2:]
                kind = str(left.dtype)[6:]
                self.work.flops[f"{self.phase}/{kind}"] += 2 * left.numel() * right.shape[-1]
        return result

    def _kernel(self, name: str, given: Given) -> None:
        work, launched = self.work, KERNELS[name](given, lambda entries: self.real.get(len(entries), len(entries)))
        work.operations[f"{self.phase}/{name}"] += launched.launches
        work.bytes[self.phase] += round(launched.bytes)
        work.least[self.phase] += round(launched.bytes if launched.least is None else launched.least)
        if launched.flops:
            work.flops[f"{self.phase}/{launched.product}"] += round(launched.flops)

    @staticmethod
    def _crosses(args: Any, kwargs: Any) -> bool:
        places = {leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        if kwargs.get("device") is not None:
            places.add(torch.device(kwargs["device"]).type)
        return places == {"cpu", "meta"}

    @staticmethod
    def _on_device(*values: Any) -> bool:
        return any(isinstance(leaf, Tensor) and leaf.device.type == "meta" for leaf in tree_leaves(values))

    @staticmethod
    def _is_view(func: Any) -> bool:
        returned = func._schema.returns
        return bool(returned) and all(each.alias_info and not each.alias_info.is_write for each in returned)

    @staticmethod
    def _moved(name: str, args: Any, kwargs: Any, result: Any) -> int:
        if name in SOURCE_ONLY:
            return 2 * nbytes(result) + nbytes(args[1:])
        if name in TARGET_ONLY:
            return 2 * nbytes(args[2:])
        if name.endswith("_"):  # the result is the first argument
            written = nbytes(args[0])
            return written + (0 if name in ("zero_", "fill_") else nbytes(args, kwargs))
        return nbytes(args, kwargs, result)


class Watching(Protocol):
    """Whoever keeps something by phase."""

    phase: str


@contextmanager
def phases(mode: Watching) -> Iterator[None]:
    """Inside, functions that a step calls set the phase while they run."""

    def named(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before, mode.phase = mode.phase, phase
            try:
                return call(*args, **kwargs)
            finally:
                mode.phase = before

        return run

    with (
        patch.object(loop, "normalised", named("batch", loop.normalised)),
        patch.object(selection, "encode_at_most", named("encoders", selection.encode_at_most)),
        patch.object(step, "predict_prefixes", named("decoders forward", step.predict_prefixes)),
        patch.object(step._Step, "_reconstruction", named("gradients", step._Step._reconstruction)),
        patch.object(dead_features, "auxiliary", named("dead features", dead_features.auxiliary)),
        patch.object(dead_features, "lift", named("dead features", dead_features.lift)),
        patch.object(step._Step, "_through_dead", named("dead features", step._Step._through_dead)),
        patch.object(Adam, "_update", named("adam", Adam._update)),
        patch.object(BatchTopK, "select", named("selection", BatchTopK.select)),
    ):
        yield


def loop_on(
    device: torch.device, config: TrainingConfig, n_layers: int, d_model: int, batches: Iterator[ActivationBatch]
) -> Loop:
    """A training loop after its first step; its weights are noise, or on "meta" nothing."""
    kept, F = getattr(torch, config.dictionary.dtype), config.dictionary.features
    clt, own = config.dictionary.kind == "clt", rule_of(config.sparsity).own

    def rows(width: int) -> Tensor:
        return torch.empty(F, width, dtype=kept, device=device).normal_(std=width**-0.5)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, device=device)

    decoders = [rows((n_layers - source if clt else 1) * d_model) for source in range(n_layers)]
    dictionary = Dictionary(
        config.dictionary.kind,
        F,
        slice(0, F),
        [rows(d_model) for _ in range(n_layers)],
        [zeros(F) for _ in range(n_layers)],
        decoders,
        zeros(n_layers, d_model),
        zeros(n_layers, d_model, d_model) if config.dictionary.kind == "skip" else None,
        **{name: [zeros(F) for _ in range(n_layers)] for name in own},
        norms=[row_norms(decoder) for decoder in decoders],
    )
    means, ones = zeros(n_layers, d_model), torch.ones(n_layers, device=device)
    adam = Adam(dictionary, config.optimizer, config.run.seed)
    state = TrainingState(
        dictionary, adam, Silence.initial(dictionary), Normalisation(means, ones, means, ones), step=1
    )

    class Stream:
        def next(self) -> ActivationBatch:
            return next(batches)

    return Loop(config, state, Stream(), FeatureRanks(device=device), NullListener(), Path("unused"), {})  # type: ignore[arg-type]


def counted(
    config: TrainingConfig, n_layers: int, d_model: int, *, active: float | None = None, dead: float = 0.0
) -> Work:
    """One step in the middle of a run, with ``active`` features a layer and token (None: those of the end) and a share of dead
    ones. The step before it lets rooms be learned."""
    shape, meta = (config.run.batch, n_layers, d_model), torch.device("meta")
    batch = ActivationBatch(torch.empty(shape, device=meta), torch.empty(shape, device=meta))
    training, mode = loop_on(meta, config, n_layers, d_model, repeat(batch)), CountingMode()
    training.state.running_cut = 1.0
    entries = round((active or config.sparsity.active) * config.run.batch)
    n_dead, k = round(dead * config.dictionary.features), config.sparsity.aux_active
    mode.real = {config.run.batch * min(n_dead, 2 * k) + 1: config.run.batch * min(n_dead, k)}
    rooms = training.scratch.rooms
    heard = {
        "entries": lambda: [entries] * n_layers,
        "missing": lambda: [CANDIDATES * entries - size for size in rooms.sizes],
        "full": lambda: [float(any(size < CANDIDATES * entries for size in rooms.sizes))],
        "cut": lambda: [1.0],
        "dead": lambda: [n_dead] * n_layers,
        "dead of all": lambda: [n_dead * n_layers],
    }
    fetch = Questions.fetch

    def hear(self: Questions) -> None:
        answers = [answer for _, answer in self._open]
        fetch(self)
        for answer in answers:
            if answer.name in heard:
                answer.found = [float(number) for number in heard[answer.name]()]

    with kernels_on("meta"), patch.object(Questions, "fetch", hear), phases(mode), mode:
        for _ in range(2):
            mode.work = Work()
            training._step()
    return mode.work
