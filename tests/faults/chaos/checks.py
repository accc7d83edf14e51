"""What must be so when the storm is over, looked at from both sides: the tracker, and what the workers leave.

Each check returns what is wrong, in words.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.faults.chaos.calls import Call, calls_in
from tests.faults.chaos.model import Episode, Session, World, acceptable
from tests.faults.chaos.processes import IDLE_SECONDS, TTL_SECONDS

__all__ = ["check_folders", "check_settled", "check_tracker"]

Json = dict[str, Any]
LIMIT_KINDS = {
    "agent.activity",
    "conversation.turn",
    "conversation.start",
    "conversation",
    "conversation.feedback",
}
_DROPPED_ENDS = "conversation"


def check_tracker(folder: Path, url: str, books: Sequence[Json]) -> list[str]:
    """Every call that returned is known with the right outcome, and nothing is counted twice."""
    calls = calls_in(folder)
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as tracker:
        told = _Told(tracker)
        wrong = [
            *_check_sessions(calls, told, _dropped_ends(books)),
            *_check_figures(told),
            *_check_activities(calls, tracker),
        ]
    return [*wrong, *_check_database(folder, calls, books)]


def check_settled(told: Json) -> list[str]:
    """The last process delivered everything, holds no session, and let go of threads and files."""
    if not told:
        return ["the process that settles ended without a word; see settle.err"]
    wrong = []
    if not told["flushed"] or told["stats"]["pending"]:
        wrong.append(f"not everything was delivered in the end: {told['stats']}")
    if told["open_sessions"]:
        wrong.append(f"{told['open_sessions']} sessions are open in the end")
    if told["held_before"] != told["held_after"]:
        wrong.append(f"left behind in its process: {told['held_before']} became {told['held_after']}")
    return wrong


def check_folders(state_dirs: Sequence[Path], books: Sequence[Json]) -> list[str]:
    """The books are right, no segment is left, and nobody holds a lock."""
    wrong = [each for one in books for each in _check_books(one)]
    for path in (path for state_dir in state_dirs for path in state_dir.rglob("*") if path.is_file()):
        if ".journal-" in path.name:
            wrong.append(f"a segment is left: {path}")
        if ".corrupt-" in path.name:
            wrong.append(f"a state file was taken for damaged: {path}")
        if not _is_free(path):
            wrong.append(f"somebody holds a lock on {path}")
    return wrong


# --- sessions -----------------------------------------------------------------------------------------------


class _Told:
    """All that the tracker tells of conversations."""

    def __init__(self, tracker: httpx.Client) -> None:
        self.tracker = tracker
        self.conversations = list(self._all_conversations())
        self.episodes: defaultdict[str, list[Json]] = defaultdict(list)
        for each in sorted(
            self.conversations, key=lambda each: (each["start_time"], each["end_time"] or "~")
        ):
            self.episodes[each["session_id"]].append(each)

    def _all_conversations(self) -> Iterator[Json]:
        cursor = ""
        while True:
            page = self.get("/conversations", limit=500, **({"cursor": cursor} if cursor else {}))
            yield from page["conversations"]
            if not (cursor := page["next_cursor"]):
                return

    def get(self, path: str, **parameters: Any) -> Json:
        answer = self.tracker.get(path, params=parameters)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def world(self, session: str) -> World:
        return tuple(map(_episode, self.episodes.get(session, ())))


def _episode(told: Json) -> Episode:
    by_call = told["ended_by"] == "call"
    return Episode(
        told["status"],
        told["ended_by"] or "nobody",
        told["quality_score"],
        told["error_message"] if by_call else None,
        told["turns"],
    )


def _check_sessions(calls: Sequence[Call], told: _Told, dropped_ends: int) -> Iterator[str]:
    by_session: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.session is not None:
            by_session[call.session].append(call)
    stays_active = 0
    for session, its_calls in by_session.items():
        allowed, observed = acceptable(_session(session, its_calls)), told.world(session)
        if observed not in allowed:
            if any(episode.status == "active" for episode in observed) and stays_active < dropped_ends:
                stays_active += 1  # an inferred end was refused at the limit, and is counted
                continue
            yield f"{session}: {_listed([observed])} is none of {_listed(allowed)}"
    yield from _check_unknown(calls, set(told.episodes) - set(by_session))


def _session(session: str, calls: Sequence[Call]) -> Session:
    """In a session that was ended and went on, what follows may be recognised, and idle earlier."""
    by_call = not session.startswith("channel-")
    goes_on = any(call.op in ("end", "fail") for call in calls)
    window = min(TTL_SECONDS) if by_call and not goes_on else IDLE_SECONDS
    return Session(calls, int(window * 1e6), by_call)


def _listed(worlds: Sequence[World] | set[World]) -> str:
    return " or ".join(
        "; ".join(" ".join(map(str, episode)) for episode in world) or "nothing"
        for world in sorted(worlds, key=str)
    )


def _check_unknown(calls: Sequence[Call], sessions: set[str]) -> Iterator[str]:
    """A start whose process was killed before it returned has an id that nobody knows."""
    may_be = Counter(call.agent for call in calls if call.op == "start" and not call.returned)
    for session in sessions:
        agent = session.rsplit("_", 2)[0]
        may_be[agent] -= 1
        if may_be[agent] < 0:
            yield f"{session}: nobody started it"


# --- figures ------------------------------------------------------------------------------------------------


def _check_figures(told: _Told) -> Iterator[str]:
    """The figures are the sums of what is told of each conversation; nothing is open."""
    statuses = Counter(each["status"] for each in told.conversations)
    rated = [each["quality_score"] for each in told.conversations if each["quality_score"] is not None]
    overview = told.get("/metrics/overview", limit=1)
    rates, quality = overview["success_rates"], overview["quality"]
    expected = {
        "total": (rates["total"], len(told.conversations)),
        **{name: (rates[name], statuses[name]) for name in ("completed", "failed", "expired", "active")},
        "idle ended": (rates["idle_ended"], sum(each["ended_by"] == "idle" for each in told.conversations)),
        "turns": (overview["response_times"]["count"], sum(each["turns"] for each in told.conversations)),
        "rated": (quality["rated"], len(rated)),
        "failures": (overview["failures"]["count"], statuses["failed"]),
    }
    for name, (figure, counted) in expected.items():
        if figure != counted:
            yield f"the figures say {name}: {figure}, the conversations {counted}"


def _check_activities(calls: Sequence[Call], tracker: httpx.Client) -> Iterator[str]:
    certain: Counter[str] = Counter()
    possible: Counter[str] = Counter()
    for call in calls:
        if call.op == "activity":
            possible[call.agent] += 1
            certain[call.agent] += call.returned and not call.may_be_refused
    for agent, most in possible.items():
        answer = tracker.get(f"/agents/{agent}/activity", params={"limit": 1})
        known = answer.json()["total"] if answer.status_code == 200 else 0
        if not certain[agent] <= known <= most:
            yield f"{agent}: {known} activities are known, {certain[agent]} to {most} were logged"


# --- behind the scenes --------------------------------------------------------------------------------------


def _check_database(folder: Path, calls: Sequence[Call], books: Sequence[Json]) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{folder / 'tracker.sqlite3'}?mode=ro", uri=True)) as database:
        if (integrity := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the tracker's database: {integrity}"
        events: int = database.execute("SELECT count(*) FROM events").fetchone()[0]
        ratings = Counter(dict(database.execute(_RATINGS).fetchall()))
    delivered = sum(one["delivered"] for one in books)
    if delivered < events:
        yield f"the tracker has {events} events, only {delivered} were delivered"
    yield from _check_ratings(calls, ratings)


def _check_ratings(calls: Sequence[Call], known: Mapping[str, int]) -> Iterator[str]:
    by_session: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.op == "rate" and call.session is not None:
            by_session[call.session].append(call)
    for session, ratings in by_session.items():
        certain = sum(call.returned and not call.may_be_refused for call in ratings)
        if not certain <= known.get(session, 0) <= len(ratings):
            yield f"{session}: {known.get(session, 0)} ratings are known, {certain} to {len(ratings)} were given"


_RATINGS = (
    "SELECT session_id, count(*) FROM events WHERE path = '/conversations/feedback' GROUP BY session_id"
)


# --- the books ----------------------------------------------------------------------------------------------


def _check_books(books: Json) -> Iterator[str]:
    parts = ("delivered", "pending", "dead_lettered", "dropped")
    if books["accepted"] != sum(books[name] for name in parts):
        yield f"accepted is not the sum of its parts: {books}"
    if books["pending"] or books["dead_lettered"]:
        yield f"pending or dead-lettered in the end: {books}"
    if strange := set(books["dropped_by_kind"]) - LIMIT_KINDS:
        yield f"dropped although nothing asked for it: {sorted(strange)} in {books}"


def _dropped_ends(books: Sequence[Json]) -> int:
    """How many ends were refused at the limit."""
    return sum(one["dropped_by_kind"].get(_DROPPED_ENDS, 0) for one in books)


def _is_free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
