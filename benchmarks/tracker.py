"""What the tracker itself can do: events in, questions answered, how soon one sees it. Prints one JSON object.

python -m benchmarks.tracker [--conversations 1000000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.crowd import fill
from benchmarks.queries import QUERIES
from otel_agent_tracker import AgentPerformanceTracker, wire

__all__: list[str] = []

BATCH = 166  # conversations of three events: as many as fit into a batch of 500
MAX_SECONDS = 8.0  # for one query, however slow
LOOK_SECONDS = 0.01


class Asker:
    """One connection to a tracker."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The answer's body; anything but 200 is an error."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return text

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def _serving(database: Path) -> Iterator[tuple[str, Asker]]:
    """A tracker in a process of its own, as people run it: its URL, and a connection to it."""
    command = [
        sys.executable,
        "-m",
        "otel_agent_tracker",
        "serve",
        "--port",
        "0",
        "--database",
        str(database),
    ]
    environment = os.environ | {"COLUMNS": "500", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            found = filter(None, (re.search(r"AGENT_TRACKER_URL=(\S+)", line) for line in process.stdout))
            url = next(found)[1]
            asker = Asker(url)
            yield url, asker
            asker.close()
        finally:
            process.terminate()


def ingest(conversations: int) -> dict[str, float]:
    """Events per second in batches, from the first request to the last answer: start, turn and end."""
    batches = _batches(conversations)
    with TemporaryDirectory() as folder, _serving(Path(folder) / "tracker.sqlite3") as (_, asker):
        asker.ask("POST", "/batch", b'{"events":[]}')
        start = time.perf_counter()
        for number, batch in enumerate(batches):
            results = orjson.loads(asker.ask("POST", "/batch", batch))["results"]
            assert all(result["status"] == 200 for result in results)
            if number % 20 == 0:
                _tell(f"ingest: batch {number + 1} of {len(batches)}")
        seconds = time.perf_counter() - start
        rates = orjson.loads(asker.ask("GET", "/metrics/success-rates"))
    assert rates["completed"] == len(batches) * BATCH, rates
    return {"ingest": round(3 * len(batches) * BATCH / seconds, 1)}


def _batches(conversations: int) -> list[bytes]:
    """Whole conversations, of 30 agents, one after the other."""
    number, now_us, batches = 0, time.time_ns() // 1000 - 86_400_000_000, []
    for _ in range(conversations // BATCH):
        told: list[dict[str, Any]] = []
        for _ in range(BATCH):
            number += 1
            told += _conversation(number, now_us + number * 1_000)
        batches.append(orjson.dumps({"events": told}))
    return batches


def _conversation(number: int, start_us: int) -> list[dict[str, Any]]:
    agent = f"agent-{number % 30:02d}"
    session = {"session_id": f"{agent}_{start_us // 1_000_000}_{number:016x}", "agent_id": agent}
    start, end = wire.format_time(start_us), wire.format_time(start_us + 4_000_000)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/conversations/start", {"start_time": start, "user_id": "u1", "metadata": {"plan": "pro"}}),
        (
            "/conversations/turn",
            {"turn_id": f"{number:032x}-{number:016x}", "start_time": start, "end_time": end}
            | {"duration_seconds": 4.0, "status": "ok", "input_tokens": 812, "output_tokens": 64},
        ),
        (
            "/conversations/end",
            {"start_time": start, "end_time": end, "duration_seconds": 4.0, "status": "completed"}
            | {"quality_score": 1 + number % 5, "message_count": 2},
        ),
    ]
    return [
        {"event_id": f"{3 * number + place:032x}", "path": path, "body": session | body, "service": _SERVICE}
        for place, (path, body) in enumerate(bodies)
    ]


def visible(samples: int) -> dict[str, float]:
    """Seconds from the return of `start_conversation` to the page that shows it."""
    random, seconds = Random(7), []
    with TemporaryDirectory() as folder, _serving(Path(folder) / "tracker.sqlite3") as (url, asker):
        state = Path(folder) / "state"
        with AgentPerformanceTracker(url, state_dir=state) as tracker:
            tracker.start_conversation("support-bot")
            tracker.flush(10)  # the worker's start is not what is measured
            for number in range(samples):
                time.sleep(random.random())  # a page is not looked at in step with the worker
                session = tracker.start_conversation("support-bot").encode()
                start = time.perf_counter()
                while session not in asker.ask("GET", "/"):
                    time.sleep(LOOK_SECONDS)
                seconds.append(time.perf_counter() - start)
                _tell(f"visible: {number + 1} of {samples}")
    return {"visible": round(_p95(seconds), 3)}


def queries(conversations: int, rounds: int) -> dict[str, float]:
    """The 95th percentile of each query in milliseconds, over one connection."""
    with TemporaryDirectory() as folder:
        database = Path(folder) / "tracker.sqlite3"
        session = fill(database, conversations, lambda text: _tell(f"queries: {text}"))
        week = (datetime.now(UTC) - timedelta(days=7)).date().isoformat()
        with _serving(database) as (_, asker):
            counted = orjson.loads(asker.ask("GET", "/metrics/success-rates"))
            assert counted["total"] == conversations, f"the tracker counts otherwise than it did: {counted}"
            found = {}
            for name, path in QUERIES.items():
                filled_in = path.format(agent="agent-07", session=session, week=week)
                found[name] = round(_p95(_times(asker, filled_in, rounds)) * 1e3, 1)
                _tell(f"queries: {name}: {found[name]} ms")
    return {f"query.{name}": milliseconds for name, milliseconds in found.items()}


def _times(asker: Asker, path: str, rounds: int) -> list[float]:
    """How long each took; fewer than `rounds` if it takes very long."""
    times: list[float] = []
    asker.ask("GET", path)
    while len(times) < rounds and sum(times) < MAX_SECONDS:
        start = time.perf_counter()
        asker.ask("GET", path)
        times.append(time.perf_counter() - start)
    return times


def _p95(values: Sequence[float]) -> float:
    """By nearest rank."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


_SERVICE = {"name": "shop", "version": "1.2.3", "environment": "production", "instance": "shop-1"}


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--conversations", type=int, help="how many the tracker knows when it is asked")
    options = parser.parse_args()
    conversations = options.conversations or (50_000 if options.quick else 1_000_000)
    figures = ingest(2_000 if options.quick else 20_000) | visible(10 if options.quick else 40)
    figures |= queries(conversations, 20 if options.quick else 40)
    print(json.dumps({"conversations": conversations} | figures))


if __name__ == "__main__":
    main()
