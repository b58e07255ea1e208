"""The line that shows progress: on a terminal after a while, in a pipe only when asked, above it what others print."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from circuit_tracer.progress import Line, doing, heard_by, told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that are to be seen, with what a carriage return lets later letters write over."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown: list[str] = []
            for piece in line.split("\r"):
                shown[: len(piece)] = piece
            lines.append("".join(shown).rstrip())
        return lines


def until(seen: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < ends, "the line never showed it"
        time.sleep(0.01)


def put_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In the place of standard error; in a fixture pytest would take it away again."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_the_line_shows_what_is_done_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    with Line(patience=0.0) as line, heard_by(line.report), doing("outer"):
        until(lambda: terminal.screen() == ["outer  0 s"])
        with told() as report:
            report("rows", 0, 1000)
            until(lambda: terminal.screen()[-1].startswith("rows  [....................] 0/1,000"))
            report("rows", 500, 1000)
            until(lambda: "[##########..........] 500/1,000" in terminal.screen()[-1])
            until(lambda: "/s" in terminal.screen()[-1] and " left" in terminal.screen()[-1])
        until(lambda: terminal.screen()[-1].startswith("outer"))
        print("a warning", file=sys.stderr)
        until(lambda: terminal.screen()[-1].startswith("outer"))
    assert terminal.screen() == ["a warning", ""]
    assert sys.stderr is terminal
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    with Line() as line, heard_by(line.report), doing("quick"):
        pass
    assert terminal.getvalue() == ""


def test_a_half_printed_line_of_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put_terminal(monkeypatch)
    with Line(patience=0.0) as line, heard_by(line.report), doing("work"):
        until(lambda: "work" in terminal.screen()[-1])
        print("half", end="", file=sys.stderr)
        time.sleep(0.3)  # longer than the line looks away
        assert terminal.screen() == ["half"]
        print(" whole", file=sys.stderr)
        until(lambda: terminal.screen()[0] == "half whole" and "work" in terminal.screen()[-1])


def test_a_pipe_is_told_only_when_asked() -> None:
    for verbose, expected in ((False, []), (True, ["rows 0/4  0 s ...", "rows 4/4  0 s", "one  0 s ...", "one  0 s"])):
        pipe = io.StringIO()
        with Line(pipe, verbose) as line, heard_by(line.report):
            with told() as report:
                for done in range(5):
                    report("rows", done, 4)
            with doing("one"):
                pass
        assert pipe.getvalue().splitlines() == expected


def test_what_others_redirect_meanwhile_is_put_back_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, out = put_terminal(monkeypatch), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with Line(patience=0.0) as line, heard_by(line.report), redirect_stdout(sys.stderr), doing("work"):
        until(lambda: "work" in terminal.screen()[-1])
    assert sys.stdout is out
    assert sys.stderr is terminal


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("verbose", [False, True])  # verbose: what ended is said, and that fails
def test_a_terminal_that_is_gone_ends_nothing(verbose: bool) -> None:
    with Line(Gone(), verbose, patience=0.0) as line, heard_by(line.report), doing("work"):
        time.sleep(0.0 if verbose else 0.3)


def test_nobody_hears_in_other_threads_or_without_a_line() -> None:
    heard: list[str] = []
    with heard_by(lambda stage, done, total: heard.append(stage)):
        thread = threading.Thread(target=lambda: doing("there").__enter__())
        thread.start()
        thread.join()
        with doing("here"):
            pass
    with doing("nowhere"):
        pass
    assert heard == ["here", "here"]
