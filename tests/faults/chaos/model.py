"""What the tracker may say of a session when the storm is over, worked out from the calls alone.

It is a model of the outcome rules, not a copy of them: it knows only what can happen here. The calls of a session
are walked through in order of time. Life (a start, a turn) opens an episode; the first end by call closes it, and
later ones add nothing; life after an end opens the next episode. An episode that nobody ended must end by its time
to live, or idle where nobody started it by call. None stays active.

More than one answer is right where the log does not decide, and only there:

- A call that its killed process never saw return may have counted or not. So may one during which the process
  counted a refusal at the state folder's limit: then its event was dropped, and the books say so, though the call
  returned as always. (`start_conversation` returns an id all the same. Whatever else is known of that session
  makes it known.)
- Two calls whose times overlap may have come in either order.
- Where life paused for longer than the shortest window, somebody may have ended the episode meanwhile, or may not
  have looked before it went on.
- After an end by call a process that has not heard of it may go on with the conversation as one started by call,
  which ends by its time to live; one that has heard of it opens the next as recognised, which ends idle.

An end by call that was refused (False) must have a reason that its process knew of: an earlier end, or what it had to
take for a pause that was long enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import NamedTuple

from tests.faults.chaos.calls import Call

__all__ = ["Episode", "Session", "acceptable"]

MARGIN_US = 50_000
SOURCES = ("operator", "user", "evaluator")


class Episode(NamedTuple):
    """One conversation as the tracker tells it; `error` is that of an end by call."""

    status: str
    ended_by: str
    quality: float | None
    error: str | None
    turns: int


@dataclass(frozen=True, slots=True)
class Session:
    """The calls about one session; `window_us` is the shortest after which anybody may end it.

    `by_call` says that its id was minted by `start_conversation`.
    """

    calls: Sequence[Call]
    window_us: int
    by_call: bool


World = tuple[Episode, ...]


def acceptable(session: Session) -> set[World]:
    """What the tracker may say, oldest episode first; nothing at all is the empty tuple."""
    refused_ends = [call for call in session.calls if _is_refused_end(call)]
    if not all(_has_reason(session, refused) for refused in refused_ends):
        return set()
    telling = [call for call in session.calls if call.op in _TELLING and call not in refused_ends]
    worlds: set[World] = set()
    for counted in _choices(telling):
        for ordered in _orders(counted):
            for closed in product(*[_closings(session, ordered, at) for at in range(len(ordered))]):
                worlds |= _walk(session, ordered, closed)
    return worlds


def _is_refused_end(call: Call) -> bool:
    return call.op in _ENDS and call.returned and call.result is False


def _choices(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Every way in which the uncertain calls may have counted or not."""
    for chosen in product(*map(_shapes, calls)):
        yield [call for call in chosen if call is not None]


def _shapes(call: Call) -> list[Call | None]:
    """What may be known of a call; of a turn perhaps only that it opened an episode, which is told first."""
    if call.returned and not call.may_be_refused:
        return [call]
    opening = [replace(call, op="opening")] if call.op == "turn" else []
    return [call, *opening, None]


def _orders(calls: list[Call]) -> Iterator[list[Call]]:
    """Every order that the times allow: one that had returned before another began comes first."""
    if not calls:
        yield []
    for index, first in enumerate(calls):
        if all(other is first or other.end_us >= first.begin_us for other in calls):
            for rest in _orders(calls[:index] + calls[index + 1 :]):
                yield [first, *rest]


def _closings(session: Session, ordered: list[Call], at: int) -> tuple[bool, ...]:
    """Whether an inference may have closed the episode before the call at that place."""
    lives = [call for call in ordered[: at + 1] if call.op in _LIFE]
    is_life = ordered[at].op in _LIFE
    return (False, True) if is_life and _paused(session, lives[-2:]) else (False,)


