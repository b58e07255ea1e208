"""What a graph's parts must be, whoever made them: types first, so that nothing is rounded, cut or spread in silence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


def require_tensors(whole: dict[str, Any], numbers: dict[str, Any]) -> None:
    """That ``whole`` are dense tensors of whole numbers and ``numbers`` of floating point ones; InputError names the first
    that is not.
    """
    for named, kind, fits in ((whole, "whole numbers", _is_whole), (numbers, "floating point numbers", _is_floating)):
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise InputError(f"{name} is a {type(tensor).__name__}; expected a tensor of {kind}")
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not fits(tensor):
                raise InputError(f"{name} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected {kind}")


def require_texts(**given: Any) -> None:
    """That each is a text."""
    for name, text in given.items():
        if not isinstance(text, str):
            raise InputError(f"{name} is a {type(text).__name__}; expected text")


def require_all_texts(name: str, given: Any) -> None:
    """That it is a list of texts."""
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise InputError(f"{name} must be a list of texts")


def require_whole(**given: Any) -> None:
    """That each is a whole number that tensors can hold, and not below 0."""
    for name, number in given.items():
        if not _is_id(number):
            raise InputError(f"{name} is {str(number)[:40]}; expected a whole number, at least 0")


def require_ids(name: str, given: Iterable[Any]) -> None:
    """That all are whole numbers that tensors can hold, and not below 0."""
    for number in given:
        require_whole(**{name: number})


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**62


def _is_whole(tensor: Tensor) -> bool:
    return tensor.dtype in _WHOLE


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
