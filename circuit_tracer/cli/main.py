"""`circuit-tracer`: the table of its commands. A new command is a file in this folder and a row here."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from circuit_tracer.cli.frame import Commands, Debug, Row, new_app
from circuit_tracer.garbage import end_without_collection

TRACE, MANY, READ, TEST, TRAIN, SHARE = "Trace", "Many prompts", "Read", "Test", "Train", "Share"

COMMANDS = (
    Row("demo", "demo:app", TRACE),
    Row("attribute", "attribute:attribute", TRACE),
    Row("plan", "plan:plan", TRACE),
    Row("prune", "prune:prune", TRACE),
    Row("run", "run:run", MANY),
    Row("aggregate", "aggregate:aggregate", MANY),
    Row("compare", "compare:compare", MANY),
    Row("fingerprints", "fingerprints:fingerprints", MANY),
    Row("report", "report:report", MANY),
    Row("info", "info:info", READ),
    Row("view", "view:view", READ),
    Row("serve", "serve:serve", READ),
    Row("start-server", "serve:start_server", READ),
    Row("features", "features:app", READ),
    Row("explain", "explain:explain", READ),
    Row("story", "story:story", READ),
    Row("heads", "heads:heads", READ),
    Row("probe", "probe:app", READ),
    Row("group", "group:group", READ),
    Row("monitor", "monitor:app", READ),
    Row("mcp", "mcp:mcp", READ),
    Row("intervene", "intervene:intervene", TEST),
    Row("steer", "steer:steer", TEST),
    Row("patch", "patch:patch", TEST),
    Row("validate", "validate:validate", TEST),
    Row("train", "train:train", TRAIN, cls="TrainCommand"),
    Row("evaluate", "evaluate:evaluate", TRAIN),
    Row("convert", "convert:convert", SHARE),
    Row("push", "push:push", SHARE),
    Row("upload", "upload:upload", SHARE),
)


class Root(Commands):
    """`circuit-tracer` itself."""

    table = COMMANDS


app = new_app(
    name="circuit-tracer",
    cls=Root,
    no_args_is_help=True,
    add_completion=True,
    # --max_n_logits and --max-n-logits are the same option
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


def _show_version(value: bool) -> None:
    if value:
        from circuit_tracer.version import package_version

        typer.echo(f"circuit-tracing {package_version()}")
        raise typer.Exit


@app.callback()
def root(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Trace how a language model arrives at its next token: attribution graphs with cross-layer transcoders."""


# Of libraries: bars beside our own line (the hub's of a download stay: they count bytes), and each try of the hub before the
# error that says it once. Read when a library is imported, which is later; of this process and those that it starts.
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_VERBOSITY": "error"}


def main() -> None:
    """Entry point of the `circuit-tracer` command, also as `python -m circuit_tracer`."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    end_without_collection()
    app(prog_name="circuit-tracer")


if __name__ == "__main__":
    main()
