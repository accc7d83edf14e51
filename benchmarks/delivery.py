"""How many events a second reach a sink, and how many of a burst never do. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.caller import StartEnd
from benchmarks.plain_span import PlainSpan, make_provider
from benchmarks.sink import Sink, running_sink
from otel_agent_tracker import AgentPerformanceTracker

__all__: list[str] = []

ROUND_TRIP = 0.02
SLOW = 0.25
FLUSH_SECONDS = 120.0


@contextmanager
def _tracker(url: str) -> Iterator[AgentPerformanceTracker]:
    with TemporaryDirectory() as folder, AgentPerformanceTracker(url, state_dir=Path(folder)) as tracker:
        yield tracker


def ours(sink: Sink, conversations: int) -> float:
    """Events per second, from the first call to the last acknowledgement."""
    before = sink.counts().distinct
    with _tracker(sink.url) as tracker:
        subject = StartEnd(tracker)
        subject.call()
        subject.settle()  # the worker's start is not what is measured
        start = time.perf_counter()
        for _ in range(conversations):
            subject.call()
        assert tracker.flush(FLUSH_SECONDS)
        seconds = time.perf_counter() - start
    assert sink.counts().distinct - before == 2 * (conversations + 1)
    return 2 * conversations / seconds


def backlog(events: int) -> float:
    """Events per second of a backlog that a tracker finds when it is back, from `flush` to its return."""
    with TemporaryDirectory() as folder:
        with running_sink() as sink:
            port = sink.port
        with AgentPerformanceTracker(f"http://127.0.0.1:{port}", state_dir=Path(folder)) as tracker:
            _call(StartEnd(tracker), events // 2)
        with (
            running_sink(port=port) as sink,
            AgentPerformanceTracker(sink.url, state_dir=Path(folder)) as tracker,
        ):
            start = time.perf_counter()
            assert tracker.flush(FLUSH_SECONDS)
            seconds = time.perf_counter() - start
            assert sink.counts().distinct == events
    return events / seconds


def plain_spans(sink: Sink, spans: int) -> float:
    """Spans per second through BatchSpanProcessor, with a queue that holds all, and the OTLP exporter."""
    before = sink.counts().spans
    provider = make_provider(sink.url, queue_size=spans)
    subject = PlainSpan(provider)
    start = time.perf_counter()
    for _ in range(spans):
        subject.call()
    subject.settle()
    seconds = time.perf_counter() - start
    provider.shutdown()
    assert sink.counts().spans - before == spans
    return spans / seconds


def synchronous_client(sink: Sink, conversations: int) -> float:
    """Events per second of code that posts start and end itself, one after the other."""
    body = {"session_id": "support-bot_1674123456_a1b2c3d4e5f60718", "agent_id": "support-bot"}
    with httpx.Client(base_url=sink.url, trust_env=False) as client:
        client.post("/conversations/start", json=body)
        start = time.perf_counter()
        for _ in range(conversations):
            client.post("/conversations/start", json=body).raise_for_status()
            client.post("/conversations/end", json=body).raise_for_status()
        return 2 * conversations / (time.perf_counter() - start)


def _best_of(times: int, rates: Iterator[tuple[float, float]]) -> tuple[float, float]:
    """The best of ours and of theirs, taken in turns."""
    pairs = [next(rates) for _ in range(times)]
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def _throughput(quick: bool) -> dict[str, float]:
    size = 2_000 if quick else 10_000
    times = 2 if quick else 3
    with running_sink() as sink:
        pairs = iter(lambda: (ours(sink, size), plain_spans(sink, size)), None)
        batch, spans = _best_of(times, pairs)
    with running_sink(batch=False) as sink:
        pairs = iter(lambda: (ours(sink, size // 10), synchronous_client(sink, size // 10)), None)
        single, client = _best_of(times, pairs)
    with running_sink(batch=False, delay_seconds=ROUND_TRIP) as sink:
        pairs = iter(lambda: (ours(sink, size // 20), synchronous_client(sink, 30)), None)
        far, far_client = _best_of(1, pairs)
    with running_sink(delay_seconds=ROUND_TRIP) as sink:
        far_batch = ours(sink, size)
    return {
        "batch": batch,
        "plain_spans": spans,
        "single": single,
        "client": client,
        "far_single": far,
        "far_client": far_client,
        "far_batch": far_batch,
        "backlog": backlog(2 * size),
    }


def _burst(conversations: int) -> dict[str, float]:
    """What is lost when 20,000 conversations come at once while the tracker is slow, or is not there."""
    with running_sink(delay_seconds=SLOW) as sink:
        with _tracker(sink.url) as tracker:
            _call(StartEnd(tracker), conversations)
            assert tracker.flush(FLUSH_SECONDS)
            slow = 2 * conversations - sink.counts().distinct
        provider = make_provider(sink.url)
        _call(PlainSpan(provider), conversations)
        provider.force_flush()
        spans = conversations - sink.counts().spans
        provider.shutdown()
        gone = sink.port
    with TemporaryDirectory() as folder:
        with AgentPerformanceTracker(f"http://127.0.0.1:{gone}", state_dir=Path(folder)) as tracker:
            _call(StartEnd(tracker), conversations)
        with running_sink(port=gone) as sink:
            with AgentPerformanceTracker(sink.url, state_dir=Path(folder)) as tracker:
                assert tracker.flush(FLUSH_SECONDS)
            down = 2 * conversations - sink.counts().distinct
    return {"lost_slow": slow, "lost_down": down, "plain_lost_percent": 100 * spans / conversations}


def _call(subject: StartEnd | PlainSpan, times: int) -> None:
    for _ in range(times):
        subject.call()


def main() -> None:
    """Measure throughput, or with ``--burst`` the burst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--burst", action="store_true")
    options = parser.parse_args()
    figures = _burst(4_000 if options.quick else 20_000) if options.burst else _throughput(options.quick)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
