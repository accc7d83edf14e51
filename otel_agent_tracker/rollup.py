"""The roll-up of a session's turns, for trackers that take no turns: it goes with the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import log
from typing import Any

from otel_agent_tracker.semconv import TurnStatus

__all__ = ["RollUp"]

Json = dict[str, Any]

_SHORTEST = 0.001  # seconds; the first bucket ends here
_GROWTH = 1.2  # a bucket's middle is within 10 % of all that it holds
_BUCKETS = 80  # up to 1,800 s


@dataclass(slots=True)
class RollUp:
    """Counts, response times in seconds and tokens of the turns added."""

    turns: int = 0
    failed_turns: int = 0
    total_seconds: float = 0.0
    shortest_seconds: float = 0.0
    longest_seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    buckets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Json) -> RollUp:
        """The roll-up that `to_json` gave; fields of a later release are passed over."""
        return cls(**{name: value[name] for name in cls.__slots__ if name in value})

    def to_json(self) -> Json:
        """The roll-up as the state file keeps it."""
        return asdict(self)

    def add(self, turn: Mapping[str, Any]) -> None:
        """Count the body of a turn request."""
        seconds = float(turn["duration_seconds"])
        self.shortest_seconds = min(seconds, self.shortest_seconds) if self.turns else seconds
        self.longest_seconds = max(seconds, self.longest_seconds)
        self.turns += 1
        self.failed_turns += turn["status"] == TurnStatus.FAILED
        self.total_seconds += seconds
        self.input_tokens += turn.get("input_tokens", 0)
        self.output_tokens += turn.get("output_tokens", 0)
        bucket = str(_bucket(seconds))
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def summary(self) -> Json:
        """What an end carries in `metadata.agent_tracker`; p50 and p95 are within 10 %."""
        return {
            "turns": self.turns,
            "failed_turns": self.failed_turns,
            "response_time_seconds": {
                "count": self.turns,
                "sum": self.total_seconds,
                "min": self.shortest_seconds,
                "max": self.longest_seconds,
                "p50": self._percentile(0.50),
                "p95": self._percentile(0.95),
            },
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
        }

    def _percentile(self, share: float) -> float:
        rank = share * self.turns
        for bucket in sorted(map(int, self.buckets)):
            rank -= self.buckets[str(bucket)]
            if rank <= 0:
                return min(max(_middle(bucket), self.shortest_seconds), self.longest_seconds)
        return self.longest_seconds


def _bucket(seconds: float) -> int:
    return 0 if seconds <= _SHORTEST else min(_BUCKETS, 1 + int(log(seconds / _SHORTEST, _GROWTH)))


def _middle(bucket: int) -> float:
    return float(_SHORTEST * _GROWTH ** (bucket - 0.5))
