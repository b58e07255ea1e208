"""Pages of the commands, from the table of commands and from what typer knows of their options."""

from __future__ import annotations

import re
from typing import Any

from typer.main import get_command

from circuit_tracer.cli.main import COMMANDS, app
from docs.generate.text import PAGES, code, escaped, first_sentence, table, title_of

NOTE = "<!-- written by python -m docs.generate from the code; do not edit -->"
HEADINGS = ["option", "what it does", "value", "default"]
# where a command is used at length
USED = {
    "demo": "start/index.md",
    "attribute": "start/your-model.md",
    "plan": "how-to/long-prompts.md",
    "prune": "concepts/influence.md",
    "run": "how-to/run-many.md",
    "aggregate": "how-to/run-many.md",
    "compare": "how-to/compare.md",
    "fingerprints": "how-to/run-many.md",
    "report": "how-to/run-many.md",
    "features": "how-to/label.md",
    "explain": "how-to/explain-attention.md",
    "story": "how-to/group.md",
    "heads": "how-to/heads.md",
    "probe": "how-to/probe.md",
    "group": "how-to/group.md",
    "monitor": "how-to/monitor.md",
    "intervene": "how-to/intervene.md",
    "steer": "how-to/steer.md",
    "patch": "how-to/patch.md",
    "validate": "how-to/validate.md",
    "mcp": "reference/mcp.md",
    "train": "how-to/train.md",
    "evaluate": "how-to/train.md",
    "convert": "how-to/publish.md",
    "push": "how-to/publish.md",
    "upload": "how-to/publish.md",
}
KINDS = {"str": "text", "int": "whole number", "float": "number", "path": "path"}


def pages() -> dict[str, str]:
    """Text by file name: a page a command, and index.md."""
    root = get_command(app)
    context = root.make_context("circuit-tracer", [], resilient_parsing=True)
    every = {row: root.get_command(context, row.name) for row in COMMANDS}  # type: ignore[attr-defined]
    written = {f"{row.name}.md": _page(row.name, command, context) for row, command in every.items()}
    return written | {"index.md": _index(root, context, every)}


def _index(root: Any, context: Any, every: dict[Any, Any]) -> str:
    lines = [
        "# Commands",
        "",
        NOTE,
        "",
        "`circuit-tracer COMMAND --help` says on a terminal what stands here. Options may be written with `-` or `_`.",
    ]
    for group in dict.fromkeys(row.group for row in every):
        lines += ["", f"## {group}", ""]
        rows = [
            [f"[`{row.name}`]({row.name}.md)", escaped(first_sentence(" ".join((command.help or "").split())))]
            for row, command in every.items()
            if row.group == group
        ]
        lines += table(["command", "what it does"], rows)
    lines += [
        "",
        "## Every command",
        "",
        "Each command takes `--verbose` (progress at once, also in a pipe), `--debug` and `--help`. These are of the program:",
        "",
        *table(HEADINGS, _rows(root, context, left_out=())),
        "",
        "Libraries show no bars and no retries beside its own line, but for the hub's bars of downloads: where `TQDM_DISABLE` "
        "and `HF_HUB_VERBOSITY` are not set, the program sets them to `1` and `error`.",
    ]
    return "\n".join(lines) + "\n"


def _page(name: str, command: Any, parent: Any) -> str:
    lines = [f"# circuit-tracer {name}", "", NOTE, "", *_section(command, parent, name)]
    for each, below in getattr(command, "commands", {}).items():
        context = command.context_class(command, info_name=name, parent=parent)
        lines += ["", f"## {name} {each}", "", *_section(below, context, each)]
    if name == "train":
        lines += _settings()
    if name in USED:
        path = USED[name]
        lines += ["", f"More: [{title_of(PAGES / path)}](../../{path})."]
    return "\n".join(lines) + "\n"


