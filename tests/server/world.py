"""What the tests of the tracker are made of: a clock, a client and requests of each kind."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

from otel_agent_tracker import wire

Json = dict[str, Any]
NOW_US = wire.parse_time("2024-01-19T16:00:00Z")
SECOND = 1_000_000
HOUR = 3600 * SECOND


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> None:
        self.now_us += int(seconds * SECOND)


class Client:
    """Sends requests to the application in this process; `headers` go with each."""

    def __init__(self, runner: asyncio.Runner, app: FastAPI, headers: dict[str, str] | None = None) -> None:
        self.runner = runner
        self.app = app
        self.headers = headers or {}

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        options["headers"] = [*httpx.Headers(self.headers).raw, *httpx.Headers(options.get("headers")).raw]
        return self.runner.run(self._request(method, url, options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def json(self, url: str, **parameters: Any) -> Json:
        """The JSON of a GET that must succeed."""
        answer = self.get(url, params=parameters or None)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)

    def tell(self, *requests: wire.Request) -> None:
        """Post requests that must be accepted."""
        for request in requests:
            answer = self.post(request.PATH, wire.to_json(request))
            assert answer.status_code == 200, answer.text

    async def _request(self, method: str, url: str, options: Json) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as client:
            return await client.request(method, url, **options)


def at(seconds: float) -> str:
    """A time so many seconds after the clock's first."""
    return wire.format_time(NOW_US + round(seconds * SECOND))


def start(
    session_id: str, when: float = 0, agent_id: str = "support-bot", **fields: Any
) -> wire.ConversationStart:
    return wire.ConversationStart(session_id=session_id, agent_id=agent_id, start_time=at(when), **fields)


def turn(
    session_id: str, when: float, seconds: float = 1.0, agent_id: str = "support-bot", **fields: Any
) -> wire.ConversationTurn:
    fields = {"turn_id": f"{session_id}-{when}", "status": "ok"} | fields
    return wire.ConversationTurn(
        session_id=session_id,
        agent_id=agent_id,
        start_time=at(when),
        end_time=at(when + seconds),
        duration_seconds=seconds,
        **fields,
    )


def end(
    session_id: str, when: float, since: float = 0, agent_id: str = "support-bot", **fields: Any
) -> wire.ConversationEnd:
    return wire.ConversationEnd(
        session_id=session_id,
        agent_id=agent_id,
        start_time=at(since),
        end_time=at(when),
        duration_seconds=when - since,
        **{"status": "completed"} | fields,
    )


def expired(
    session_id: str, when: float, since: float = 0, agent_id: str = "support-bot", **fields: Any
) -> wire.ConversationExpired:
    return wire.ConversationExpired(
        session_id=session_id,
        agent_id=agent_id,
        start_time=at(since),
        end_time=at(when),
        duration_seconds=when - since,
        **fields,
    )


def feedback(session_id: str, when: float, **fields: Any) -> wire.ConversationFeedback:
    fields = {"feedback_id": f"feedback-{session_id}-{when}"} | fields
    return wire.ConversationFeedback(session_id=session_id, timestamp=at(when), **fields)


def batch_event(request: wire.Request, event_id: str, service: Json | None = None) -> Json:
    event = {"event_id": event_id, "path": request.PATH, "body": wire.to_json(request)}
    return event if service is None else event | {"service": service}
