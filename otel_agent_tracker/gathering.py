"""Turns out of spans that have ended, which come in any order, in parts and more than once; no content is kept.

Whoever sees spans only when they are exported, or at the other end of OTLP, gathers them here. What belongs together
is held until its end is likely: then it is played, by its times, to an `Assembly`, as if the spans were starting and
ending now, so that both ways of seeing a span tell the same turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

from otel_agent_tracker.assembly import Assembly, Ended, Summary
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.recognition import Seen

__all__ = ["EndedSpan", "EndedSpans"]

MAX_SPANS = 200_000
MAX_SPANS_OF_TRACE = 10_000
REMEMBER_SECONDS = 600.0
"""How long the spans of a turn that is told are remembered, for those that come after it, or again."""

WAIT_FOR_LATE = 1.0
"""Seconds after the last span below a root: exporters that send in parallel overtake themselves."""
WAIT_FOR_PARENT = 5.0
"""For a parent in another process, or who knows where, which may never come."""
WAIT_FOR_LOCAL_PARENT = 60.0
"""For a parent in the same process, which comes when it has ended: an agent goes on after the one that it called."""


class EndedSpan(NamedTuple):
    """A span that has ended, as far as turns are concerned; times are Unix nanoseconds.

    `has_local_parent` is whether the parent is known to be of the same process. `origin` is handed back with the turn.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    has_local_parent: bool
    start_ns: int
    end_ns: int
    seen: Seen
    scope: str = ""
    service: str | None = None
    origin: object = None


class _Trace:
    """The spans of one trace, by id; when each came, and which are told."""

    __slots__ = ("came", "due", "settled", "spans", "told")

    def __init__(self) -> None:
        self.spans: dict[int, EndedSpan] = {}
        self.came: dict[int, float] = {}
        self.settled: set[int] = set()
        self.told: set[int] = set()
        self.due = inf


