"""What the demo did, and from that what a tracker must say of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from otel_agent_tracker.demo.stopwatch import Bounds
from otel_agent_tracker.semconv import AgentStatus, Outcome

__all__ = ["Held", "Ledger", "TurnTime", "differences"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TurnTime:
    """One turn of an agent."""

    agent_id: str
    seconds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One conversation, with its outcome."""

    session_id: str
    agent_id: str
    outcome: Outcome
    quality: int | None = None
    idle: bool = False
    error_type: str | None = None
    error_message: str | None = None

    @property
    def unattended(self) -> bool:
        """Whether nobody said that it is over."""
        return self.idle or self.outcome is Outcome.EXPIRED


@dataclass(slots=True)
class Ledger:
    """Everything that was done, in no particular order."""

    conversations: list[Held] = field(default_factory=list)
    turns: list[TurnTime] = field(default_factory=list)
    statuses: dict[str, AgentStatus] = field(default_factory=dict)
    activities: int = 0

    def performance(self, agent_id: str) -> Json:
        """What ``/metrics/overview`` must say of the agent, with `Bounds` for durations."""
        held = [each for each in self.conversations if each.agent_id == agent_id]
        return {
            "success_rates": _success_rates(held),
            "response_times": _response_times(
                [turn.seconds for turn in self.turns if turn.agent_id == agent_id]
            ),
            "quality": _quality(held),
            "failures": _failures(held),
        }

    def operations(self) -> Json:
        """What ``/operations/overview`` must say."""
        return {
            "agents_by_status": _count_by_status(self.statuses.values()),
            "active_conversations": _count(self.conversations, Outcome.ACTIVE),
            "silent_agents": [],
            "activities": self.activities,
        }


def differences(expected: object, told: object, where: str = "") -> list[str]:
    """One line for each figure in which `told` is not as `expected`; more may be told than is expected."""
    if isinstance(expected, Mapping):
        told = told if isinstance(told, Mapping) else {}
        return [
            line
            for name, value in expected.items()
            for line in differences(value, told.get(name), f"{where}/{name}")
        ]
    return [] if _agree(expected, told) else [f"{where}: expected {expected}, the tracker says {told}"]


def _agree(expected: object, told: Any) -> bool:
    if isinstance(expected, Bounds):
        return expected.allow(told)
    if isinstance(expected, float):
        return told is not None and math.isclose(expected, told)
    return bool(expected == told)


def _success_rates(held: Sequence[Held]) -> Json:
    completed, failed = _count(held, Outcome.COMPLETED), _count(held, Outcome.FAILED)
    return {
        "total": len(held),
        "completed": completed,
        "failed": failed,
        "expired": _count(held, Outcome.EXPIRED),
        "idle_ended": sum(each.idle for each in held),
        "active": _count(held, Outcome.ACTIVE),
        "success_rate": completed / (completed + failed) if completed + failed else None,
    }


def _count_by_status(statuses: Iterable[AgentStatus]) -> Json:
    counts = Counter(statuses)
    return {status.value: counts[status] for status in AgentStatus}


def _count(held: Sequence[Held], outcome: Outcome) -> int:
    return sum(each.outcome is outcome for each in held)


def _response_times(turns: Sequence[Bounds]) -> Json:
    if not turns:
        return {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None}
    return {
        "count": len(turns),
        "mean": Bounds(fmean(turn.least for turn in turns), fmean(turn.most for turn in turns)),
        "p50": _percentile(turns, 50),
        "p95": _percentile(turns, 95),
        "p99": _percentile(turns, 99),
    }


def _percentile(turns: Sequence[Bounds], percent: int) -> Bounds:
    """By nearest rank; what holds for each turn holds for each rank."""
    rank = math.ceil(percent * len(turns) / 100) - 1
    return Bounds(sorted(turn.least for turn in turns)[rank], sorted(turn.most for turn in turns)[rank])


def _quality(held: Sequence[Held]) -> Json:
    scores = [each.quality for each in held if each.quality is not None]
    counts = Counter(scores)
    return {
        "rated": len(scores),
        "total": len(held),
        "share": len(scores) / len(held) if held else None,
        "mean": fmean(scores) if scores else None,
        "distribution": {str(score): counts[score] for score in range(1, 6)},
    }


def _failures(held: Sequence[Held]) -> Json:
    failed = [each for each in held if each.outcome is Outcome.FAILED]
    return {
        "count": len(failed),
        "by_session": {
            each.session_id: {"error_type": each.error_type, "error_message": each.error_message}
            for each in failed
        },
    }
