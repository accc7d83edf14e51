"""The pipeline: one for each destination, refusing what matters least first, closed with its last holder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from otel_agent_tracker import pipeline as module
from otel_agent_tracker.config import Config, Durability
from otel_agent_tracker.events import Ending
from otel_agent_tracker.handle import Snapshot
from otel_agent_tracker.pipeline import Pipeline, acquire, substitute
from otel_agent_tracker.segment import SUFFIX
from otel_agent_tracker.semconv import AgentStatus, Outcome
from otel_agent_tracker.state import Counts
from otel_agent_tracker.testing import RecordingSender
from tests.interrupting import finishes, interrupted_at
from tests.waiting import wait_until

FILES = {module.__file__}


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def pipeline(tmp_path: Path, sender: RecordingSender) -> Iterator[Pipeline]:
    pipeline = Pipeline(config(tmp_path), sender=sender)
    yield pipeline
    pipeline.close()


def config(state_dir: Path, url: str | None = "http://tracker.invalid", **options: Any) -> Config:
    return Config(url=url, state_dir=state_dir, **{"flush_timeout_seconds": 0.1, **options})


def test_one_pipeline_for_each_destination(tmp_path: Path) -> None:
    """Every tracker object of one URL and key shares it, until the last one lets go."""
    first, second = acquire(config(tmp_path)), acquire(config(tmp_path))
    other = acquire(config(tmp_path, "http://other.invalid"))
    assert [first is second, first is other] == [True, False]
    first.release()
    third = acquire(config(tmp_path))
    assert third is second
    for pipeline in (second, third, other):
        pipeline.release()
    again = acquire(config(tmp_path))
    assert again is not first
    again.release()


def accepts(pipeline: Pipeline) -> bool:
    """Whether what it is told from now on is kept."""
    before = pipeline._journal.counters.appended
    pipeline._journal.append(b"event")
    return pipeline._journal.counters.appended == before + 1


@pytest.mark.parametrize("is_there", [True, False], ids=["there already", "to be made"])
def test_whoever_interrupts_the_holding_of_a_pipeline_holds_the_same(tmp_path: Path, is_there: bool) -> None:
    """A signal handler or a finaliser that makes a tracker object neither waits nor gets one of its own."""
    asked, taken = config(tmp_path, durability=Durability.MEMORY), list[Pipeline]()

    def interrupt_everywhere() -> None:
        for point in count():
            held = [acquire(asked)] if is_there else []
            with interrupted_at(point, FILES, do=lambda: taken.append(acquire(asked))) as was_reached:
                held.append(acquire(asked))
            held += taken
            taken.clear()
            assert all(each is held[0] for each in held)
            assert accepts(held[0])
            release_all(held)
            if not was_reached():
                break

    assert finishes(interrupt_everywhere)


@pytest.mark.parametrize("holders", [1, 2])
def test_whoever_interrupts_the_release_of_a_pipeline_holds_one_that_is_open(
    tmp_path: Path, holders: int
) -> None:
    """That one, or the next; and there is no third."""
    asked, taken = config(tmp_path, durability=Durability.MEMORY), list[Pipeline]()

    def interrupt_everywhere() -> None:
        for point in count():
            held = [acquire(asked) for _ in range(holders)]
            with interrupted_at(point, FILES, do=lambda: taken.append(acquire(asked))) as was_reached:
                held.pop().release()
            if not was_reached():
                break
            held += taken
            taken.clear()
            again = acquire(asked)
            assert all(each is again for each in held)
            assert accepts(again)
            release_all([*held, again])
        for pipeline in held:
            pipeline.release()

    assert finishes(interrupt_everywhere)


def test_whoever_interrupts_the_holding_of_a_pipeline_may_let_go_of_it(tmp_path: Path) -> None:
    """The last one to hold it, at whichever point: what is got is open."""
    asked = config(tmp_path, durability=Durability.MEMORY)

    def interrupt_everywhere() -> None:
        for point in count():
            before = acquire(asked)
            with interrupted_at(point, FILES, do=before.release) as was_reached:
                held = acquire(asked)
            assert accepts(held)
            if not was_reached():
                before.release()
            held.release()
            assert not accepts(held)
            if not was_reached():
                break

    assert finishes(interrupt_everywhere)


def release_all(held: list[Pipeline]) -> None:
    for pipeline in held:
        pipeline.release()
    assert not accepts(held[0])


def test_who_is_refused_a_pipeline_does_not_hold_it(tmp_path: Path) -> None:
    """It closes when those let go who got it."""
    first = acquire(config(tmp_path, redactor=str.lower))
    with pytest.raises(ValueError, match="another redactor"):
        acquire(config(tmp_path, redactor=str.upper))
    first.release()
    assert not accepts(first)


def test_a_disk_without_room_does_not_keep_events_from_the_tracker(
    tmp_path: Path, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state file may use a tenth of what is free; of nothing, that is not nothing."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    pipeline = Pipeline(config(tmp_path), sender=sender)
    pipeline.events.start("bot", user_id=None, metadata=None)
    assert pipeline.flush(10.0)
    assert len(sender.requests) == 1
    pipeline.close()


def test_a_platform_without_locks_keeps_events_in_memory(
    tmp_path: Path, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning says so; they are delivered all the same, and nothing is written."""
    monkeypatch.setattr("otel_agent_tracker.pipeline.DISK_SUPPORTED", False)
    pipeline = Pipeline(config(tmp_path / "state"), sender=sender)
    pipeline.events.start("bot", user_id=None, metadata=None)
    assert pipeline.flush(10.0)
    pipeline.close()
    assert len(sender.requests) == 1
    assert not (tmp_path / "state").exists()
    assert [record.getMessage() for record in caplog.records] == [
        "this platform has no flock or mmap: accepted events are kept in memory only"
    ]


