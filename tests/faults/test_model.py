"""Any sequence of calls, faults and deaths, against models that know nothing of how it is done.

`Outcomes` compares what the real tracker stores with what whoever made the calls would tell; `Stepping` says less, of
stories in which the wall clock is set; `Storing` follows events through deaths between any two calls that store them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from otel_agent_tracker import Turn
from otel_agent_tracker.client import Delivered, NotOffered, Refused, Result, Retry
from otel_agent_tracker.entry import Entry
from otel_agent_tracker.server import arrivals
from otel_agent_tracker.server.arrivals import Arrival, Service
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.store import Store
from otel_agent_tracker.wire import Capabilities
from tests.faults.lives import Clocks, Life, killed, on_one_thread

# Who is killed closes nothing.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")

HOUR, MINUTE = 3600.0, 60.0
FOREIGN = ("thread-1", "thread-2")
REFUSED = "refuse this"

Told = tuple[str, str | None, float | None, int]
"""How a conversation ended, by what, its quality, and how many turns it had."""


# --- the way to the tracker ---------------------------------------------------------------------------------


class Way:
    """A way to a real tracker, in every weather.

    It may be down; lose the answer; keep a request for later, when it is told after others; take half of a
    batch; take each twice; know no batches. An event with a certain text is refused.
    """

    WEATHERS = ("clear", "down", "answer lost", "late", "half", "twice", "no batches")

    def __init__(self, store: Store, project: str) -> None:
        self.weather = "clear"
        self.known: set[str] = set()
        self._store = store
        self._project = store.keys.ensure_project(project)
        self._late: list[Arrival] = []

    def capabilities(self) -> Capabilities | Retry:
        """All but heartbeats."""
        if self.weather == "down":
            return Retry("down")
        paths = {name: {"path": f"/conversations/{name}"} for name in ("turn", "feedback")}
        return Capabilities(
            batch={"path": "/batch", "max_events": 5}, turns=paths["turn"], feedback=paths["feedback"]
        )

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        """One event."""
        assert event_id is not None
        (result,) = self._take([arrivals.read(path, body, event_id, Service())])
        return result

    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]:
        """Some events."""
        if self.weather == "no batches":
            return NotOffered(404, "not found")
        results = self._take([arrivals.read_batch_event(json.loads(event)) for event in events])
        return results[0] if isinstance(results[0], Retry) else results

    def close(self) -> None:
        """Nothing is open."""

    def arrive_late(self) -> None:
        """What was held up on its way arrives now, the last first."""
        late, self._late = self._late[::-1], []
        self._tell(late)

    def told(self, session: str) -> list[Told]:
        """What the tracker tells of a session."""
        answer = self._store.conversations.get(self._project, session)
        episodes = answer.episodes if answer else []
        return [(each.status, each.ended_by, each.quality_score, each.turns) for each in episodes]

    def _take(self, arrived: list[Arrival]) -> list[Result]:
        match self.weather:
            case "down":
                return [Retry("down")] * len(arrived)
            case "late":
                self._late += arrived
                return [Retry("timed out")] * len(arrived)
            case "half":
                half = (len(arrived) + 1) // 2
                return self._tell(arrived[:half]) + [Retry("status 503")] * (len(arrived) - half)
            case "answer lost":
                self._tell(arrived)
                return [Retry("connection reset")] * len(arrived)
            case "twice":
                self._tell(arrived[::-1])
        return self._tell(arrived)

    def _tell(self, arrived: list[Arrival]) -> list[Result]:
        accepted = [each for each in arrived if REFUSED not in each.body]
        assert set(self._store.ingest(self._project, accepted)) <= {None}
        self.known.update(each.event_id for each in accepted)
        return [Refused(422, "no") if REFUSED in each.body else Delivered() for each in arrived]


# --- the model ----------------------------------------------------------------------------------------------


@dataclass
class UnderWay:
    """A turn that has begun, in a conversation that was open then or in none; so many were known.

    The `rating` is that of the conversation that it opens, if it is ever told.
    """

    turn: Turn
    began: float
    talk: Talk | None
    known: int
    rating: int | None = None


@dataclass(eq=False)
class Talk:
    """A conversation, as somebody tells it who has made the calls.

    It was last accessed between two times: a session that is made again from the journal counts as accessed
    then. `stored` is what a death leaves of them, `journaled` when something happened that is not stored yet.
    """

    by_call: bool
    accessed: tuple[float, float]
    stored: tuple[float, float]
    journaled: float | None
    turns: int = 0
    last_turn: str = "ok"
    rating: int | None = None
    ended: tuple[str, str] | None = None
    window: float = 0.0
    """In which nothing happened, if it ended by that."""

    def touch(self, now: float) -> None:
        """An access, which a death makes forgotten if it is not stored."""
        self.accessed = (now, now)

    def happen(self, now: float, turn: str) -> None:
        """A turn, which nothing makes forgotten."""
        self.touch(now)
        self.journaled, self.last_turn = now, turn

    def store(self) -> None:
        """The worker has stored it all."""
        self.stored, self.journaled = self.accessed, None

    def die(self, now: float, *, at_work: bool) -> None:
        """The process is dead, at its work perhaps, and another one begins."""
        latest = self.accessed[1] if at_work else self.stored[1]
        earliest = self.stored[0] if self.journaled is None else self.journaled
        self.accessed = (earliest, latest if self.journaled is None else now)

    def told(self) -> Told:
        """What a tracker is to tell of it."""
        outcome, ended_by = self.ended or ("active", None)
        return outcome, ended_by, self.rating, self.turns


class Outcomes(RuleBasedStateMachine):
    """Conversations of one process after another, beside what they are to become."""

    place: Path
    store: Store
    _serials = count(1)

    @initialize()
    def begin(self) -> None:
        """The first process, on an empty folder."""
        self.folder = self.place / f"outcomes-{next(self._serials)}"
        self.lives = count(1)
        self.clocks = Clocks()
        self.way = Way(self.store, self.folder.name)
        self.life = Life(self.folder / "0", self.clocks, self.way)
        self.talks: dict[str, list[Talk]] = {session: [] for session in FOREIGN}
        self.under_way: dict[str, UnderWay] = {}
        self.early: dict[str, int] = {}
        self.ttl = 10 * HOUR
        self.refused = 0

    def teardown(self) -> None:
        """However it went, everything settles, and then all is told as it was."""
        if not hasattr(self, "life"):
            return
        for session in list(self.under_way):
            self.give_up(session)
        try:
            self.settle()
            for session, talks in self.talks.items():
                assert self.way.told(session) == [talk.told() for talk in talks], session
        finally:
            self.life.bury()
            shutil.rmtree(self.folder)

    # --- what is known of a session -------------------------------------------------------------------------

    def live(self, session: str) -> Talk | None:
        """The open conversation of a session that is not past its window."""
        talk = self.newest(session)
        if talk is None or talk.ended:
            return None
        longest, shortest = (self.clocks.monotonic - accessed for accessed in talk.accessed)
        if shortest < self.window(talk) <= longest:  # it depends: then it is as it is
            return talk if self.life.tracker.get_live_session(session) else None
        return talk if longest < self.window(talk) else None

    def newest(self, session: str) -> Talk | None:
        return self.talks[session][-1] if self.talks[session] else None

    def window(self, talk: Talk) -> float:
        idles = not talk.by_call and talk.last_turn != "waiting"
        return min(self.ttl, 30 * MINUTE) if idles else self.ttl

    def end_idle(self, session: str) -> None:
        """The open conversation, if there is one and it is past its window, has ended."""
        talk = self.newest(session)
        if talk is not None and not talk.ended and self.live(session) is None:
            talk.window = self.window(talk)
            idle = talk.window < self.ttl
            failed = idle and talk.last_turn == "failed"
            outcome = ("failed" if failed else "completed") if idle else "expired"
            talk.ended = (outcome, "idle" if idle else "ttl")

    def session(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.talks)))

    # --- calls ----------------------------------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        """A conversation starts."""
        session = self.life.tracker.start_conversation("bot")
        self.talks[session] = []
        self.begin_talk(session, by_call=True)

    def begin_talk(self, session: str, *, by_call: bool) -> None:
        """The next conversation; the first one has the ratings that came before."""
        now, talks = self.clocks.monotonic, self.talks[session]
        rating = None if talks else self.early.get(session)
        talks.append(Talk(by_call, (now, now), (now, now), now, rating=rating))

    def goes_on_by_call(self, session: str) -> bool:
        """Whether only a call or its TTL ends the conversation that a turn opens next: the last was so, and is over."""
        newest = self.newest(session)
        return newest is not None and newest.by_call and newest.ended is not None and newest.ended[1] == "ttl"

    @rule(data=st.data(), status=st.sampled_from(["ok", "failed", "waiting"]))
    def turn(self, data: st.DataObject, status: str) -> None:
        """A turn, in a session that is open or not."""
        session = self.session(data)
        if self.live(session) is None:
            if session in self.under_way and self.under_way[session].talk:
                self.give_up(session)
            self.end_idle(session)
            self.begin_talk(session, by_call=self.goes_on_by_call(session))
        with self.life.tracker.turn(session, agent_id="bot") as turn:
            say(turn, status)
        talk = self.talks[session][-1]
        talk.turns += 1
        talk.happen(self.clocks.monotonic, status)

    @rule(data=st.data())
    def begin_turn(self, data: st.DataObject) -> None:
        """A turn begins and goes on for a while; one of each session at a time."""
        session = self.session(data)
        if session not in self.under_way:
            turn = self.life.tracker.turn(session, agent_id="bot")
            self.under_way[session] = UnderWay(
                turn, self.clocks.monotonic, self.live(session), len(self.talks[session])
            )
            turn.__enter__()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), status=st.sampled_from(["ok", "failed", "waiting"]))
    def finish_turn(self, data: st.DataObject, status: str) -> None:
        """It ends, and belongs to the conversation in which it began, which goes on with it if nobody ended it."""
        session = data.draw(st.sampled_from(list(self.under_way)))
        under_way, now = self.under_way[session], self.clocks.monotonic
        self.end_idle(session)
        talks, newest = self.talks[session], self.newest(session)
        talk = under_way.talk
        if newest and newest.ended and newest.ended[1] != "call":
            closed = [accessed + newest.window for accessed in newest.accessed]
            is_known = under_way.known == len(talks)
            if is_known and closed[0] < under_way.began <= closed[1]:  # a death made forgotten what decides
                return self.give_up(session)
            if not is_known or under_way.began <= closed[0]:
                newest.ended = None
            else:  # its window has become shorter since the turn began
                talk = None
        if under_way.known == len(talks) and (newest is None or (newest.ended and not talk)):
            self.begin_talk(session, by_call=self.goes_on_by_call(session))
        self.under_way.pop(session)
        say(under_way.turn, status)
        under_way.turn.__exit__(None, None, None)
        talk = talk or talks[min(under_way.known, len(talks) - 1)]
        talk.turns += 1
        if under_way.rating is not None and (talk.rating is None or talk in talks[: under_way.known]):
            talk.rating = under_way.rating
        talks[-1].happen(now, status)
        return None

    def give_up(self, session: str) -> None:
        """A turn is never finished; nothing is told of it."""
        if under_way := self.under_way.pop(session, None):
            assert under_way.turn._attached is not None
            under_way.turn._attached.detach()
            if under_way.rating is not None:
                self.talks[session][under_way.known - 1].rating = under_way.rating

    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        """Somebody asks whether a session is active."""
        session = self.session(data)
        live = self.live(session)
        assert self.life.tracker.is_session_active(session) == (live is not None)
        if live is not None:
            live.touch(self.clocks.monotonic)

    @rule(data=st.data(), quality=st.sampled_from([None, 1, 5]))
    def end(self, data: st.DataObject, quality: int | None) -> None:
        """A conversation is ended."""
        session = self.session(data)
        live, newest = self.live(session), self.newest(session)
        ended = self.life.tracker.end_conversation(session, quality, agent_id="bot")
        assert ended == (live is not None or newest is None)
        self.note_end(session, ended, "completed")
        if ended and quality is not None:
            self.note_rating(session, quality)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A conversation fails."""
        session = self.session(data)
        live, newest = self.live(session), self.newest(session)
        ended = self.life.tracker.record_failed_session(session, "boom", agent_id="bot")
        assert ended == (live is not None or newest is None)
        self.note_end(session, ended, "failed")

    def note_end(self, session: str, ended: bool, outcome: str) -> None:
        if ended and not self.talks[session]:
            self.begin_talk(session, by_call=True)
        if ended:
            self.talks[session][-1].ended = (outcome, "call")

    @rule(data=st.data(), score=st.integers(1, 5), refused=st.booleans())
    def rate(self, data: st.DataObject, score: int, refused: bool) -> None:
        """Somebody rates a session; the tracker may refuse to hear it."""
        session = self.session(data)
        live = self.live(session)
        assert self.life.tracker.record_feedback(session, score, REFUSED if refused else None)
        self.refused += refused
        opening = self.opening(session)
        if not refused and opening is not None:
            opening.rating = score
        elif not refused and self.talks[session]:
            self.note_rating(session, score)
        elif not refused:
            self.early[session] = score
        if live is not None:
            live.touch(self.clocks.monotonic)

    def note_rating(self, session: str, score: int) -> None:
        """Of the last conversation, whatever was said before of what may turn out to be the same one."""
        self.talks[session][-1].rating = score
        if session in self.under_way:
            self.under_way[session].rating = None

    def opening(self, session: str) -> UnderWay | None:
        """The turn that has begun after the last conversation was over, and so opens the next one."""
        under_way, newest = self.under_way.get(session), self.newest(session)
        if under_way is None or newest is None or under_way.known < len(self.talks[session]):
            return None
        if newest.ended and newest.ended[1] == "call":
            return None if under_way.talk else under_way
        window = newest.window if newest.ended else self.window(newest)
        return under_way if newest.accessed[0] + window < under_way.began else None

    # --- time, weather, death -------------------------------------------------------------------------------

    @rule(minutes=st.sampled_from([1, 20, 31, 90, 301, 599, 601]))
    def wait(self, minutes: int) -> None:
        """Time passes."""
        self.clocks.advance(minutes * MINUTE + 7)  # never to the second when something is over

    @rule(hours=st.sampled_from([0.25, 1, 5, 10, 20]))
    def change_ttl(self, hours: float) -> None:
        """The TTL changes."""
        self.life.tracker.set_session_ttl(hours)
        self.ttl = hours * HOUR

    @rule(steps=st.integers(1, 3))
    def work(self, steps: int) -> None:
        """The worker takes some steps: what is past its window has ended, what is not is stored."""
        for session in self.talks:
            self.end_idle(session)
        for _ in range(steps):
            self.life.step()
        self.note_stored()

    def note_stored(self) -> None:
        for talks in self.talks.values():
            for talk in talks:
                talk.store()

    @rule(weather=st.sampled_from(Way.WEATHERS))
    def change_weather(self, weather: str) -> None:
        """The way to the tracker changes."""
        self.way.weather = weather

    @rule()
    def arrive_late(self) -> None:
        """What was held up arrives."""
        self.way.arrive_late()

    @rule(killed=st.booleans())
    def begin_anew(self, killed: bool) -> None:
        """The process ends or is killed, and another one begins, with the settings that it was given."""
        folder = self.folder / str(next(self.lives))
        if not killed:
            self.life.end()
        self.life.die(folder)
        self.go_on_in(folder, at_work=False)

    @rule(point=st.integers(1, 1200))
    def die_at_work(self, point: int) -> None:
        """The process is killed in the middle of a step of its worker."""
        folder = self.folder / str(next(self.lives))
        killed(self.life, point, folder, self.life.step)
        self.go_on_in(folder, at_work=True)

    def go_on_in(self, folder: Path, *, at_work: bool) -> None:
        """Another process takes over what is in the folder, and looks for what is over."""
        for session in list(self.under_way):
            self.give_up(session)
        self.life = Life(folder, self.clocks, self.way)
        self.life.tracker.set_session_ttl(self.ttl / HOUR)
        for talks in self.talks.values():
            for talk in talks:
                talk.die(self.clocks.monotonic, at_work=at_work)
        self.life.step()
        for session in self.talks:
            self.end_idle(session)
        self.note_stored()

    # --- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        """Whatever happens, whenever one looks."""
        if hasattr(self, "life"):
            self.life.books()

    def settle(self) -> None:
        """The tracker is there, and time passes until nothing is open or under way."""
        self.way.weather = "clear"
        self.way.arrive_late()
        for _ in range(4):
            self.work(1)
            self.clocks.advance(21 * HOUR)
        for _ in range(100):
            self.clocks.advance(2 * MINUTE)
            self.work(1)
            if self.life.books()["pending"] == 0:
                break
        books = self.life.books()
        assert (books["pending"], books["dropped"], books["dead_lettered"]) == (0, 0, self.refused)
        assert books["delivered"] == len(self.way.known)


