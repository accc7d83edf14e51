"""What is counted as events come and go equals what the raw events say, over any period in any zone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from otel_agent_tracker import outcome, wire
from otel_agent_tracker.server import arrivals, tables
from otel_agent_tracker.server.arrivals import Service
from otel_agent_tracker.server.counts import Span, recount, split
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.durations import Durations
from otel_agent_tracker.server.selection import Page, Period, Selection, read_period
from otel_agent_tracker.server.store import Store
from tests.server.world import HOUR, SECOND, Clock, at, end, expired, feedback, start, turn

BEGIN = (
    71 * 86_400 + 3 * 3600
)  # seconds from the clock's first to a Saturday evening; in Berlin the clocks change
DAYS = 3
QUARTER = 900
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati")
_names = count(1)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(Database(str(tmp_path_factory.mktemp("counts") / "tracker.sqlite3")), Clock())
    yield store
    store.close()


MOMENT = st.builds(
    lambda quarter, odd: BEGIN + quarter * QUARTER + odd,
    st.integers(0, DAYS * 96),
    st.sampled_from([0.0, 0.0, 1e-6, 450.25, 899.999999]),
)
SESSION = st.sampled_from(["s1", "s2", "s3"])
AGENT = st.sampled_from(["a", "b"])
LENGTH = st.sampled_from([0.0, 0.5, 1.0, 1.0, 7.3, 3600.0]) | st.floats(0, 1e5, allow_subnormal=False)
SCORE = st.integers(1, 5)
IDLE = st.builds(
    lambda when: {
        "agent_tracker": {"ended_by": "idle", "last_activity_time": at(when), "idle_seconds": 1800}
    },
    MOMENT,
)
REQUEST: st.SearchStrategy[wire.Request] = st.one_of(
    st.builds(
        start,
        SESSION,
        MOMENT,
        AGENT,
        metadata=st.sampled_from([None, {"agent_tracker": {"origin": "recognised"}}]),
    ),
    st.builds(turn, SESSION, MOMENT, LENGTH, AGENT),
    st.builds(
        end,
        SESSION,
        MOMENT,
        agent_id=AGENT,
        status=st.sampled_from(["completed", "failed"]),
        quality_score=SCORE | st.none(),
        metadata=IDLE | st.none(),
    ),
    st.builds(expired, SESSION, MOMENT, agent_id=AGENT),
    st.builds(feedback, SESSION, MOMENT, quality_score=SCORE),
)


class Step(NamedTuple):
    """What happens next: some of the events arrive, a session is deleted, or the silent ones are ended."""

    events: list[int]
    deleted: str | None
    silent: bool


STEP = st.builds(
    Step, st.lists(st.integers(0, 19), max_size=8), st.none() | SESSION, st.sampled_from([False, False, True])
)
BOUND = st.none() | st.builds(
    lambda when, length: at(when)[:length] if length else at(when), MOMENT, st.sampled_from([0, 10, 16])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=20),
    steps=st.lists(STEP, min_size=1, max_size=6),
    questions=st.lists(
        st.tuples(BOUND, BOUND, st.sampled_from(ZONES), st.none() | AGENT), min_size=1, max_size=8
    ),
)
def test_figures_are_those_of_the_raw_events(
    counting: Store,
    requests: list[wire.Request],
    steps: list[Step],
    questions: list[tuple[str | None, str | None, str, str | None]],
) -> None:
    """After repetitions, reorderings, splits, reopenings, deletions and silent ends."""
    project_id = counting.keys.ensure_project(f"project-{next(_names)}")
    for step in steps:
        _take(counting, project_id, requests, step)
    told = _told(counting, project_id)
    for start_date, end_date, zone, agent_id in questions:
        try:
            period = read_period(start_date, end_date, zone)
        except ValueError:  # it would end before it starts
            continue
        selection = Selection(agent_id=agent_id, period=period)
        answer = counting.figures.overview(project_id, selection, Page(limit=500))
        assert answer == _figures(*told, selection)
        page = counting.conversations.page(project_id, selection, Page(limit=500))
        assert page.total == len(page.conversations) == answer.success_rates.total


def _take(store: Store, project_id: int, requests: list[wire.Request], step: Step) -> None:
    arrived = [
        arrivals.arrive(requests[number], f"e{number}") for number in step.events if number < len(requests)
    ]
    store.ingest(project_id, arrived)
    if step.deleted:
        store.erase(project_id, step.deleted)
    if step.silent:
        store.end_silent(int((BEGIN + 30 * 86_400) * SECOND) + wire.parse_time(at(0)))


class Lasted(NamedTuple):
    agent_id: str
    end_us: int
    seconds: float


Told = list[tuple[str, outcome.Conversation]]


def _told(store: Store, project_id: int) -> tuple[Told, list[Lasted]]:
    """The conversations with their sessions, and the turns, of the raw events alone."""
    columns = tables.events.columns
    query = select(tables.events).where(columns.project_id == project_id, columns.session_id.is_not(None))
    sessions: dict[str, list[outcome.Event]] = {}
    turns = []
    with store._database.reading() as connection:
        for row in connection.execute(query):
            read = arrivals.read(row.path, row.body, row.event_id, Service())
            assert read.event
            sessions.setdefault(row.session_id, []).append(read.event)
            if isinstance(read.request, wire.ConversationTurn):
                end_us = wire.parse_time(read.request.end_time)
                turns.append(Lasted(read.request.agent_id, end_us, read.request.duration_seconds))
    conversations = [
        (name, each) for name, events in sessions.items() for each in outcome.conversations(events)
    ]
    return conversations, turns


def _holds(selection: Selection, agent_id: str, time_us: int) -> bool:
    start_us = -math.inf if selection.period.start_us is None else selection.period.start_us
    end_us = math.inf if selection.period.end_us is None else selection.period.end_us
    return selection.agent_id in (None, agent_id) and start_us <= time_us < end_us


def _figures(told: Told, turns: list[Lasted], selection: Selection) -> wire.PerformanceOverview:
    mine = [(name, each) for name, each in told if _holds(selection, each.agent_id, each.start_us)]
    ended = [each.outcome.value for _, each in mine]
    completed, failed = ended.count("completed"), ended.count("failed")
    rated = [each.quality for _, each in mine if each.quality is not None]
    rounded = [math.floor(quality + 0.5) for quality in rated]
    lasted = sorted(each.seconds for each in turns if _holds(selection, each.agent_id, each.end_us))
    failures = sorted(
        ((each.end_us, name, each.number, each) for name, each in mine if each.outcome.value == "failed"),
        reverse=True,
    )
    return wire.PerformanceOverview(
        success_rates=wire.SuccessRates(
            total=len(mine),
            completed=completed,
            failed=failed,
            expired=ended.count("expired"),
            idle_ended=sum(each.ended_by == "idle" for _, each in mine),
            active=ended.count("active"),
            success_rate=completed / (completed + failed) if completed + failed else None,
        ),
        response_times=wire.ResponseTimes(
            count=len(lasted),
            mean=_mean(lasted),
            **{f"p{percent}": _percentile(lasted, percent) for percent in (50, 95, 99)},
        ),
        quality=wire.Quality(
            rated=len(rated),
            total=len(mine),
            share=len(rated) / len(mine) if mine else None,
            mean=_mean(rated),
            distribution={str(score): rounded.count(score) for score in range(1, 6)},
        ),
        failures=wire.Failures(
            count=failed,
            failures=[
                wire.Failure(
                    session_id=name,
                    agent_id=each.agent_id,
                    end_time=wire.format_time(end_us or 0),
                    error_type=each.error_type,
                    error_message=each.error_message,
                )
                for end_us, name, _, each in failures
            ],
        ),
    )


def _mean(values: list[float]) -> Any:
    """But for the last digits, in which sums made in another order may differ."""
    return pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-9) if values else None


def _percentile(durations: list[float], percent: int) -> float | None:
    return durations[math.ceil(percent * len(durations) / 100) - 1] if durations else None


def test_counted_again_is_the_same(counting: Store) -> None:
    """All that was counted as it came equals what all rows say, and nothing is left of what went."""
    project_id = counting.keys.ensure_project(f"project-{next(_names)}")
    requests: list[wire.Request] = [
        *(start(f"s{number}", BEGIN + number * 1800, "ab"[number % 2]) for number in range(40)),
        *(end(f"s{number}", BEGIN + number * 1801, quality_score=1 + number % 5) for number in range(30)),
        *(turn(f"s{number}", BEGIN + number * 7000, number / 7) for number in range(40)),
    ]
    for number, request in enumerate(requests):
        counting.ingest(project_id, [arrivals.arrive(request, f"e{number}")])
    for number in range(0, 40, 2):
        counting.erase(project_id, f"s{number}")
    counted = _counts(counting, project_id)
    with counting._database.writing() as connection:
        recount(connection)
    assert _counts(counting, project_id) == counted
    for number in range(40):
        counting.erase(project_id, f"s{number}")
    assert _counts(counting, project_id) == []


def _counts(store: Store, project_id: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with store._database.reading() as connection:
        for table in (tables.conversation_counts, tables.turn_counts):
            query = select(table).where(table.columns.project_id == project_id)
            rows += [row._asdict() for row in connection.execute(query.order_by(*table.primary_key))]
    for row in rows:
        row.update({name: pytest.approx(row[name]) for name in ("seconds", "quality") if name in row})
    return rows


@pytest.mark.parametrize(
    ("hours", "spans", "edges"),
    [
        ((None, None), [Span(24, None, None)], []),
        ((24, 72), [Span(24, 24, 72)], []),
        ((23, 73), [Span(1, 23, 24), Span(24, 24, 72), Span(1, 72, 73)], []),
        ((2, None), [Span(1, 2, 24), Span(24, 24, None)], []),
        ((None, 25.5), [Span(24, None, 24), Span(1, 24, 25)], [(25, 25.5)]),
        ((1.5, 4.5), [Span(1, 2, 4)], [(1.5, 2), (4, 4.5)]),
        ((1.25, 1.75), [], [(1.25, 1.75)]),
        ((1.5, 2.5), [], [(1.5, 2.5)]),
        ((-1.5, 1), [Span(1, -1, 1)], [(-1.5, -1)]),
    ],
)
def test_a_period_is_whole_days_hours_and_edges(
    hours: tuple[float | None, float | None], spans: list[Span], edges: list[tuple[float, float]]
) -> None:
    """Days where there are any, hours around them, and rows only of the hours shared with others."""
    assert split(_period(*hours)) == (spans, [_period(*edge) for edge in edges])


def _period(start_hour: float | None, end_hour: float | None) -> Period:
    return Period(
        start_us=None if start_hour is None else int(start_hour * HOUR),
        end_us=None if end_hour is None else int(end_hour * HOUR),
    )


@given(st.lists(st.floats(0, 1e308), min_size=1), st.data())
def test_a_rank_lies_in_the_bounds_that_are_told(seconds: list[float], data: st.DataObject) -> None:
    """Whatever the durations, and after a way through the database."""
    durations = Durations()
    for each in seconds:
        durations.count(each)
    durations = Durations.read(durations.write(), durations.seconds)
    rank = data.draw(st.integers(1, len(seconds)))
    shortest, beyond, shorter = durations.locate(rank)
    within = sorted(each for each in seconds if shortest <= each < beyond)
    assert within[shorter] == sorted(seconds)[rank - 1]
    assert math.isfinite(durations.seconds)
