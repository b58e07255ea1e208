"""How often a GPU would be waited for, counted on a machine that has none.

Tensors that say they lie on a device (torch's "meta") hold their numbers here, so the engine runs as it is, on the path and
with the kernels of a GPU, and its results are real. A dispatch mode sees each operation: those that a GPU cannot do without the
host hearing from it, copies that the host waits for, and launches. Tensors of both places meet only where CUDA lets them.

    with counting() as counted:
        attribute(prompt, on_device(model))
    print(counted.table())

A read has the host wait until the device has done everything before it. So has an upload: torch's copies end with a
synchronisation of the stream unless they are `non_blocking`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from circuit_tracer import ReplacementModel
from circuit_tracer.kernels.contract import AddressedRows, contract_, contract_rows_
from circuit_tracer.kernels.device import kernels_on
from circuit_tracer.models import plain
from circuit_tracer.models.parts import bind
from circuit_tracer.transcoders.weight_rows import MappedRows

ROOT = str(Path(__file__).resolve().parents[2])
OURS = tuple(f"{ROOT}/{folder}/" for folder in ("circuit_tracer", "kernels"))
DEVICE = torch.device("meta")
# what a GPU answers: sizes, numbers, yes or no
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal",
    "is_nonzero", "histc",
}  # fmt: skip
NO_LAUNCH = {
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "is_pinned",
}
INDEXED = {"index": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1}  # where the indices stand


@dataclass
class Counted:
    """What was seen, by operation and by the line of ours that asked for it."""

    reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    passing: Counter[tuple[str, str]] = field(default_factory=Counter)  # copies that nobody waits for
    kernels: Counter[str] = field(default_factory=Counter)  # of our own among the launches
    read_bytes: int = 0

    def clear(self) -> None:
        """Count from here."""
        vars(self).update(vars(Counted()))

    def copy(self) -> Counted:
        """As it is now."""
        return self - Counted()

    def __sub__(self, less: Counted) -> Counted:
        """What was seen here and not there."""
        left = Counted(read_bytes=self.read_bytes - less.read_bytes)
        for name in ("reads", "uploads", "launches", "passing", "kernels"):
            setattr(left, name, getattr(self, name) - getattr(less, name))
        return left

    def summary(self) -> dict[str, int]:
        """Sums."""
        return {
            "reads": self.reads.total(),
            "uploads": self.uploads.total(),
            "launches": self.launches.total(),
            "kernels": self.kernels.total(),
            "copies not waited for": self.passing.total(),
            "bytes read": self.read_bytes,
        }

    def table(self, *kinds: str) -> str:
        """The lines behind the sums, most first."""
        lines = []
        for kind in kinds or ("reads", "uploads"):
            found: Counter[tuple[str, str]] = getattr(self, kind)
            lines.append(f"{kind}: {found.total()}")
            lines += [f"  {count:6d}  {name:24s} {place}" for (name, place), count in found.most_common()]
        return "\n".join(lines)


class OnDevice(Tensor):
    """A tensor that says it is on the device, and holds its numbers here."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor on the device outside of counting()")


