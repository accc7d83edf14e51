"""What every tracker object has: a hold on the pipeline of its destination, and a way to ask the tracker.

`Synchronous` and `Asynchronous` differ in how they wait, and in nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from otel_agent_tracker import arguments
from otel_agent_tracker.agents import watch
from otel_agent_tracker.config import ApiKey, Options, resolve
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.pipeline import Pipeline, acquire, is_substituted

if TYPE_CHECKING:
    from otel_agent_tracker.client import AsyncTrackerClient, TrackerClient
    from otel_agent_tracker.queries import Query

__all__ = ["Asynchronous", "Holder", "Synchronous"]

Json = dict[str, Any]
_Result = TypeVar("_Result")


class Holder:
    """Holds the shared pipeline of a destination until it is closed."""

    def __init__(
        self, base_url: str | None = None, api_key: ApiKey | None = None, **options: Unpack[Options]
    ) -> None:
        self._config = resolve({"url": base_url, "api_key": api_key, **options})
        self._pipeline: Pipeline = acquire(self._config)
        self._held = True
        watch()

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._pipeline.release()

    def _client_options(self) -> dict[str, Any]:
        if is_substituted():
            raise TrackerUnavailable("events are recorded for a test: there is no tracker that could answer")
        if self._config.url is None:
            raise TrackerUnavailable("no tracker is configured: set AGENT_TRACKER_URL or pass base_url")
        return {
            "base_url": self._config.url,
            "api_key": self._config.key,
            "timeout_seconds": self._config.timeout_seconds,
            "trust_env": self._config.trust_env,
        }


class Synchronous(Holder):
    """Asks and waits on the calling thread."""

    _client: TrackerClient | None = None
    _client_pid = 0  # a forked child must not talk over connections of its parent

    def delivery_stats(self) -> dict[str, Any]:
        """What was accepted and what became of it: accepted = delivered + pending + dead_lettered + dropped."""
        return self._pipeline.delivery_stats()

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until all that is pending in the state folder now is delivered or dead-lettered.

        False if that takes longer than `timeout_seconds`; nothing is lost by that.
        """
        return self._pipeline.flush(arguments.period("timeout_seconds", timeout_seconds))

    def close(self) -> None:
        """Let go of the shared pipeline, which flushes for a moment with its last holder. Idempotent."""
        self._release()
        if self._client is not None and self._client_pid == os.getpid():
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, query: Query) -> Json | None:
        """The tracker's JSON object, None on 404. Raises TrackerUnavailable."""
        if self._client is None or self._client_pid != os.getpid():
            from otel_agent_tracker.client import TrackerClient  # whoever never asks does not pay for it

            self._client, self._client_pid = TrackerClient(**self._client_options()), os.getpid()
            weakref.finalize(self, _close_in, self._client_pid, self._client)  # for whoever never closes
        return self._client.get(query.path, query.query)


class Asynchronous(Holder):
    """Asks and waits without blocking the loop."""

    _client: AsyncTrackerClient | None = None
    _client_pid = 0

    async def delivery_stats(self) -> dict[str, Any]:
        """What was accepted and what became of it: accepted = delivered + pending + dead_lettered + dropped."""
        return await _in_thread(self._pipeline.delivery_stats)

    async def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until all that is pending in the state folder now is delivered or dead-lettered.

        False if that takes longer than `timeout_seconds`; nothing is lost by that.
        """
        timeout = arguments.period("timeout_seconds", timeout_seconds)
        return await _in_thread(lambda: self._pipeline.flush(timeout))

    async def close(self) -> None:
        """Let go of the shared pipeline, which flushes for a moment with its last holder. Idempotent."""
        await _in_thread(self._release)
        if self._client is not None and self._client_pid == os.getpid():
            await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _ask(self, query: Query) -> Json | None:
        """The tracker's JSON object, None on 404. Raises TrackerUnavailable."""
        if self._client is None or self._client_pid != os.getpid():
            from otel_agent_tracker.client import AsyncTrackerClient  # whoever never asks does not pay for it

            self._client, self._client_pid = AsyncTrackerClient(**self._client_options()), os.getpid()
        return await self._client.get(query.path, query.query)


def _close_in(pid: int, client: TrackerClient) -> None:
    if pid == os.getpid():
        client.close()


async def _in_thread(wait: Callable[[], _Result]) -> _Result:
    from asyncio import to_thread  # is loaded where a coroutine runs

    return await to_thread(wait)
