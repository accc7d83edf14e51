"""The state file: transactions whole, books that add up, sessions that several processes share."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otel_agent_tracker import state as state_module
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.state import Counts, DamagedState, NewRow, SessionRow, State, Tombstone

DAY_US = 24 * 3600 * 1_000_000
MEBIBYTE = 1024 * 1024
OpenState = Callable[..., State]


@pytest.fixture
def open_state(tmp_path: Path) -> Iterator[OpenState]:
    """Opens connections to one file, as the workers of several processes would."""
    opened: list[State] = []

    def make(writer: str = "a", name: str = "state.sqlite3", max_bytes: int = 64 * MEBIBYTE) -> State:
        opened.append(State(tmp_path / name, writer=writer, max_bytes=max_bytes))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def state(open_state: OpenState) -> State:
    return open_state()


def new_row(
    event_id: str = "e1", *, lane: str = "s", event: str = "conversation.start", **more: Any
) -> NewRow:
    row = NewRow(event_id, event, f"/{event}", lane, b"{}", b"null", b"", 1_000)
    return row._replace(**more)


def session(start_us: int = 10, last_activity_us: int = 20, *, session_id: str = "s") -> SessionRow:
    return SessionRow(session_id, "bot", start_us, last_activity_us, b"record", "boot", 0)


def tombstone(
    end_us: int = 30, ended_by: str = "call", *, session_id: str = "s", start_us: int = 10
) -> Tombstone:
    return Tombstone(session_id, "bot", start_us, end_us, "completed", ended_by, None, None)


def put(state: State, *rows: SessionRow) -> None:
    with state.transaction():
        state.put_sessions(rows)


def end(state: State, ended: Tombstone) -> None:
    with state.transaction():
        state.end_sessions([ended])


def accept(state: State, *rows: NewRow) -> list[int]:
    """Accept events; the ids of all that are pending."""
    with state.transaction():
        state.accept(rows)
    return [row.id for row in state.pending(1000)]


def accept_all(state: State, rows: Iterable[NewRow]) -> None:
    for row in rows:
        accept(state, row)


def accept_batches(state: State, batches: Iterable[Sequence[NewRow]]) -> None:
    for rows in batches:
        with state.transaction():
            state.accept(rows)


def books(counts: Counts) -> tuple[int, int, int, int, int]:
    return counts.accepted, counts.delivered, counts.pending, counts.dead_lettered, counts.dropped


# --- transactions and format --------------------------------------------------------------------------------


def test_a_transaction_is_written_whole_or_not_at_all(state: State) -> None:
    """Offset, event and session of a broken transaction are all forgotten."""
    with suppress(ZeroDivisionError), state.transaction():
        state.accept([new_row()])
        state.set_offsets([("segment", 7)])
        state.put_sessions([session()])
        raise ZeroDivisionError
    assert [state.offsets(), state.session("s"), books(state.counts())] == [{}, None, (0, 0, 0, 0, 0)]
    assert accept(state, new_row()) == [1]


def test_what_was_committed_survives_the_connection(open_state: OpenState) -> None:
    """Another process finds it."""
    first = open_state()
    accept(first, new_row())
    with first.transaction():
        first.set_offsets([("a", 7), ("b", 8)])
        first.forget_segments(["b"])
    first.close()
    second = open_state()
    assert [second.offsets(), [row.event_id for row in second.pending(9)]] == [{"a": 7}, ["e1"]]


def test_an_offset_is_never_lowered(state: State) -> None:
    """What was stored once would be stored again."""
    for offset in (7, 3):
        state.set_offsets([("segment", offset)])
    assert state.offsets() == {"segment": 7}


def test_a_file_of_a_later_format_is_refused(open_state: OpenState, tmp_path: Path) -> None:
    """A newer release may be using it this moment: nothing in it is touched."""
    open_state().close()
    path = tmp_path / "state.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(sqlite3.NotSupportedError, match="newer"):
        open_state()


def test_a_file_of_the_next_format_is_used(open_state: OpenState, tmp_path: Path) -> None:
    """A release adds columns, tables and counters; the one before it passes over them and leaves the number."""
    open_state().close()
    with sqlite3.connect(tmp_path / "state.sqlite3") as connection:
        for table in ("counters", "journal", "sessions", "tombstones", "rollups", "outbox"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN added TEXT DEFAULT 'new'")
        connection.execute("CREATE TABLE more (id INTEGER)")
        connection.execute("INSERT INTO counters (name, value) VALUES ('later', 5)")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    state = open_state()
    accept(state, new_row("e1"), new_row("e2"))
    with state.transaction():
        state.put_sessions([session()])
        state.end_sessions([tombstone()])
        state.put_roll_up("s", RollUp(turns=1))
        state.set_offsets([("segment", 1)])
    other = open_state("b", "new.sqlite3")
    assert [other.take_over(state), books(other.counts())] == [2, (2, 0, 2, 0, 0)]
    connection = sqlite3.connect(tmp_path / "state.sqlite3")
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("UPDATE outbox SET path = CAST(path AS BLOB)", lambda state: state.pending(9)),
        ("UPDATE counters SET value = 'many' WHERE name = 'accepted'", State.counts),
        ("UPDATE sessions SET record = 'text'", lambda state: state.session("s")),
    ],
)
def test_values_of_other_types_are_damage(
    open_state: OpenState, tmp_path: Path, damage: str, read: Callable[[State], object]
) -> None:
    """SQLite gives out what a flipped bit has made of a row; it must not travel any further."""
    state = open_state()
    accept(state, new_row("e1"))
    put(state, session())
    with sqlite3.connect(tmp_path / "state.sqlite3") as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(DamagedState):
        read(state)


def test_use_after_close_is_an_error(state: State) -> None:
    """The worker must notice."""
    state.close()
    state.close()
    with pytest.raises(sqlite3.ProgrammingError):
        state.counts()


def test_a_full_file_refuses_rows_and_still_lets_them_go(open_state: OpenState) -> None:
    """Deliveries make room by themselves."""
    state = open_state(max_bytes=1)  # the least there is: 4 MB
    body = b"x" * 100_000
    with pytest.raises(sqlite3.OperationalError, match="full"):
        accept_all(state, (new_row(f"e{number}", body=body) for number in range(100)))
    held = state.counts().pending
    assert state.bytes_used() > 3 * MEBIBYTE
    with state.transaction():
        state.delivered([row.id for row in state.pending(5)])
    accept(state, new_row("new", body=body))
    assert books(state.counts()) == (held + 1, 5, held - 4, 0, 0)


@pytest.mark.parametrize("size", [300, 2_000, 40_000])
def test_a_full_file_takes_what_is_noted_of_its_rows(open_state: OpenState, size: int) -> None:
    """Else nothing would be sent any more: an answer is noted before the next request. Sessions are shared, too."""
    state = open_state(max_bytes=1)
    batches = ([new_row(f"{n}-{m}", body=b"x" * size) for m in range(24)] for n in range(1_000))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        accept_batches(state, batches)
    with state.transaction():
        state.note_attempts([row.id for row in state.pending(500)], "a reason that makes the row longer " * 3)
        state.dead_letter(state.pending(1)[0].id, "another reason")
        state.put_sessions([session()])
    assert state.session("s") is not None


# --- the outbox ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_comes_first", [True, False])
@pytest.mark.parametrize(("last_turn_us", "is_open"), [(31, True), (30, False), (0, False)])
def test_a_turn_that_started_after_an_end_keeps_the_session_open(
    state: State, end_comes_first: bool, last_turn_us: int, is_open: bool
) -> None:
    """It opened the next conversation, in a process that had not heard of that end."""
    gone_on = session(last_activity_us=40)._replace(last_turn_us=last_turn_us)
    if end_comes_first:
        end(state, tombstone(30))
        put(state, gone_on)
    else:
        put(state, gone_on)
        end(state, tombstone(30))
    assert (state.session("s") == gone_on) is is_open


def test_events_come_out_in_the_order_in_which_they_went_in(state: State) -> None:
    """And as they went in."""
    accept(state, *(new_row(f"e{number}", body=b'{"n": %d}' % number) for number in range(5)))
    rows = state.pending(3)
    assert [(row.event_id, row.body, row.attempts) for row in rows] == [
        (f"e{number}", b'{"n": %d}' % number, 0) for number in range(3)
    ]
    assert [state.oldest_pending_id(), state.newest_pending_id()] == [1, 5]


def test_an_event_is_accepted_once(state: State) -> None:
    """By its id, as long as it is here: dead letters count."""
    (row_id,) = accept(state, new_row())
    with state.transaction():
        state.dead_letter(row_id, "refused")
    accept(state, new_row(), new_row("e2"), new_row("e2"))
    assert books(state.counts()) == (2, 0, 1, 1, 0)


def test_paused_paths_are_passed_over(state: State) -> None:
    """Others behind them come forward."""
    accept(state, new_row("a", event="x"), new_row("b", event="y"), new_row("c", event="x"))
    assert [row.event_id for row in state.pending(9, without_paths=["/x"])] == ["b"]


def test_an_end_that_another_process_has_told_is_counted_by_that_one(tmp_path: Path) -> None:
    """Of two inferred ends of a conversation the later is remembered; who comes with the earlier ended nothing."""
    tallies: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    first, second = (
        State(tmp_path / "state", writer=writer, max_bytes=MEBIBYTE, tally=tally)
        for writer, tally in zip("ab", tallies, strict=True)
    )
    end(first, tombstone(30, "idle"))
    end(second, tombstone(20, "idle"))
    assert tallies == (Counter({"ended.idle.completed": 1}), Counter())
    first.close()
    second.close()


def test_events_of_a_lane_are_found_by_kind(state: State) -> None:
    """Only those that are still to be delivered."""
    ids = accept(state, new_row("a"), new_row("b"), new_row("c", lane="other"), new_row("d", event="x"))
    with state.transaction():
        state.dead_letter(ids[0], "refused")
    assert [row.event_id for row in state.pending_of("s", "conversation.start")] == ["b"]


def test_attempts_and_the_last_reason_are_kept(state: State) -> None:
    """For whoever looks into the outbox."""
    ids = accept(state, new_row())
    with state.transaction():
        state.note_attempts(ids, "down")
        state.note_attempts(ids, "slow")
        state.rewrite(ids[0], b"more")
    (row,) = state.pending(9)
    assert [row.attempts, row.reason, row.body] == [2, "slow", b"more"]


def test_row_ids_are_never_used_again(state: State) -> None:
    """A flush waits for all rows up to one: a later one must not look earlier."""
    ids = accept(state, new_row())
    with state.transaction():
        state.delivered(ids)
    assert accept(state, new_row("e2")) == [2]


def test_dead_letters_can_be_revived_or_purged(state: State) -> None:
    """One of them, or all."""
    ids = accept(state, *(new_row(f"e{number}") for number in range(4)))
    with state.transaction():
        for row_id in ids:
            state.dead_letter(row_id, "refused")
        assert [state.revive(ids[0]), state.purge(ids[1]), state.purge(ids[0])] == [1, 1, 0]
    assert [row.event_id for row in state.dead_letters(9)] == ["e2", "e3"]
    with state.transaction():
        assert [state.revive(None), state.purge(None)] == [2, 0]
    assert [books(state.counts()), state.counts().dropped_by_kind] == [(4, 0, 3, 0, 1), {"purged": 1}]


def test_the_newest_lanes_are_told_with_what_they_had_before(state: State) -> None:
    """The lane heard of last first, a few of its oldest events in order; dead letters and paused paths are left out."""
    lanes = ["old", "a", "a", "a", "b", "a", "b", "c"]
    ids = accept(state, *(new_row(f"e{number}", lane=lane) for number, lane in enumerate(lanes)))
    with state.transaction():
        state.dead_letter(ids[1], "refused")

    def found(limit: int, of_each_lane: int, *paths: str) -> list[str]:
        rows = state.newest(limit, of_each_lane=of_each_lane, without_paths=paths)
        return [row.event_id for row in rows]

    assert found(6, 2) == ["e7", "e4", "e6", "e2", "e3"]
    assert found(2, 9) == ["e7", "e4"]
    assert found(9, 9, "/conversation.start") == []


def test_what_is_next_costs_the_same_however_much_waits(state: State) -> None:
    """A backlog of days is drained as fast as one of minutes."""
    looks: list[Callable[[], object]] = [
        lambda: state.pending(10),
        lambda: state.newest(10, of_each_lane=10),
        state.oldest_pending_id,
        state.newest_pending_id,
    ]
    accept(state, *(new_row(f"dead{number}") for number in range(1000)))
    with state.transaction():
        for row_id in [row.id for row in state.pending(1000)]:
            state.dead_letter(row_id, "refused")
    accept(state, *(new_row(f"few{number}", lane=f"few{number}") for number in range(100)))
    few = [steps_of(state, look) for look in looks]
    accept(state, *(new_row(f"many{number}", lane=f"s{number}") for number in range(5_000)))
    assert [steps_of(state, look) <= 3 * before for look, before in zip(looks, few, strict=True)] == [
        True
    ] * 4


def steps_of(state: State, look: Callable[[], object]) -> int:
    """How many steps SQLite takes for it."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    state._connection.set_progress_handler(step, 1)
    look()
    state._connection.set_progress_handler(None, 1)
    return steps


