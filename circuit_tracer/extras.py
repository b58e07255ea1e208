"""Libraries that come with an extra of the package."""

from __future__ import annotations

from circuit_tracer.errors import InputError


def missing_extra(what: str, error: ImportError, extra: str = "many") -> InputError:
    """The error for what needs a library that is not installed."""
    return InputError(f"{what} need the package {error.name!r}: pip install 'circuit-tracing[{extra}]'")
