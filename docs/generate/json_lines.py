"""The page about `--json`, from the schemas of the lines that commands print."""

from __future__ import annotations

import re
from typing import Any

from circuit_tracer.cli.schemas import LINES, WITHOUT, schema_of_all
from docs.generate.text import table

NOTE = "<!-- written by python -m docs.generate from circuit_tracer/cli/schemas.py; do not edit -->"
INTRODUCTION = """\
What commands print with `--json`: one object a line on standard output, and nothing else. Progress, warnings and hints go to
standard error.

```bash
circuit-tracer attribute --demo -p "the capital of the state containing Dallas is" -o dallas.safetensors --json
circuit-tracer info dallas.safetensors --json
```

Every command takes the option{but}. What a line holds does not depend on the terminal.

- **Names are stable.** A node is `LAYER_FEATURE_POSITION` for a feature, `LAYER_-1_POSITION` for an error, `E_TOKEN_POSITION`
  for a token of the prompt and `LAYERS+1_TOKEN_POSITION` for an output, in every command, file and tool.
- **Numbers are finite.** One that is not is `null`.
- **An error is a line too**, the last: `{{"error": {{"kind": "InputError", "message": "..."}}}}`. The same message is on
  standard error, and the status says how it ended: 0 done, 2 bad input, 1 a failure of ours, 130 interrupted. Lines before
  it hold.
- **Other fields are not printed** than those below; one marked *optional* may be absent. Later versions may add some.

The JSON Schema of a command's lines, for a validator:

```python
from circuit_tracer.cli.schemas import schema

schema("attribute")["anyOf"]
```
"""


def page() -> str:
    """The whole page."""
    types = schema_of_all()["$defs"]
    but = "".join(f", but for `{name}`: {why}" for name, why in WITHOUT.items())
    lines = ["# JSON output", "", NOTE, "", INTRODUCTION.format(but=but), "## Commands", ""]
    rows = [[f"`{name}`", " or ".join(_link(_name_of(kind, types)) for kind in kinds)] for name, kinds in LINES.items()]
    lines += [*table(["command", "a line is"], rows), "", "## Lines and their parts"]
    for name in sorted(types, key=_shown):
        lines += ["", f"### {_shown(name)}", "", *_type(types[name])]
    return "\n".join(lines) + "\n"


def _name_of(kind: type, types: dict[str, Any]) -> str:
    full = f"{kind.__module__}.{kind.__name__}".replace(".", "__")
    return full if full in types else kind.__name__


def _shown(name: str) -> str:
    """A type's name; of those with one name, with the part of the package that it is of."""
    parts = name.split("__")
    return parts[0] if len(parts) == 1 else f"{parts[-1]} of {parts[1]}"


def _link(name: str) -> str:
    shown = _shown(name)
    return f"[{shown}](#{shown.lower().replace(' ', '-')})"


def _type(schema: dict[str, Any]) -> list[str]:
    """What a type is, and its fields."""
    said = " ".join(schema.get("description", "").split())
    lines = [re.sub(r"([|<*_])", r"\\\1", said), ""] if said else []
    if "properties" not in schema:
        return [*lines, f"A value: {_value(schema)}."]
    needed = schema.get("required", ())
    rows = [
        [f"`{name}`", _value(field) + ("" if name in needed else "; optional"), _about(field)]
        for name, field in schema["properties"].items()
    ]
    if schema.get("additionalProperties") is True:
        rows.append(["...", "whatever else is known", ""])
    return [*lines, *table(["field", "value", "what it is"], rows)]


def _about(field: dict[str, Any]) -> str:
    return re.sub(r"([|<*_])", r"\\\1", field.get("description", ""))


def _value(field: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in field:
        return _link(field["$ref"].rsplit("/", 1)[1])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(part for each in field["anyOf"] for part in _value(each).split(" or ")))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    kinds = field.get("type", "anything")
    if kinds == ["number", "null"]:  # that one which is not finite is null is said above
        return "number"
    return " or ".join(_plain(kind, field) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _plain(kind: str, field: dict[str, Any]) -> str:
    if kind == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_value(each) for each in field['prefixItems'])}]"
        return f"list of ({inner})" if " or " in (inner := _value(field.get("items", {}))) else f"list of {inner}"
    if kind == "object":
        inner = field.get("additionalProperties", True)
        return "object" if inner in (True, {}) else f"object of {_value(inner)}"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}.get(kind, kind)