def test_a_substitute_is_given_to_everyone(pipeline: Pipeline, tmp_path: Path) -> None:
    """For users' tests."""
    pipeline.holders += 1
    substitute(pipeline)
    try:
        acquired = acquire(config(tmp_path, "http://elsewhere.invalid"))
    finally:
        substitute(None)
    assert acquired is pipeline
    pipeline.release()


@pytest.mark.parametrize(
    ("pressure", "refused"),
    [
        (0.84, []),
        (0.85, ["agent.activity"]),
        (0.90, ["agent.activity", "conversation.turn"]),
        (0.95, ["agent.activity", "conversation.start", "conversation.turn"]),
        (1.0, ["agent.activity", "agent.status", "conversation", "conversation.start", "conversation.turn"]),
    ],
)
def test_what_matters_least_is_refused_first(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, pressure: float, refused: list[str]
) -> None:
    """Activity, then turns, then starts, ends last; each counted by kind, and the books add up."""
    handle = pipeline._handle
    handle.publish(Snapshot(Counts(), absorbed=0, booked={}, pressure=pressure))
    monkeypatch.setattr(handle, "start", lambda: None)  # no worker measures again
    events = pipeline.events
    events.activity("bot", "thought", {}, duration=None)
    events.status("bot", AgentStatus.BUSY, previous_status=None, metadata=None)
    session = events.start("bot", user_id=None, metadata=None)
    with_turn(pipeline, session)
    assert events.end(session, Ending(outcome=Outcome.COMPLETED))
    stats = pipeline.delivery_stats()
    assert stats["dropped_by_kind"] == dict.fromkeys(refused, 1)
    assert [stats["accepted"], stats["pending"]] == [5, 5 - len(refused)]


@pytest.mark.parametrize(
    ("used_mb", "free_mb", "limit_mb"),
    [(0, 1000, 50), (0, 100, 10), (30, 100, 40), (0, 0, 4), (60, 1000, 50)],
)
def test_the_state_file_may_grow_by_a_tenth_of_the_free_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_mb: int, free_mb: int, limit_mb: int
) -> None:
    """But not beyond what is configured, and to 4 MiB always; asked again and again, since others fill the disk."""
    pipeline, mb = Pipeline(config(tmp_path, outbox_max_mb=50.0)), 1024 * 1024
    monkeypatch.setattr(pipeline, "_free_bytes", lambda: free_mb * mb)
    assert pipeline._limit_bytes(used_mb * mb) == limit_mb * mb
    pipeline.close()


def with_turn(pipeline: Pipeline, session: str) -> None:
    from otel_agent_tracker.events import TurnReport

    now_us = pipeline.clock.time_ns() // 1000
    pipeline.events.turn(session, TurnReport(turn_id="t", start_us=now_us, end_us=now_us))


def test_a_disabled_pipeline_keeps_nothing_and_starts_nothing(tmp_path: Path) -> None:
    """Without a destination ids are minted and sessions live, and nothing is written."""
    pipeline = Pipeline(config(tmp_path, None))
    session = pipeline.events.start("bot", user_id=None, metadata=None)
    assert [session in pipeline.sessions, pipeline.flush(0.0), list(tmp_path.iterdir())] == [True, True, []]
    assert pipeline.delivery_stats()["accepted"] == 0
    pipeline.close()


def test_memory_never_touches_the_disk(tmp_path: Path, sender: RecordingSender) -> None:
    """AGENT_TRACKER_DURABILITY=memory: the same river without a bed."""
    pipeline = Pipeline(config(tmp_path, durability=Durability.MEMORY), sender=sender)
    pipeline.events.start("bot", user_id=None, metadata=None)
    assert pipeline.flush(10.0)
    pipeline.close()
    assert [len(sender.requests), list(tmp_path.iterdir())] == [1, []]


def test_a_worker_starts_for_what_an_earlier_process_left(tmp_path: Path) -> None:
    """And for nothing else."""
    fresh = acquire(config(tmp_path))
    assert not fresh._handle.started
    fresh.config.state_folder.mkdir(parents=True)
    fresh.release()
    later = acquire(config(tmp_path))
    assert later._handle.started
    later.release()


def test_segments_are_ready_before_the_worker_imports_what_it_needs(tmp_path: Path) -> None:
    """Which takes seconds beside a thread that computes; meanwhile callers fill the first one."""
    pipeline = Pipeline(config(tmp_path), sender=RecordingSender())
    with module._importing:
        pipeline.events.start("bot", user_id=None, metadata=None)
        wait_until(
            lambda: len(list(tmp_path.rglob(f"*{SUFFIX}"))) == 3
        )  # the one written to, and two to spare
    assert pipeline.flush(10.0)
    pipeline.close()
