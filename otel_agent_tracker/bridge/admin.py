"""What operators ask a bridge: whether it lives, whether it can keep what it is sent, and what it has counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from otel_agent_tracker import semconv
from otel_agent_tracker.metrics import Counted, FolderNow

__all__ = ["Admin", "Books"]

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Books(Protocol):
    """A `Pipeline`, as far as operators ask it."""

    @property
    def cannot_keep_because(self) -> str | None:
        """Why nothing is kept at present, or None."""

    def counted(self) -> Counted:
        """What this process did."""

    def folder_now(self) -> FolderNow | None:
        """The state folder; None until it was looked at."""


class Admin:
    """The application: ``/healthz``, ``/readyz`` and, in Prometheus' text format, ``/metrics``."""

    def __init__(
        self, books: Books, spans: Callable[[], Mapping[str, int]], requests: Callable[[], Mapping[str, int]]
    ) -> None:
        self._books = books
        self._spans = spans
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await self._answer(scope["path"])(scope, receive, send)

    def _answer(self, path: str) -> Response:
        match path:
            case "/healthz":
                return PlainTextResponse("ok\n")
            case "/readyz":
                reason = self._books.cannot_keep_because
                return PlainTextResponse("ok\n") if reason is None else PlainTextResponse(f"{reason}\n", 503)
            case "/metrics":
                return PlainTextResponse("".join(map(_exposed, self._families())), media_type=_EXPOSITION)
        return PlainTextResponse("/healthz, /readyz and /metrics are here\n", 404)

    def _families(self) -> Iterable[_Family]:
        counted = self._books.counted()
        yield _Family(
            "agent_tracker.bridge.requests", "Requests, by answer.", _by("answer", self._requests())
        )
        yield _Family("agent_tracker.bridge.spans", "Spans, by what they were.", _by("kind", self._spans()))
        yield _Family(semconv.METRIC_ACCEPTED, "Events kept here.", {"": counted.accepted})
        yield _Family(semconv.METRIC_DELIVERED, "Events that the tracker took.", {"": counted.delivered})
        yield _Family(semconv.METRIC_REJECTED, "Events that the tracker refused.", {"": counted.rejected})
        yield _Family(semconv.METRIC_DROPPED, "Events lost here.", _by("kind", counted.dropped))
        if (folder := self._books.folder_now()) is not None:
            yield _Family(semconv.METRIC_PENDING, "Events that wait.", {"": folder.pending}, "gauge")
            yield _Family(
                semconv.METRIC_DEAD_LETTERS, "Events put aside.", {"": folder.dead_letters}, "gauge"
            )
            age = {"": folder.oldest_pending_age}
            yield _Family(f"{semconv.METRIC_OLDEST_PENDING_AGE}_seconds", "Of what waits.", age, "gauge")
            yield _Family(semconv.METRIC_LIVE_SESSIONS, "Open sessions.", {"": folder.live_sessions}, "gauge")


class _Family(NamedTuple):
    """One metric; `samples` by their labels as they are written."""

    name: str
    about: str
    samples: Mapping[str, float]
    kind: str = "counter"


def _by(label: str, values: Mapping[str, int]) -> dict[str, float]:
    """Samples by the one label, whose values are words of ours."""
    return {f'{{{label}="{value}"}}': number for value, number in sorted(values.items())}


def _exposed(family: _Family) -> str:
    name = family.name.replace(".", "_") + ("_total" if family.kind == "counter" else "")
    lines = [f"# HELP {name} {family.about}", f"# TYPE {name} {family.kind}"]
    return "\n".join([*lines, *(f"{name}{labels} {value:g}" for labels, value in family.samples.items()), ""])
