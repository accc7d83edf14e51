"""`Receiver`: what becomes of a request, whichever way it came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple, Protocol

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker import semconv
from otel_agent_tracker.bridge.otlp import Encoding, FoundSpan, Value, decode_traces
from otel_agent_tracker.bridge.spans import event_span
from otel_agent_tracker.log import Log

__all__ = ["Keeper", "NotKept", "Receipt", "Receiver"]

_logger = Log(__name__)


class Keeper(Protocol):
    """What keeps events: a `Pipeline`."""

    @property
    def cannot_keep_because(self) -> str | None:
        """Why nothing is kept at present, or None."""

    def take_in(self, span: ReadableSpan) -> bool:
        """Whether the event is kept; ValueError or TypeError if no tracker would take it."""


class NotKept(Exception):  # noqa: N818 - what became of it, not an error of anybody's
    """Something of a request could not be kept now: its sender must send all of it again, later."""


class Receipt(NamedTuple):
    """What to tell the sender of a request that was taken: how many spans were refused for good, and why."""

    rejected_spans: int = 0
    message: str = ""


class Receiver:
    """Takes what OTLP requests hold for us to `keeper`; safe from any thread.

    Copies of events, which another tracker gets from elsewhere, are passed over unless `accepts_copies`.
    """

    def __init__(self, keeper: Keeper, *, accepts_copies: bool = False) -> None:
        self._keeper = keeper
        self._accepts_copies = accepts_copies
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many spans came, and how many of them were events, copies or rejected."""
        with self._lock:
            return dict(self._counts)

    def traces(self, body: bytes, encoding: Encoding) -> Receipt:
        """Keep every event of the request in `body`.

        Raises Unreadable or TooLarge, and nothing is kept; NotKept, and something may be: the request is to be
        sent again, and what was kept is known then.
        """
        if (reason := self._keeper.cannot_keep_because) is not None:
            raise NotKept(reason)
        traces = decode_traces(body, encoding)
        resources: dict[int, Resource] = {}
        counts = Counter(spans=traces.span_count)
        reasons: list[str] = []
        for found in traces.events:
            try:
                counts[self._take_in(found, resources)] += 1
            except (TypeError, ValueError) as error:
                reasons.append(str(error)[:_LONGEST_REASON])
        counts["rejected"] = len(reasons)
        with self._lock:
            self._counts += counts
        return Receipt(len(reasons), "; ".join(dict.fromkeys(reasons[:_MOST_REASONS])))

    def _take_in(self, found: FoundSpan | str, resources: dict[int, Resource]) -> str:
        """What the span was counted as."""
        if isinstance(found, str):
            raise ValueError(found)  # noqa: TRY004 - it is the reason for which there is no span
        if found.attributes.pop(semconv.COPY, False) and not self._accepts_copies:
            return "copies"
        resource = resources.get(id(found.resource))
        if resource is None:
            resource = resources[id(found.resource)] = _resource(found.resource)
        if not self._keep(found, resource):
            raise NotKept(self._keeper.cannot_keep_because or "there is no room for it now")
        return "events"

    def _keep(self, found: FoundSpan, resource: Resource) -> bool:
        """The boundary at which a mistake of ours ends: the span is refused; to send it again would not help."""
        try:
            return self._keeper.take_in(event_span(found, resource))
        except (MemoryError, TypeError, ValueError):
            raise
        except Exception as error:
            _logger.exception("an event could not be taken in")
            raise ValueError("the span could not be taken in") from error


def _resource(attributes: Mapping[str, Value]) -> Resource:
    return Resource({key: str(value) for key, value in attributes.items()})


_MOST_REASONS, _LONGEST_REASON = 5, 300
