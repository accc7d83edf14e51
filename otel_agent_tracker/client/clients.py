"""The synchronous and the asynchronous client: I/O, and nothing but I/O."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import httpcore
from opentelemetry import context as otel_context

from otel_agent_tracker.arguments import positive_number
from otel_agent_tracker.client.answers import (
    Answer,
    Delivered,
    Misconfigured,
    NotOffered,
    Result,
    Retry,
    batch_results,
    offered_capabilities,
    otlp_result,
    query_object,
    single_result,
)
from otel_agent_tracker.client.calls import ApiKey, Call, Query, Tracker, otlp_call
from otel_agent_tracker.client.deadline import timeouts
from otel_agent_tracker.client.mask import masked_in_debug_lines
from otel_agent_tracker.client.routes import Route, Routes, Verify, new_async_pool, new_pool
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.log import Log, SparingLog
from otel_agent_tracker.sdk_private import SUPPRESS_INSTRUMENTATION_KEY
from otel_agent_tracker.wire import Capabilities

__all__ = ["AsyncTrackerClient", "TrackerClient"]

MAX_ANSWER_BYTES = 1024 * 1024


class TrackerClient:
    """Requests to one tracker over connections that are kept alive, one for each thread that sends at once.

    Every request ends within `timeout_seconds`, whatever the server does, and at most 1 MiB of an answer is
    read. Nothing but arguments and `get` raises: trouble is a value. After a fork the child needs its own
    client. `trust_env` uses the proxies of the environment; ``.netrc`` is never read.

    Raises ValueError if `base_url`, `api_key` or `verify` cannot be used; no message holds any of them.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: ApiKey = None,
        timeout_seconds: float = 10.0,
        trust_env: bool = False,
        verify: Verify = True,
    ) -> None:
        self._tracker = Tracker(base_url, api_key)
        self._timeout_seconds = positive_number("timeout_seconds", timeout_seconds)
        self._routes = Routes(trust_env, verify)
        # a pool for each request under way: a common one would look through all connections every time
        self._pools: list[httpcore.ConnectionPool] = []
        self._idle: defaultdict[Route, list[httpcore.ConnectionPool]] = defaultdict(list)
        self._lock = Lock()
        self._closed = False
        self._log = SparingLog(Log(__name__))

    def prepare(self) -> None:
        """Import and read what the first request would: that request may be made while another thread forks."""
        route = self._routes.to(self._tracker.url)
        if isinstance(route, Route):
            self._routes.pool_options(route)

    def capabilities(self) -> Capabilities | Retry | Misconfigured:
        """What the tracker offers beyond the plain protocol; nothing, if it does not know the question."""
        answer = self._ask(self._tracker.call("GET", Capabilities.PATH))
        return offered_capabilities(answer) if isinstance(answer, Answer) else answer

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        """Post one JSON object to `path`, with `event_id` as its ``Idempotency-Key``."""
        answer = self._ask(self._tracker.call("POST", path, body, event_id=event_id))
        return single_result(answer) if isinstance(answer, Answer) else answer

    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]:
        """Post many events, each an encoded `wire.BatchEvent` with the id at the same place in `event_ids`.

        Returns a result for each event in order, or one that holds for the whole batch.
        """
        if len(events) != len(event_ids):
            raise ValueError("send_batch needs an event id for each event")
        body = b'{"events":[' + b",".join(events) + b"]}"
        answer = self._ask(self._tracker.call("POST", path, body))
        return batch_results(answer, event_ids) if isinstance(answer, Answer) else answer

    def post_otlp(self, url: str, body: bytes, headers: Mapping[str, str]) -> Result:
        """Post an encoded OTLP request to the absolute `url`, with `headers` and without our key."""
        answer = self._ask(otlp_call(url, body, headers))
        return otlp_result(answer, self._log) if isinstance(answer, Answer) else answer

    def get(self, path: str, query: Query | None = None) -> dict[str, Any] | None:
        """The JSON object that the tracker answers, unchanged; None on 404; a query's None is left out.

        Raises TrackerUnavailable for every other answer, for none in time, and after `close`.
        """
        return _query_result(self._ask(self._tracker.call("GET", path, query=query)))

    def delete(self, path: str, query: Query | None = None) -> bool:
        """Delete what is at `path`; False where the tracker knows no such thing, or does not offer to.

        Raises TrackerUnavailable for every other answer, for none in time, and after `close`.
        """
        answer = self._ask(self._tracker.call("DELETE", path, query=query))
        result = single_result(answer) if isinstance(answer, Answer) else answer
        match result:
            case Delivered():
                return True
            case NotOffered() if result.is_unknown_path:
                return False
            case failure:
                raise TrackerUnavailable(failure.reason)

    def close(self) -> None:
        """Close all connections; what is under way ends at once, and later requests are `Retry`."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, []
        for pool in pools:
            pool.close()

    def _ask(self, call: Call | Misconfigured) -> Answer | Retry | Misconfigured:
        if isinstance(call, Misconfigured):
            return call
        try:
            with _uninstrumented(), masked_in_debug_lines(call.secrets):
                return self._exchange(call)
        except _TRANSPORT_ERRORS as error:
            return call.failure(error)

    def _exchange(self, call: Call) -> Answer | Retry | Misconfigured:
        route = self._routes.to(call.request.url)
        if isinstance(route, Misconfigured):
            return route
        pool = self._borrow(route)
        if pool is None:
            return _CLOSED
        try:
            return self._exchange_over(pool, call)
        finally:
            self._give_back(route, pool)

    def _exchange_over(self, pool: httpcore.ConnectionPool, call: Call) -> Answer:
        call.request.extensions["timeout"] = timeouts(self._timeout_seconds)
        body = bytearray()
        response = pool.handle_request(call.request)
        try:
            for chunk in response.iter_stream():
                body += chunk
                if len(body) >= MAX_ANSWER_BYTES:
                    break
        finally:
            response.close()
        return call.answer(response, body)

    def _borrow(self, route: Route) -> httpcore.ConnectionPool | None:
        with self._lock:
            if self._closed:
                return None
            if self._idle[route]:
                return self._idle[route].pop()
        pool = new_pool(self._routes.pool_options(route))  # outside the lock: it may read certificates
        with self._lock:
            self._pools.append(pool)
        return pool

    def _give_back(self, route: Route, pool: httpcore.ConnectionPool) -> None:
        with self._lock:
            self._idle[route].append(pool)
            closed = self._closed
        if closed:  # meanwhile: the pool has kept its connection
            pool.close()


class AsyncTrackerClient:
    """Queries to one tracker for asyncio: `TrackerClient.get` as a coroutine, with the same arguments.

    Every query has a connection of its own: one that is kept would belong to an event loop that may end
    first. So the client may be used in any number of event loops, and holds nothing open between queries.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: ApiKey = None,
        timeout_seconds: float = 10.0,
        trust_env: bool = False,
        verify: Verify = True,
    ) -> None:
        self._tracker = Tracker(base_url, api_key)
        self._timeout_seconds = positive_number("timeout_seconds", timeout_seconds)
        self._routes = Routes(trust_env, verify)
        self._closed = False

    async def get(self, path: str, query: Query | None = None) -> dict[str, Any] | None:
        """As `TrackerClient.get`; raises TrackerUnavailable as it does."""
        return _query_result(await self._ask(self._tracker.call("GET", path, query=query)))

    async def close(self) -> None:
        """Let later queries raise TrackerUnavailable; those under way go on."""
        self._closed = True

    async def _ask(self, call: Call | Misconfigured) -> Answer | Retry | Misconfigured:
        if isinstance(call, Misconfigured):
            return call
        if self._closed:
            return _CLOSED
        try:
            with _uninstrumented(), masked_in_debug_lines(call.secrets):
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._exchange(call)
        except _TRANSPORT_ERRORS as error:
            return call.failure(error)

    async def _exchange(self, call: Call) -> Answer | Misconfigured:
        route = self._routes.to(call.request.url)
        if isinstance(route, Misconfigured):
            return route
        body = bytearray()
        async with new_async_pool(self._routes.pool_options(route)) as pool:
            response = await pool.handle_async_request(call.request)
            try:
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) >= MAX_ANSWER_BYTES:
                        break
            finally:
                await response.aclose()
        return call.answer(response, body)


def _query_result(answer: Answer | Retry | Misconfigured) -> dict[str, Any] | None:
    if isinstance(answer, Answer):
        return query_object(answer)
    raise TrackerUnavailable(answer.reason)


@contextmanager
def _uninstrumented() -> Iterator[None]:
    """Our own traffic is nobody's business: instrumented HTTP libraries make no spans of it."""
    token = otel_context.attach(otel_context.set_value(SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        otel_context.detach(token)


_TRANSPORT_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    OSError,  # TLS trouble in mid-stream; the deadline of asyncio.timeout
)
_CLOSED = Retry("closed")
