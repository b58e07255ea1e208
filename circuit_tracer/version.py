"""The version of this package, as it is installed."""

from __future__ import annotations

from functools import cache


@cache
def package_version() -> str:
    """Such as "0.2.0", or "unknown" for sources that are on the path and not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("circuit-tracing")
    except PackageNotFoundError:
        return "unknown"