def say(turn: Turn, status: str) -> None:
    """How the turn went."""
    if status == "failed":
        turn.fail("boom")
    elif status == "waiting":
        turn.wait()


# --- a wall clock that is set -------------------------------------------------------------------------------


class Stepping(RuleBasedStateMachine):
    """Conversations while the wall clock is set forwards and back: fewer promises, but these hold."""

    place: Path
    store: Store
    _serials = count(1)

    @initialize()
    def begin(self) -> None:
        """The first process, on an empty folder."""
        self.folder = self.place / f"stepping-{next(self._serials)}"
        self.lives = count(1)
        self.clocks = Clocks()
        self.way = Way(self.store, self.folder.name)
        self.life = Life(self.folder / "0", self.clocks, self.way)
        self.turns = Counter(dict.fromkeys(FOREIGN, 0))
        self.first_end: dict[str, str] = {}

    def teardown(self) -> None:
        """Nothing stays open, no turn is lost, and what was first said to have ended is told so."""
        if not hasattr(self, "life"):
            return
        try:
            self.settle()
            for session, turns in self.turns.items():
                told = self.way.told(session)
                assert sum(each[3] for each in told) == turns, (session, told)
                assert "active" not in {each[0] for each in told}, (session, told)
                if session in self.first_end:
                    assert (self.first_end[session], "call") in {each[:2] for each in told}, (session, told)
        finally:
            self.life.bury()
            shutil.rmtree(self.folder)

    @rule()
    def start(self) -> None:
        """A conversation starts."""
        self.turns[self.life.tracker.start_conversation("bot")] = 0

    @rule(data=st.data(), failed=st.booleans())
    def turn(self, data: st.DataObject, failed: bool) -> None:
        """A turn, in a session that is open or not."""
        session = data.draw(st.sampled_from(list(self.turns)))
        with self.life.tracker.turn(session, agent_id="bot") as turn:
            say(turn, "failed" if failed else "ok")
        self.turns[session] += 1

    @rule(data=st.data(), outcome=st.sampled_from(["completed", "failed"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        """A conversation is ended, if there is one."""
        session, tracker = data.draw(st.sampled_from(list(self.turns))), self.life.tracker
        if outcome == "failed":
            ended = tracker.record_failed_session(session, "boom", agent_id="bot")
        else:
            ended = tracker.end_conversation(session, agent_id="bot")
        if ended:
            self.first_end.setdefault(session, outcome)

    @rule(minutes=st.sampled_from([1, 20, 31, 301, 601]))
    def wait(self, minutes: int) -> None:
        """Time passes."""
        self.clocks.advance(minutes * MINUTE + 7)

    @rule(hours=st.sampled_from([-24, -1, -0.1, 0.1, 1, 24]))
    def set_wall(self, hours: float) -> None:
        """Somebody sets the wall clock."""
        self.clocks.set_wall(hours * HOUR)

    @rule()
    def work(self) -> None:
        """The worker takes a step."""
        self.life.step()

    @rule()
    def begin_anew(self) -> None:
        """The process is killed, and another one begins."""
        folder = self.folder / str(next(self.lives))
        self.life.die(folder)
        self.life = Life(folder, self.clocks, self.way)
        self.life.step()

    @invariant()
    def the_books_add_up(self) -> None:
        """Whatever happens, whenever one looks."""
        if hasattr(self, "life"):
            self.life.books()

    def settle(self) -> None:
        """Time passes until nothing is open or under way."""
        for _ in range(4):
            self.life.step()
            self.clocks.advance(21 * HOUR)
        settle(self.life, self.clocks)
        assert self.life.books()["dropped"] == self.life.books()["dead_lettered"] == 0


# --- what is stored, and death at any point -----------------------------------------------------------------


class Ledger:
    """A tracker that counts how often it was told of each event; an answer may be lost."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.up = True

    def capabilities(self) -> Capabilities | Retry:
        """Batches of a few events."""
        return Capabilities(batch={"path": "/batch", "max_events": 3})

    def send(self, path: str, body: bytes, *, event_id: str | None = None) -> Result:
        """Not used: there are batches."""
        raise NotImplementedError

    def send_batch(
        self, path: str, events: Sequence[bytes], event_ids: Sequence[str]
    ) -> Result | list[Result]:
        """Some events."""
        if not self.up:
            return Retry("down")
        self.told.update(event_ids)
        return [Delivered()] * len(events)

    def close(self) -> None:
        """Nothing is open."""


class Storing(RuleBasedStateMachine):
    """Journal and state file beside a set of events, with deaths between any two calls of what stores them."""

    place: Path
    _serials = count(1)

    @initialize()
    def begin(self) -> None:
        """The first process, on an empty folder."""
        self.folder = self.place / f"storing-{next(self._serials)}"
        self.lives = count(1)
        self.clocks, self.ledger = Clocks(), Ledger()
        self.life = Life(self.folder / "0", self.clocks, self.ledger)
        self.kept: set[str] = set()
        self.maybe_kept: set[str] = set()

    def teardown(self) -> None:
        """However it went, everything is delivered in the end, and counted once."""
        if not hasattr(self, "life"):
            return
        try:
            self.settle()
        finally:
            self.life.bury()
            shutil.rmtree(self.folder)

    @rule(size=st.sampled_from([0, 10, 3000, 9000]))
    def append(self, size: int) -> None:
        """An event is accepted; a large one needs a segment, or one of its own."""
        with heard(self.life) as event_ids:
            start(self.life, size)
        self.kept.update(event_ids)

    @rule(steps=st.integers(1, 3))
    def work(self, steps: int) -> None:
        """The worker takes some steps."""
        for _ in range(steps):
            self.life.step()

    @rule(up=st.booleans())
    def turn(self, up: bool) -> None:
        """The tracker is there, or not."""
        self.ledger.up = up
        self.clocks.advance(90)

    @rule(point=st.integers(1, 900))
    def die_while_working(self, point: int) -> None:
        """Death comes in a step of the worker, or, if that has so few points, after it."""
        self.die(point, self.life.step)

    @rule(point=st.integers(1, 60), size=st.sampled_from([0, 9000]))
    def die_while_appending(self, point: int, size: int) -> None:
        """Death comes before the call has returned: it may be kept or not."""
        with heard(self.life) as event_ids:
            died = self.die(point, lambda: start(self.life, size))
        (self.maybe_kept if died else self.kept).update(event_ids)

    def die(self, point: int, act: Callable[[], object]) -> bool:
        """Whether death came in the act, and not after it."""
        folder = self.folder / str(next(self.lives))
        died = killed(self.life, point, folder, act)
        self.life = Life(folder, self.clocks, self.ledger)
        return died

    @invariant()
    def the_books_add_up(self) -> None:
        """Whenever one looks."""
        if hasattr(self, "life"):
            self.life.books()

    def settle(self) -> None:
        """Everything is delivered, however often it was told, and counted once."""
        self.ledger.up = True
        settle(self.life, self.clocks)
        told = set(self.ledger.told)
        assert self.kept <= told <= self.kept | self.maybe_kept
        books = self.life.books()
        assert books == {
            "accepted": len(told),
            "delivered": len(told),
            "pending": 0,
            "dead_lettered": 0,
            "dropped": 0,
        }


def start(life: Life, size: int) -> None:
    life.tracker.start_conversation("bot", metadata={"text": ["x" * 3000] * (size // 3000)})


@contextmanager
def heard(life: Life) -> Iterator[list[str]]:
    """The ids of the events that are offered to the journal inside."""
    event_ids: list[str] = []
    journal = life.pipeline._journal
    append = journal.append

    def listen(payload: bytes) -> bool:
        event_ids.append(Entry.decode(payload).event_id)
        return append(payload)

    journal.append = listen  # type: ignore[method-assign]  # listens in
    yield event_ids
    journal.append = append  # type: ignore[method-assign]  # as before


def settle(life: Life, clocks: Clocks) -> None:
    """Let the worker work until nothing is to be done any more."""
    for _ in range(60):
        clocks.advance(90)
        life.step()
        if life.books()["pending"] == 0:
            return
    raise AssertionError(life.books())


def test_fault_24_25_whatever_point_a_process_is_killed_at_every_event_is_told_and_counted_once(
    tmp_path: Path,
) -> None:
    """Killed before or after any one of the hundreds of calls by which events go from the journal through the state
    file to the tracker, a process leaves all of them to the next one. That tells each, and counts each once."""
    point, died = 1, True
    while died:
        clocks, ledger = Clocks(), Ledger()
        life = Life(tmp_path / f"{point}", clocks, ledger)
        with heard(life) as event_ids:
            for size in (0, 3000, 3000, 0):
                start(life, size)

        def work(life: Life = life) -> None:
            for _ in range(4):
                life.step()

        died = killed(life, point, tmp_path / f"{point}-after", work)
        life = Life(tmp_path / f"{point}-after", clocks, ledger)
        settle(life, clocks)
        assert set(ledger.told) == set(event_ids), point
        assert life.books()["delivered"] == life.books()["accepted"] == 4, point
        assert max(ledger.told.values()) <= 2, point
        life.bury()
        point += 101
    assert point > 500


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, migrated_database: Path) -> Iterator[None]:
    """A tracker's store and a place for state folders, for all machines of a test."""
    store = Store(Database(str(shutil.copy(migrated_database, tmp_path / "tracker.sqlite3"))))
    Outcomes.place = Stepping.place = Storing.place = tmp_path
    Outcomes.store = Stepping.store = store
    with on_one_thread():
        yield
    store.close()


def test_fault_36_40_41_42_any_story_of_calls_faults_and_deaths_is_told_as_it_was() -> None:
    """Starts, turns, touches, ends, failures and ratings in any order, with time that passes, a TTL that changes, a
    tracker that is down, loses answers or hears late, twice and half, and processes that end or are killed: every
    conversation gets the one outcome that whoever made the calls would tell, and every event is counted once."""
    run_state_machine_as_test(
        Outcomes, settings=settings(max_examples=12, stateful_step_count=20, print_blob=True)
    )


def test_fault_34_any_story_with_a_wall_clock_that_is_set_back_and_forth_comes_to_an_end() -> None:
    """However often the wall clock is set while conversations go on and processes are killed: no turn is lost, no
    conversation stays open, and a conversation that was ended by a call is told with that outcome."""
    run_state_machine_as_test(
        Stepping, settings=settings(max_examples=10, stateful_step_count=12, print_blob=True)
    )


def test_fault_24_25_any_story_of_deaths_between_two_calls_of_the_storage_loses_and_repeats_nothing() -> None:
    """Events of all sizes, a tracker that comes and goes, and deaths at any point of accepting, storing and sending:
    every event whose call had returned is told, and all are counted once."""
    run_state_machine_as_test(
        Storing, settings=settings(max_examples=10, stateful_step_count=12, print_blob=True)
    )
