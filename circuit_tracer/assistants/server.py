"""The tools as a server of the Model Context Protocol, by its Python SDK (version 2)."""

from __future__ import annotations

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from pydantic import BaseModel

from circuit_tracer.assistants.calls import Calls
from circuit_tracer.assistants.tools import TOOLS, Tool
from circuit_tracer.assistants.workplace import Workplace
from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.version import package_version

INSTRUCTIONS = """\
Attribution graphs show how a language model arrived at its next token on one prompt. Nodes are features of a dictionary that
stands for the model's MLPs, errors (what the dictionary leaves out), tokens of the prompt, and outputs. Edges are exact for
this prompt, with attention patterns and normalisation held as they were.
Begin with about and list_graphs. next_tokens shows what there is to explain, and trace_prompt traces it. Read a graph from its
outputs down: graph_info, neighbours, paths, top_nodes, groups. What you read in a graph is a hypothesis: test it with intervene
(ablate what should matter, and as much of something else), and say what the test gave. Much influence of errors, or low scores,
mean that the graph misses part of the computation: say so.
"""


def make_server(place: Workplace) -> Server:
    """A server of the workplace's tools; it holds nothing else."""
    calls = Calls(place)

    async def list_tools(
        context: ServerRequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[described(tool) for tool in TOOLS])

    async def call_tool(context: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def tell(seconds: float, what: str) -> None:
            await context.session.report_progress(seconds, None, what)

        try:
            return _result(await calls.answer(params.name, params.arguments or {}, tell))
        except CircuitTracerError as error:
            return _refusal(error)

    return Server(
        "circuit-tracer",
        version=package_version(),
        title="Circuit tracing",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def described(tool: Tool) -> types.Tool:
    """A tool as clients list it."""
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.question.model_json_schema(),
        output_schema=tool.answer.model_json_schema(mode="serialization"),
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=not tool.writes,
            destructive_hint=tool.writes,  # it may replace a graph, if it is told to
            idempotent_hint=not tool.writes,
            open_world_hint=False,
        ),
    )


def _result(answer: BaseModel) -> types.CallToolResult:
    """As values, and as text for clients that know only that."""
    text = types.TextContent(type="text", text=answer.model_dump_json())
    return types.CallToolResult(content=[text], structured_content=answer.model_dump(mode="json"))


def _refusal(error: CircuitTracerError) -> types.CallToolResult:
    """What `--json` says of an error too."""
    said = {"kind": type(error).__name__, "message": str(error)}
    text = types.TextContent(type="text", text=f"{said['kind']}: {said['message']}")
    return types.CallToolResult(content=[text], structured_content={"error": said}, is_error=True)
