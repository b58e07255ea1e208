"""No script fails for a missing name: every public name of circuit-tracer 0.5.0 is here, or is in a table that says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import typer.main

from benchmarks.comparison.upstream_names import Name, compare, idle_rows
from circuit_tracer import ReplacementModel, prune_graph
from circuit_tracer.cli.main import app
from tests.support.graph_cases import random_graph
from tests.support.tracing_cases import Case, build


def command_line_options(*commands: str) -> set[str]:
    """Of our commands; a hyphen within a name is an underscore too."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("circuit-tracer", [], resilient_parsing=True)
    options = [option for name in commands for each in group.get_command(context, name).params for option in each.opts]
    return {spelling for option in options for spelling in (option, f"--{option[2:].replace('-', '_')}")}


@pytest.fixture(scope="module")
def names() -> list[Name]:
    graph = random_graph(dtype=torch.float32)
    model = build(Case("llama"))
    instances = {"Graph": graph, "PruneResult": prune_graph(graph), "ReplacementModel": model, "GraphConfig": graph.cfg}
    assert isinstance(model, ReplacementModel)
    found, faults = compare(instances, command_line_options("attribute", "start-server"))
    assert not faults, "\n".join(f"{fault.name}: {fault.what}" for fault in faults)
    return found


def test_every_name_is_here_or_excused(names: list[Name]) -> None:
    counts = {verdict: sum(name.verdict == verdict for name in names) for verdict in ("same", "adapted", "absent")}
    assert counts["same"] > 300
    assert counts["absent"] < 60


def test_tables_excuse_nothing_that_needs_no_excuse(names: list[Name]) -> None:
    assert idle_rows(names) == []
