"""A story of a grouped graph: sentences from its numbers, with the interventions that test them."""

from circuit_tracer.circuits.story.contrast import Contrast
from circuit_tracer.circuits.story.story import Evidence, Measurement, Sentence, Story
from circuit_tracer.circuits.story.tell import tell

__all__ = ["Contrast", "Evidence", "Measurement", "Sentence", "Story", "tell"]
