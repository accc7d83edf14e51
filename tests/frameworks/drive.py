"""Plays the scenarios with an example: ``python -m tests.frameworks.drive EXAMPLE [--in-session]``.

It runs in the environment of a framework, where the example's ``answer``, ``answer_async`` and ``stream`` are the
framework's. Each conversation is named for its scenario. At the end an hour passes, so that every conversation that
nobody has ended is over, and everything is delivered.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, Protocol, cast

import otel_agent_tracker
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.config import resolve
from otel_agent_tracker.pipeline import Pipeline, substitute
from tests.frameworks.scenarios import ABANDONED, BARE, FAILING, STREAM, TALK, TASKS, THREADS

__all__: list[str] = []

HOUR = 3600.0


class Example(Protocol):
    """What every example of a framework has."""

    def observe(self) -> otel_agent_tracker.AgentPerformanceTracker:
        """Have the spans read."""

    def answer(self, conversation: str, question: str) -> str:
        """One turn of a conversation."""

    async def answer_async(self, conversation: str, question: str) -> str:
        """The same for asyncio."""

    def stream(self, conversation: str, question: str) -> AsyncIterator[str]:
        """The same in pieces."""


class _Passing:
    """The time of this machine, which `pass_by` moves on."""

    def __init__(self) -> None:
        self._passed = 0.0
        self.clock = Clock(
            time_ns=lambda: time.time_ns() + int(self._passed * 1e9),
            monotonic=lambda: time.monotonic() + self._passed,
        )

    def pass_by(self, seconds: float) -> None:
        self._passed += seconds


def main(name: str, *options: str) -> None:
    """Play all scenarios, one after another."""
    passing = _Passing()
    substitute(Pipeline(resolve({}), clock=passing.clock))
    example = cast(Example, import_module(name))
    tracker = example.observe()
    _Player(example, in_session="--in-session" in options).play()
    gc.collect()  # what was abandoned ends when it is collected, at the latest
    passing.pass_by(HOUR)
    assert tracker.flush(30.0)


class _Player:
    def __init__(self, example: Example, *, in_session: bool) -> None:
        self._example = example
        self._in_session = in_session

    def play(self) -> None:
        """Every scenario."""
        self._example.answer(BARE, "Hello?")
        for question in TALK.questions:
            self._answer(TALK.conversations[0], question)
        for question in FAILING.questions:
            self._answer(FAILING.conversations[0], question)
        with ThreadPoolExecutor(len(THREADS.conversations)) as threads:
            for done in [threads.submit(self._in_thread, each) for each in THREADS.conversations]:
                done.result()
        asyncio.run(self._play_async())

    def _in_thread(self, conversation: str) -> None:
        for question in THREADS.questions:
            self._answer(conversation, question)

    async def _play_async(self) -> None:
        await asyncio.gather(*(self._in_task(each) for each in TASKS.conversations))
        await self._read(STREAM.conversations[0], STREAM.questions[0])
        await self._read(ABANDONED.conversations[0], ABANDONED.questions[0], most=1)

    async def _in_task(self, conversation: str) -> None:
        for question in TASKS.questions:
            with self._session(conversation):
                await self._example.answer_async(conversation, question)

    async def _read(self, conversation: str, question: str, most: int | None = None) -> None:
        with self._session(conversation):
            pieces = cast(Any, self._example.stream(conversation, question))
            read = 0
            async for _ in pieces:
                read += 1
                if read == most:
                    break
            await pieces.aclose()

    def _answer(self, conversation: str, question: str) -> None:
        with self._session(conversation), _failing_if("fail" in question):
            self._example.answer(conversation, question)

    def _session(self, conversation: str) -> AbstractContextManager[object]:
        return otel_agent_tracker.session(conversation) if self._in_session else nullcontext()


@contextmanager
def _failing_if(fails: bool) -> Iterator[None]:
    """Some frameworks raise what the model's refusal becomes, others keep it to themselves."""
    try:
        yield
    except Exception:
        if not fails:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
