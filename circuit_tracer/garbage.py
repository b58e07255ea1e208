"""Garbage collection, put off while libraries are imported and models load, and left out when a command ends.

Such a stretch makes hundreds of thousands of objects that stay as long as the process does. Meanwhile Python would look
through all of them again and again, a fifth of the time that importing torch and transformers and loading a small model takes;
and at its end once more, several times, to give back what the system takes back anyhow.
"""

from __future__ import annotations

import atexit
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_change = threading.RLock()  # a signal's handler may come back here
_inside = 0  # stretches under way, of all threads
_resumes = False  # whether collection was on when the first of them began


@contextmanager
def collection_put_off() -> Iterator[None]:
    """Inside, in all threads, nothing is collected that reference counts do not free; then it is as before. Also a decorator.

    What was made inside is then as old, to the collector, as what has outlived many collections: it is looked at when
    everything is, and not twice more before that. It can still be collected, unlike what is frozen for good (`gc.freeze`), with
    which a model that the caller lets go of would stay. Where the caller froze objects, ages are left alone: they would thaw.
    """
    global _inside, _resumes
    with _change:
        if not _inside:
            _resumes = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _change:
            _inside -= 1
            if _resumes and not _inside:
                _age()
                gc.enable()


def _age() -> None:
    """Take all objects for old, without a look at any."""
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()


def end_without_collection() -> None:
    """At the end of this process, after its functions for that moment, cycles of objects are not looked for.

    For a process of our own: another's objects may wait in a cycle for their `__del__`.
    """
    atexit.register(gc.freeze)
