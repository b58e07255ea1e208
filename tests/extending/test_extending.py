"""One toy of each kind, added to a copy of the sources by the steps of CONTRIBUTING.md alone, and used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import find_chromium
from tests.support.extending import Sources
from tests.support.warm_python import WarmPython

pytestmark = pytest.mark.slow("copies of the sources, read anew by processes of their own: 15 s")


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    with WarmPython() as running:
        yield running


@pytest.fixture
def sources(tmp_path: Path, python: WarmPython) -> Sources:
    return Sources(tmp_path, python)


def test_a_site(sources: Sources) -> None:
    """It is read, written and refused; the identities of all sites hold for it."""
    sources.follow("A site")
    sources.script("""
        import torch
        from circuit_tracer.errors import CompatibilityError
        from circuit_tracer.models.parts import bind
        from circuit_tracer.models.run import ModelRun, read
        from tests.support.tiny import tiny_model

        parts, ids = bind(tiny_model("llama"), "llama"), torch.tensor([3, 17, 5, 40])
        mlp = parts.layers[1].mlp
        found = read(parts, ids, [("mlp.hook_gate", 1), ("mlp.hook_in", 1), ("mlp.hook_out", 1)])
        assert torch.equal(found["mlp.hook_gate", 1], mlp.gate_proj(found["mlp.hook_in", 1]))
        shut = {("mlp.hook_gate", 1): lambda _, x: torch.zeros_like(x), ("mlp.hook_out", 1): lambda _, x: seen.append(x)}
        seen = []
        ModelRun(parts, shut)(ids)
        assert not seen[0].any() and found["mlp.hook_out", 1].any()
        try:
            ModelRun(bind(tiny_model("gpt2"), "gpt2"), {"mlp.gate": lambda *_: None})
        except CompatibilityError as error:
            assert "gpt2 has no gated MLP; read mlp.hook_in instead" in str(error)
        else:
            raise AssertionError("not refused")
    """)
    printed = sources.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "llama", "tests/models/test_model_run.py"
    )
    assert int(printed.split(" passed")[0].split()[-1]) > 3


def test_an_architecture(sources: Sources) -> None:
    sources.follow("An architecture")
    options = ("-q", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k", "cosmos3 or every_row")
    printed = sources.run("-m", "pytest", *options, "tests/models/test_model_families.py")
    assert int(printed.split(" passed")[0].split()[-1]) == 4


def test_a_transcoder_format(sources: Sources) -> None:
    sources.follow("A transcoder format")
    sources.script("""
        import torch
        from pathlib import Path
        from safetensors.torch import save_file
        from circuit_tracer import ReplacementModel, attribute
        from circuit_tracer.transcoders import load_transcoder_from_hub
        from tests.support.tiny import tiny_model

        folder = Path("published")
        folder.mkdir()
        layers = [{name: torch.randn(*shape) / 4 for name, shape in
                   {"read": (20, 16), "write": (20, 16), "offset": (16,)}.items()} for _ in range(3)]
        for number, layer in enumerate(layers):
            save_file(layer, folder / f"layer_{number}.safetensors")
        transcoders, config = load_transcoder_from_hub(folder, dtype=torch.float64)
        x = torch.randn(5, 16, dtype=torch.float64)
        expected = (x @ layers[1]["read"].double().T).relu() @ layers[1]["write"].double() + layers[1]["offset"].double()
        torch.testing.assert_close(transcoders.transcoders[1](x), expected)
        graph = attribute([3, 17, 5, 40], ReplacementModel.from_model(tiny_model("llama"), transcoders, None, "plain"))
        assert graph.active_features.shape[0] and float(graph.residual) < 1e-10
    """)


def test_a_kernel(sources: Sources) -> None:
    """It is picked up by the tests of all operations."""
    sources.follow("A kernel")
    arguments = ("-q", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k", "add_rows or folder")
    printed = sources.run("-m", "pytest", *arguments, "tests/kernels/test_every_operation.py")
    assert int(printed.split(" passed")[0].split()[-1]) == 10


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_a_viewer_panel(sources: Sources) -> None:
    """It has a tab, a key, a place in the address, and stands in the single page."""
    sources.follow("A viewer panel")
    sources.script("""
        from pathlib import Path
        from circuit_tracer.viewer import graph_page
        from tests.support.browser import Browser
        from tests.support.documents import small_document
        from tests.support.gestures import params, texts

        file = Path("page.html").resolve()
        file.write_text(graph_page(small_document()))
        with Browser() as browser:
            page = browser.page(file.as_uri())
            page.wait("window.viewer?.view.picture")
            page.click("[data-testid=tab-tokens]")
            assert texts(page, "[data-testid=tokens] li") == ["one 2", "two 6"]
            page.key("t")
            assert texts(page, "[data-testid=tokens] li") == ["two 6", "one 2"]
            assert params(page) == {"tokenOrder": "nodes"}
            page.key("?")
            assert "order tokens by their nodes" in texts(page, "[data-testid=help]")[0]
            assert page.errors() == []
            again = browser.page(file.as_uri() + "#tokenOrder=nodes")
            again.wait("window.viewer?.view.picture")
            assert texts(again, "[data-testid=tokens] li") == ["two 6", "one 2"]
    """)


def test_a_command(sources: Sources) -> None:
    """It stands in its group, answers in words and JSON, and refuses in words."""
    sources.follow("A command")
    sources.script("""
        import json
        from typer.testing import CliRunner
        from circuit_tracer import attribute
        from circuit_tracer.cli.main import app
        from circuit_tracer.demo.show import load_demo

        def run(*arguments):
            return CliRunner().invoke(app, list(arguments))

        assert "tokens" in run("--help").stdout.split("Read:")[1].split("Test:")[0]
        model = load_demo()
        graph = attribute("the capital of Texas is", model)
        graph.save("graph.safetensors")
        assert run("tokens", "graph.safetensors").stdout.splitlines()[-1].split() == [str(graph.n_pos - 1), "is"]
        from tests.support.json_lines import require_lines

        words = ["tokens", "graph.safetensors", "--json"]
        printed = run(*words).stdout
        require_lines(words, 0, printed)
        assert json.loads(printed)["tokens"] == list(graph.token_strings)
        assert run("tokens", "nowhere.safetensors").exit_code == 2
    """)


def test_a_tool_for_assistants(sources: Sources) -> None:
    """It is listed, answers, and refuses in words."""
    sources.follow("A tool for assistants")
    sources.script("""
        import anyio
        from pathlib import Path
        from mcp import Client
        from circuit_tracer import attribute
        from circuit_tracer.assistants.server import make_server
        from circuit_tracer.assistants.workplace import Workplace, open_folder
        from circuit_tracer.demo.show import load_demo

        graph = attribute("the capital of Texas is", load_demo())
        folder = open_folder(Path("graphs"))
        graph.save("graphs/texas.safetensors")

        async def session():
            async with Client(make_server(Workplace(folder))) as client:
                (tool,) = [each for each in (await client.list_tools()).tools if each.name == "tokens"]
                assert tool.title == "Tokens of a prompt"
                assert tool.annotations.read_only_hint
                found = await client.call_tool("tokens", {"graph": "texas"})
                assert found.structured_content == {"tokens": list(graph.token_strings)}
                assert (await client.call_tool("tokens", {"graph": "../texas"})).is_error

        anyio.run(session)
    """)


def test_a_sparsity_rule(sources: Sources) -> None:
    """It trains, resumes, is kept and exported as the rules of the package are."""
    sources.follow("A sparsity rule")
    files = [f"tests/training/test_{name}.py" for name in ("step", "resume", "checkpoint", "export")]
    printed = sources.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k", "fixed", *files
    )
    assert int(printed.split(" passed")[0].split()[-1]) > 10
