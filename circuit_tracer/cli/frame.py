"""The frame of the command line: rows of a table become commands, failures become messages and exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter
from types import CodeType
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from circuit_tracer.cli.loading import warn_of_unknown_words
from circuit_tracer.cli.next_steps import show_next_step
from circuit_tracer.cli.options import dump
from circuit_tracer.errors import CircuitTracerError, InputError, shortened
from circuit_tracer.progress import bar

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
USAGE, INTERRUPTION = "UsageError", "Interrupted"  # kinds of failures that are no error of the package
NOTHING_MORE = "interrupted; nothing was written that is not reported above"
DEBUG, AS_JSON = "circuit_tracer.debug", "circuit_tracer.json"
# What the machine can refuse wherever something is read or written, and what helps.
REFUSALS = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EFBIG: "files may not be that large here (ulimit -f); choose another disk",
    errno.EROFS: "this disk is read-only; choose another one",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "a folder stands where a file is needed; choose another name",
    errno.ENOENT: "it is gone, or its folder is",
    errno.EIO: "the disk or the network failed; try another one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
}


class Row(NamedTuple):
    """A command: its name; file:function in this folder (or file:app); its group in --help; its class, in that file."""

    name: str
    where: str
    group: str
    cls: str | None = None


class Command(TyperCommand):
    """A command that refuses an option given twice where one value counts: the first would be dropped in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, after looking for what is there twice."""
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            once = [each for each in given if each.param_type_name == "option" and not _repeatable(each)]
            if twice := next((each for number, each in enumerate(once) if each in once[:number]), None):
                raise InputError(f"{' / '.join(twice.opts)} is given twice, and takes one value: leave one of them out")
        return super().parse_args(ctx, args)


def _repeatable(option: Any) -> bool:
    return bool(option.multiple or option.is_flag or option.count or option.is_eager)


def new_app(**settings: Any) -> typer.Typer:
    """A Typer whose help and errors are plain text: rich's boxes cut option names off at 80 columns."""
    return typer.Typer(**{"add_completion": False, **settings}, rich_markup_mode=None, pretty_exceptions_enable=False)


def add(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: a function becomes a command of an app."""

    def added(function: Callable[..., Any]) -> Callable[..., Any]:
        app.command(name, cls=Command)(flat(function))
        return function

    return added


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta[DEBUG] = True  # shared with the parent context, which reports errors
    return value


Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show progress at once, also in a pipe; what is done stays to be read.")
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show the traceback when something fails.")
]


def flat(function: Callable[..., Mapping[str, str] | None]) -> Callable[..., None]:
    """The command as typer takes it: a dataclass among its parameters becomes an option a field. --verbose and --debug
    are added, progress is shown, and at the end what may be done next, to which what the function returns is of use.
    """
    groups: dict[str, Any] = {}
    options: list[Parameter] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if is_dataclass(kind := parameter.annotation):
            groups[name] = kind
            options += _options_of(kind)
        else:
            options.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    own = {each.name for each in options}
    added = {"verbose": (Verbose, False), "debug": (Debug, False), "ctx": (typer.Context, Parameter.empty)}
    for name, (kind, default) in added.items():
        if name not in own:
            options.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    @functools.wraps(function)
    def called(ctx: typer.Context, verbose: bool, debug: bool, **given: Any) -> None:
        built = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        wanted = {name: value for name, value in {"ctx": ctx, "verbose": verbose}.items() if name in own}
        warn_of_unknown_words(ctx.params)
        speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, the first
        with bar(verbose) if speaks else nullcontext():
            said = function(**given, **built, **wanted)
        if speaks:
            show_next_step(ctx, said)

    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # typer reads what inspect finds there
    called.__annotations__ = {each.name: each.annotation for each in options}
    return called


def _options_of(kind: Any) -> list[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(kind)
    ]


class _Rows(Mapping[str, Any]):
    """Commands by name; a file is imported when its command is asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.name: row for row in rows}
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = _command(self.rows[name])
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _command(row: Row) -> Any:
    file, _, name = row.where.partition(":")
    module = import_module(f"circuit_tracer.cli.{file}")
    found = getattr(module, name)
    if not isinstance(found, typer.Typer):
        function, found = found, new_app()
        found.command(row.name, cls=getattr(module, row.cls) if row.cls else Command)(flat(function))
    return typer.main.get_command(found)


