"""Collection that is put off: not while objects are made, and afterwards as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from circuit_tracer.garbage import collection_put_off


class Thing:
    """Something that can hold itself."""

    itself: Thing


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    before, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.enable()
    gc.unfreeze()
    yield
    if frozen:
        gc.freeze()
    if not before:
        gc.disable()


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_is_collected_inside_and_what_is_made_there_is_old() -> None:
    before = collections()
    with collection_put_off():
        made = [Thing() for _ in range(20_000)]
        assert collections() == before
    young = gc.get_objects(generation=0) + gc.get_objects(generation=1)
    assert not {id(each) for each in made} & {id(each) for each in young}
    assert gc.isenabled()


@pytest.mark.slow("takes 3.1 s")
def test_what_was_made_inside_can_be_collected() -> None:
    with collection_put_off():
        thing = Thing()
        thing.itself = thing
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None


def test_stretches_inside_each_other_and_errors_leave_it_on() -> None:
    @collection_put_off()
    def fails() -> None:
        assert not gc.isenabled()
        raise ValueError("on purpose")

    with collection_put_off():
        with pytest.raises(ValueError, match="on purpose"):
            fails()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    with collection_put_off():
        pass
    assert not gc.isenabled()


def test_it_goes_on_when_the_last_thread_has_ended() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collection_put_off():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with collection_put_off():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_what_the_caller_froze_stays_frozen() -> None:
    thing = Thing()
    gc.freeze()
    with collection_put_off():
        pass
    assert gc.get_freeze_count()
    assert not any(each is thing for each in gc.get_objects())
    gc.unfreeze()


ENDS = """
import sys, weakref
from circuit_tracer.__main__ import main
class Thing:
    def __del__(self): print("collected")
thing = Thing()
weakref.finalize(thing, print, "finalized")  # as temporary folders are taken away
thing.itself = thing
sys.argv = ["circuit-tracer", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("words", [["--version"], ["info", "no-such-file"]], ids=["well", "with an error"])
def test_a_command_ends_without_a_look_at_all_objects(words: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS, *words], capture_output=True, text=True)
    assert "finalized" in ended.stdout
    assert "collected" not in ended.stdout
    assert ended.returncode == (0 if words == ["--version"] else 2)
