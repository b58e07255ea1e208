"""`circuit-tracer`: the commands, and what happens when one fails."""

from __future__ import annotations

import errno
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from circuit_tracer.cli import (
    attribute,
    convert,
    demo,
    evaluate,
    features,
    info,
    intervene,
    patch,
    plan,
    prune,
    push,
    serve,
    steer,
    train,
    upload,
    validate,
    view,
)
from circuit_tracer.cli.options import DEBUG, Debug
from circuit_tracer.errors import CircuitTracerError

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130


class Commands(TyperGroup):
    """Errors on purpose become one message and exit code 2; others exit code 1; Ctrl-C 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see the class."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except CircuitTracerError as error:
            _report(ctx, str(error))
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted; nothing was written that is not reported above", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            own_exit = isinstance(error, typer.Exit | typer.Abort) or hasattr(
                error, "exit_code"
            )  # typer's usage errors
            if own_exit or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            hint = "" if DEBUG in ctx.meta else " (a failure of ours; run again with --debug for the traceback)"
            _report(ctx, f"{type(error).__name__}: {error}{hint}")
            raise typer.Exit(FAILURE) from error


def _report(ctx: Any, message: str) -> None:
    if DEBUG in ctx.meta:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        typer.echo(f"warning: {message}", err=True)


app = typer.Typer(
    name="circuit-tracer",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # boxes cut option names off at 80 columns
    pretty_exceptions_enable=False,
    # --max_n_logits and --max-n-logits are the same option
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"circuit-tracing {version('circuit-tracing')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Trace how a language model arrives at its next token: attribution graphs with cross-layer transcoders."""


app.command("attribute")(attribute.attribute)
app.command("plan")(plan.plan)
app.command("prune")(prune.prune)
app.command("info")(info.info)
app.command("convert")(convert.convert)
app.command("view")(view.view)
app.command("serve")(serve.serve)
app.command("start-server")(serve.start_server)
app.command("intervene")(intervene.intervene)
app.command("steer")(steer.steer)
app.command("patch")(patch.patch)
app.command("validate")(validate.validate)
app.command("train", cls=train.TrainCommand)(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("push")(push.push)
app.command("upload")(upload.upload)
app.add_typer(features.app, name="features")
app.add_typer(demo.app, name="demo")


def main() -> None:
    """Entry point of the `circuit-tracer` command."""
    app()


if __name__ == "__main__":
    main()