def test_the_oldest_pending_event_tells_how_late_delivery_is(state: State) -> None:
    """Dead letters are not late."""
    ids = accept(state, new_row("a", time_us=5), new_row("b", time_us=7))
    assert state.counts().oldest_pending_us == 5
    with state.transaction():
        state.dead_letter(ids[0], "refused")
    assert state.counts().oldest_pending_us == 7


def test_a_tally_counts_what_is_done_through_one_connection(tmp_path: Path) -> None:
    """Of what was committed; what another state is taken over with was done elsewhere."""
    tally: Counter[str] = Counter()
    ours = State(tmp_path / "ours", writer="a", max_bytes=MEBIBYTE, tally=tally)
    others = State(tmp_path / "others", writer="b", max_bytes=MEBIBYTE)
    for each in (ours, others):
        ids = accept(each, *(new_row(f"{each is ours} {number}") for number in range(3)))
        with each.transaction():
            each.delivered(ids[:1])
            each.dead_letter(ids[1], "refused")
            each.end_sessions([tombstone(), tombstone(ended_by="idle", session_id="t")])
        with suppress(KeyError), each.transaction():
            each.delivered(ids[2:])
            raise KeyError
    expected = {
        "accepted": 3,
        "delivered": 1,
        "dead_lettered": 1,
        "ended.call.completed": 1,
        "ended.idle.completed": 1,
    }
    assert tally == expected
    ours.take_over(others)
    assert (tally, ours.counts().delivered) == (expected, 2)
    ours.close()
    others.close()


