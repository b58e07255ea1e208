"""What can go wrong for a reason that the user can mend. Messages name the value, the expectation and the next step."""

from __future__ import annotations

import reprlib
import sys
import warnings
from typing import Any

_NOT_THE_USER = {"circuit_tracer", "contextlib", "functools", "torch"}


class CircuitTracerError(Exception):
    """Base of every error this package raises on purpose; the command line prints it without a traceback."""


class InputError(CircuitTracerError, ValueError):
    """An argument, prompt, target, threshold or path that cannot be used."""


class FileFormatError(CircuitTracerError):
    """A file that is damaged, foreign, incomplete or unsafe to read."""


class UnsupportedModelError(CircuitTracerError):
    """An architecture, or a variant of one, that the table of architectures does not describe."""


class CompatibilityError(CircuitTracerError):
    """A transcoder and a model (or a graph and a model) that do not belong together."""


class NumericalError(CircuitTracerError):
    """NaN or infinity in weights, activations or results."""


class ResourceError(CircuitTracerError):
    """Out of memory, disk or another resource of the machine."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its long advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, in the place of whoever called this package: decorators and our own layers in between are nobody's concern."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_USER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class _Short(reprlib.Repr):
    """Looks at a few levels and items alone, however large the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxdict, self.maxlist = 3, 80, 80, 4, 6

    def repr_int(self, value: int, level: int) -> str:
        """Python refuses to print thousands of digits."""
        return (
            super().repr_int(value, level) if value.bit_length() < 256 else f"an integer of {value.bit_length():,} bits"
        )


_SHORT = _Short()


def shortened(value: Any, most: int = 100) -> str:
    """``value`` for a message: its repr in one line, of about ``most`` characters at most, whatever it is."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= most else f"{text[:most]}…"