class _Operations(TorchDispatchMode):
    """Runs each operation on what tensors hold, and notes what a GPU would have been waited for."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled; to skip it, torch would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        namespace, name = _named(func)
        here = any(isinstance(leaf, OnDevice) for leaf in _leaves(args, kwargs))
        asked = kwargs.get("device")
        to_device = asked is not None and torch.device(asked).type == DEVICE.type
        if not here and not to_device:
            return func(*args, **kwargs)
        if namespace == "circuit_tracer_kernels":
            self.counted.kernels[name] += 1
            self._launch(name)
            KERNELS[name](*_held(args), **_held(kwargs))
            return None
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs, to_device)
        return self._operation(func, name, args, kwargs, here if asked is None else to_device)

    def _operation(self, func: Any, name: str, args: Any, kwargs: Any, on_device: bool) -> Any:
        self._require_one_place(func, name, args, kwargs)
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 2):
            self._read(name)
        if name in INDEXED:
            for index in args[INDEXED[name]]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self._read(f"{name} by a mask")
                if isinstance(index, Tensor) and not isinstance(index, OnDevice):
                    self._upload(f"{name} by a host's tensor")
        if "device" in kwargs and on_device:
            kwargs["device"] = torch.device("cpu")
        if name == "_fused_sdp_choice":
            return 0  # torch's own products
        result = func(*_held(args), **_held(kwargs))
        if name == "_local_scalar_dense":
            return result
        if name not in NO_LAUNCH and not _is_view(func):
            self._launch(name)
        return self._wrapped(result, args, kwargs) if on_device else result

    def _copy(self, func: Any, name: str, args: Any, kwargs: Any, to_device: bool) -> Any:
        if name == "copy_":
            target, source = args[0], args[1]
            self._across(name, source, isinstance(target, OnDevice), kwargs, args[2:])
            func(*_held(args), **_held(kwargs))
            return target
        source, asked = args[0], kwargs.get("device")
        stays = isinstance(source, OnDevice) if asked is None else to_device
        self._across(name, source, stays, kwargs, ())
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(_held(source), **kwargs)
        return OnDevice(result) if stays else result

    def _across(self, name: str, source: Tensor, to_device: bool, kwargs: Any, rest: Any) -> None:
        """What a copy costs: a launch on the device, or a way between the two places."""
        if isinstance(source, OnDevice) == to_device:
            return self._launch(name)
        if kwargs.get("non_blocking") or any(rest):
            self.counted.passing[name, _place()] += 1
        elif to_device:
            self._upload(name)
        else:
            self.counted.read_bytes += source.nbytes
            self._read(name)
        return None

    @staticmethod
    def _require_one_place(func: Any, name: str, args: Any, kwargs: Any) -> None:
        indices = args[INDEXED[name]] if name in INDEXED else ()
        free = {id(leaf) for leaf in indices}
        leaves = [leaf for leaf in _leaves(args, kwargs) if isinstance(leaf, Tensor) and id(leaf) not in free]
        host = [leaf for leaf in leaves if not isinstance(leaf, OnDevice)]
        if len(host) < len(leaves) and any(leaf.ndim for leaf in host):
            raise RuntimeError(
                f"{func}: expected all tensors to be on one device, found some of the host among those of it"
            )

    @staticmethod
    def _wrapped(result: Any, args: Any, kwargs: Any) -> Any:
        """What an operation in place hands back is the tensor that it was given."""
        given = {id(leaf.held): leaf for leaf in _leaves(args, kwargs) if isinstance(leaf, OnDevice)}

        def wrapped(made: Any) -> Any:
            if isinstance(made, tuple | list):
                return type(made)(map(wrapped, made))
            if not isinstance(made, Tensor):
                return made
            return given[id(made)] if id(made) in given else OnDevice(made)

        return wrapped(result)

    def _read(self, name: str) -> None:
        self.counted.reads[name, _place()] += 1

    def _upload(self, name: str) -> None:
        self.counted.uploads[name, _place()] += 1

    def _launch(self, name: str) -> None:
        self.counted.launches[name, _place()] += 1


def _patches() -> Iterator[Any]:
    """What torch refuses to tensors that are not its own, or does without dispatch."""
    tensor, tolist, numpy, new_tensor = torch.tensor, Tensor.tolist, Tensor.numpy, Tensor.new_tensor

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        return tensor(data, **kwargs).to(DEVICE) if _on_device(device) else tensor(data, device=device, **kwargs)

    def listed(self: Tensor) -> Any:
        return tolist(self.cpu()) if isinstance(self, OnDevice) else tolist(self)

    def as_numpy(self: Tensor, *, force: bool = False) -> Any:
        return numpy(self.cpu() if isinstance(self, OnDevice) else self, force=force)

    def made_like(self: Tensor, data: Any, **kwargs: Any) -> Tensor:
        like = {"dtype": self.dtype, "device": self.device} | kwargs
        return made(data, **like) if isinstance(self, OnDevice) else new_tensor(self, data, **kwargs)

    yield patch.object(torch, "tensor", made)
    yield patch.object(Tensor, "tolist", listed)
    yield patch.object(Tensor, "numpy", as_numpy)
    yield patch.object(Tensor, "new_tensor", made_like)
    yield patch.object(plain, "_is_dense", lambda tensor: True)  # a subclass is otherwise taken for quantised weights


def _on_device(asked: Any) -> bool:
    return asked is not None and torch.device(asked).type == DEVICE.type


def _leaves(args: Any, kwargs: Any) -> Iterator[Any]:
    """Arguments, and what lists of tensors hold."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, tuple | list):
            yield from value
        else:
            yield value


def _held(value: Any) -> Any:
    """The same with the tensors that are held."""
    if isinstance(value, OnDevice):
        return value.held
    if isinstance(value, tuple | list):
        return type(value)(map(_held, value))
    return {name: _held(each) for name, each in value.items()} if isinstance(value, dict) else value


