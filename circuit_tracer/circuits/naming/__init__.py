"""Names of groups: from what is known of their members, or by a language model."""

from circuit_tracer.circuits.naming.endpoint import GroupName, interpret_groups
from circuit_tracer.circuits.naming.names import name_groups
from circuit_tracer.circuits.naming.titles import titles

__all__ = ["GroupName", "interpret_groups", "name_groups", "titles"]
