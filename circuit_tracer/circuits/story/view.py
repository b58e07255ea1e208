"""What a page opens with to show a story: the nodes that it speaks of, in their groups."""

from __future__ import annotations

from circuit_tracer.circuits.story.story import Story
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.graph.files.view import View


def story_view(story: Story, grouping: Grouping) -> View:
    """Pins of the story's nodes, and its groups of several nodes or with a name as supernodes."""
    told = tuple(dict.fromkeys(node for sentence in story.sentences for node in sentence.node_ids))
    groups = [(name, tuple(members)) for name, *members in grouping.to_viewer() if set(members) <= set(told)]
    return View(pinned=told, supernodes=tuple(groups))