def _help_of(row: Row) -> str | None:
    """The docstring of a row's function, out of its file's compiled code, which is not run: --help of all commands would import
    them all. None for a row that is an app.
    """
    file, _, name = row.where.partition(":")
    spec = find_spec(f"circuit_tracer.cli.{file}")
    code = getattr(spec and spec.loader, "get_code", lambda _: None)(f"circuit_tracer.cli.{file}")
    functions = (each for each in getattr(code, "co_consts", ()) if isinstance(each, CodeType) and each.co_name == name)
    written = next((each.co_consts[0] for each in functions if each.co_consts), None)
    return inspect.cleandoc(written) if isinstance(written, str) else None


def _in_short(row: Row, made: Mapping[str, Any], room: int) -> str:
    written = _help_of(row)
    command = made[row.name] if written is None else Command(row.name, help=written)
    short: str = command.get_short_help_str(room)
    return short


# What people type for a command of another name.
MEANT = {
    "trace": "attribute",
    "graph": "attribute",
    "show": "view",
    "open": "view",
    "plot": "view",
    "ablate": "intervene",
    "generate": "steer",
    "label": "features label",
    "cluster": "group",
    "export": "convert",
    "download": "info",
    "test": "validate",
    "batch": "run",
    "help": "--help",
}


class Commands(TyperGroup):
    """The commands of `table`. Errors on purpose become one message and exit code 2; others exit code 1; Ctrl-C 130."""

    table: ClassVar[Sequence[Row]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Rows(self.table)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; whether --json was typed is known before a command's options are read, which may be wrong."""
        ctx.meta[AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, without importing them."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands by group, names whole."""
        room = formatter.width - 6 - max(map(len, self.commands))
        for group in dict.fromkeys(row.group for row in self.table):
            rows = [row for row in self.table if row.group == group]
            with formatter.section(group):
                formatter.write_dl([(row.name, _in_short(row, self.commands, room)) for row in rows])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As ever, but that a word for a command of another name is answered with that name."""
        if args and args[0] not in self.commands and args[0] in MEANT and not ctx.resilient_parsing:
            raise InputError(f"there is no command {args[0]}; circuit-tracer {MEANT[args[0]]} does that")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see the class."""
        asked: list[int] = []
        tell = _telling(ctx)
        try:
            with warnings.catch_warnings(), _ending(asked):
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except CircuitTracerError as error:
            tell(type(error).__name__, str(error))
            raise typer.Exit(INTERRUPTED if asked else BAD_INPUT) from error
        except KeyboardInterrupt as error:
            tell(INTERRUPTION, str(error) or NOTHING_MORE)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            # what has an exit code is a usage error of typer's
            own_exit = isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code")
            if own_exit or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                if hasattr(error, "format_message"):  # typer says it on standard error
                    tell(USAGE, error.format_message())
                raise
            if asked:  # a library made another error of it
                tell(INTERRUPTION, NOTHING_MORE)
                raise typer.Exit(INTERRUPTED) from error
            # the machine's word about a path, or bytes that are no text
            if isinstance(error, OSError | UnicodeEncodeError):
                tell(type(error).__name__, _refusal(error) if isinstance(error, OSError) else _no_text(error))
                raise typer.Exit(BAD_INPUT) from error
            hint = "" if DEBUG in ctx.meta else " (a failure of ours; run again with --debug for the traceback)"
            tell(type(error).__name__, f"{type(error).__name__}: {error}{hint}")
            raise typer.Exit(FAILURE) from error


@contextmanager
def _ending(asked: list[int]) -> Iterator[None]:
    """Inside, SIGTERM, with which schedulers end a job, is what Ctrl-C is; ``asked`` gets the signals that came."""

    def ask(number: int, _: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = threading.current_thread() is threading.main_thread()
    before = {each: handler for each, handler in usual.items() if mine and signal.getsignal(each) is handler}
    for each in before:
        signal.signal(each, ask)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _refusal(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    hint = REFUSALS.get(error.errno or 0)
    return f"{error.strerror or error}{where}" + (f"; {hint}" if hint else "")


def _no_text(error: UnicodeEncodeError) -> str:
    return f"{shortened(error.object)} is no text: byte {ord(error.object[error.start]) & 0xFF:#x} is not UTF-8"


def _telling(ctx: Any) -> Callable[[str, str], None]:
    """What says why a command ended: (kind, message); with --json as a line of standard output too."""

    def tell(kind: str, message: str) -> None:
        if kind not in (USAGE, INTERRUPTION):
            if DEBUG in ctx.meta:
                traceback.print_exc()
            typer.echo(f"error: {message}", err=True)
        elif kind == INTERRUPTION:
            typer.echo(message, err=True)
        if ctx.meta.get(AS_JSON):
            typer.echo(dump({"error": {"kind": kind, "message": message}}))

    return tell


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        typer.echo(f"warning: {message}", err=True)
