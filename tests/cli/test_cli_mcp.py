"""`circuit-tracer mcp` as assistants start it: the protocol's own client speaks to a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from circuit_tracer.demo import PROMPT
from tests.support.command import Run

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}


def test_a_port_that_is_taken_and_a_folder_that_is_none_are_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run("mcp", "-o", tmp_path / "file").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = run("mcp", "-o", tmp_path, "--http", "--port", taken.getsockname()[1])
    assert outcome.code == 2
    assert "is taken; choose another with --port" in outcome.err
    assert outcome.out == ""


def test_the_extra_that_is_missing_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "circuit_tracer.assistants.server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    outcome = run("mcp", "-o", tmp_path)
    assert outcome.code == 2
    assert "pip install 'circuit-tracing[mcp]'" in outcome.err


@pytest.mark.slow("the whole command in a process of its own, with the embedded model")
def test_a_session_by_standard_input_and_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "circuit_tracer", "mcp", "-o", str(tmp_path / "graphs"), "--demo"]
    with open(tmp_path / "said", "w") as said:
        found = anyio.run(
            _session, StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ)), said
        )
    assert found["graph"] == "dallas"
    assert sorted(path.name for path in (tmp_path / "graphs").iterdir()) == [
        "dallas.json",
        "dallas.safetensors",
        "graph-metadata.json",
    ]
    assert "serving tools" in (tmp_path / "said").read_text()


async def _session(parameters: StdioServerParameters, said: Any) -> dict[str, Any]:
    async with Client(stdio_client(parameters, errlog=said)) as client:
        assert "trace_prompt" in [tool.name for tool in (await client.list_tools()).tools]
        traced = await client.call_tool("trace_prompt", {"prompt": PROMPT, "name": "dallas"})
        top = await client.call_tool("top_nodes", {"graph": "dallas", "kind": "feature", "limit": 1})
        node = top.structured_content["nodes"][0]["id"]
        changed = await client.call_tool(
            "intervene", {"graph": "dallas", "edits": [{"nodes": [node], "how": "ablate"}]}
        )
        assert not changed.is_error, changed.content
        refused = await client.call_tool("graph_info", {"graph": "../dallas"})
        assert refused.is_error
        return dict(traced.structured_content)


@pytest.mark.slow("the whole command in a process of its own")
def test_a_session_by_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "circuit_tracer", "mcp", "-o", str(tmp_path), "--http", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f"http://127.0.0.1:{port}/mcp" in process.stderr.readline()
            assert anyio.run(_about, f"http://127.0.0.1:{port}/mcp") == {"state": "none", "graphs": 0}
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


async def _about(address: str) -> dict[str, Any]:
    async with Client(address) as client:
        found = (await client.call_tool("about")).structured_content
        return {"state": found["model_state"], "graphs": found["graphs"]}


@pytest.mark.slow("the whole command in a process of its own")
def test_standard_output_carries_the_protocol_alone_and_the_process_ends_when_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "circuit_tracer", "mcp", "-o", str(tmp_path), "--demo"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"no protocol at all\n{json.dumps(HELLO)}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["error"]["code"] == -32700
        answer = json.loads(process.stdout.readline())
        assert answer["result"]["serverInfo"]["name"] == "circuit-tracer"
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out == ""
    assert "Traceback" not in err
    assert process.returncode == 0
