"""The table of tools. A new one is a function, its question, its answer, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from circuit_tracer.assistants import answers, questions, reading, testing
from circuit_tracer.assistants.workplace import Workplace
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import Sent


class Tool(NamedTuple):
    """A tool: what people see it called, what it is asked and answers, and what it does.

    tests: it runs the model, so it waits for others that do. writes: it adds to the folder of graphs (and replaces only what
    it is told to). Its name and description are the function's.
    """

    title: str
    question: type[Sent]
    answer: type[BaseModel]
    work: Callable[[Workplace, Any, Job], BaseModel]
    tests: bool = False
    writes: bool = False

    @property
    def name(self) -> str:
        return self.work.__name__

    @property
    def description(self) -> str:
        return " ".join((self.work.__doc__ or "").split())


TOOLS = (
    Tool("What is here", questions.Nothing, answers.About, reading.about),
    Tool("List graphs", questions.ListGraphs, answers.GraphList, reading.list_graphs),
    Tool("A graph in numbers", questions.OfGraph, answers.GraphInfo, reading.graph_info),
    Tool("Most influential nodes", questions.TopNodes, answers.NodeList, reading.top_nodes),
    Tool("Edges of a node", questions.Neighbours, answers.NeighbourList, reading.neighbours),
    Tool("Strongest paths", questions.Paths, answers.PathList, reading.paths),
    Tool("Search features by label", questions.SearchFeatures, answers.FoundFeatures, reading.search_features),
    Tool("What a feature is", questions.OneFeature, answers.Feature, reading.feature),
    Tool("Groups of a graph", questions.GroupsOf, answers.Groups, reading.groups),
    Tool("Compare two graphs", questions.CompareGraphs, answers.Compared, reading.compare_graphs),
    Tool("What the model would say", questions.NextTokens, answers.ReadPrompt, testing.next_tokens, tests=True),
    Tool("Trace a prompt", questions.TracePrompt, answers.Traced, testing.trace_prompt, tests=True, writes=True),
    Tool("An edge by heads", questions.ExplainEdge, answers.EdgeSplit, testing.explain_edge, tests=True),
    Tool("What if", questions.Intervene, answers.WhatIf, testing.intervene, tests=True),
    Tool("The story of a graph", questions.Story, answers.StoryTold, testing.story, tests=True),
)