@cache
def _named(func: Any) -> tuple[str, str]:
    """Namespace and name of an operation, whatever its overload."""
    namespace, _, name = func.name().partition("::")
    return namespace, name.partition(".")[0]


@cache
def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and all(each.alias_info and not each.alias_info.is_write for each in returned)


def _place() -> str:
    """The line of ours that asked for it: what the model's own code does counts for the line that runs it."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "elsewhere"
    return f"{frame.f_code.co_filename[len(ROOT) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"


def _contract(
    out_TN: Tensor,
    g_TPD: Tensor,
    tables: list[Tensor],
    ptr: Tensor,
    column: Tensor,
    table: Tensor | None = None,
    row: Tensor | None = None,
    scale: Tensor | None = None,
    *rest: Any,
) -> None:
    """`kernels/contract/triton.py`, of sources side by side, or where they are stored."""
    if table is None or row is None or scale is None:
        contract_(out_TN, g_TPD, tables[0], ptr.tolist(), column.tolist())
    else:
        contract_rows_(out_TN, g_TPD, AddressedRows(tables, table, row, scale, column, ptr.tolist()))


def _mix(
    mixed_TPV: Tensor,
    pattern_HQS: Tensor,
    z_TPO: Tensor,
    first_key: int,
    n_keys: int,
    first_q: int,
    last_q: int,
    d_head: int,
) -> None:
    """`kernels/attend_back/triton.py`: a whole pattern begins before the keys and queries that are asked for."""
    n_kv = mixed_TPV.shape[2] // d_head
    queries, keys = slice(first_q, last_q), slice(first_key, first_key + n_keys)
    pattern = pattern_HQS[:, -(last_q - first_q) :, -n_keys:].unflatten(0, (n_kv, -1))
    z = z_TPO[:, queries].unflatten(2, (n_kv, -1, d_head))
    mixed_TPV[:, keys] = torch.einsum("kgqs,tqkgd->tskd", pattern, z).flatten(2)


def _pattern(
    strip_HQS: Tensor,
    query_HPd: Tensor,
    key_KPd: Tensor,
    lse_HP: Tensor,
    first_P: Tensor,
    key_scale_P: Tensor | None,
    first_key: int,
    first_query: int,
    scaling: float,
    softcap: float | None,
) -> None:
    """The same: a strip of a pattern made anew."""
    from circuit_tracer.kernels.attend_back.scores import Scores

    scores = Scores(query_HPd, key_KPd, lse_HP, first_P, scaling, softcap, key_scale_P)
    queries = slice(first_query, first_query + strip_HQS.shape[1])
    keys = slice(first_key, first_key + strip_HQS.shape[2])
    strip_HQS.copy_(torch.cat([scores.tile(head, queries, keys) for head in range(key_KPd.shape[0])]))


def _project(out_nN: Tensor, row_nK: Tensor, digits_WKN: Tensor, add: bool) -> None:
    """`kernels/attend_back/projections.py`."""
    projected = row_nK @ digits_WKN.to(row_nK.dtype).sum(0)
    out_nN.copy_(out_nN + projected if add else projected)


KERNELS = {
    "contract": _contract,
    "attend_back_mix": _mix,
    "attend_back_pattern": _pattern,
    "attend_back_project": _project,
}


def on_device(model: ReplacementModel) -> ReplacementModel:
    """A model of the CPU with all its weights on the device, in place; what stays in files is put there when it is read."""
    language, transcoders = model.parts.model, model.transcoders
    for module in (*language.modules(), *transcoders.modules()):
        for kind in (module._parameters, module._buffers):
            for key, weight in kind.items():
                if weight is not None and not isinstance(weight, OnDevice):
                    made: Tensor = OnDevice(weight.detach())
                    kind[key] = nn.Parameter(made, requires_grad=False) if kind is module._parameters else made
        for stores in vars(module).get("_mapped", {}).values():
            for store in stores if isinstance(stores, list) else [stores]:
                if isinstance(store, MappedRows):
                    store.apply(lambda example: example.to(DEVICE))
    return ReplacementModel(bind(language, model.parts.config.model_name), transcoders, model.tokenizer)


@contextmanager
def counting() -> Iterator[Counted]:
    """Inside, what the device would be asked for is counted; models made by `on_device` run only here."""
    counted = Counted()
    with ExitStack() as stack:
        for each in (*_patches(), kernels_on(DEVICE.type), _Operations(counted)):
            stack.enter_context(each)
        yield counted