class Books(RuleBasedStateMachine):
    """accepted = delivered + pending + dead-lettered + dropped, after every operation, against a model."""

    @dataclass
    class Model:
        pending: list[str] = field(default_factory=list)
        dead: list[str] = field(default_factory=list)
        delivered: int = 0
        dropped: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.state = State(None, writer="a", max_bytes=MEBIBYTE)
        self.model = self.Model()
        self.number = 0

    def teardown(self) -> None:
        self.state.close()

    def row_id(self, event_id: str) -> int:
        rows = [*self.state.pending(1000), *self.state.dead_letters(1000)]
        return next(row.id for row in rows if row.event_id == event_id)

    @rule(count=st.integers(0, 4), again=st.booleans())
    def accept(self, count: int, again: bool) -> None:
        names = [f"e{self.number + index}" for index in range(count)]
        self.number += count
        known = (self.model.pending + self.model.dead)[:1] if again else []
        with self.state.transaction():
            self.state.accept([new_row(name) for name in names + known])
        self.model.pending += names

    @rule(data=st.data())
    @precondition(lambda self: self.model.pending)
    def deliver(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(self.model.pending), unique=True))
        ids = [self.row_id(name) for name in names]
        with self.state.transaction():
            self.state.delivered(ids + ids)  # an answer that comes twice counts once
        self.model.pending = [name for name in self.model.pending if name not in names]
        self.model.delivered += len(names)

    @rule(data=st.data())
    @precondition(lambda self: self.model.pending)
    def refuse(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.model.pending))
        with self.state.transaction():
            self.state.dead_letter(self.row_id(name), "refused")
        self.model.pending.remove(name)
        self.model.dead.append(name)

    @rule(data=st.data(), revive=st.booleans(), every=st.booleans())
    @precondition(lambda self: self.model.dead)
    def bury(self, data: st.DataObject, revive: bool, every: bool) -> None:
        names = self.model.dead[:] if every else [data.draw(st.sampled_from(self.model.dead))]
        row_id = None if every else self.row_id(names[0])
        with self.state.transaction():
            done = self.state.revive(row_id) if revive else self.state.purge(row_id)
        assert done == len(names)
        self.model.dead = [name for name in self.model.dead if name not in names]
        if revive:
            self.model.pending += names
        else:
            self.model.dropped += len(names)

    @rule(dropped=st.dictionaries(st.sampled_from(["journal", "unreadable"]), st.integers(0, 3)))
    def drop(self, dropped: dict[str, int]) -> None:
        with self.state.transaction():
            self.state.count_dropped(dropped)
        self.model.dropped += sum(dropped.values())

    @rule()
    def move(self) -> None:
        """To another file, as when the folder was deleted."""
        other = State(None, writer="b", max_bytes=MEBIBYTE)
        other.take_over(self.state)
        other.take_over(self.state)
        self.state.close()
        self.state = other

    @invariant()
    def the_books_add_up(self) -> None:
        accepted, delivered, pending, dead, dropped = books(self.state.counts())
        model = self.model
        assert (delivered, pending, dead, dropped) == (
            model.delivered,
            len(model.pending),
            len(model.dead),
            model.dropped,
        )
        assert accepted == delivered + pending + dead + dropped


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_the_books_are_counted_in_one_look(open_state: OpenState, tmp_path: Path) -> None:
    """While another process writes, no count is older than the other."""
    reader = open_state("reader")
    stopped = threading.Event()

    def write() -> None:
        writer = State(tmp_path / "state.sqlite3", writer="writer", max_bytes=MEBIBYTE)
        for number in range(150):
            ids = accept(writer, new_row(f"e{number}"))
            with writer.transaction():
                writer.delivered(ids[:1])
        writer.close()
        stopped.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stopped.is_set():
        counts = reader.counts()
        assert counts.accepted == counts.delivered + counts.pending
    thread.join()


