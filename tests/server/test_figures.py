"""Figures, against an independent computation from the same facts."""

from __future__ import annotations

import asyncio
import random
import statistics
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_agent_tracker.server.store import Store
from tests.server.conftest import new_project
from tests.server.world import Client, Json, at, batch_event, end, expired, feedback, start, turn

IDLE = {"agent_tracker": {"ended_by": "idle", "last_activity_time": at(3), "idle_seconds": 1800}}


def test_nothing_known_has_no_shares(client: Client) -> None:
    """Counts are 0; what would be divided by 0 is null."""
    assert client.json("/metrics/overview") == {
        "success_rates": {
            "total": 0,
            "completed": 0,
            "failed": 0,
            "expired": 0,
            "idle_ended": 0,
            "active": 0,
            "success_rate": None,
        },
        "response_times": {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None},
        "quality": {
            "rated": 0,
            "total": 0,
            "share": None,
            "mean": None,
            "distribution": dict.fromkeys("12345", 0),
        },
        "failures": {"count": 0, "failures": []},
    }


def test_success_rate_is_of_the_decided(client: Client) -> None:
    """Expired and active conversations are counted beside it; idle-ended ones are among the outcomes."""
    recognised = {"agent_tracker": {"origin": "recognised"}}
    client.tell(
        start("s1"), end("s1", 5), start("s2"), end("s2", 5), start("s3"), end("s3", 5, status="failed")
    )
    client.tell(start("s4"), expired("s4", 5), start("s5"))
    client.tell(start("s6", metadata=recognised), end("s6", 3, metadata=IDLE))
    assert client.json("/metrics/success-rates") == {
        "total": 6,
        "completed": 3,
        "failed": 1,
        "expired": 1,
        "idle_ended": 1,
        "active": 1,
        "success_rate": 0.75,
    }


def test_halves_are_rounded_up(client: Client) -> None:
    """Where only turns were rated, the mean may lie between two scores."""
    client.tell(turn("s1", 1), turn("s1", 3))
    client.tell(
        feedback("s1", 5, quality_score=4, turn_id="s1-1"), feedback("s1", 6, quality_score=5, turn_id="s1-3")
    )
    quality = client.json("/metrics/quality")
    assert (quality["mean"], quality["distribution"]) == (4.5, {"1": 0, "2": 0, "3": 0, "4": 0, "5": 1})


def test_failures_are_listed_last_ended_first(client: Client) -> None:
    """`count` counts all; the list has at most `limit`."""
    for number in range(3):
        ours = {"agent_tracker": {"error_type": f"E{number}"}}
        client.tell(end(f"s{number}", 10 + number, status="failed", error_message="oh", metadata=ours))
    answer = client.json("/metrics/failures", limit=2)
    assert answer["count"] == 3
    assert answer["failures"] == [
        {
            "session_id": f"s{number}",
            "agent_id": "support-bot",
            "end_time": at(10 + number),
            "error_type": f"E{number}",
            "error_message": "oh",
        }
        for number in (2, 1)
    ]


def test_figures_are_of_one_agent_and_period(client: Client) -> None:
    """A conversation belongs to the period of its start, a turn to that of its end."""
    client.tell(start("s1", 0), turn("s1", 0, seconds=10), end("s1", 20), start("s2", 60, agent_id="other"))
    assert client.json("/metrics/success-rates", agent_id="other")["total"] == 1
    assert client.json("/metrics/success-rates", end_date=at(60))["total"] == 1
    assert client.json("/metrics/success-rates", start_date=at(0))["total"] == 2
    assert client.json("/metrics/response-times", start_date=at(5))["count"] == 1
    assert client.json("/metrics/response-times", end_date=at(10))["count"] == 0
    assert client.json("/metrics/failures", start_date=at(5))["count"] == 0


@pytest.mark.parametrize(
    ("count", "p50", "p95", "p99"), [(1, 1, 1, 1), (2, 1, 2, 2), (100, 50, 95, 99), (101, 51, 96, 100)]
)
def test_percentiles_are_by_nearest_rank(client: Client, count: int, p50: int, p95: int, p99: int) -> None:
    """The smallest duration that at least that share of all do not exceed."""
    durations = random.Random(1).sample(range(1, count + 1), count)
    turns = [turn("s1", number * 200, seconds=seconds) for number, seconds in enumerate(durations)]
    client.post("/batch", {"events": [batch_event(each, f"e{number}") for number, each in enumerate(turns)]})
    times = client.json("/metrics/response-times")
    mean = statistics.mean(durations)
    assert times == {"count": count, "mean": mean, "p50": p50, "p95": p95, "p99": p99}


FACT = st.tuples(
    st.sampled_from(["active", "completed", "failed", "expired"]),
    st.integers(0, 3) | st.none(),
    st.integers(1, 5) | st.none(),
    st.integers(0, 20),
    st.sampled_from(["a", "b"]),
)


def _events(facts: list[tuple[str, int | None, int | None, int, str]]) -> list[Json]:
    requests: list[Any] = []
    for number, (status, seconds, score, when, agent_id) in enumerate(facts):
        name = f"s{number}"
        requests.append(start(name, when, agent_id))
        if seconds is not None:
            requests.append(turn(name, when, seconds, agent_id))
        if status in ("completed", "failed"):
            requests.append(end(name, when + 5, when, agent_id, status=status, quality_score=score))
        if status == "expired":
            requests.append(expired(name, when + 5, when, agent_id))
    return [batch_event(request, f"e{number}") for number, request in enumerate(requests)]


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(facts=st.lists(FACT, max_size=30), since=st.integers(0, 10), length=st.integers(0, 20))
def test_figures_agree_with_the_facts(
    shared_store: Store,
    shared_app: FastAPI,
    runner: asyncio.Runner,
    facts: list[tuple[str, int | None, int | None, int, str]],
    since: int,
    length: int,
) -> None:
    """Counted again from what was told, over one agent and a period."""
    until = since + length
    client = new_project(shared_store, shared_app, runner)
    client.post("/batch", {"events": _events(facts)})
    told = client.json("/metrics/overview", agent_id="a", start_date=at(since), end_date=at(until), limit=500)
    mine = [fact for fact in facts if fact[4] == "a" and since <= fact[3] < until]
    count = {
        name: sum(fact[0] == name for fact in mine) for name in ("active", "completed", "failed", "expired")
    }
    scores = [fact[2] for fact in mine if fact[0] in ("completed", "failed") and fact[2]]
    times = [f[1] for f in facts if f[4] == "a" and f[1] is not None and since <= f[3] + f[1] < until]
    decided = count["completed"] + count["failed"]
    rates = count | {"total": len(mine), "idle_ended": 0}
    assert told["success_rates"] == rates | {
        "success_rate": count["completed"] / decided if decided else None
    }
    assert told["quality"]["rated"] == len(scores)
    assert told["quality"]["mean"] == (pytest.approx(statistics.mean(scores)) if scores else None)
    assert told["quality"]["distribution"] == {str(score): scores.count(score) for score in range(1, 6)}
    assert told["response_times"]["count"] == len(times)
    assert told["response_times"]["mean"] == (pytest.approx(statistics.mean(times)) if times else None)
    assert told["failures"]["count"] == len(told["failures"]["failures"]) == count["failed"]
