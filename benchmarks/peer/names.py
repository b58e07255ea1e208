"""The public names of circuit-tracer, read off its sources: modules, functions with parameters, classes with methods, options.

    python benchmarks/peer/names.py FOLDER > NAMES.json     # FOLDER: its installed circuit_tracer/

Nothing is imported: two of its modules need libraries that its own requirements leave out.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

Names = dict[str, dict[str, Any]]


def names_of(folder: Path) -> Names:
    """By module: {name: parameters of a function | {method: parameters | None for an attribute} of a class | None}."""
    found: Names = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ["circuit_tracer", *path.relative_to(folder).with_suffix("").parts]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if parts[-1] == "__main__":
            found["command line"] = dict.fromkeys(_options(tree))
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not parts[-1].startswith("_") or parts[-1] == "__init__":
            found[module] = _public(tree.body) | _listed(tree)
    return found


def _public(body: list[ast.stmt]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in body:
        if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef):
            found[line.name] = _parameters(line)
        elif isinstance(line, ast.ClassDef):
            found[line.name] = _members(line)
        elif isinstance(line, ast.Assign):
            found |= {target.id: None for target in line.targets if isinstance(target, ast.Name)}
    return {name: what for name, what in found.items() if not name.startswith("_")}


def _members(line: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for member in line.body:
        if isinstance(member, ast.FunctionDef):
            decorators = {ast.unparse(each) for each in member.decorator_list}
            found[member.name] = None if "property" in decorators else _parameters(member)
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            found[member.target.id] = None
    public = {name: what for name, what in found.items() if not name.startswith("_")}
    return ({"__init__": found["__init__"]} if "__init__" in found else {}) | public


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


def _listed(tree: ast.Module) -> dict[str, None]:
    """What a package re-exports by `__all__`."""
    for line in tree.body:
        if isinstance(line, ast.Assign) and [ast.unparse(target) for target in line.targets] == ["__all__"]:
            return dict.fromkeys(ast.literal_eval(line.value))
    return {}


def _options(tree: ast.Module) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    words = [word.value for call in calls if call.func.attr == "add_argument" for word in call.args]  # type: ignore[attr-defined]
    return sorted({str(word) for word in words})


if __name__ == "__main__":
    json.dump(names_of(Path(sys.argv[1])), sys.stdout, indent=1)