# --- sessions -----------------------------------------------------------------------------------------------


def changes(state: State, since: int) -> tuple[list[SessionRow], list[Tombstone]]:
    """Sessions that others wrote after `since`, and conversations they ended."""
    _, rows, ended = state.changes_of_others(since)
    return list(rows), list(ended)


def test_sessions_are_mirrored_to_others(open_state: OpenState) -> None:
    """What one connection writes the other sees once, and never its own."""
    ours, theirs = open_state("a"), open_state("b")
    put(ours, session())
    seen = theirs.changes_of_others(0)[0]
    assert [changes(theirs, 0), changes(ours, 0)] == [([session()], []), ([], [])]
    assert changes(theirs, seen) == ([], [])
    end(ours, tombstone())
    assert changes(theirs, seen) == ([], [tombstone()])


def test_the_data_version_tells_that_others_have_written(open_state: OpenState) -> None:
    """A look that costs next to nothing."""
    ours, theirs = open_state("a"), open_state("b")
    before = theirs.data_version()
    assert theirs.data_version() == before
    put(ours, session())
    assert theirs.data_version() != before


def test_older_activity_does_not_replace_newer(open_state: OpenState) -> None:
    """Two processes write the same session in any order; the earlier start is kept."""
    ours, theirs = open_state("a"), open_state("b")
    put(ours, session(start_us=10, last_activity_us=50))
    put(theirs, session(start_us=5, last_activity_us=40))
    assert ours.session("s") == session(10, 50)
    put(theirs, session(start_us=20, last_activity_us=60))
    assert ours.session("s") == session(10, 60)


