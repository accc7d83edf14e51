"""A tracker on loopback that takes batches, counts every event by its id, and fails as often as it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, NamedTuple

import orjson

__all__ = ["CountingTracker", "Told", "counting_tracker"]

_CAPABILITIES = orjson.dumps(
    {
        "batch": {"path": "/batch", "max_events": 500},
        "turns": {"path": "/conversations/turn"},
        "feedback": {"path": "/conversations/feedback"},
    }
)


class Told(NamedTuple):
    """What an event said."""

    path: str
    session_id: str


@dataclass
class CountingTracker:
    """What has arrived: each event once in `events`, by its id, and in `arrivals` as often as it came.

    `refuses` is the share of batches that are answered 503, `forgets` that of those that are taken without an
    answer; `random` decides which.
    """

    url: str
    random: Random
    refuses: float = 0.0
    forgets: float = 0.0
    events: dict[str, Told] = field(default_factory=dict)
    arrivals: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def told(self) -> Counter[Told]:
        """How many events of different ids said the same: more than one is an effect too many."""
        return Counter(self.events.values())

    def take(self, body: bytes) -> bytes | None:
        """The answer to a batch; empty for a refusal, None for silence."""
        batch = orjson.loads(body)["events"]
        with self._lock:
            chance = self.random.random()
            if chance < self.refuses:
                return b""
            for event in batch:
                self.events[event["event_id"]] = Told(event["path"], event["body"].get("session_id", ""))
                self.arrivals[event["event_id"]] += 1
        results = [{"event_id": event["event_id"], "status": 200} for event in batch]
        return None if chance < self.refuses + self.forgets else orjson.dumps({"results": results})


@contextmanager
def counting_tracker(seed: int = 0) -> Iterator[CountingTracker]:
    """A tracker on a free port, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    tracker = CountingTracker(f"http://127.0.0.1:{server.server_port}", Random(seed))
    server.RequestHandlerClass = type("Handler", (_Handler,), {"tracker": tracker})
    thread = threading.Thread(target=lambda: server.serve_forever(0.05))
    thread.start()
    try:
        yield tracker
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tracker: CountingTracker

    def do_GET(self) -> None:
        self._answer(200, _CAPABILITIES if self.path == "/capabilities" else b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(length := int(self.headers["Content-Length"]))
        if len(body) < length:  # killed in the middle of it
            self.close_connection = True
            return
        answer = self.tracker.take(body)
        if answer is None:
            self.close_connection = True
        else:
            self._answer(200 if answer else 503, answer)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # killed while it was answered
            return

    def log_message(self, *_: Any) -> None:
        """Nothing: requests are counted elsewhere."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
