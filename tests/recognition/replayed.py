"""Spans of real frameworks, as they were recorded, replayed through a provider of this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

__all__ = ["DUMPS", "Dump"]

Row = dict[str, Any]

_FOLDER = Path(__file__).parent / "spans"
_NO_LIMITS = SpanLimits(max_span_attributes=SpanLimits.UNSET, max_attribute_length=SpanLimits.UNSET)
DUMPS = sorted(path.stem for path in _FOLDER.glob("*.jsonl"))


class Dump:
    """The spans of one file."""

    def __init__(self, name: str) -> None:
        lines = (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows: list[Row] = _with_never_ended([json.loads(line) for line in lines])
        self.scenario_of = {row["span_id"]: row["scenario"] for row in self.rows}

    def replay(self, provider: TracerProvider, ids: FixedIds) -> None:
        """Start and end the spans in the order in which they did, with what they had at either moment."""
        open_spans: dict[str, Span] = {}
        for row, ends in _moments(self.rows):
            if ends:
                _end(open_spans.pop(row["span_id"]), row)
            else:
                open_spans[row["span_id"]] = _start(provider, ids, row)


class FixedIds(IdGenerator):
    """Gives the next span the ids it is to have."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_trace_id(self) -> int:
        """The recorded one."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """The recorded one."""
        return self.span_id


def make_provider() -> tuple[TracerProvider, FixedIds]:
    """A provider that keeps everything, and the generator of its ids."""
    ids = FixedIds()
    resource = Resource({"service.name": "replayed"})
    return TracerProvider(
        resource=resource, id_generator=ids, span_limits=_NO_LIMITS, shutdown_on_exit=False
    ), ids


def _with_never_ended(rows: list[Row]) -> list[Row]:
    """Spans that never ended were recorded without their place: each gets a start that no other span has.

    Its parent is the span that started before it, which is still open.
    """
    known = [row for row in rows if "start_seq" in row]
    numbers = {row[key] for row in known for key in ("start_seq", "end_seq")}
    free = iter(sorted(set(range(1, max(numbers) + 1)) - numbers))
    lost = {row["span_id"]: row for row in rows if row.get("never_ended")}
    for row in lost.values():
        row["start_seq"] = next(free)
        before = max(
            (each for each in known if each["start_seq"] < row["start_seq"]), key=lambda e: e["start_seq"]
        )
        row |= {
            "trace_id": before["trace_id"],
            "parent_id": before["span_id"],
            "start_ns": before["start_ns"],
        }
        row |= {"scope": before["scope"], "kind": "INTERNAL"}
        known.append(row)
    return known


def _moments(rows: list[Row]) -> Iterator[tuple[Row, bool]]:
    moments = [(row["start_seq"], False, row) for row in rows]
    moments += [(row["end_seq"], True, row) for row in rows if "end_seq" in row]
    for _, ends, row in sorted(moments, key=lambda moment: moment[0]):
        yield row, ends


def _start(provider: TracerProvider, ids: FixedIds, row: Row) -> Span:
    ids.trace_id, ids.span_id = int(row["trace_id"], 16), int(row["span_id"], 16)
    attributes = row.get("attributes", {})
    changed = row.get("changed_after_start", ())
    at_start = {
        key: attributes[key] for key in row["start_attr_keys"] if key in attributes and key not in changed
    }
    at_start |= dict.fromkeys(changed, "another value at the start")
    span = provider.get_tracer(row["scope"]["name"]).start_span(
        str(row.get("name_at_start", row["name"])),
        context=_context(row),
        kind=SpanKind[row["kind"]],
        attributes=at_start,
        start_time=row["start_ns"],
    )
    assert isinstance(span, Span)
    return span


def _context(row: Row) -> Context:
    values = Context()
    for key, value in (row.get("context_values_at_start") or {}).items():
        values = context.set_value(key, _value(value), values)
    for key, value in (row.get("baggage_at_start") or {}).items():
        values = baggage.set_baggage(key, value, values)
    if row["parent_id"] is None:
        return values
    parent = SpanContext(int(row["trace_id"], 16), int(row["parent_id"], 16), False, TraceFlags(1))
    return trace.set_span_in_context(NonRecordingSpan(parent), values)


def _value(text: object) -> object:
    """A mapping was recorded as its text."""
    if isinstance(text, str) and text.startswith("{"):
        return json.loads(text.replace("'", '"'))
    return text


def _end(span: Span, row: Row) -> None:
    span.update_name(row["name"])
    for key, value in row["attributes"].items():
        span.set_attribute(key, value)
    for event in row["events"]:
        span.add_event(event["name"], event.get("attributes") or {})
    code = StatusCode[row["status"]["code"]]
    if code is not StatusCode.UNSET:
        span.set_status(Status(code, row["status"]["description"] if code is StatusCode.ERROR else None))
    span.end(row["end_ns"])