def test_a_conversation_that_was_ended_by_call_stays_ended(state: State) -> None:
    """A process that has not heard of it cannot bring it back; a later conversation can begin."""
    put(state, session())
    end(state, tombstone(end_us=30))
    put(state, session(start_us=10, last_activity_us=40))
    assert state.session("s") is None
    put(state, session(start_us=31, last_activity_us=40))
    assert state.session("s") == session(31, 40)


def test_activity_overtakes_an_inferred_end(state: State) -> None:
    """Who saw life in it after the end's last activity keeps it open; who did not, does not."""
    end(state, tombstone(end_us=30, ended_by="idle"))
    put(state, session(start_us=10, last_activity_us=30))
    assert state.session("s") is None
    put(state, session(start_us=10, last_activity_us=31))
    assert state.session("s") == session(10, 31)


def test_an_end_that_comes_late_leaves_the_next_conversation_alone(state: State) -> None:
    """Journals of two processes are read in any order."""
    put(state, session(start_us=50, last_activity_us=60))
    end(state, tombstone(end_us=30))
    assert [state.session("s"), state.tombstone("s")] == [session(50, 60), tombstone(30)]


NEXT = tombstone(end_us=50, ended_by="idle", start_us=40)


@pytest.mark.parametrize(
    ("preferred", "other"),
    [
        (NEXT, tombstone(end_us=30)),
        (tombstone(end_us=30), tombstone(end_us=31)),
        (tombstone(end_us=30), tombstone(end_us=31, ended_by="idle")),
        (tombstone(end_us=31), tombstone(end_us=30, ended_by="ttl")),
        (tombstone(end_us=31, ended_by="ttl"), tombstone(end_us=30, ended_by="idle")),
    ],
    ids=["next conversation", "earlier call", "call", "late call", "later activity"],
)
def test_the_tombstone_is_that_of_the_end_that_counts(
    state: State, preferred: Tombstone, other: Tombstone
) -> None:
    """The newest conversation's, and of its ends that which the outcome rules prefer, in any order."""
    for ends in ([preferred, other], [other, preferred]):
        for ended in ends:
            end(state, ended)
        assert state.tombstone("s") == preferred
        state._connection.execute("DELETE FROM tombstones")