def _paused(session: Session, calls: list[Call]) -> bool:
    """Whether life may have paused for longer than the window between two calls that follow each other."""
    gaps = [later.end_us - earlier.begin_us for earlier, later in pairwise(calls)]
    return max(gaps, default=0) > session.window_us - MARGIN_US


def _has_reason(session: Session, refused: Call) -> bool:
    """Whether an end that was refused had a reason that its process knew of: an end, or a pause after which it was one.

    Of what was refused at the limit a process knows, though the tracker does not. Of the other processes of its host
    it hears a second later, or much later where it or they were stopped, or the folder takes nothing: so it may know
    what they did only up to some moment.
    """
    known = [
        call
        for call in session.calls
        if call.host == refused.host and call.begin_us < refused.end_us and not _is_refused_end(call)
    ]
    lives = [call for call in known if call.op in _LIFE]
    views = [
        [call for call in lives if call.worker == refused.worker or call.end_us < heard_us]
        for heard_us in (refused.end_us, *(call.end_us for call in lives))
    ]
    return any(call.op in _ENDS for call in known) or any(
        _paused(session, [*view, refused]) for view in views
    )


@dataclass(slots=True)
class _Open:
    """An episode while it is walked through."""

    first: Call
    turns: list[Call]
    ratings: list[tuple[str, int]]
    end: Call | None = None
    inferred: bool = False

    @property
    def over(self) -> bool:
        return self.inferred or self.end is not None


def _walk(session: Session, ordered: list[Call], closed: tuple[bool, ...]) -> set[World]:
    """What this order of calls comes to."""
    episodes: list[_Open] = []
    early: list[tuple[str, int]] = []
    for at, call in enumerate(ordered):
        if closed[at] and episodes:
            episodes[-1].inferred = True
        if call.op == "rate":
            ratings = episodes[-1].ratings if episodes else early
            ratings.append((call.details["source"], call.details["score"]))
        elif call.op in _ENDS:
            if not episodes:
                episodes.append(_Open(call, [], []))
            _end(episodes[-1], call)
        else:
            if not episodes or episodes[-1].over:
                episodes.append(_Open(call, [], []))
            if call.op == "turn":
                episodes[-1].turns.append(call)
    if episodes:
        episodes[0].ratings[:0] = early
    return set(product(*[_told(session, number, episode) for number, episode in enumerate(episodes)]))


def _end(episode: _Open, call: Call) -> None:
    """The first end by call wins, and beats every inferred one; its quality is a user's rating of that moment."""
    if episode.end is None:
        episode.end = call
        if (quality := call.details.get("quality")) is not None:
            episode.ratings.append(("user", quality))


def _told(session: Session, number: int, episode: _Open) -> list[Episode]:
    quality, turns = _quality(episode.ratings), len(episode.turns)
    if episode.end is not None:
        error = episode.end.details.get("error")
        return [Episode("failed" if error else "completed", "call", quality, error, turns)]
    expired = Episode("expired", "ttl", quality, None, turns)
    idle = [Episode(status, "idle", quality, None, turns) for status in _idle_statuses(session, episode)]
    if not session.by_call:
        return idle
    return [expired] if episode.first.op == "start" else [expired, *idle]


def _idle_statuses(session: Session, episode: _Open) -> set[str]:
    """As the last turn was that any host knew; one that was refused, or told by nobody, was known to its own."""
    if any(call.op == "turn" and (call.may_be_refused or not call.returned) for call in session.calls):
        return {"completed", "failed"}
    last = {call.host: "failed" if "error" in call.details else "completed" for call in episode.turns}
    return set(last.values()) or {"completed"}


def _quality(ratings: list[tuple[str, int]]) -> float | None:
    """The newest rating by the highest source that gave any."""
    for source in SOURCES:
        scores = [score for by, score in ratings if by == source]
        if scores:
            return float(scores[-1])
    return None


_LIFE = ("start", "turn", "opening")
_ENDS = ("end", "fail")
_TELLING = ("start", "turn", *_ENDS, "rate")
