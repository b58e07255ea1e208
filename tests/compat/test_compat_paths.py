"""circuit-tracer's import paths: thin modules, that hold nothing of their own and make nothing twice."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

import circuit_tracer

PACKAGE = Path(circuit_tracer.__file__).parent
FOLDERS = ("frontend", "transcoder", "utils")
# these adapt what they re-export to circuit-tracer's names, arguments and forms ...
ADAPT = {
    f"{folder}.{name}"
    for folder, names in {
        "frontend": ("feature_models", "graph_models", "utils"),
        "transcoder": ("single_layer_transcoder",),
        "utils": ("create_graph_files", "disk_offload", "hf_utils", "tl_nnsight_mapping"),
    }.items()
    for name in names
}
# ... and these are helpers of its notebooks, which have no other home
OWN = ADAPT | {f"utils.{name}" for name in ("decode_url_features", "demo_utils", "device", "displays")}
BESIDE_OURS = [
    *(
        f"attribution.{kind}_{backend}"
        for kind in ("attribute", "context")
        for backend in ("nnsight", "transformerlens")
    ),
    *(f"replacement_model.replacement_model_{backend}" for backend in ("nnsight", "transformerlens")),
]


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for folder in FOLDERS for path in sorted((PACKAGE / folder).glob("**/*.py"))}
MODULES |= {name: PACKAGE / f"{name.replace('.', '/')}.py" for name in BESIDE_OURS}
THIN = sorted(set(MODULES) - OWN)


def test_modules_with_code_of_their_own_are_where_the_table_says() -> None:
    assert set(MODULES) >= OWN


@pytest.mark.parametrize("name", THIN)
def test_a_thin_module_imports_and_lists_names(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    docstring, *body = tree.body
    assert isinstance(docstring, ast.Expr)
    imported = {alias.asname or alias.name for line in body if isinstance(line, ast.ImportFrom) for alias in line.names}
    rest = [line for line in body if not isinstance(line, ast.ImportFrom)]
    assert [ast.unparse(line) for line in rest] == ([f"__all__ = {sorted(imported)}"] if imported else [])


@pytest.mark.parametrize("name", [name for name in THIN if name not in FOLDERS])
def test_a_name_is_the_object_of_its_one_home(name: str) -> None:
    module = importlib.import_module(f"circuit_tracer.{name}")
    for each in module.__all__:
        found = getattr(module, each)
        home = importlib.import_module(found.__module__)
        assert getattr(home, found.__name__) is found
        assert home.__name__.removeprefix("circuit_tracer.") not in MODULES


def test_there_is_no_second_place() -> None:
    assert importlib.util.find_spec("circuit_tracer.compat") is None
    assert circuit_tracer.__path__ == [str(PACKAGE)]


def test_a_checkout_without_symbolic_links_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("../kernels")
    (tmp_path / "__init__.py").write_bytes((PACKAGE / "__init__.py").read_bytes())
    spec = importlib.util.spec_from_file_location("without_links", tmp_path / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"core\.symlinks true"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
