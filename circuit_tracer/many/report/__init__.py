"""A report on a run: behaviour, trust, what separates labels, what steering it does, what stays unexplained."""

from circuit_tracer.many.report.document import as_html
from circuit_tracer.many.report.report import Options, Report, make_report

__all__ = ["Options", "Report", "as_html", "make_report"]
