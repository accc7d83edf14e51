"""Everything at once: a storm over processes, connections and the tracker, and what is left when it is over."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.chaos.calls import Call, calls_in
from tests.faults.chaos.model import Episode, Session, acceptable
from tests.faults.chaos.run import Chaos
from tests.waiting import wait_until

SEEDS = (1,)
"""Each passes over everything in a way of its own; one that found a mistake stays here."""

SECOND = 1_000_000


@pytest.mark.parametrize("seed", SEEDS)
def test_fault_01_07_08_21_22_24_25_36_41_42_a_storm_loses_and_doubles_nothing(
    tmp_path: Path, seed: int
) -> None:
    """Processes that share sessions are killed, the tracker is, connections are cut and the disk's share is used
    up: whatever a call returned is known afterwards, with the outcome that the rules give, once.

    `make chaos` runs longer storms, with fresh seeds.
    """
    assert Chaos(seed, 6.0, tmp_path).run() == []


def test_ctrl_c_ends_a_storm_with_all_of_its_processes() -> None:
    """The code is that of a process which was interrupted, and nothing is left of it."""
    command = [sys.executable, "-m", "tests.faults.chaos", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("seed ")
        wait_until(lambda: len(_children_of(process.pid)) >= 6, 60)
        children = _children_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith("stopped; every process has ended\n")
        assert process.wait(30) == 130
    assert [child for child in children if Path(f"/proc/{child}").exists()] == []


def _children_of(pid: int) -> list[int]:
    """Of all its threads."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in listed for child in path.read_text().split()]


# --- the model ----------------------------------------------------------------------------------------------


def call(
    op: str,
    second: float,
    *,
    host: int = 0,
    worker: int | None = None,
    took: float = 0.01,
    returned: bool = True,
    result: bool = True,
    **details: object,
) -> Call:
    """A call of a session, `second` seconds after the first, by its host's only worker; it returned."""
    begin_us = round(second * SECOND)
    return Call(
        op=op,
        worker=host if worker is None else worker,
        host=host,
        session="s",
        agent="bot",
        begin_us=begin_us,
        end_us=begin_us + round(took * SECOND),
        returned=returned,
        result=result if op in ("end", "fail") else None,
        details={"source": "user", **details},
    )


def told(*calls: Call, by_call: bool = True, window: float = 4.0) -> set[str]:
    """What may be told of the session, in short."""
    session = Session(calls, round(window * SECOND), by_call)
    return {"; ".join(map(_short, world)) for world in acceptable(session)}


def _short(episode: Episode) -> str:
    parts = (episode.status, episode.ended_by, episode.quality, episode.error, f"{episode.turns} turns")
    return " ".join(str(part) for part in parts if part is not None)


def test_what_is_certain_has_one_outcome() -> None:
    """The first end by call closes, later ones add nothing; what follows is the next conversation."""
    first = [call("start", 0), call("turn", 1), call("rate", 1.5, score=2)]
    assert told(*first) == {"expired ttl 2.0 1 turns"}
    ended = [*first, call("end", 2, quality=4), call("fail", 2.5, error="boom")]
    assert told(*ended) == {"completed call 4.0 1 turns"}
    assert told(*ended, call("turn", 3), call("fail", 4, error="boom")) == {
        "completed call 4.0 1 turns; failed call boom 1 turns"
    }


def test_what_nobody_started_by_call_ends_idle_as_its_last_turn_did() -> None:
    """Two hosts may each know a last turn of their own."""
    good, bad = call("turn", 0), call("turn", 1, error="boom")
    assert told(good, bad, by_call=False) == {"failed idle 2 turns"}
    assert told(call("turn", 0, host=1), bad, by_call=False) == {
        "completed idle 2 turns",
        "failed idle 2 turns",
    }


def test_what_a_killed_process_did_last_may_have_counted() -> None:
    """An end that never returned; a turn of which perhaps only that it opened the conversation is known."""
    start = call("start", 0)
    assert told(start, call("end", 1, returned=False)) == {"completed call 0 turns", "expired ttl 0 turns"}
    assert told(call("turn", 0, returned=False), by_call=False) == {
        "",
        *(f"{status} idle {turns} turns" for status in ("completed", "failed") for turns in (0, 1)),
    }


def test_calls_at_one_moment_may_have_come_in_either_order() -> None:
    """The one that was first decides."""
    ends = [call("end", 1, quality=5), call("fail", 1.005, error="boom")]
    assert told(call("start", 0), *ends) == {"completed call 5.0 0 turns", "failed call boom 0 turns"}


def test_a_pause_longer_than_the_window_may_have_ended_a_conversation() -> None:
    """Or nobody looked in time."""
    assert told(call("start", 0), call("turn", 3.9)) == {"expired ttl 1 turns"}
    assert told(call("start", 0), call("turn", 4.1), call("end", 5)) == {
        "completed call 1 turns",
        "expired ttl 0 turns; completed call 1 turns",
    }


def test_an_end_is_refused_for_a_reason_only() -> None:
    """One that its host knows; without it nothing that could be told is right."""
    start, refused = call("start", 0), call("end", 2, result=False)
    assert told(start, refused) == set()
    assert told(start, call("fail", 1, error="boom"), refused) == {"failed call boom 0 turns"}
    assert told(start, call("fail", 1, host=1, error="boom"), refused) == set()
    assert told(start, call("end", 5, result=False)) == {"expired ttl 0 turns"}


def test_a_process_may_not_have_heard_what_others_did_last() -> None:
    """It takes a conversation for over that went on; of what it did itself it knows."""
    first, last = call("turn", 0, worker=1), call("turn", 2, worker=1)
    assert told(first, last, call("end", 4.5, worker=2, result=False), by_call=False) == {
        "completed idle 2 turns"
    }
    assert told(first, last, call("end", 4.5, worker=1, result=False), by_call=False) == set()


def test_a_log_that_a_kill_cut_short_can_be_read(tmp_path: Path) -> None:
    """Of a call without its end only the beginning is known, and that it was over before the next life's first."""
    lines = [
        '{"phase": "begin", "op": "start", "at": 1, "worker": 0, "host": 0, "agent": "bot"}',
        '{"phase": "begin", "op": "end", "at": 5, "worker": 0, "host": 0, "agent": "bot", "session": "s"}',
        '{"phase": "returned", "at": 7, "worker": 0, "result": false, "agent": "bot", "session": "s"}',
        '{"phase": "beg',
    ]
    (tmp_path / "calls-0.jsonl").write_text("\n".join(lines))
    found = [(each.op, each.begin_us, each.end_us, each.returned, each.result) for each in calls_in(tmp_path)]
    assert found == [("start", 1, 5, False, None), ("end", 5, 7, True, False)]
