"""JSON, YAML and TOML as plain values, under limits of size, depth and range; schemas by pydantic.

What comes out consists of dict, list, str, int of 64 bits, finite float, bool and None, not deeper than `DEEPEST`: whatever
is done with it afterwards (walked, compared, printed, written) can neither overflow nor recurse without end.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files.reading import LARGEST_JSON, LARGEST_YAML, decoded, read_bytes, unpack

if TYPE_CHECKING:
    from pydantic import BaseModel

DEEPEST = 64
_SEARCHED = 8 * 2**20  # for keys given twice: that takes half as long again
_PROBLEMS = 5  # of a schema, told at once
_NO_BRACKET = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_DIGITS = bytes(ord("0") if chr(each) in "123456789" else each for each in range(256))
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_PAIR = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

Schema = TypeVar("Schema", bound="BaseModel")


def read_json(path: str | Path, largest: int = LARGEST_JSON, halves: bool = False) -> Any:
    """The document in a JSON file, plain or gzipped. InputError if it cannot be opened, FileFormatError as `parse_json`.

    Args:
        path: The file.
        largest: The most bytes that are read.
        halves: Allow halves of surrogate pairs.

    Returns:
        Plain values.

    Raises:
        InputError: If it cannot be opened.
        FileFormatError: As `parse_json`.
    """
    data = read_bytes(path, largest)
    return parse_json(unpack(data, path) if data[:2] == b"\x1f\x8b" else data, path, halves)


def parse_json(text: str | bytes, source: str | Path, halves: bool = False) -> Any:
    """The values of a JSON text in UTF-8, a byte-order mark allowed.

    Args:
        text: The text, or its bytes in UTF-8.
        source: What errors name: the file or what stands for it.
        halves: Allow halves of surrogate pairs.

    Returns:
        Plain values.

    Raises:
        FileFormatError: Naming ``source``, for anything that is not JSON, NaN and infinities, numbers beyond 64 bits, a key
            given twice (in texts of up to 8 MiB; in longer ones, which are data, the last one counts, as in browsers),
            nesting deeper than `DEEPEST`, and, without ``halves``, halves of surrogate pairs, which no text file can hold.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    text = decoded(data, source, halves)
    if not text.strip(" \t\r\n"):
        raise FileFormatError(f"{source} is empty; expected JSON.")
    _require_shallow(data, source)
    if not halves and ("\\ud" in text or "\\uD" in text):
        _require_whole_characters(text, source)
    long_integers = b"0" * 19 in data.translate(_DIGITS)  # almost no text has any; only those pay for a look at each
    try:
        return json.loads(
            text,
            object_pairs_hook=_once_each if len(data) <= _SEARCHED else None,
            parse_constant=_not_finite,
            parse_int=_int if long_integers else None,
            parse_float=_float,
        )
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source} is not readable JSON: {_in_short(error)}.") from error


def read_yaml(path: str | Path, loader: type[PlainLoader] | None = None) -> Any:
    """The document in a YAML file. InputError if it cannot be opened, FileFormatError as `parse_yaml`.

    Args:
        path: The file.
        loader: Rules of its own about scalars; None: `PlainLoader`.

    Returns:
        Plain values.

    Raises:
        InputError: If it cannot be opened.
        FileFormatError: As `parse_yaml`.
    """
    return parse_yaml(read_bytes(path, LARGEST_YAML), path, loader)


def parse_yaml(text: str | bytes, source: str | Path, loader: type[PlainLoader] | None = None) -> Any:
    """The values of a YAML text in UTF-8; dates are read as text.

    Args:
        text: The text, or its bytes in UTF-8.
        source: What errors name: the file or what stands for it.
        loader: Rules of its own about scalars.

    Returns:
        Plain values.

    Raises:
        FileFormatError: Naming ``source``, for anything that is not YAML, aliases (a few lines of them grow without bound),
            a key given twice, tags, NaN, infinities, numbers beyond 64 bits, and nesting deeper than `DEEPEST`.
    """
    text = text if isinstance(text, str) else decoded(text, source)
    if len(text) > LARGEST_YAML:
        raise FileFormatError(f"{source} has {len(text):,} characters; at most {LARGEST_YAML:,} are read as YAML.")
    try:
        found = yaml.load(text.removeprefix("\ufeff"), loader or PlainLoader)
        _require_plain(found)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise FileFormatError(f"{source} is not readable YAML: {_in_short(error)}.") from error
    return found


def parse_toml(text: str | bytes, source: str | Path) -> Any:
    """The values of a TOML text in UTF-8. FileFormatError as `parse_yaml`, and for dates.

    Args:
        text: The text, or its bytes in UTF-8.
        source: What errors name: the file or what stands for it.

    Returns:
        Plain values.

    Raises:
        FileFormatError: As `parse_yaml`, and for dates.
    """
    text = text if isinstance(text, str) else decoded(text, source)
    if len(text) > LARGEST_YAML:
        raise FileFormatError(f"{source} has {len(text):,} characters; at most {LARGEST_YAML:,} are read as TOML.")
    try:
        found = tomllib.loads(text.removeprefix("\ufeff"))
        _require_plain(found)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source} is not readable TOML: {_in_short(error)}.") from error
    return found


