"""The page of errors: every message that it quotes is one that the code says, by the class that is named."""

from __future__ import annotations

import ast
import errno
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from circuit_tracer import errors
from circuit_tracer.cli.frame import BAD_INPUT, FAILURE, INTERRUPTED, REFUSALS
from circuit_tracer.viewer.server import problems

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
QUOTED = [(message, kind) for kind, message in re.findall(r"^\| `?([\w ]+?)`? \| `([^`]+)` \| ", PAGE, re.M)]
GAP = "…"


def _text(node: ast.AST) -> str:
    """A text as the page quotes it: a gap for whatever is not constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return GAP


def _said(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class or function that it is given to, text) of everything that a module gives to one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for given in (*node.args, *(each.value for each in node.keywords)):
                yield ast.unparse(node.func).rpartition(".")[2], _text(given)


@cache
def messages() -> list[tuple[str, str]]:
    sources = (file.read_text(encoding="utf-8") for file in (ROOT / "circuit_tracer").rglob("*.py"))
    telling = (source for source in sources if "Error(" in source or "raise " in source or "warn(" in source)
    return [said for source in telling for said in _said(ast.parse(source)) if len(said[1]) > 8]


def test_every_message_is_said_by_the_class_that_is_named() -> None:
    assert len(QUOTED) > 90
    wrong = []
    for message, kind in QUOTED:
        by = {said_by for said_by, text in messages() if message in text} - {"missing_extra"}
        if kind.startswith("HTTP"):
            status = int(kind.split()[1])
            named = {name for name, each in vars(problems).items() if getattr(each, "status", None) == status}
        else:
            named = {{"warning": "warn"}.get(kind, kind)}
        if not any(message in text for _, text in messages()):
            wrong.append(f"nothing says: {message}")
        elif by and not by & named:
            wrong.append(f"{kind} is written, {sorted(by)} found: {message}")
    assert not wrong, "\n".join(wrong)


def test_every_kind_has_its_row() -> None:
    kinds = {
        name
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.CircuitTracerError)
    }
    kinds_of_page = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Exit codes")[0], re.M))
    assert kinds == kinds_of_page
    assert {kind for _, kind in QUOTED} <= {*kinds, "ImportError", "warning", "HTTP 403", "HTTP 409", "HTTP 503"}


def test_exit_codes_and_refusals() -> None:
    codes = re.findall(r"^\| (\d+) \|", PAGE, re.M)
    assert codes == ["0", *map(str, sorted((FAILURE, BAD_INPUT, INTERRUPTED)))]
    rows = dict(re.findall(r"^\| (E[A-Z]+) \| (.*) \|$", PAGE, re.M))
    assert rows == {errno.errorcode[number]: hint for number, hint in REFUSALS.items()}
