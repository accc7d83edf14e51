"""What a conversation costs the thread that calls us, beside one plain span. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.plain_span import PlainSpan, make_provider
from benchmarks.sink import running_sink
from benchmarks.timing import Subject, Times, alone, beside_cpu_bound_thread
from otel_agent_tracker import AgentPerformanceTracker

__all__ = ["StartEnd"]

KILOBYTE = {f"key_{number:02d}": "x" * 30 for number in range(24)}


class StartEnd:
    """`start_conversation` and `end_conversation`."""

    def __init__(self, tracker: AgentPerformanceTracker, metadata: Mapping[str, Any] | None = None) -> None:
        self._tracker = tracker
        self._metadata = metadata

    def call(self) -> None:
        """Start and end a conversation."""
        session_id = self._tracker.start_conversation("support-bot", "user-000000000000001", self._metadata)
        self._tracker.end_conversation(session_id, quality_score=4, message_count=6)

    def settle(self) -> None:
        """Wait until all is delivered."""
        assert self._tracker.flush(60)


class StartTurnEnd(StartEnd):
    """The same as blocks, with one turn, whose span goes to the provider of the plain spans."""

    def call(self) -> None:
        """A conversation of one turn."""
        with self._tracker.conversation("support-bot", "user-000000000000001") as conversation:
            with conversation.turn():
                pass
            conversation.rate(4)


@contextmanager
def _trackers(url: str) -> Iterator[dict[str, AgentPerformanceTracker]]:
    """Two trackers of two destinations: a pipeline belongs to one."""
    with TemporaryDirectory() as folder:
        disk = AgentPerformanceTracker(f"{url}/disk", state_dir=Path(folder), durability="disk")
        memory = AgentPerformanceTracker(f"{url}/memory", state_dir=Path(folder), durability="memory")
        with disk, memory:
            yield {"disk": disk, "memory": memory}


def _measure(url: str, provider: TracerProvider, quick: bool) -> dict[str, dict[str, Times]]:
    plain: dict[str, Subject] = {"plain": PlainSpan(provider)}
    with _trackers(url) as trackers:
        start_end: dict[str, Subject] = {name: StartEnd(one) for name, one in trackers.items()}
        turns: dict[str, Subject] = {name: StartTurnEnd(one) for name, one in trackers.items()}
        metadata: dict[str, Subject] = {name: StartEnd(one, KILOBYTE) for name, one in trackers.items()}

        def by_itself(subjects: dict[str, Subject]) -> dict[str, Times]:
            return alone(subjects | plain, rounds=4 if quick else 15, calls=200)

        def beside(subjects: dict[str, Subject]) -> dict[str, Times]:
            rounds, seconds = (2, 1.5) if quick else (4, 4)
            return beside_cpu_bound_thread(subjects | plain, rounds=rounds, seconds=seconds)

        steps: dict[str, tuple[Callable[[dict[str, Subject]], dict[str, Times]], dict[str, Subject]]] = {
            "start_end": (by_itself, start_end),
            "turn": (by_itself, turns),
            "metadata": (by_itself, metadata),
            "threads": (beside, start_end),
            "turn_threads": (beside, {"disk": turns["disk"]}),
            "metadata_threads": (beside, {"disk": metadata["disk"]}),
        }
        found = {}
        for name, (measure, subjects) in steps.items():
            print(f"  caller: {name}", file=sys.stderr, flush=True)
            found[name] = measure(subjects)
        return found


def main() -> None:
    """Measure against a sink that answers at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick: bool = parser.parse_args().quick
    with running_sink() as sink:
        provider = make_provider(sink.url)
        trace.set_tracer_provider(provider)
        times = _measure(sink.url, provider, quick)
        provider.shutdown()
    print(
        json.dumps(
            {
                f"{name}.{what}.{key}": value
                for what, subjects in times.items()
                for name, one in subjects.items()
                for key, value in one._asdict().items()
            }
        )
    )


if __name__ == "__main__":
    main()
