"""Configurations as files: YAML or TOML, presets by name, single values from the command line, and back to YAML.

Ours, because pydantic-settings reads 1e-4 as text, takes a key given twice, refuses `--run.batch 8192` where types are exact
and names no key that was meant; tyro refuses 1e6, null and 0,2; and neither writes a file with the descriptions of its keys.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import LARGEST_YAML, PlainLoader, parse_toml, parse_yaml, read_bytes
from circuit_tracer.training.config.keys import Key, find, keys, sections, unknown
from circuit_tracer.training.config.rules import DATA_KEYS, ONE_OR_SEVERAL, without_effect
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.sparsity import RULES, unread

PRESETS = Path(__file__).parents[1] / "presets"
SUFFIXES = (".yaml", ".yml", ".toml")
FILE_NAME = "config.yaml"  # in the folder of a run


def load(source: str | Path, overrides: Mapping[str, str] | None = None) -> TrainingConfig:
    """The configuration of a file (YAML or TOML, by suffix), of a preset, or of a run's folder.

    Args:
        source: A file, a preset's name, or a run's folder.
        overrides: Values as text by dotted key, such as {"run.batch": "8192"}; null is None, lists are written [0, 1].
            Another `data.kind` or `sparsity.activation` than the file's takes the place of what belongs to the old one
            alone, `data.mixture` that of the one data set, and the other way round.

    Returns:
        The configuration, checked.

    Raises:
        InputError: For an unknown file, preset or key (with the nearest one), a value of the wrong type or range, and for
            contradictions.
        FileFormatError: For a file that cannot be parsed.

    Examples:
        >>> from circuit_tracer.training.config.files import load
        >>> load("gpt2", {"run.tokens": "1000000", "run.batch": "1000"}).steps
        1000
    """
    path = _locate(source)
    raw, overrides = _read(path), overrides or {}
    if path.parent == Path(os.path.expanduser(source)):  # a run's folder is where it lies, also after it was moved
        overrides = {"run.out": str(path.parent), **overrides}
    for name in _replaced(overrides):
        section, _, key = name.partition(".")
        if isinstance(values := raw.get(section), dict):
            values.pop(key, None)
    for key, text in overrides.items():
        _override(raw, key, text)
    return validate(raw, path.name if path.parent != PRESETS else f"preset {path.stem}")


def validate(raw: Mapping[str, Any], source: str = "the configuration") -> TrainingConfig:
    """The configuration of plain values; InputError says everything that is wrong with it at once.

    Args:
        raw: Plain values, by section.
        source: What errors name.

    Returns:
        The configuration, checked.

    Raises:
        InputError: For everything that is wrong with it, at once.
    """
    problems = _unknown(raw)
    if not problems:
        try:
            return TrainingConfig.model_validate(raw)
        except ValidationError as error:
            problems = [_in_words(each) for each in error.errors()]
    raise InputError("\n  ".join([f"{source} cannot be used:", *problems]))


def dump(config: TrainingConfig) -> str:
    """YAML text that `load` reads back to an equal configuration; every key stands below its description.

    Args:
        config: The training configuration.

    Returns:
        YAML.
    """
    blocks = ["# A training run. The sections (§) are those of circuit_tracer/training/README.md."]
    idle = without_effect(config)
    for section, model in sections().items():
        values = getattr(config, section)
        lines = [f"# {(model.__doc__ or '').strip()}", f"{section}:"]
        shown = [key for key in keys().values() if key.section == section]
        for key in shown:
            if str(key) not in idle:
                lines += [f"  # {key.description}", *_entry(key.name, getattr(values, key.name))]
        if unread := [key.name for key in shown if str(key) in idle]:
            lines.append(f"  # Without effect here, and left out: {', '.join(unread)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def preset_names() -> list[str]:
    """The presets that ship with the package.

    Returns:
        Names, such as those that `load` takes.
    """
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def configuration(source: str) -> TrainingConfig | None:
    """The training configuration that ``source`` names: a file, a preset, or a run's folder. None: it names data."""
    path = Path(source).expanduser()
    named = path.suffix in SUFFIXES or source in preset_names()
    return load(source) if named or (path / FILE_NAME).is_file() else None


def _locate(source: str | Path) -> Path:
    path = Path(os.path.expanduser(source))
    if str(source) in preset_names():
        return PRESETS / f"{source}.yaml"
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    if path.suffix in SUFFIXES and path.is_file():
        return path
    if path.is_file():
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; a configuration is a .yaml, .yml or .toml file")
    if path.is_dir():
        raise InputError(
            f"the folder {path} holds no {FILE_NAME}, so no run was started there; give a .yaml or .toml file"
        )
    close = difflib.get_close_matches(str(source), preset_names(), n=1)
    guess = f"did you mean the preset {close[0]}?" if close else f"presets are {', '.join(preset_names())}"
    raise InputError(f"{str(source)!r} is neither a .yaml or .toml file nor a run's folder nor a preset; {guess}")


