"""The viewer's modules as one script, and its style sheets as one.

A page opened from disk may not import modules from its folder. The modules of ``static`` keep to a small part of the
language (named imports at the top, ``export`` before a declaration, no cycles), so that each can become a function
call that returns what it exports; nothing is parsed but those lines.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from circuit_tracer.errors import CircuitTracerError

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";$', re.MULTILINE)
_SHEET = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_EXPORT = re.compile(r"^export (?=(?:async )?function\*? (\w+)|(?:const|class) (\w+))", re.MULTILINE)
_ANY_IMPORT_OR_EXPORT = re.compile(r"^\s*(?:import|export)\b.*|\bimport\(.*", re.MULTILINE)


@cache
def bundled_script(folder: Path = STATIC, entry: str = "main.js") -> str:
    """All modules that ``entry`` needs, in an order in which each comes after those it imports.

    Raises CircuitTracerError for a module that is missing, in a cycle, or uses another form of import or export.
    """
    order: list[str] = []
    _collect(folder, entry, order, ())
    return '"use strict";\n' + "\n".join(_as_call(folder, name) for name in order)


def bundled_style() -> str:
    """The style sheets that ``index.html`` names, in its order: later ones may say more of what earlier ones style."""
    names = _SHEET.findall((STATIC / "index.html").read_text(encoding="utf-8"))
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def _collect(folder: Path, name: str, order: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise CircuitTracerError(f"viewer modules import each other in a circle: {' -> '.join((*above, name))}")
    if name in order:
        return
    path = folder / name
    if not path.is_file():
        raise CircuitTracerError(f"viewer module {name}, imported by {above[-1] if above else 'the page'}, is missing")
    for imported in _IMPORT.finditer(path.read_text(encoding="utf-8")):
        _collect(folder, imported[2], order, (*above, name))
    order.append(name)


def _as_call(folder: Path, name: str) -> str:
    source = (folder / name).read_text(encoding="utf-8")
    exported = [function or value for function, value in _EXPORT.findall(source)]
    body = _EXPORT.sub("", _IMPORT.sub(_as_constant, source))
    left = _ANY_IMPORT_OR_EXPORT.search(body)
    if left:
        raise CircuitTracerError(f"viewer module {name}: {left[0].strip()!r} is no form of import or export known here")
    return f"// {name}\nconst {_variable(name)} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();"


def _as_constant(found: re.Match[str]) -> str:
    names = " ".join(found[1].replace(" as ", ": ").split())
    return f"const {{ {names} }} = {_variable(found[2])};"


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name.removesuffix(".js"))