class EndedSpans:
    """Holds spans until what they are part of is complete; safe from any thread.

    A turn is told once, however often its spans come. What comes after its turn was told, and belongs below it, is
    passed over. Beyond `MAX_SPANS` the traces that were heard of least recently are told as they are.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._begin()

    def _begin(self) -> None:
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        self._count = 0
        self._next_due = inf
        self._overflown: list[tuple[Summary, object]] = []
        self._lock = HotLock()

    def __len__(self) -> int:
        """How many spans are held or remembered."""
        return self._count

    @property
    def is_holding(self) -> bool:
        """Whether a span waits for others."""
        return self._next_due < inf

    def after_fork_in_child(self) -> None:
        """Forget everything, which is the parent's to tell, and make the lock new."""
        self._begin()

    def add(self, span: EndedSpan) -> None:
        """Hold a span; one that was there before changes nothing."""
        with self._lock:
            trace = self._traces.get(span.trace_id)
            if trace is None:
                trace = self._traces[span.trace_id] = _Trace()
            if span.span_id in trace.spans:
                return
            now = self._monotonic()
            patience = WAIT_FOR_LATE if span.parent_id in trace.spans else _patience(span)
            self._traces.move_to_end(span.trace_id)
            trace.spans[span.span_id], trace.came[span.span_id] = span, now
            self._count += 1
            trace.due = min(trace.due, now + patience)
            self._next_due = min(self._next_due, trace.due)
            self._make_room(trace)

    def decide(self) -> list[tuple[Summary, object]]:
        """The turns that are complete by now, each with the origin of its span."""
        if self._monotonic() < self._next_due and not self._overflown:
            return []
        with self._lock:
            return self._decide(self._monotonic())

    def release(self) -> list[tuple[Summary, object]]:
        """All turns that are there: nothing more will come."""
        with self._lock:
            return self._decide(inf)

    def _decide(self, now: float) -> list[tuple[Summary, object]]:
        turns, self._overflown = self._overflown, []
        for trace in self._traces.values():
            if trace.due <= now and trace.due < inf:
                turns += _settle(trace, now)
        if now < inf:
            self._forget(now)
        self._next_due = min((trace.due for trace in self._traces.values()), default=inf)
        return turns

    def _forget(self, now: float) -> None:
        """Let go of traces of which nothing was heard for long; they are in the order in which they were heard of."""
        while self._traces:
            trace_id, trace = next(iter(self._traces.items()))
            if trace.due < inf or max(trace.came.values()) + REMEMBER_SECONDS > now:
                return
            self._drop(trace_id)

    def _make_room(self, trace: _Trace) -> None:
        if len(trace.spans) > MAX_SPANS_OF_TRACE:
            self._overflown += _settle(trace, inf)
            oldest = sorted(trace.came, key=trace.came.__getitem__)[: MAX_SPANS_OF_TRACE // 2]
            for span_id in oldest:
                del trace.spans[span_id], trace.came[span_id]
                trace.settled.discard(span_id)
            self._count -= len(oldest)
        while self._count > MAX_SPANS:
            trace_id, idlest = next(iter(self._traces.items()))
            self._overflown += _settle(idlest, inf)
            self._drop(trace_id)

    def _drop(self, trace_id: int) -> None:
        self._count -= len(self._traces.pop(trace_id).spans)


def _settle(trace: _Trace, now: float) -> list[tuple[Summary, object]]:
    """Tell what is complete, each part below one top by itself, and note when the next part will be."""
    turns: list[tuple[Summary, object]] = []
    trace.due = inf
    for top, part in _parts(trace):
        if trace.settled.issuperset(part):
            continue
        due = max(trace.came[span_id] for span_id in part) + _patience(trace.spans[top])
        if due > now:
            trace.due = min(trace.due, due)
            continue
        for turn in _turns_of([trace.spans[span_id] for span_id in part]):
            if turn.span_id not in trace.told:
                trace.told.add(turn.span_id)
                turns.append((turn, trace.spans[turn.span_id].origin))
        trace.settled.update(part)
    return turns


def _parts(trace: _Trace) -> Iterator[tuple[int, list[int]]]:
    """The spans below each one whose parent is not there, that one included, with its id."""
    tops: dict[int, int] = {}
    parts: dict[int, list[int]] = {}
    for span_id in trace.spans:
        above: dict[int, None] = {}  # in order, and quickly searched: chains may be thousands long
        at = span_id
        while at not in tops:
            above[at] = None
            parent = trace.spans[at].parent_id
            if parent is None or parent not in trace.spans or parent in above:
                tops[at] = at
            else:
                at = parent
        tops.update(dict.fromkeys(above, tops[at]))
        parts.setdefault(tops[at], []).append(span_id)
    yield from parts.items()


def _turns_of(spans: list[EndedSpan]) -> list[Summary]:
    """What an `Assembly` tells of the spans when they start and end at their times."""
    assembly = Assembly(lambda: 0.0)
    depths = _depths({span.span_id: span for span in spans})
    starts = [(span.start_ns, False, depths[span.span_id], span) for span in spans]
    ends = [(max(span.end_ns, span.start_ns), True, -depths[span.span_id], span) for span in spans]
    turns: list[Summary] = []
    for _, has_ended, _, span in sorted(starts + ends, key=lambda moment: moment[:3]):
        if has_ended:
            ended = Ended(span.trace_id, span.start_ns, span.end_ns, span.service, span.scope)
            turns += assembly.end(span.span_id, span.seen, ended)
        else:
            turns += assembly.start(span.span_id, span.parent_id, start_ns=span.start_ns, scope=span.scope)
    return turns + assembly.release()


def _depths(spans: dict[int, EndedSpan]) -> dict[int, int]:
    """How many spans are above each: of what happens at one time, parents start first and end last."""
    depths: dict[int, int] = {}
    for span_id in spans:
        above: dict[int, None] = {}
        at: int | None = span_id
        while at in spans and at not in depths and at not in above:
            above[at] = None
            at = spans[at].parent_id
        depth = depths.get(at, -1) if at is not None else -1
        for each in reversed(above):
            depth += 1
            depths[each] = depth
    return depths


def _patience(top: EndedSpan) -> float:
    """How long nothing may have come before what is below the span is taken for complete."""
    if top.parent_id is None:
        return WAIT_FOR_LATE
    return WAIT_FOR_LOCAL_PARENT if top.has_local_parent else WAIT_FOR_PARENT
