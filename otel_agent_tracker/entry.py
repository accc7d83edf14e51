"""An entry: one accepted event as the journal and the outbox hold it.

A frame's payload is a line of JSON for the worker, a line of JSON for the tracker, and, where an OTLP
endpoint is the destination, the encoded span. JSON as orjson writes it holds no newline.
"""

from __future__ import annotations

from itertools import product
from types import NoneType
from typing import Any, NamedTuple

import orjson

from otel_agent_tracker.semconv import Event

__all__ = ["Entry"]

Json = dict[str, Any]


class Entry(NamedTuple):
    """One event on its way: `body` is what the tracker gets at `path`; times are Unix microseconds.

    `lacks` names the fields of `body` that the caller did not know and the state file may.
    """

    event: Event
    event_id: str
    path: str
    body: Json
    agent_id: str
    time_us: int
    session_id: str | None = None
    service: Json | None = None
    lacks: tuple[str, ...] = ()
    otlp: bytes = b""

    def encode(self) -> bytes:
        """The payload of a journal frame."""
        head = (
            self.event,
            self.event_id,
            self.path,
            self.agent_id,
            self.time_us,
            self.session_id,
            self.service,
            self.lacks,
        )
        return b"%b\n%b\n%b" % (orjson.dumps(head), orjson.dumps(self.body), self.otlp)

    @classmethod
    def decode(cls, payload: bytes) -> Entry:
        """The entry of a journal frame; raises ValueError if it is none."""
        head, body, otlp = payload.split(b"\n", 2)
        fields, request = orjson.loads(head), orjson.loads(body)
        if not (
            isinstance(fields, list)
            and isinstance(request, dict)
            and tuple(map(type, fields[:_FIELDS])) in _HEADS  # the next release may add some
        ):
            raise ValueError("the frame holds no entry of this release")
        event, event_id, path, agent_id, time_us, session_id, service, lacks, *_ = fields
        return cls(
            Event(event), event_id, path, request, agent_id, time_us, session_id, service, tuple(lacks), otlp
        )

    @property
    def lane(self) -> str:
        """What orders delivery: events of one session, or of one agent, go one after another."""
        return self.session_id or self.agent_id


_HEADS = {
    (str, str, str, str, int, session_id, service, list)
    for session_id, service in product((str, NoneType), (dict, NoneType))
}
"""The types that the fields in a frame's first line may have."""
_FIELDS = 8
