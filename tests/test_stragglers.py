"""Events that a tracker did not take while it answered: which sessions wait for them, and for how long."""

from __future__ import annotations

from otel_agent_tracker.stragglers import MEMORY, MOST, Stragglers


def test_a_session_waits_until_its_last_straggler_may_go() -> None:
    """Then it tries with one event; once that is settled, it is a session like others."""
    stragglers = Stragglers()
    stragglers.add(1, "a", 10.0)
    stragglers.add(2, "a", 20.0)
    stragglers.add(3, "b", 15.0)
    assert [stragglers.lanes(5.0), stragglers.seconds_to_next(5.0)] == [({"a", "b"}, set()), 5.0]
    assert [stragglers.lanes(15.0), stragglers.seconds_to_next(15.0)] == [({"a"}, {"b"}), 5.0]
    assert [stragglers.lanes(20.0), stragglers.seconds_to_next(20.0)] == [(set(), {"a", "b"}), None]
    stragglers.forget(3)
    assert [stragglers.lanes(20.0), 1 in stragglers, 3 in stragglers] == [(set(), {"a"}), True, False]


def test_only_so_many_wait_by_themselves() -> None:
    """Those known already among them; one that is gone makes room in the end."""
    stragglers = Stragglers()
    for number in range(MOST + 1):
        stragglers.add(number, "a", 0.0)
    stragglers.add(0, "a", 10.0)
    assert [0 in stragglers, MOST in stragglers, stragglers.has_room] == [True, False, False]
    stragglers.lanes(MEMORY)
    assert [0 in stragglers, 1 in stragglers, stragglers.has_room] == [True, False, True]