def validated(schema: type[Schema], raw: Any, source: str | Path) -> Schema:
    """``raw`` as an object of the pydantic ``schema``; FileFormatError says what does not fit, and where.

    Args:
        schema: The pydantic model.
        raw: Plain values.
        source: What errors name: the file or what stands for it.

    Returns:
        The object.

    Raises:
        FileFormatError: For what does not fit, saying where.
    """
    from pydantic import ValidationError  # imported by whoever has a schema

    try:
        return schema.model_validate(raw)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise FileFormatError(f"{source} is nested too deeply.") from error
        problems = error.errors(include_url=False)
        told = [
            f"{'.'.join(str(part)[:40] for part in each['loc']) or 'the whole'}: {each['msg'][:200]}, "
            f"found {shortened(each['input'])}"
            for each in problems[:_PROBLEMS]
        ]
        more = [f"and {len(problems) - _PROBLEMS} more"] if len(problems) > _PROBLEMS else []
        raise FileFormatError("\n  ".join([f"{source} is not as expected:", *told, *more])) from error


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what plain configurations do not need: aliases, keys given twice, tags, dates."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", mark)
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST}", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            names = Counter(self.construct_object(name, deep=True) for name, _ in node.value)
            twice = names.most_common(1)[0][0]
            raise yaml.constructor.ConstructorError(None, None, f"{shortened(twice)} is given twice", node.start_mark)
        return found

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Numbers of a length that people write; 1:30:00 and the like take quadratic time."""
        if len(node.value) > 100:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value):,} characters", node.start_mark
            )
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)

    def refuse(self, node: yaml.Node) -> NoReturn:
        """For tags of what is no plain value."""
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{node.tag[:40]} is not a plain value; write text, numbers, lists and mappings",
            node.start_mark,
        )


_DATE = "tag:yaml.org,2002:timestamp"
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _DATE]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("int", "float"):
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", PlainLoader.construct_number)
for _tag in (_DATE, *(f"tag:yaml.org,2002:{kind}" for kind in ("binary", "set", "omap", "pairs"))):
    PlainLoader.add_constructor(_tag, PlainLoader.refuse)


def _require_shallow(data: bytes, source: str | Path) -> None:
    """Brackets outside strings, without parsing: strings are dropped, then empty pairs of brackets, level by level."""
    brackets = (_ESCAPE.sub(b"", data) if b"\\" in data else data).translate(_ONE_KIND, _NO_BRACKET)
    brackets = brackets.replace(b'""', b"")
    if b'"' in brackets:
        brackets = b"".join(brackets.split(b'"')[::2])
    for _ in range(DEEPEST):
        inner = brackets.replace(b"[]", b"")
        if not inner or (len(inner) == len(brackets) and len(inner) <= DEEPEST):  # unmatched: the parser says where
            return
        if len(inner) == len(brackets):
            raise FileFormatError(f"{source} is not JSON, or cut short: {len(inner):,} brackets match no other.")
        brackets = inner
    raise FileFormatError(f"{source} is nested deeper than {DEEPEST}; no file that is read here is.")


def _require_whole_characters(text: str, source: str | Path) -> None:
    if _HALF.search(text) and (half := _HALF.search(_PAIR.sub("", text))):
        raise FileFormatError(f"{source} has half a character, {half[0]}: a surrogate without its other half.")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shortened(twice)} is given twice")
    return found


def _int(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the integer {digits[:24]}… of {len(digits):,} digits does not fit into 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value - value != 0:  # infinite; faster than math.isfinite
        raise ValueError(f"the number {digits[:40]} is beyond any range")
    return value


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not finite; JSON has no such number")


def _require_plain(found: Any) -> None:
    """That values are of the kinds, ranges and depth that the top of this file promises."""
    rest = [(found, 1)]
    while rest:
        value, depth = rest.pop()
        match value:
            case dict() | list() if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST}")
            case dict():
                rest += [(each, depth + 1) for pair in value.items() for each in pair]
            case list():
                rest += [(each, depth + 1) for each in value]
            case str():
                value.encode()  # half a surrogate pair is a UnicodeError
            case bool() | None:
                pass
            case float() if not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            case int() if not -(2**63) <= value < 2**63:
                raise ValueError(f"{shortened(value)} does not fit into 64 bits")
            case int() | float():
                pass
            case _:
                raise ValueError(f"{shortened(value)} is a {type(value).__name__}; write it in quotes")


def _in_short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else f"{text[:300]}…").rstrip(".")
