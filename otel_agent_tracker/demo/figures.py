"""What the tracker knows: asked over REST, and drawn for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker

__all__ = ["Figures"]

Json = dict[str, Any]
Cell = Callable[[Json], str]

MESSAGE_WIDTH = 38  # so that a row fits into 80 columns


class Figures:
    """The figures of some agents, and all agents at a glance, as a tracker told them."""

    def __init__(self, performance: Mapping[str, Json], operations: Json) -> None:
        self.performance = performance
        self.operations = operations

    @classmethod
    def ask(
        cls, tracker: AgentPerformanceTracker, operations: AgentOperationsTracker, agents: Sequence[str]
    ) -> Figures:
        """Ask the tracker; raises TrackerUnavailable."""
        performance = {agent: _with_failures(tracker.get_performance_overview(agent)) for agent in agents}
        overview = operations.get_operations_overview()
        return cls(performance, {**overview, "activities": len(overview["recent_activity"])})

    def table(self) -> Table:
        """One row an agent."""
        table = _table("Agent")
        for heading in _COLUMNS:
            table.add_column(heading, justify="right")
        for agent, figures in self.performance.items():
            table.add_row(agent, *(cell(figures) for cell in _COLUMNS.values()))
        return table

    def failures(self) -> Table:
        """One row a failed conversation."""
        table = _table("Agent", "Failed with", "Message")
        for agent, figures in self.performance.items():
            for failure in figures["failures"]["failures"]:
                kind = str(failure["error_type"]).rpartition(".")[2]
                table.add_row(agent, kind, shorten(failure["error_message"], MESSAGE_WIDTH, placeholder="…"))
        return table


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _with_failures(figures: Json) -> Json:
    failures = figures["failures"]
    by_session = {failure["session_id"]: failure for failure in failures["failures"]}
    return {**figures, "failures": {**failures, "by_session": by_session}}


def _share(figures: Json) -> str:
    rate = figures["success_rates"]["success_rate"]
    return "-" if rate is None else f"{rate:.0%}"


def _mean_quality(figures: Json) -> str:
    quality = figures["quality"]
    return "-" if quality["mean"] is None else f"{quality['mean']:.1f} ({quality['rated']})"


def _of_conversations(count: str) -> Cell:
    return lambda figures: str(figures["success_rates"][count])


def _of_turns(percentile: str) -> Cell:
    def cell(figures: Json) -> str:
        seconds = figures["response_times"][percentile]
        return "-" if seconds is None else f"{seconds:.2f}s"

    return cell


_COLUMNS: dict[str, Cell] = {
    "Held": _of_conversations("total"),
    "Success": _share,
    "Quality": _mean_quality,
    "p50": _of_turns("p50"),
    "p95": _of_turns("p95"),
    "Failed": _of_conversations("failed"),
    "Exp.": _of_conversations("expired"),
    "Idle": _of_conversations("idle_ended"),
    "Open": _of_conversations("active"),
}
