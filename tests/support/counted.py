"""What a GPU would have to do for a step of training, counted on a machine that has none.

The step runs on tensors without memory ("meta"), on the path and with the kernels of a GPU; a dispatch mode sees every operation.
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
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from circuit_tracer.kernels.device import kernels_on
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.adam import Adam
from circuit_tracer.training.step.dead_features import Silence
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.questions import Questions

CANDIDATES = 1.25  # entries above the lowered cut for each that is kept


@dataclass
class Work:
    """What one step does."""

    operations: Counter[str] = field(default_factory=Counter)  # launches on the device, by name
    flops: Counter[str] = field(default_factory=Counter)  # of products, by phase and number format: "encoders/bfloat16"
    bytes: Counter[str] = field(default_factory=Counter)  # read and written, by phase
    waits: int = 0  # times that the host waits for the device
    host_bytes: int = 0  # copied either way

    @property
    def launches(self) -> int:
        """All operations."""
        return sum(self.operations.values())


def nbytes(*values: Any) -> int:
    """Of all tensors among them."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _listed(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    value, listed, count, slot, _, x_BD, weight_FD = args[:7]
    moved = nbytes(x_BD, weight_FD, count, slot, value, listed)
    return 1, 2.0 * x_BD.shape[0] * weight_FD.numel(), moved


