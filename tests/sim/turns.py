"""What stands in for asyncio where the shell's own coroutines run: each is taken a turn further when the simulation
says so, and gives way wherever it would have waited. Threads are none: what was to run in one runs at once.
"""

from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest import mock

import node.catchup
import node.joining
import node.snapshots


class _Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


class Event:
    """Its waiting ends with TimeoutError where it began inside a `timeout` that is over."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        deadline, _Timeout.newest = _Timeout.newest, None
        while not self._set:
            if deadline is not None and TIME.monotonic() >= deadline:
                raise TimeoutError
            await _Turn()


class _Timeout:
    """For what begins to wait in the turn in which it was entered."""

    newest: float | None = None

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        _Timeout.newest = TIME.monotonic() + self._seconds

    async def __aexit__(self, *_: object) -> None:
        _Timeout.newest = None


class TaskGroup:
    """Its tasks run one after the other, at its end."""

    def __init__(self) -> None:
        self._tasks: list[Coroutine[Any, Any, object]] = []

    def create_task(self, task: Coroutine[Any, Any, object]) -> None:
        self._tasks.append(task)

    async def __aenter__(self) -> "TaskGroup":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await task


class _Loop:
    async def run_in_executor(self, thread: object, function: Callable[[], object]) -> object:
        return function()


class Swift:
    """As much of asyncio's face as the shell asks for."""

    CancelledError = CancelledError
    Event = Event
    TaskGroup = TaskGroup

    timeout = _Timeout

    @staticmethod
    async def gather(*several: Coroutine[Any, Any, object]) -> list[object]:
        try:
            return [await one for one in several]
        finally:
            for one in several:
                one.close()

    @staticmethod
    async def sleep(seconds: float) -> None:
        await _Turn()

    @staticmethod
    def get_running_loop() -> _Loop:
        return _Loop()


class Clock(Protocol):
    def monotonic(self) -> float: ...


class _Time:
    """The module `time`, for who measures how long something stands still; nobody sleeps."""

    def __init__(self) -> None:
        self.clock: Clock | None = None

    def monotonic(self) -> float:
        return 0.0 if self.clock is None else self.clock.monotonic()

    def stop(self) -> None:
        self.clock = None

    def sleep(self, seconds: float) -> None:
        """Nothing else runs meanwhile."""


TIME = _Time()


@contextmanager
def in_turns() -> Iterator[None]:
    modules = (node.catchup, node.joining, node.snapshots)
    with ExitStack() as patches:
        patches.callback(TIME.stop)
        for module in modules:
            patches.enter_context(mock.patch.object(module, "asyncio", Swift))
        for module in (node.catchup, node.snapshots):
            patches.enter_context(mock.patch.object(module, "time", TIME))
        yield


async def wait_for(done: list[None]) -> None:
    """Until something is in it."""
    while not done:
        await _Turn()


def take_turn(task: Coroutine[Any, Any, object]) -> bool:
    """Whether there is more of it."""
    try:
        task.send(None)
    except StopIteration:
        return False
    return True