def _read(path: Path) -> dict[str, Any]:
    text = read_bytes(path, LARGEST_YAML)
    raw = parse_toml(text, path) if path.suffix == ".toml" else parse_yaml(text, path, _Loader)
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path} must hold sections ({', '.join(sections())}), found {type(raw).__name__}")
    return raw


def _replaced(overrides: Mapping[str, str]) -> Iterator[str]:
    """Keys of a file that lose their meaning by what is given instead."""
    if kind := overrides.get("data.kind"):
        yield from (f"data.{name}" for name, kinds in DATA_KEYS.items() if kind not in kinds)
    for name, others in ONE_OR_SEVERAL.items():
        if overrides.get(f"data.{name}", "null") != "null":
            yield from (f"data.{other}" for other in others)
    if (rule := overrides.get("sparsity.activation")) in RULES:
        yield from (f"sparsity.{name}" for name in unread(rule))


def _override(raw: dict[str, Any], dotted: str, text: str) -> None:
    key = find(dotted)
    section = raw.setdefault(key.section, {})
    if not isinstance(section, dict):
        raise InputError(f"{key.section} is {_shown(section)}; expected a section with keys and values")
    section[key.name] = parse_value(key, text)


def parse_value(key: Key, text: str) -> Any:
    """A value written on the command line: text stays as it is, lists may leave out their brackets, the rest is YAML."""
    if key.optional and text in ("null", "none", "None"):
        return None
    if key.is_text:
        return text
    if key.type == list[str] and not text.startswith("["):
        return [text]
    if get_origin(key.type) is list and not text.startswith("["):
        text = f"[{text}]"
    try:
        return parse_yaml(text, str(key), _Loader)
    except FileFormatError as error:
        raise InputError(f"{key} is {text[:100]!r}; expected {key.expected}. {key.description}") from error


def _unknown(raw: Mapping[str, Any]) -> list[str]:
    """Messages about keys that do not exist; found before anything else, as they explain what is missing."""
    names = []
    for section, values in raw.items():
        if section not in sections():
            names.append(str(section))
        elif isinstance(values, Mapping):
            names += [f"{section}.{name}" for name in values if f"{section}.{name}" not in keys()]
    return [unknown(name) for name in names]


def _in_words(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"][:2])
    key = keys().get(where)
    if error["type"] == "value_error" and not where:
        return str(error["ctx"]["error"])
    if key is None:  # a whole section
        if error["type"] == "missing":
            return f"the section {where} is missing; it must hold {', '.join(_required(where))}"
        return f"{where} is {_shown(error['input'])}; expected a section with keys and values"
    name = str(key)
    if len(error["loc"]) > 3:  # a value inside one of a list of sections
        name = f"{error['loc'][3]} of part {int(error['loc'][2]) + 1} of {key}"
    found = "missing" if error["type"] == "missing" else _shown(error["input"])
    return f"{name} is {found}; expected {key.expected}. {key.description}"


def _required(section: str) -> list[str]:
    return [key.name for key in keys().values() if key.section == section and key.required]


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return type(value).__name__
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _entry(name: str, value: Any) -> list[str]:
    plain = str(value) if isinstance(value, Path) else value
    if isinstance(value, list):
        plain = [each.model_dump(exclude_none=True) if isinstance(each, BaseModel) else each for each in value]
    text = yaml.dump({name: plain}, Dumper=_Dumper, allow_unicode=True, width=float("inf"))
    return [f"  {line}" for line in text.rstrip("\n").split("\n")]


class _Loader(PlainLoader):
    """YAML as people expect it: 1e-4 is a number, yes and no are words."""

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Leading zeros mean nothing."""
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Line breaks and other characters without a shape are written as escapes."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


def _resolve_plainly(*classes: Any) -> None:
    """Give loader and dumper one set of rules for unquoted scalars."""
    rules = (
        ("tag:yaml.org,2002:bool", r"true|True|false|False", "tTfF"),
        ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
        ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
        ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("tag:yaml.org,2002:float", r"[-+]?\.inf|\.nan", "-+."),
    )
    for each in classes:
        each.yaml_implicit_resolvers = {}
        for tag, pattern, first in rules:
            each.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), list(first))


_resolve_plainly(_Loader, _Dumper)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
