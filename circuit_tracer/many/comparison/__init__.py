"""Two graphs side by side: what differs, and an exact account of the change of a target; a viewer's file beside a graph."""

from circuit_tracer.many.comparison.compare import compare
from circuit_tracer.many.comparison.schema import Comparison
from circuit_tracer.many.comparison.with_file import FileComparison, compare_with_file

__all__ = ["Comparison", "FileComparison", "compare", "compare_with_file"]
