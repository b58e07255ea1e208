"""Imports point one way. Read off the text of every module: what a package may import, circles, late imports, hooks.

Names are those of modules without `circuit_tracer.` in front. A row of a table that nothing needs any more is an error too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "circuit_tracer"

# ---- tables

PLAIN = {
    "arguments",
    "classify",
    "counted",
    "errors",
    "extras",
    "files",
    "garbage",
    "http",
    "hub_connection",
    "huge_pages",
    "progress",
    "ranks",
    "sizes",
    "version",
    "workers",
}
TRACED = {*PLAIN, "kernels", "models", "text", "transcoders", "fingerprint"}
TRACING = {*TRACED, "graph", "attribution"}
TOOLS = {*TRACING, "interventions", "attention", "features", "training", "neuronpedia"}
SETS = {*TOOLS, "many", "probes", "circuits", "replacement_model"}
COMPAT = ("frontend", "transcoder", "utils")  # circuit-tracer's own import paths

# A package, or a module beside them -> what its modules may import besides their own package.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "arguments": {"errors"},
    "classify": {"errors"},
    "counted": {"progress"},
    "extras": {"errors"},
    "files": {"errors"},
    "garbage": set(),
    "http": {"errors", "files"},
    "hub_connection": set(),
    "huge_pages": set(),
    "progress": {"sizes"},
    "ranks": {"errors"},
    "sizes": {"errors"},
    "version": set(),
    "workers": set(),
    "neuronpedia": {"errors", "http"},
    "kernels": {"errors", "huge_pages", "workers"},  # stands alone otherwise, so that each kernel is tested by itself
    "models": {"arguments", "errors", "files", "garbage", "hub_connection", "kernels", "progress"},
    "text": {"errors", "files", "hub_connection", "models"},
    "transcoders": {
        "errors",
        "files",
        "hub_connection",
        "kernels",
        "models",
        "progress",
    },  # neurons are read off the model
    "fingerprint": {"errors", "files", "models", "text", "transcoders"},
    "graph": {"arguments", "errors", "files", "version"},
    "attribution": {*TRACED, "graph"},
    "interventions": TRACING,
    "attention": TRACING,
    "features": {*TRACING, "neuronpedia"},
    "training": {*TRACING, "interventions"},  # evaluation tests graphs by intervention
    "many": {*TOOLS, "replacement_model"},
    "probes": TOOLS,
    "circuits": TOOLS,
    "replacement_model": {*TRACING, "interventions"},
    "viewer": SETS,
    "assistants": {*SETS, "viewer"},  # tools over the server's own engine and folder of graphs
    "demo": {*SETS, "viewer"},
    **{name: {*SETS, "viewer", "demo", *COMPAT} for name in COMPAT},
    "cli": {*SETS, "viewer", "assistants", "demo"},
    "__main__": {"cli"},
    PACKAGE: SETS,  # the package's own names, all of them imported when they are used
}


class Row(NamedTuple):
    """An import that breaks a rule, and why it may. Both are modules, or packages for all of their modules."""

    module: str
    imports: str
    why: str


AGAINST_THE_DIRECTION = [
    Row("graph.graph", "viewer.page", "Graph.to_html and a notebook's display hand the graph over"),
    Row("graph.graph", "attention", "Graph.explain_edge and explain_score hand the graph over"),
    Row("graph.graph", "circuits", "Graph.supernodes hands the graph over"),
    Row("features.corpus", "training.config", "text may be named by a training configuration"),
]

# Modules that import each other only to name a type (TYPE_CHECKING).
CIRCLES_OF_TYPES = [
    Row("graph.graph", "graph.files", "Graph.plot takes a View"),
    Row("graph.graph", "attention", "Graph.explain_edge and explain_score give explanations"),
    Row("graph.graph", "circuits", "Graph.supernodes gives a Grouping"),
    Row("graph.graph_checks", "graph.graph", "the checks are about a Graph"),
    Row("graph.words", "graph.graph", "the names are of a Graph's nodes"),
    Row("training.config.rules", "training.config.schema", "the schema calls the rules about itself"),
    Row("training.sparsity", "training.config.schema", "a rule is made from its section of the configuration"),
]

# Imports inside functions: of libraries that are slow to load, or not installed everywhere ...
LATE_LIBRARIES = {
    "compression.zstd": "in Python from 3.14 on",
    "datasets": "an extra",
    "fsspec": "needed for addresses alone",
    "huggingface_hub": "0.5 s, needed for the hub alone",
    "importlib.metadata": "for a version, in a package that loads nothing by itself",
    "matplotlib": "an extra",
    "networkx": "0.5 s",
    "peft": "needed for adapters alone, and not installed everywhere",
    "pyarrow": "an extra",
    "pydantic": "0.1 s, needed for the report of a validated graph alone",
    "ray": "an extra",
    "rich": "needed where tables are shown",
    "scipy": "comes with scikit-learn, an extra",
    "sklearn": "an extra",
    "threadpoolctl": "comes with scikit-learn, an extra",
    "tokenizers": "needed to make a tokenizer, not to use one",
    "torch": "2 s, in modules that do without; torch.utils.tensorboard is an extra",
    "transformers": "3 s",
    "uvicorn": "needed once a server starts",
    "wandb": "an extra",
    "zstandard": "an extra",
}

# ... and of our own modules. All of cli/ does so, so that --help answers at once.
LATE = [
    Row("__main__", "cli.main", "Ctrl-C while it loads ends without a traceback"),
    Row("kernels", "kernels", "Triton's kernels are loaded where they run"),
    Row("graph.graph", "graph", "facade: Graph.save, to_json, plot and others are written in files of their own"),
    Row("graph.graph", "viewer.page", "facade: Graph.to_html"),
    Row("graph.graph", "attention", "facade: Graph.explain_edge, explain_score"),
    Row("graph.graph", "circuits", "facade: Graph.supernodes"),
    Row("interventions.patching.table", "interventions.patching.picture", "facade: PatchTable.draw"),
    Row("models.text_part", "models.text_only", "its class is one of transformers', which is slow to load"),
    Row("replacement_model", "interventions", "facade: circuit-tracer's methods"),
    Row("transcoders.cross_layer", "transcoders.formats", "facade: to_safetensors"),
    Row("transcoders.single_layer", "transcoders.formats", "facade: to_safetensors"),
    Row("transcoders.transcoder_set", "transcoders.formats", "facade: to_safetensors"),
    Row("viewer.server.running", "viewer.server", "graphs are served without torch"),
    Row("viewer.server.running", "features.belonging", "graphs are served without torch"),
    Row("viewer.server.running", "probes", "graphs are served without torch"),
    Row("viewer.server.monitoring", "probes", "graphs are served without torch"),
    Row("viewer.server.neuronpedia", "", "graphs are served without torch"),
    Row("viewer.server.runs", "many", "graphs are served without torch"),
    Row("viewer.server.runs", "viewer.run", "graphs are served without torch"),
]

# How a module of a running model is got at: the lines that do so, and the modules that may. torch's own hooks lie in
# dictionaries that it goes through while other threads run, so nobody uses them.
GETS_AT_MODULES = {
    r"\.register_\w*hook\(": set(),
    r"\b_forward_(pre_)?hooks\b(?!\.values)": {"models.watched"},  # others' are looked for there
    r"\.forward = |\[.forward.\] = |setattr\(.*\bforward\b": {"models.watched"},
    r"\b_(compiled_)?call_impl\b": {"models.watched"},
    r"models\.watched import .*\b(Hook|watched)\b": {"models.run"},  # the one way to run a model
}

# What parses files and packed data is called in files/ alone, where it has limits. Elsewhere, for what this package made.
PARSERS = re.compile(
    r"\b(json\.loads?|yaml\.(safe_)?load|tomllib\.loads?|(gzip|zlib|lzma|bz2)\.(decompress|open)|torch\.load|np\.load|pickle\.loads?"
    r"|safe_open|load_file)\("
)
PARSES = {
    "cli.upload": "JSON that was made a line before",
    "demo": "the package's own file",
    "fingerprint": "JSON that was made in the same line",
    "viewer.document": "JSON that was made a line before",
}


# ---- reading


When = Literal["load", "call", "types"]


class Import(NamedTuple):
    """`module`, in its line `line`, imports `target`; when: as it is loaded, when a function runs, or for type checkers.
    ours: the target is a module of this package, and its name is without the package's.
    """

    module: str
    line: int
    target: str
    when: When
    ours: bool

    def __str__(self) -> str:
        return f"{_path(self.module).relative_to(ROOT)}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by name; kernels/ stands at the top of the repository, and is a package in ours."""
    folders = {ROOT / PACKAGE: (), ROOT / "kernels": ("kernels",)}
    found = {}
    for folder, prefix in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [*prefix, *path.relative_to(folder).with_suffix("").parts]
            if folder.name == PACKAGE and parts[0] == "kernels":
                continue
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """All of them; a from-import by the module that it reaches."""
    return tuple(
        Import(module, line, _named(target), when, target.split(".")[0] == PACKAGE)
        for module, path in modules().items()
        for line, target, when in _statements(ast.parse(path.read_text(encoding="utf-8")), "load")
    )