def test_tombstones_are_kept_for_seven_days(state: State) -> None:
    """Then the id is as unknown as any other."""
    end(state, tombstone(end_us=DAY_US))
    with state.transaction():
        state.prune_tombstones(8 * DAY_US)
    assert state.tombstone("s")
    with state.transaction():
        state.prune_tombstones(8 * DAY_US + 1)
    assert state.tombstone("s") is None


def test_only_so_many_tombstones_are_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest ones."""
    monkeypatch.setattr(state_module, "MAX_TOMBSTONES", 2)
    for number in range(4):
        end(state, tombstone(session_id=f"s{number}"))
    with state.transaction():
        state.prune_tombstones(0)
    assert [number for number in range(4) if state.tombstone(f"s{number}")] == [2, 3]


# --- roll-ups -----------------------------------------------------------------------------------------------


def test_a_roll_up_is_kept_until_it_is_dropped(state: State) -> None:
    """One for each session."""
    assert [state.roll_up("s"), state.has_roll_ups()] == [None, False]
    with state.transaction():
        state.put_roll_up("s", RollUp(turns=1))
        state.put_roll_up("s", RollUp(turns=2))
    assert [state.roll_up("s"), state.has_roll_ups()] == [RollUp(turns=2), True]
    with state.transaction():
        state.drop_roll_up("s")
    assert state.roll_up("s") is None


def test_roll_ups_that_no_end_will_fetch_are_forgotten(state: State) -> None:
    """Turns that came after the last end of a session that nobody knows any more."""
    names = ["open", "ended", "sending", "gone"]
    put(state, session(session_id="open"))
    end(state, tombstone(session_id="ended"))
    accept(state, new_row(lane="sending"))
    with state.transaction():
        for name in names:
            state.put_roll_up(name, RollUp(turns=1))
        state.prune_tombstones(0)
    assert [name for name in names if state.roll_up(name)] == ["open", "ended", "sending"]


# --- another file -------------------------------------------------------------------------------------------


def test_everything_is_taken_over(open_state: OpenState) -> None:
    """Outbox with its dead letters, books, sessions, tombstones, roll-ups and offsets, all once."""
    old, new = open_state(), open_state("b", "new.sqlite3")
    ids = accept(old, *(new_row(f"e{number}") for number in range(4)))
    with old.transaction():
        old.delivered(ids[:1])
        old.dead_letter(ids[1], "refused")
        old.note_attempts(ids[2:3], "down")
        old.count_dropped({"journal": 2})
        old.put_sessions([session(session_id="open")])
        old.end_sessions([tombstone()])
        old.put_roll_up("s", RollUp(turns=3))
        old.set_offsets([("segment", 9)])
    accept(new, new_row("mine"))
    assert [new.take_over(old), new.take_over(old)] == [3, 0]
    assert [row.event_id for row in new.pending(9)] == ["mine", "e2", "e3"]
    assert [(row.event_id, row.reason) for row in new.dead_letters(9)] == [("e1", "refused")]
    assert [row.attempts for row in new.pending(9)] == [0, 1, 0]
    assert [books(new.counts()), new.counts().dropped_by_kind] == [(7, 1, 3, 1, 2), {"journal": 2}]
    assert [new.session("open"), new.tombstone("s"), new.roll_up("s"), new.offsets()] == [
        session(session_id="open"),
        tombstone(),
        RollUp(turns=3),
        {"segment": 9},
    ]


def test_the_further_offset_holds(open_state: OpenState) -> None:
    """What was read of a segment is not read again."""
    old, new = open_state(), open_state("b", "new.sqlite3")
    for state, offset in ((old, 9), (new, 12)):
        with state.transaction():
            state.set_offsets([("segment", offset)])
    new.take_over(old)
    assert new.offsets() == {"segment": 12}


def test_a_file_that_was_deleted_or_replaced_is_not_in_place(open_state: OpenState, tmp_path: Path) -> None:
    """What goes into it ends with the process."""
    state, path = open_state(), tmp_path / "state.sqlite3"
    seen = [state.is_in_place]
    path.rename(tmp_path / "moved")
    seen.append(state.is_in_place)
    open_state()
    assert [*seen, state.is_in_place] == [True, False, False]


def test_memory_is_always_in_place() -> None:
    """There is nothing to delete."""
    state = State(None, writer="a", max_bytes=MEBIBYTE)
    assert [state.is_private, state.is_in_place] == [True, True]
    state.close()


def test_a_suspended_state_goes_on(open_state: OpenState) -> None:
    """From any thread; what others write meanwhile is noticed."""
    state, other = open_state(), open_state("b")
    version = state.data_version()
    thread = threading.Thread(target=state.suspend)
    thread.start()
    thread.join()
    accept(other, new_row())
    assert [state.data_version() != version, state.counts().pending] == [True, 1]


def test_a_suspended_state_whose_file_is_deleted_is_empty(open_state: OpenState, tmp_path: Path) -> None:
    """It makes no file in its place: that is for whoever opens the next one."""
    state, path = open_state(), tmp_path / "state.sqlite3"
    state.suspend()
    path.unlink()
    assert [state.counts().pending, state.is_in_place, path.exists()] == [0, False, False]


def test_a_state_that_is_closed_while_suspended_stays_closed(state: State) -> None:
    """Every call is refused."""
    state.suspend()
    state.close()
    with pytest.raises(sqlite3.ProgrammingError):
        state.counts()
