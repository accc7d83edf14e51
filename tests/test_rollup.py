"""The roll-up of turns: exact counts, percentiles within 10 %."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker.rollup import RollUp

seconds = st.floats(0.001, 1800.0)


def turn(duration: float, status: str = "ok", **tokens: int) -> dict[str, Any]:
    return {"duration_seconds": duration, "status": status, **tokens}


def rolled_up(*turns: dict[str, Any]) -> RollUp:
    roll_up = RollUp()
    for each in turns:
        roll_up.add(each)
    return roll_up


def test_counts_sums_and_extremes_are_exact() -> None:
    """What goes with the end is what the turns said."""
    roll_up = rolled_up(
        turn(2.0, input_tokens=10, output_tokens=3),
        turn(1.0, "failed", input_tokens=5),
        turn(4.0, "cancelled"),
    )
    summary = roll_up.summary()
    times = summary["response_time_seconds"]
    assert [summary["turns"], summary["failed_turns"], summary["tokens"]] == [
        3,
        1,
        {"input": 15, "output": 3},
    ]
    assert [times[name] for name in ("count", "sum", "min", "max")] == [3, 7.0, 1.0, 4.0]


@given(st.lists(seconds, min_size=1, max_size=60))
def test_percentiles_are_within_a_tenth(durations: list[float]) -> None:
    """p50 and p95 are at most 10 % off the turn of that rank."""
    times = rolled_up(*map(turn, durations)).summary()["response_time_seconds"]
    for name, share in (("p50", 0.50), ("p95", 0.95)):
        exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
        assert times[name] == pytest.approx(exact, rel=0.1)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20))
def test_percentiles_stay_within_what_was_seen(durations: list[float]) -> None:
    """Also for turns of no time, or of days."""
    times = rolled_up(*map(turn, durations)).summary()["response_time_seconds"]
    assert times["min"] <= times["p50"] <= times["p95"] <= times["max"]


@given(st.lists(seconds, max_size=10), st.lists(seconds, min_size=1, max_size=10))
def test_it_goes_on_after_a_rest_in_the_state_file(before: list[float], after: list[float]) -> None:
    """As JSON and back, a roll-up counts on as if nothing had been."""
    stored = orjson.dumps(rolled_up(*map(turn, before)).to_json())
    roll_up = RollUp.from_json(orjson.loads(stored))
    for duration in after:
        roll_up.add(turn(duration))
    assert roll_up == rolled_up(*map(turn, before + after))


def test_fields_of_a_later_release_are_passed_over() -> None:
    """Two releases may share a state folder."""
    assert RollUp.from_json({"turns": 3, "mood": "good"}) == RollUp(turns=3)
