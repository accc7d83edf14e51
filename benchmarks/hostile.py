"""What hostile metadata costs: the copy and the search for secrets, shape by shape, and a whole call. Prints one JSON
object.

The shapes are those that cost most: as much of each as the limits let through, and more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.caller import StartEnd
from benchmarks.plain_span import PlainSpan, make_provider
from benchmarks.sink import running_sink
from benchmarks.timing import Subject, alone
from otel_agent_tracker import AgentPerformanceTracker
from otel_agent_tracker.metadata import to_json_text
from otel_agent_tracker.redaction import Redactor

__all__: list[str] = []


class Colour(Enum):
    """A member is looked into for its value."""

    RED = "red"


def _nested(width: int, depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


def _loop() -> dict[str, Any]:
    loop: dict[str, Any] = {"text": "kept"}
    loop["again"] = [loop] * 10
    return loop


SHAPES: Mapping[str, dict[str, Any]] = {
    "keys": {f"key_{number}": number for number in range(100_000)},
    "numbers": {"it": [0] * 1_000_000},
    "lists": {"it": _nested(10, 20)},
    "texts": dict.fromkeys(map(str, range(1_000)), "x" * 1_000_000),
    "quotes": {f"key_{number}": '"' * 4_096 for number in range(100)},
    "half letters": {f"key_{number}": "\ud800" * 4_096 for number in range(100)},
    "objects": {f"key_{number}": object() for number in range(10_000)},
    "times": {"it": [datetime(2024, 1, 19, tzinfo=UTC)] * 10_000},
    "decimals": {"it": [Decimal(number) for number in range(10_000)]},
    "members": {"it": [Colour.RED] * 10_000},
    "loops": {"it": [_loop()] * 100},
    "texts like secrets": {f"key_{number}": "token ab=c sk-a ://b " * 195 for number in range(100)},
}


class _Copy:
    """The copy of one shape."""

    def __init__(self, shape: dict[str, Any]) -> None:
        self._shape = shape

    def call(self) -> None:
        """Make the copy."""
        to_json_text(self._shape)

    def settle(self) -> None:
        """Nothing is left behind."""


class _Search:
    """The search for secrets in the copy of one shape."""

    def __init__(self, shape: dict[str, Any]) -> None:
        self._redactor = Redactor()
        self._text = to_json_text(shape)

    def call(self) -> None:
        """Look for secrets."""
        self._redactor.json_text(self._text)

    def settle(self) -> None:
        """Nothing is left behind."""


def _call(rounds: int) -> dict[str, float]:
    """Start and end with a bit of everything in the metadata, beside one plain span."""
    with (
        running_sink() as sink,
        TemporaryDirectory() as folder,
        AgentPerformanceTracker(sink.url, state_dir=Path(folder)) as tracker,
    ):
        provider = make_provider(sink.url)
        subjects: dict[str, Subject] = {"call": StartEnd(tracker, SHAPES), "plain": PlainSpan(provider)}
        times = alone(subjects, rounds=rounds, calls=200)
        provider.shutdown()
    return {f"{name}.{key}": value for name, one in times.items() for key, value in one._asdict().items()}


def main() -> None:
    """Measure each shape, of which the costliest counts, and the call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 3 if parser.parse_args().quick else 10
    figures = _call(rounds)
    for step, kind in (("copy", _Copy), ("search", _Search)):
        subjects: dict[str, Subject] = {name: kind(shape) for name, shape in SHAPES.items()}
        times = alone(subjects, rounds=rounds, calls=20)
        for name, each in times.items():
            print(f"  {step} of {name}: {each.p50} µs", file=sys.stderr, flush=True)
        figures[step] = max(each.p50 for each in times.values())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
