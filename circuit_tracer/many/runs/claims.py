"""Who works on a run: one process at a time on a shard, and shards of one count only, so that no unit is done twice.

On this machine's files the operating system holds the locks, and frees those of a process that died. At an address there are
no locks: two runs there would write the same files, to no harm but the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from circuit_tracer.errors import InputError
from circuit_tracer.files import claimed, locked
from circuit_tracer.many.runs.store import Store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_CLAIMS = ".claims"


def changing(store: Store) -> AbstractContextManager[None]:
    """Inside, no other process of this machine changes manifest, rows and table of the run."""
    return nullcontext() if store.folder is None else locked(store.folder)


@contextmanager
def shard_claimed(store: Store, number: int, count: int) -> Iterator[None]:
    """Inside, the shard is this process' own. Raises InputError while another process has it, or a shard of another count."""
    if not 0 <= number < count:
        raise InputError(f"shard {number}/{count} does not exist; the shards are 0/{count} to {count - 1}/{count}")
    with ExitStack() as stack:
        if store.folder is not None:
            mine = store.folder / _CLAIMS / f"{number}-of-{count}"
            with locked(store.folder):
                mine.mkdir(parents=True, exist_ok=True)
                for other in mine.parent.iterdir():
                    if not other.name.endswith(f"-of-{count}"):
                        with _claimed(other):
                            pass
                stack.enter_context(_claimed(mine))
        yield


def _claimed(folder: Path) -> AbstractContextManager[None]:
    return claimed(folder, f"works on shard {folder.name.replace('-of-', '/')} of the run, with")