def ours() -> list[Import]:
    """Imports of our own modules."""
    return [one for one in imports() if one.ours]


def _statements(node: ast.AST, when: When) -> Iterator[tuple[int, str, When]]:
    """(line, module, when) of the imports in a module, function, class or branch."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, when) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            whole = child.module or "(relative)"
            names = [f"{whole}.{alias.name}" for alias in child.names]
            yield from ((child.lineno, name if _named(name) in modules() else whole, when) for name in names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, "call")
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from _statements(child, "types")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _statements(child, when)


def _named(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.")


def _package(module: str) -> str:
    return module.split(".")[0]


def _path(module: str) -> Path:
    return modules()[module]


def _within(module: str, package: str) -> bool:
    return not package or module == package or module.startswith(f"{package}.")


def _left(found: list[Import], rows: list[Row]) -> list[Import]:
    """Those that no row allows. A row that allows none is to be removed."""
    used = {
        row: [one for one in found if _within(one.module, row.module) and _within(one.target, row.imports)]
        for row in rows
    }
    idle = [f"{row.module or 'any'} -> {row.imports or 'any'}" for row, allowed in used.items() if not allowed]
    assert not idle, f"nothing needs these rows any more; remove them: {', '.join(idle)}"
    allowed = {one for ones in used.values() for one in ones}
    return list(dict.fromkeys(one for one in found if one not in allowed))


def _report(rule: str, broken: list[str]) -> None:
    assert not broken, "\n  ".join([f"{rule}:", *broken])


# ---- rules


def test_every_package_has_a_row() -> None:
    unknown = sorted({_package(module) for module in modules()} - MAY_IMPORT.keys())
    assert not unknown, f"say in MAY_IMPORT what these may import: {', '.join(unknown)}"


def test_imports_point_one_way() -> None:
    """Those for type checkers too: what a signature names is a dependency."""
    across = [one for one in ours() if _package(one.target) != _package(one.module)]
    wrong = [one for one in across if _package(one.target) not in MAY_IMPORT[_package(one.module)]]
    _report("imports against the direction", [f"{one}; {_advice(one)}" for one in _left(wrong, AGAINST_THE_DIRECTION)])


def _advice(one: Import) -> str:
    here, there = _package(one.module), _package(one.target)
    if here in MAY_IMPORT[there]:
        return f"{here} lies below {there}: move what it needs into {here} or below, or let the caller hand it in"
    shared = sorted(MAY_IMPORT[here] & MAY_IMPORT[there])
    return f"{here} and {there} know nothing of each other: what both need belongs into one of {', '.join(shared)}"


def test_the_table_itself_has_no_circle() -> None:
    rows = {package: may - set(COMPAT) for package, may in MAY_IMPORT.items()}
    TopologicalSorter(rows).prepare()  # raises CycleError


def test_modules_do_not_load_each_other_in_a_circle() -> None:
    """Any module can be the first that is imported. Importing a module loads the packages around it first."""
    _no_circle([one for one in ours() if one.when == "load"])


def test_types_do_not_name_each_other_in_a_circle() -> None:
    types = [one for one in ours() if one.when == "types" and one.module != PACKAGE]
    loaded = [one for one in ours() if one.when == "load"]
    _no_circle([*loaded, *_left(types, CIRCLES_OF_TYPES)], around=False)


def _no_circle(found: list[Import], around: bool = True) -> None:
    graph: dict[str, set[str]] = {}
    for one in found:
        parts = one.target.split(".")
        reached = [".".join(parts[:end]) for end in range(1, len(parts) + 1)] if around else [one.target]
        graph.setdefault(one.module, set()).update(name for name in reached if not _within(one.module, name))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        steps = " <- ".join(error.args[1])
        raise AssertionError(
            f"modules import each other in a circle: {steps}; move what is shared below both"
        ) from None


def test_functions_import_what_is_slow_and_nothing_else() -> None:
    late = [one for one in imports() if one.when == "call" and _package(one.module) != "cli"]
    libraries = [Row("", name, why) for name, why in LATE_LIBRARIES.items()]
    broken = [
        *_left([one for one in late if not one.ours], libraries),
        *_left([one for one in late if one.ours], LATE),
    ]
    _report("imports inside functions that belong at the top of the file", [str(one) for one in broken])


@pytest.mark.few
@pytest.mark.parametrize("line", GETS_AT_MODULES)
def test_a_running_model_is_got_at_in_one_way(line: str) -> None:
    """Whoever reads or writes a place of a running model asks models/run.py for it."""
    found = {
        f"{path.relative_to(ROOT)}:{number} {text.strip()}": module
        for module, path in modules().items()
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(line, text)
    }
    assert GETS_AT_MODULES[line] <= set(found.values()), "nothing needs this row any more"
    outside = [place for place, module in found.items() if module not in GETS_AT_MODULES[line]]
    _report("modules that are got at past models/run.py; read, write or hold the place through it", outside)


def test_files_are_parsed_in_one_place() -> None:
    """Under limits of size, depth and range, with errors of ours; a reader has a row in tests/fuzz/readers.py too."""
    found = {
        f"{path.relative_to(ROOT)}:{number} {line.strip()}": module
        for module, path in modules().items()
        if _package(module) not in ("files", "kernels")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PARSERS.search(line.split("#")[0]) and "``" not in line
    }
    idle = sorted(PARSES.keys() - set(found.values()))
    assert not idle, f"nothing needs these rows any more; remove them: {', '.join(idle)}"
    outside = [place for place, module in found.items() if module not in PARSES]
    _report(
        "files that are parsed outside of circuit_tracer/files; use its read_json, read_yaml, open_tensor_file ...",
        outside,
    )
