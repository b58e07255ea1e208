"""Figures of matplotlib, which is an extra, in files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same graph gives the same file
_SETTINGS: Any = {"svg.hashsalt": "circuit-tracing", "pdf.fonttype": 42}


def require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401 - whether it is there
    except ImportError as error:
        raise CircuitTracerError("pictures need matplotlib: pip install 'circuit-tracing[plot]'") from error


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    try:
        require_matplotlib()
    except CircuitTracerError:
        return False
    return True


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the suffix names; the same figure gives the same file.

    Args:
        figure: Of matplotlib.
        path: Ending in .svg, .pdf or .png.

    Returns:
        The path.
    """
    data = figure_bytes(figure, path.suffix, str(path))
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def figure_bytes(figure: Figure, suffix: str, named: str = "the picture") -> bytes:
    """A figure as the content of a file of that ending. Raises InputError for one that is no format of pictures."""
    import matplotlib

    kind = suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{named} ends in .{kind}, which is no format of pictures; end it in .svg, .pdf or .png")
    buffer = BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format=kind, dpi=150, metadata=_NO_DATE.get(kind))
    return buffer.getvalue()
