"""What a person may want to do next: one line behind a command's output, to be run as it stands.

A step is words of a command line. {name} in a word stands for the value of that option or argument, and a word that is
{model} or {edits} for the options that named the model or the edits. A step with a name that has no value is left out.
"""

from __future__ import annotations

import shlex
import string
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLE = "The capital of France is"
# Options that every command which opens a model with a dictionary takes.
MODEL = (
    "demo",
    "transcoder_set",
    "model",
    "attention",
    "adapter",
    "elsewhere",
    "revision",
    "device",
    "dtype",
    "select",
)
EDITS = ("set_to", "scale", "ablate", "add", "take", "source", "source_at", "supernode", "supernodes")
FLAGS = {"model": MODEL, "edits": EDITS}


class Step(NamedTuple):
    """After a command, the first of its steps whose values are there and whose conditions hold.

    only: values that end so. without: options that are not given.
    """

    after: str
    step: str
    only: Mapping[str, str] = {}
    without: tuple[str, ...] = ()


TRACE = "attribute {model} -p {prompt} -o {new_graph}"
TRACE_ANY = "attribute {model} -p {example} -o {new_graph}"
SERVE = "serve --graph-file-dir {graph_file_dir} {model}"

STEPS = (
    Step("demo", "serve --graph-file-dir {output} --demo"),
    Step("demo train", "attribute -m {output}/model -t {output}/transcoder -p {demo_prompt} -o {new_graph}"),
    Step("attribute", SERVE, without=("server",)),
    Step("attribute", "group {output} {model}", {"output": ".safetensors"}, without=("prompt_file",)),
    Step("attribute", "group {output} {model} -o {stem}.safetensors", {"output": ".pt"}, without=("prompt_file",)),
    Step("plan", TRACE),
    Step("plan", TRACE_ANY),
    Step("prune", SERVE),
    Step("prune", "view {output}"),
    Step("prune", "view {graph}"),
    Step("run", "aggregate {output}"),
    Step("aggregate", "report {address}"),
    Step("fingerprints", "report {run}"),
    Step("report", "view {run}"),
    Step("compare", "view {other}"),
    Step("compare", "validate {graph} {model}"),
    Step("info", "view {what}", {"kind": "graph"}),
    Step("info", "view {what}", {"kind": "viewers"}),
    Step("info", "aggregate {what}", {"kind": "run over many prompts"}),
    Step("info", "attribute {model} -t neurons -p {example} -o {new_graph}", {"kind": "neurons of a model"}),
    Step("info", "attribute -m {what} -t neurons -p {example} -o {new_graph}", {"kind": "model"}),
    Step("info", "attribute -t {what} {model} -p {example} -o {new_graph}", {"kind": "transcoders"}),
    Step(
        "info",
        "attribute -t {what} {model} -p {example} -o {new_graph}",
        {"kind": "transcoders on the Hugging Face hub"},
    ),
    Step("view", "report {graph}", {"kind": "run"}),
    Step("view", "story {graph}", {"graph": ".safetensors"}),
    Step("features build", "features export {output} -o {output}-pages"),
    Step("features label", "features export {folder} -o {folder}-pages"),
    Step("features fetch-labels", "features export {folder} -o {folder}-pages"),
    Step("explain", "view {written}", {"written": ".safetensors"}),
    Step("story", "view {graph}", {"graph": ".safetensors"}),
    Step("heads", "attribute {model} -p {example} -o {new_graph}", {"demo": ""}),
    Step("heads", "attribute {model} -t neurons -p {example} -o {new_graph}"),
    Step("probe fit", "probe score {output} -p {example} {model}"),
    Step("probe score", "probe explain {probe} -p {first_prompt} {model}", {"dictionary": ""}),
    Step("probe explain", "view {output}", {"output": ".safetensors"}),
    Step("group", "story {written} {model}"),
    Step("monitor calibrate", "monitor watch {negatives} --probe {output} {model}"),
    Step("intervene", "steer -p {prompt} {edits} {model}", without=("head",)),
    Step("intervene", "validate {graph} {model}", {"graph": ".safetensors"}),
    Step("intervene", TRACE),
    Step("steer", TRACE),
    Step("patch", "attribute {model} -p {clean} -o {new_graph}"),
    Step("validate", "view {written}"),
    Step("train", "attribute -t {out}/transcoder -p {example} -o {new_graph}"),
    Step("train", "train {config}", without=("overridden",)),
    Step("evaluate", TRACE_ANY),
    Step("convert", "view {output}", {"output": ".safetensors"}),
    Step("convert", "view {output}", {"output": ".json"}),
    Step("convert", "view {output}", {"output": ".pt"}),
    Step("convert", "info {output}", {"kind": "transcoders"}),
    Step("push", "info {output}"),
    Step("push", "push {folder} {repo_id}", {"kind": "dry run"}),
    Step("push", "attribute -t {repo_id} -p {example} -o {new_graph}"),
)