def _placed(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    feature, value, listed_value, listed = args[:4]
    return 1, 0.0, nbytes(feature, value, listed_value, listed) + 12.0 * len(feature)


def _floor(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    x_BD, weight_FD = args[:2]
    groups = x_BD.shape[0] * weight_FD.shape[0] / 16 * 4  # written, then read by top-k
    return 5, 2.0 * x_BD.shape[0] * weight_FD.numel(), nbytes(x_BD, weight_FD) + 3 * groups


def _decoded(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    out_BC, _, feature, _, weight_FC = args
    n, width = len(feature), out_BC.shape[1]
    return 1, 2.0 * n * width, n * width * weight_FC.element_size() + 2.0 * nbytes(out_BC)


def _gradients(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    """Rows of the gradients are read for every entry, those of the weights once."""
    out_nC, grad_BC, weight_FC, value = args[:4]
    n, width = len(value), grad_BC.shape[1]
    products = (weight_FC is not None) + bool(args[-1])
    workspace = 2.0 * len(args[9]) * width * 4 if args[-1] else 0.0  # a bound
    rows = n * width * grad_BC.element_size()
    return 2 + 2 * (weight_FC is not None), 2.0 * products * n * width, rows + nbytes(out_nC, weight_FC) + workspace


def _updated(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    return 1, 0.0, 2.0 * nbytes(*args[:6]) + nbytes(args[6])


def _counted_digits(op: Any, args: tuple[Any, ...]) -> tuple[int, float, float]:
    return 1, 0.0, nbytes(*args)


KERNELS: dict[str, Callable[..., tuple[int, float, float]]] = {  # launches, operations, bytes
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if namespace == "circuit_tracer_kernels":
            result = func(*args, **kwargs)
            given = tuple(
                kwargs[each.name] if each.name in kwargs else value for each, value in self._bound(func, args)
            )
            self._kernel(name, func, given)
            return result
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
            self.work.bytes[self.phase] += self._moved(name, args, kwargs, result)
            if name in ("mm", "addmm", "addmm_", "bmm"):
                left, right = args[-2:]
                kind = str(left.dtype)[6:]
                self.work.flops[f"{self.phase}/{kind}"] += 2 * left.numel() * right.shape[-1]
        return result

    def _kernel(self, name: str, func: Any, args: tuple[Any, ...]) -> None:
        launches, flops, moved = KERNELS[name](func, args)
        self.work.operations[f"{self.phase}/{name}"] += launches
        self.work.bytes[self.phase] += round(moved)
        if flops:
            kind = "float32"
            if name.startswith("encode"):
                kind = f"{str(args[-5 if name == 'encode_list' else 0].dtype)[6:]} by {str(args[-4 if name == 'encode_list' else 1].dtype)[6:]}"
            self.work.flops[f"{self.phase}/{kind}"] += round(flops)

    @staticmethod
    def _bound(func: Any, args: tuple[Any, ...]) -> list[tuple[Any, Any]]:
        arguments = func._schema.arguments
        return list(zip(arguments, [*args, *[None] * (len(arguments) - len(args))], strict=True))

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


@contextmanager
def _phases(mode: CountingMode) -> Iterator[None]:
    """Inside, functions that a step calls set the phase."""
    from circuit_tracer.training.run import loop
    from circuit_tracer.training.sparsity import selection
    from circuit_tracer.training.step import dead_features, step

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
        patch.object(step, "predict", named("decoders forward", step.predict)),
        patch.object(step._Step, "_reconstruction", named("gradients", step._Step._reconstruction)),
        patch.object(dead_features, "auxiliary", named("dead features", dead_features.auxiliary)),
        patch.object(step._Step, "_through_dead", named("dead features", step._Step._through_dead)),
        patch.object(Adam, "_update", named("adam", Adam._update)),
        patch.object(BatchRule, "select", named("selection", BatchRule.select)),
    ):
        yield


from circuit_tracer.training.sparsity.batch_topk import BatchTopK as BatchRule  # noqa: E402


def loop_without_memory(config: TrainingConfig, n_layers: int, d_model: int) -> Loop:
    """A training loop whose tensors have no memory, after its first step."""
    meta, dtype, F = torch.device("meta"), getattr(torch, config.dictionary.dtype), config.dictionary.features
    clt, learns = config.dictionary.kind == "clt", rule_of(config.sparsity).threshold_start is not None

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=meta)

    dictionary = Dictionary(
        config.dictionary.kind,
        F,
        slice(0, F),
        [empty(F, d_model, dtype=dtype) for _ in range(n_layers)],
        [empty(F) for _ in range(n_layers)],
        [empty(F, (n_layers - source if clt else 1) * d_model, dtype=dtype) for source in range(n_layers)],
        empty(n_layers, d_model),
        empty(n_layers, d_model, d_model) if config.dictionary.kind == "skip" else None,
        [empty(F) for _ in range(n_layers)] if learns else None,
        norms=[empty(F) for _ in range(n_layers)],
    )
    space = Normalisation(empty(n_layers, d_model), empty(n_layers), empty(n_layers, d_model), empty(n_layers))
    adam = Adam(dictionary, config.optimizer, config.run.seed)
    state = TrainingState(dictionary, adam, Silence.initial(dictionary), space, running_cut=1.0, step=1)

    class Stream:
        def next(self) -> ActivationBatch:
            shape, kept = (config.run.batch, n_layers, d_model), torch.float32
            return ActivationBatch(empty(*shape, dtype=kept), empty(*shape, dtype=kept))

    return Loop(config, state, Stream(), FeatureRanks(device=meta), NullListener(), Path("unused"), {})  # type: ignore[arg-type]


def counted(
    config: TrainingConfig,
    n_layers: int,
    d_model: int,
    *,
    active: float | None = None,
    dead: float = 0.0,
    steps: int = 2,
) -> Work:
    """One step in the middle of a run, with ``active`` features a layer and token (None: those of the end) and a share of dead
    ones. The steps before it let rooms be learned."""
    loop, mode = loop_without_memory(config, n_layers, d_model), CountingMode()
    entries = round((active or config.sparsity.active) * config.run.batch)
    n_dead = round(dead * config.dictionary.features)
    rooms = loop.scratch.rooms
    heard = {
        "entries": lambda: [entries] * n_layers,
        "missing": lambda: [CANDIDATES * entries - size for size in rooms.sizes],
        "full": lambda: [0.0 if all(size >= CANDIDATES * entries for size in rooms.sizes) else 1.0],
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

    with kernels_on("meta"), patch.object(Questions, "fetch", hear), _phases(mode), mode:
        for _ in range(steps):
            mode.work = Work()
            loop._step()
    return mode.work
