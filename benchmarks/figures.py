"""What is shown of the raw numbers: each figure with its yardstick and its budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.queries import QUERIES

__all__ = ["FIGURES", "Figure", "Row", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`key` and `baseline` name raw numbers; the budget is for their ratio, or without it for the value."""

    group: str
    what: str
    key: str
    unit: str
    baseline: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    def row(self, raw: Mapping[str, float]) -> Row | None:
        """The figure with its numbers; None if it was not measured."""
        value = raw.get(self.key)
        baseline = raw.get(self.baseline) if self.baseline else None
        if value is None or (self.baseline and not baseline):
            return None
        ratio = value / baseline if baseline else None
        return Row(self, value, ratio, self._verdict(value if ratio is None else ratio))

    @property
    def budget(self) -> str:
        """The budget in words."""
        unit = " x" if self.baseline else f" {self.unit}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}{unit}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}{unit}"

    def _verdict(self, number: float) -> Literal["held", "missed", ""]:
        if self.at_most is None and self.at_least is None:
            return ""
        held = number <= self.at_most if self.at_most is not None else number >= (self.at_least or 0)
        return "held" if held else "missed"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure that was measured."""

    figure: Figure
    value: float
    ratio: float | None
    verdict: Literal["held", "missed", ""]


def rows(raw: Mapping[str, float]) -> Iterator[Row]:
    """All figures that `raw` has the numbers for."""
    return filter(None, (figure.row(raw) for figure in FIGURES))


_CALLER = "The caller's cost, against one plain SDK span"
_BUSY = "The same, 8 threads of 100 calls/s each beside a CPU-bound thread"
_DISK = "The same without it, start + end, with a disk in trouble"
_SPANS = "Other people's spans"
_DELIVERY = "Delivered events per second"
_BURST = "A burst of conversations"
_SESSIONS = "Live sessions"
_PROCESS = "The process"
_HOSTILE = "Hostile metadata"
_TRACKER = "The tracker"
_QUERIES = "What a tracker is asked, p95 of each"


def _caller(what: str, key: str, *, at_most: float | None = None) -> Figure:
    source, _, rest = key.partition(".")
    plain = f"{source}.plain.{rest.partition('.')[2]}"
    group = _BUSY if "threads." in key else _CALLER
    return Figure(group=group, what=what, key=key, unit="µs", baseline=plain, at_most=at_most)


def _disk(name: str, disk: str) -> tuple[Figure, ...]:
    return (
        Figure(group=_DISK, what=f"{name}, p99.9", key=f"disk.{disk}.p999", unit="µs", at_most=5_000),
        Figure(group=_DISK, what="… the worst", key=f"disk.{disk}.worst", unit="µs", at_most=50_000),
        Figure(
            group=_DISK,
            what="… not on disk when the call returned",
            key=f"disk.{disk}.not_durable",
            unit="events",
        ),
    )


FIGURES = (
    _caller("start + end, on disk, p50", "caller.disk.start_end.p50", at_most=4),
    Figure(
        group=_CALLER,
        what="… against langfuse's observation and score",
        key="langfuse.ours.start_end.p50",
        unit="µs",
        baseline="langfuse.langfuse.start_end.p50",
        at_most=1,
    ),
    _caller("start + end, on disk, p99", "caller.disk.start_end.p99"),
    _caller("start + end, in memory, p50", "caller.memory.start_end.p50"),
    _caller("start + end with 1 KB of metadata, on disk, p50", "caller.disk.metadata.p50"),
    _caller("start + end with 1 KB of metadata, in memory, p50", "caller.memory.metadata.p50"),
    _caller("start + turn + end, on disk, p50", "caller.disk.turn.p50"),
    _caller("start + turn + end, in memory, p50", "caller.memory.turn.p50"),
    _caller("langfuse: agent observation and score, p50", "langfuse.langfuse.start_end.p50"),
    _caller("logfire: span, p50", "logfire.logfire.start_end.p50"),
    _caller("agentops: trace, p50", "agentops.agentops.start_end.p50"),
    _caller("start + end, on disk, p50", "caller.disk.threads.p50"),
    _caller("start + end, on disk, p99.9", "caller.disk.threads.p999", at_most=3),
    Figure(group=_BUSY, what="… in itself", key="caller.disk.threads.p999", unit="µs", at_most=5_000),
    Figure(group=_BUSY, what="… the worst", key="caller.disk.threads.worst", unit="µs", at_most=50_000),
    _caller("start + end, in memory, p99.9", "caller.memory.threads.p999"),
    _caller("start + end with 1 KB of metadata, on disk, p50", "caller.disk.metadata_threads.p50"),
    _caller("start + end with 1 KB of metadata, on disk, p99.9", "caller.disk.metadata_threads.p999"),
    _caller("start + turn + end, on disk, p50", "caller.disk.turn_threads.p50"),
    _caller("start + turn + end, on disk, p99.9", "caller.disk.turn_threads.p999"),
    Figure(group=_BUSY, what="… the worst", key="caller.disk.turn_threads.worst", unit="µs", at_most=50_000),
    _caller("langfuse, p99.9", "langfuse.langfuse.threads.p999"),
    _caller("logfire, p99.9", "logfire.logfire.threads.p999"),
    _caller("agentops, p99.9", "agentops.agentops.threads.p999"),
    *_disk("a disk that is well", "well"),
    *_disk("one that takes a second for each file of 256 KiB", "slow"),
    *_disk("one that is full", "full"),
    Figure(
        group=_HOSTILE,
        what="the copy of the costliest shape, p50",
        key="hostile.copy",
        unit="µs",
        at_most=200,
    ),
    Figure(
        group=_HOSTILE,
        what="the search for secrets in the costliest, p50",
        key="hostile.search",
        unit="µs",
    ),
    Figure(
        group=_HOSTILE,
        what="start + end with all shapes at once, on disk, against one plain SDK span, p50",
        key="hostile.call.p50",
        unit="µs",
        baseline="hostile.plain.p50",
    ),
    Figure(group=_HOSTILE, what="… p99", key="hostile.call.p99", unit="µs", baseline="hostile.plain.p99"),
    Figure(
        group=_SPANS,
        what="a known instrumentation's, watched against not",
        key="spans.watched.known.p50",
        unit="µs",
        baseline="spans.plain.known.p50",
        at_most=1.1,
    ),
    Figure(
        group=_SPANS,
        what="one that is no agent's, watched against not",
        key="spans.watched.http.p50",
        unit="µs",
        baseline="spans.plain.http.p50",
        at_most=1.1,
    ),
    Figure(
        group=_SPANS,
        what="a model's below a turn, watched against not",
        key="spans.watched.llm.p50",
        unit="µs",
        baseline="spans.plain.llm.p50",
        at_most=1.4,
    ),
    Figure(
        group=_SPANS,
        what="an agent's below a turn, watched against not",
        key="spans.watched.agent.p50",
        unit="µs",
        baseline="spans.plain.agent.p50",
        at_most=1.4,
    ),
    Figure(
        group=_SPANS,
        what="an agent's that is a turn, reported against not",
        key="spans.watched.turn.p50",
        unit="µs",
        baseline="spans.plain.turn.p50",
    ),
    Figure(
        group=_DELIVERY,
        what="batches, against spans of the plain SDK through its OTLP exporter",
        key="delivery.batch",
        unit="/s",
        baseline="delivery.plain_spans",
        at_least=1,
    ),
    Figure(
        group=_DELIVERY,
        what="one request each, against a synchronous client",
        key="delivery.single",
        unit="/s",
        baseline="delivery.client",
        at_least=1.5,
    ),
    Figure(
        group=_DELIVERY,
        what="… at 20 ms round trip",
        key="delivery.far_single",
        unit="/s",
        baseline="delivery.far_client",
        at_least=5,
    ),
    Figure(group=_DELIVERY, what="batches at 20 ms round trip", key="delivery.far_batch", unit="/s"),
    Figure(group=_DELIVERY, what="a backlog, in batches", key="delivery.backlog", unit="/s", at_least=5_000),
    Figure(group=_BURST, what="lost, tracker slow", key="burst.lost_slow", unit="events", at_most=0),
    Figure(group=_BURST, what="lost, tracker down", key="burst.lost_down", unit="events", at_most=0),
    Figure(
        group=_BURST,
        what="spans lost by BatchSpanProcessor with its defaults, backend slow",
        key="burst.plain_lost_percent",
        unit="%",
    ),
    Figure(
        group=_TRACKER,
        what="events taken in, in batches into SQLite",
        key="tracker.ingest",
        unit="/s",
        at_least=10_000,
    ),
    Figure(
        group=_TRACKER,
        what="from a call's return to the page that shows it, p95",
        key="tracker.visible",
        unit="s",
        at_most=2,
    ),
    Figure(group=_QUERIES, what="conversations that it knows", key="tracker.conversations", unit="in all"),
    *(
        Figure(group=_QUERIES, what=name, key=f"tracker.query.{name}", unit="ms", at_most=150)
        for name in QUERIES
    ),
    Figure(
        group=_SESSIONS,
        what="memory of one without turns",
        key="sessions.bytes_without_turns",
        unit="bytes",
        at_most=450,
    ),
    Figure(
        group=_SESSIONS,
        what="memory of one with turns",
        key="sessions.bytes_with_turns",
        unit="bytes",
        at_most=900,
    ),
    Figure(
        group=_SESSIONS,
        what="full gc.collect() at 1,000,000",
        key="sessions.gc_collect_milliseconds",
        unit="ms",
        at_most=60,
    ),
    Figure(
        group=_SESSIONS,
        what="touch, hot",
        key="sessions.touch_hot_microseconds",
        unit="µs",
        at_most=1,
    ),
    Figure(
        group=_SESSIONS,
        what="sweep 10,000 of 1,000,000",
        key="sessions.sweep_10000_milliseconds",
        unit="ms",
        at_most=50,
    ),
    Figure(
        group=_PROCESS,
        what="import, against opentelemetry.sdk.trace",
        key="lifetime.import.ours",
        unit="ms",
        baseline="lifetime.import.sdk",
        at_most=1.3,
    ),
    Figure(
        group=_PROCESS,
        what="… with the tracker's class, and so all that it needs",
        key="lifetime.import.tracker",
        unit="ms",
        baseline="lifetime.import.sdk",
    ),
    Figure(
        group=_PROCESS,
        what="exit with a backend that never answers",
        key="lifetime.exit.ours",
        unit="s",
        at_most=3,
    ),
    Figure(
        group=_PROCESS,
        what="… events lost by it",
        key="lifetime.exit.lost",
        unit="events",
        at_most=0,
    ),
    Figure(group=_PROCESS, what="… langfuse", key="lifetime.exit.langfuse", unit="s"),
    Figure(group=_PROCESS, what="… logfire", key="lifetime.exit.logfire", unit="s"),
    Figure(group=_PROCESS, what="… agentops", key="lifetime.exit.agentops", unit="s"),
)
