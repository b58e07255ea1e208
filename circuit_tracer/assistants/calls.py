"""One call of a tool within its limits: arguments checked, one at a time a lane, in time, with an answer of bounded size."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from pydantic import BaseModel, ValidationError

from circuit_tracer.assistants.limits import MOST_BYTES, MOST_WAITING
from circuit_tracer.assistants.tools import TOOLS, Tool
from circuit_tracer.assistants.workplace import Workplace
from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError, shortened
from circuit_tracer.viewer.server.jobs import Cancelled, Job
from circuit_tracer.viewer.server.problems import Busy

GLANCE = 0.2  # seconds between looks at how far a call is
logger = logging.getLogger("circuit_tracer.assistants")
Tell = Callable[[float, str], Awaitable[None]]  # seconds since a call began, and what is being done


class Lane:
    """Where calls stand in line: one is answered, the others wait, and more than ``MOST_WAITING`` are refused."""

    def __init__(self) -> None:
        self._turn, self._places = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)

    def run(self, work: Callable[[], Any], seconds: float) -> Any:
        """``work()``, once it is its turn. Raises Busy if its turn does not come in so many seconds."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{MOST_WAITING} calls are waiting already; ask again when some are answered")
        try:
            if not self._turn.acquire(timeout=seconds):
                raise Busy(f"others were at work for all of {seconds:g} seconds; ask again later")
            try:
                return work()
            finally:
                self._turn.release()
        finally:
            self._places.release()


@dataclass
class Calls:
    """Calls of a workplace's tools. What runs the model has a lane of its own, so that graphs can be read meanwhile."""

    place: Workplace
    _lanes: dict[bool, Lane] = field(default_factory=lambda: {True: Lane(), False: Lane()})
    _tools: dict[str, Tool] = field(default_factory=lambda: {tool.name: tool for tool in TOOLS})

    async def answer(self, name: str, arguments: Mapping[str, Any], tell: Tell) -> BaseModel:
        """What a tool answers. Raises CircuitTracerError with what was wrong, also for a tool that there is none of."""
        tool = self._tools.get(name)
        if tool is None:
            raise InputError(f"there is no tool {shortened(name)}; there are {', '.join(self._tools)}")
        question = _checked(tool, arguments)
        job, seconds = Job(name), self.place.limits.seconds

        def work() -> BaseModel:
            job.progress("starting")
            return tool.work(self.place, question, job)

        found: BaseModel | CircuitTracerError | None = None
        try:
            with anyio.move_on_after(seconds):
                async with anyio.create_task_group() as group:
                    group.start_soon(_telling, job, tell)
                    found = await _in_thread(lambda: self._lanes[tool.tests].run(work, seconds))
                    group.cancel_scope.cancel()
        finally:
            # whoever asked is gone, or has the answer: what still runs ends where it next reports
            job.cancelling = True
        if isinstance(found, CircuitTracerError):
            raise found
        if found is None:
            raise ResourceError(
                f"{name} took more than {seconds:g} seconds; ask for less, or start the server with --seconds"
            )
        if (size := len(found.model_dump_json().encode())) > MOST_BYTES:
            fewer = " and ".join(each for each in ("limit", "least", "examples") if each in tool.question.model_fields)
            by = f" ({fewer})" if fewer else ""
            raise ResourceError(f"the answer is of {size:,} bytes, more than {MOST_BYTES:,}; ask for less{by}")
        return found


def _checked(tool: Tool, arguments: Mapping[str, Any]) -> BaseModel:
    try:
        return tool.question.model_validate(dict(arguments))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc'])) or 'arguments'}: {each['msg']}" for each in error.errors()[:5]]
        known = ", ".join(tool.question.model_fields) or "none"
        raise InputError(
            f"the arguments of {tool.name} do not fit ({'; '.join(wrong)[:800]}); it takes {known}"
        ) from None


async def _in_thread(work: Callable[[], BaseModel]) -> BaseModel | CircuitTracerError:
    """What ``work()`` gives or raises, in a thread of its own, which is left behind if nobody waits for it any more."""

    def run() -> BaseModel | CircuitTracerError:
        try:
            return work()
        except CircuitTracerError as error:
            return error
        except Cancelled:
            return ResourceError("the call was cancelled")
        except Exception as error:
            logger.exception("a tool failed")
            return ResourceError(f"{type(error).__name__}: {error} (a failure of ours)")

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


async def _telling(job: Job, tell: Tell) -> None:
    """Report what a call does whenever that changes."""
    before, began = "", time.monotonic()
    while True:
        await anyio.sleep(GLANCE)
        said = f"{job.stage} {job.done}/{job.total}" if job.total else job.stage
        if said != before:
            before = said
            await tell(time.monotonic() - began, said)
