"""The pages of the Python reference: every public name is on exactly one, with all that a caller must know of it.

The source is read, not imported.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/reference/api").glob("*.md"))
# import paths of circuit-tracer, which re-export or adapt what is elsewhere: docs/coming-from/circuit-tracer.md
FOREIGN = {"circuit_tracer.frontend", "circuit_tracer.transcoder", "circuit_tracer.utils"}
# whose methods are documented like functions
IN_FULL = {"Graph", "ReplacementModel"}


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    assert file is not None, module
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _bindings(module: str) -> dict[str, ast.stmt]:
    """What binds each name of a module, also inside `if TYPE_CHECKING:`."""
    found: dict[str, ast.stmt] = {}
    for node in (
        *_tree(module).body,
        *(each for one in _tree(module).body if isinstance(one, ast.If) for each in one.body),
    ):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
            case ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name: node for alias in names}
            case _ if hasattr(ast, "TypeAlias") and isinstance(node, ast.TypeAlias):
                found[node.name.id] = node
    return found


def _home(module: str, name: str) -> tuple[str, ast.stmt]:
    """Where a name is defined, through all imports: its dotted path there, and the definition."""
    node = _bindings(module).get(name)
    assert node is not None, f"{module} has no {name}"
    if isinstance(node, ast.ImportFrom):
        assert node.module is not None
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return _home(node.module, original)
    return f"{module}.{name}", node


def _public() -> Iterator[tuple[str, str]]:
    """(module, name) of everything in a package's `__all__`."""
    for file in sorted((ROOT / "circuit_tracer").rglob("__init__.py")):
        module = ".".join(file.parent.relative_to(ROOT).parts)
        listed = _bindings(module).get("__all__")
        if listed is not None and module not in FOREIGN:
            assert isinstance(listed, ast.Assign)
            yield from ((module, name) for name in ast.literal_eval(listed.value) if name != "__version__")


SHOWN = [
    (page, *found.rpartition(".")[::2])
    for page in PAGES
    for found in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
]
HOMES = [(page, *_home(module, name)) for page, module, name in SHOWN]


def test_every_public_name_is_on_exactly_one_page() -> None:
    times = Counter(path for _, path, _ in HOMES)
    missing = sorted({f"{module}.{name}" for module, name in _public() if not times[_home(module, name)[0]]})
    assert not missing, f"put ::: and the name on a page of docs/reference/api: {missing}"
    assert not [path for path, count in times.items() if count > 1]


def test_names_stand_below_the_module_that_they_are_imported_from() -> None:
    for page, module, name in SHOWN:
        # the site reads the source, where a module hides a function of the same name
        assert _file(f"{module}.{name}") is None, f"{page.name}: write {module}.{name}.{name}"
        heading = re.findall(r"^## (\S+)", page.read_text().partition(f"::: {module}.{name}\n")[0], re.M)[-1]
        assert module in (heading, f"{heading}.{name}"), f"{page.name}: {module}.{name} stands below {heading}"


def _documented(definition: ast.stmt) -> Iterator[tuple[str, ast.FunctionDef]]:
    """What has arguments that are to be explained."""
    if isinstance(definition, ast.FunctionDef):
        yield definition.name, definition
    elif isinstance(definition, ast.ClassDef) and definition.name in IN_FULL:
        for method in definition.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                decorators = {ast.unparse(each) for each in method.decorator_list}
                if not decorators & {"property", "cached_property"} and not any(
                    ".setter" in each for each in decorators
                ):
                    yield f"{definition.name}.{method.name}", method


def _gaps(path: str, function: ast.FunctionDef) -> Iterator[str]:
    """What a docstring does not say."""
    text = inspect.cleandoc(ast.get_docstring(function) or "")
    sections = dict(re.findall(r"^(Args|Returns|Yields|Raises|Examples):\n((?:(?: {4}.*)?\n?)+)", text, re.M))
    explained = re.findall(r"^ {4}\*{0,2}(\w+): ", sections.get("Args", ""), re.M)
    given = function.args
    wanted = [
        each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs) if each.arg not in ("self", "cls")
    ]
    wanted += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    if sorted(explained) != sorted(wanted):
        yield f"{path}: Args: of its docstring differs in {sorted(set(explained) ^ set(wanted))}"
    returned = ast.unparse(function.returns) if function.returns else "None"
    if returned not in ("None", "Iterator[None]") and not sections.keys() & {"Returns", "Yields"}:
        yield f"{path}: Returns: is missing in its docstring"


def test_docstrings_say_what_goes_in_and_what_comes_out() -> None:
    gaps = [
        f"{path}: no docstring"
        for _, path, node in HOMES
        if isinstance(node, ast.ClassDef) and not ast.get_docstring(node)
    ]
    gaps += [
        gap
        for _, path, node in HOMES
        for name, function in _documented(node)
        for gap in _gaps(f"{path} ({name})", function)
    ]
    assert not gaps, "\n".join(gaps)