def next_step(after: str, given: Mapping[str, Any], flags: Mapping[str, Iterable[str]] = {}) -> list[str] | None:
    """The words of the command that may follow, without the program's name; None where there is none.

    given: values of the command's parameters by name, and what it says of its result. flags: the words behind {model} and
    {edits}.
    """
    values = _values(given)
    step = next((each for each in STEPS if each.after == after and _fits(each, given, values)), None)
    if step is None:
        return None
    words: list[str] = []
    for word in step.step.split():
        words += flags.get(word[1:-1], ()) if word[1:-1] in FLAGS else [word.format_map(values)]
    return words


def _fits(step: Step, given: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    wanted = {name for _, name, _, _ in string.Formatter().parse(step.step) if name} - FLAGS.keys()
    of_kind = all(name in values and values[name].endswith(ending) for name, ending in step.only.items())
    return of_kind and wanted <= values.keys() and not any(given.get(name) for name in step.without)


def _values(given: Mapping[str, Any]) -> dict[str, str]:
    """Each value as text, with those that are made of several."""
    from circuit_tracer.demo import PROMPT

    values = {name: str(value) for name, value in given.items() if isinstance(value, str | Path) or value is True}
    written = values.get("output") or values.get("graph")
    if written is not None:
        values |= {"written": written, "stem": written.removesuffix(Path(written).suffix)}
    if isinstance(several := given.get("prompt"), list | tuple) and several:
        values["first_prompt"] = several[0]
    if "demo" in values or "transcoder_set" in values:
        values["dictionary"] = values.get("transcoder_set", "demo")
    example = PROMPT if "demo" in values else EXAMPLE
    return {**values, "example": example, "demo_prompt": PROMPT, "new_graph": _unused("graph.safetensors")}


def _unused(name: str) -> str:
    """The name, with the first number that makes it one that no file here has."""
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(name).with_stem(f"{Path(name).stem}-{number}"), number + 1
    return str(path)


def show_next_step(context: Any, said: Mapping[str, Any] | None) -> None:
    """Print the step that may follow a command, where a person looks on.

    context: the command's own (click's), with its values. said: what the command says of its result.
    """
    if context.params.get("json") or context.invoked_subcommand or not (sys.stdout.isatty() and sys.stderr.isatty()):
        return
    after = context.command_path.removeprefix(context.find_root().command_path).strip()
    flags = {name: _given(context, names) for name, names in FLAGS.items()}
    if words := next_step(after, {**context.params, **(said or {})}, flags):
        sys.stdout.flush()
        print(f"\nnext: circuit-tracer {shlex.join(words)}", file=sys.stderr)


def _given(context: Any, names: Iterable[str]) -> list[str]:
    """Those options that were given, as they were."""
    words: list[str] = []
    for option in context.command.params:
        source = context.get_parameter_source(option.name)
        if option.name not in names or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[option.name]
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, bool):
                words.append((option.opts if each else option.secondary_opts)[0])
            else:
                words += [option.opts[0], str(each)]
    return words