def _section(command: Any, parent: Any, name: str) -> list[str]:
    """Help, how it is called, arguments and options."""
    context = command.context_class(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = [escaped(" ".join(part.split())) for part in (command.help or "").split("\n\n")]
    lines = [line for part in paragraphs for line in (part, "")]
    lines += ["```text", usage, "```"]
    rows = _rows(command, context)
    return [*lines, "", *table(HEADINGS, rows)] if rows else lines


def _rows(
    command: Any, context: Any, left_out: tuple[str, ...] = ("--verbose", "--debug", "--help")
) -> list[list[str]]:
    """A row an argument or option, but for those of every command."""
    shown = [each for each in command.get_params(context) if not set(left_out) & set(each.opts)]
    return [_row(each, record) for each in shown if (record := each.get_help_record(context))]


def _row(parameter: Any, record: tuple[str, str]) -> list[str]:
    """Of help's line ("-o, --output <path>", "Graph file.  [default: x; required]"), a cell a fact."""
    said, _, notes = record[1].partition("  [")
    facts = [fact for note in notes.rstrip("]").split("]  [") for fact in note.split("; ") if fact]
    bounds = next((fact for fact in facts if re.search(r"[<>]=", fact)), "")
    variable = next((f" From the environment: `{fact[9:]}`." for fact in facts if fact.startswith("env var: ")), "")
    default = "; ".join(fact for fact in facts if fact not in (bounds, "required") and not fact.startswith("env var: "))
    default = default.removeprefix("default: ")
    if not default:
        said, default = _default_in(said)
        default = escaped(default)
    elif " " not in default:
        default = code(default)
    if "required" in facts:
        default = "**required**"
    repeated = " Repeatable." if parameter.multiple and "Repeatable" not in said else ""
    named = parameter.param_type_name == "option"
    spelled = [*parameter.opts, *parameter.secondary_opts] if named else [record[0].split(" ")[0]]
    kind = re.sub(r"^(--?[-\w]+(, | / | |$))+" if named else r"^\S+ ?", "", record[0])
    said = escaped(said) + variable + repeated
    return [" ".join(map(code, sorted(spelled, key=len))), said, _kind(kind, bounds), default]


def _default_in(said: str) -> tuple[str, str]:
    """A default that help says in words, apart from the rest."""
    found = re.fullmatch(r"(.*); default: (.+?)\.( .*)?", said)
    return (f"{found[1]}.{found[3] or ''}", found[2]) if found else (said, "")


def _kind(shown: str, bounds: str) -> str:
    """What a value is: of typer's `<int range>` and its bounds, a whole number, at least 1."""
    inner = re.sub(r"^list\[(.*)\]$", r"\1", shown.strip("<>")).removesuffix(" range").lower()
    if "|" in inner:
        return ", ".join(map(code, shown.strip("<>").split("|")))
    if not shown.startswith("<"):
        return code(shown) if shown else ""
    kind = KINDS.get(inner, code(inner))
    low, high = (re.search(pattern, bounds) for pattern in (r"([-\d.]+)<=x|x>=([-\d.]+)", r"x<=([-\d.]+)"))
    if low and high:
        kind += f", {_number(low[1])} to {_number(high[1])}"
    elif low:
        kind += f", at least {_number(low[1] or low[2])}"
    return kind


def _number(text: str) -> str:
    return f"{float(text):g}"


def _settings() -> list[str]:
    """The keys of a training configuration, each an option of `train`."""
    from circuit_tracer.training.config.files import preset_names
    from circuit_tracer.training.config.keys import keys, sections

    lines = ["", f"Presets: {', '.join(map(code, preset_names()))}.", ""]
    for section, model in sections().items():
        lines += [f"## {section}: {(model.__doc__ or section).split('(§')[0].strip().rstrip('.')}", ""]
        rows = [
            [
                code(f"--{key}"),
                escaped(key.description),
                escaped(key.expected),
                "**required**" if key.required else code(re.sub(r"^\[(.*; )?default: (.*)\]$", r"\2", key.note)),
            ]
            for key in keys().values()
            if key.section == section
        ]
        lines += [*table(HEADINGS, rows), ""]
    return lines[:-1]
