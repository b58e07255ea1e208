"""What every operation of the table must pass: its torch path and its Triton kernels equal `naive.py`, write all of their
results, leave other arguments alone, and give the same bits again. Kernels are interpreted on a CPU, compiled on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import kernels
from circuit_tracer.kernels.cases import Cases, Dtypes
from circuit_tracer.kernels.operations import OPERATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = [] if find_spec("triton") is None else ["triton"]

PROBLEMS = [
    pytest.param(
        each,
        way,
        dtypes,
        shape,
        id="-".join([each.name, way, *(str(d)[6:] for d in dtypes), str(number)]),
        marks=[pytest.mark.slow("further shapes")] if number else [],
    )
    for each in OPERATIONS
    for way in ("torch", *TRITON)
    for dtypes in getattr(each, way)
    for number, shape in enumerate(each.shapes)
]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy, every tensor changed; what a dataclass has made of its fields is left behind."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        public = [each.name for each in fields(value) if not each.name.startswith("_")]
        return type(value)(**{name: mapped(getattr(value, name), change) for name in public})
    return type(value)(mapped(part, change) for part in value) if isinstance(value, list | tuple) else value


def tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(value, lambda tensor: found.append(tensor) or tensor)
    return found


def called(module: Any, function: str, arguments: tuple[Any, ...]) -> Any:
    """The result: of a function that works in place, its first argument."""
    result = getattr(module, function)(*arguments)
    return arguments[0] if function.endswith("_") else result


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    if not expected.is_floating_point():
        assert torch.equal(found, expected)
    elif expected.numel():
        error = (found.double() - expected).square().mean().sqrt()
        assert error <= tolerance * expected.square().mean().sqrt()


@pytest.mark.few
@pytest.mark.parametrize(("cases", "way", "dtypes", "shape"), PROBLEMS)
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_specification_again_and_again(
    cases: Cases, way: str, dtypes: Dtypes, shape: tuple[Any, ...]
) -> None:
    package = f"circuit_tracer.kernels.{cases.name}"
    naive, module = (
        import_module(f"{package}.naive"),
        import_module(f"{package}.triton" if way == "triton" else package),
    )
    tolerance, device = getattr(cases, way)[dtypes], DEVICE if way == "triton" else "cpu"
    for function, arguments in cases.calls(dtypes, *shape).items():
        wide = mapped(arguments, lambda part: part.double() if part.is_floating_point() else part)
        expected = tensors(getattr(naive, function.removesuffix("_"))(*wide))
        runs = []
        for _ in range(2 if way == "torch" or DEVICE == "cuda" else 1):  # an interpreter does the same each time
            given = mapped(arguments, lambda part: part.to(device, copy=True))
            runs.append([part.cpu() for part in tensors(called(module, function, given))])
            kept = slice(1, None) if function.endswith("_") else slice(None)
            for part, before in zip(tensors(given[kept]), tensors(arguments[kept]), strict=True):
                assert torch.equal(part.cpu(), before), f"{function} changes an argument"
        for found, again, exact in zip(runs[0], runs[-1], expected, strict=True):
            assert_close(found, exact, tolerance)
            assert torch.equal(found, again), f"{function} gives other bits the second time"


def test_every_folder_is_in_the_table() -> None:
    folders = {path.parent.name for path in Path(kernels.__path__[0]).glob("*/__init__.py")}
    assert sorted(folders) == [each.name for each in OPERATIONS]


@pytest.mark.parametrize("cases", OPERATIONS, ids=lambda cases: cases.name)
def test_every_function_of_the_specification_is_tried(cases: Cases) -> None:
    folder = Path(kernels.__path__[0]) / cases.name
    assert {"README.md", "__init__.py", "cases.py", "naive.py", "triton.py"} <= {path.name for path in folder.iterdir()}
    naive = import_module(f"circuit_tracer.kernels.{cases.name}.naive")
    public = import_module(f"circuit_tracer.kernels.{cases.name}")
    specified = {name for name, value in vars(naive).items() if getattr(value, "__module__", "") == naive.__name__}
    has_kernel = re.compile(r"^def (\w+?)_?\(", re.MULTILINE).findall(
        (folder / "triton.py").read_text()
    )  # others: in torch
    offered = {name for name in specified & {*has_kernel} if any(hasattr(public, each) for each in (name, name + "_"))}
    assert offered
    tried = {name.removesuffix("_") for dtypes in cases.triton for name in cases.calls(dtypes, *cases.shapes[0])}
    assert offered <= tried
