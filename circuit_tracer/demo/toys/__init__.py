"""Toys with known circuits, on which transcoders are known to mislead; README.md says how."""

from circuit_tracer.demo.toys.absolute import absolute_values
from circuit_tracer.demo.toys.boolean import boolean_circuit
from circuit_tracer.demo.toys.dictionaries import exact, trained
from circuit_tracer.demo.toys.network import Toy, language_model, replacement_model
from circuit_tracer.demo.toys.report import report, table

__all__ = [
    "Toy",
    "absolute_values",
    "boolean_circuit",
    "exact",
    "language_model",
    "replacement_model",
    "report",
    "table",
    "trained",
]
