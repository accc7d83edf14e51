"""The outcome rules: which conversations a session holds and how each ended.

`conversations` is a pure function of the *set* of events of one (project, session): neither the order nor the
repetition of their arrival matters, and all who know the same events say the same.

Starts and turns are life: they open a conversation or go on with the one that is open. Ends close it. All
are put in order of time and walked through once. What makes one walk enough:

- An inferred end that life refutes, anywhere in the session, is dropped before the walk, as if it had never
  been sent.
- All life is therefore either finished when one of those left closes, or begins after its whole window. Of
  several ends without life between them any may close the conversation. Which of them *wins* decides its
  outcome, never the borders of its neighbours.
- An end joins the newest conversation, open or closed. So only a session's first conversation can consist of
  ends alone, and a start that an end merely claims cannot reach into an earlier conversation.

Times are integers of Unix microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, TypeGuard, TypeVar

from otel_agent_tracker import arguments, wire
from otel_agent_tracker.semconv import (
    EndedBy,
    ExpiryReason,
    FeedbackSource,
    Origin,
    Outcome,
    TurnStatus,
)

__all__ = [
    "Conversation",
    "ConversationRequest",
    "End",
    "Event",
    "Feedback",
    "Start",
    "Turn",
    "conversations",
    "read_event",
]

Metadata = dict[str, Any]
ConversationRequest = (
    wire.ConversationStart
    | wire.ConversationTurn
    | wire.ConversationEnd
    | wire.ConversationExpired
    | wire.ConversationFeedback
)
_Choice = TypeVar("_Choice", EndedBy, Origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A conversation was started by a call, or a start was recognised in other people's spans."""

    event_id: str
    time_us: int
    agent_id: str
    user_id: str | None = None
    origin: Origin = Origin.CALL
    metadata: Metadata | None = None
    ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request to the agent and its answer; `time_to_first_token` is in seconds."""

    event_id: str
    turn_id: str
    start_us: int
    end_us: int
    agent_id: str
    status: TurnStatus
    user_id: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    time_to_first_token: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Somebody ended the conversation by a call, or an inference says that it is over.

    `start_us` is what the sender believes its start to be, `idle_us` the window W in which nothing must have
    happened after the last activity L for an inferred end to count.
    """

    event_id: str
    end_us: int
    agent_id: str
    outcome: Outcome
    ended_by: EndedBy = EndedBy.CALL
    start_us: int | None = None
    last_activity_us: int | None = None
    idle_us: int = 0
    quality: int | None = None
    feedback: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    message_count: int | None = None
    metadata: Metadata | None = None
    ungrouped: bool = False

    @property
    def last_known_us(self) -> int:
        """The last activity L; the end itself if the sender did not say."""
        return self.end_us if self.last_activity_us is None else self.last_activity_us

    @property
    def closes_us(self) -> int:
        """Where it closes a conversation: a call at its own time, an inference at the last activity."""
        return self.end_us if self.ended_by == EndedBy.CALL else self.last_known_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A rating (1 to 5; thumbs up are 5, down 1), a comment or both, of a conversation or of one turn."""

    feedback_id: str
    time_us: int
    source: FeedbackSource
    score: int | None
    name: str | None = None
    text: str | None = None
    turn_id: str | None = None

    @property
    def event_id(self) -> str:
        """The feedback's id, under the name that every event has."""
        return self.feedback_id


_Lifecycle = Start | Turn | End
Event = _Lifecycle | Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One episode of a session, as far as the known events tell.

    `number` counts from 1 within the session. `end_us` and `ended_by` are None while the outcome is active.
    `origin` is "call" where a start by call is known. `quality` is fractional where only turns were rated.
    `metadata` is the user's, the winning end's over the start's; None if there is none. `ratings` holds all
    feedback in order of time, what the winning end brought included. `waiting` says that the last turn waits
    for a human. `superseded` names the ends that counted but lost against the winning one, strongest first.
    """

    number: int
    agent_id: str
    user_id: str | None
    start_us: int
    end_us: int | None
    outcome: Outcome
    ended_by: EndedBy | None
    quality: float | None
    feedback: str | None
    error_type: str | None
    error_message: str | None
    message_count: int | None
    metadata: Metadata | None
    origin: Origin
    turns: tuple[Turn, ...]
    ratings: tuple[Feedback, ...]
    last_activity_us: int
    ttl_seconds: float | None
    waiting: bool
    ungrouped: bool
    superseded: tuple[str, ...]


def conversations(events: Iterable[Event]) -> list[Conversation]:
    """The conversations of one session, oldest first; `events` may come in any order and repeatedly.

    Without a start, a turn or an end there is none, and feedback alone makes none.
    """
    ordered = sorted(_merged(events), key=_order)
    feedback = [event for event in ordered if isinstance(event, Feedback)]
    lifecycle = [event for event in ordered if not isinstance(event, Feedback)]
    episodes = _walk(_without_refuted(lifecycle))
    _attach(feedback, episodes)
    return [_conversation(number, episode) for number, episode in enumerate(episodes, start=1)]


def read_event(request: ConversationRequest, event_id: str) -> Event:
    """The event that a request of the REST protocol tells.

    Raises ValueError for a time that is none or lies before 1970 or after 9999, a score outside 1 to 5 and a
    word outside its closed set. ``metadata.agent_tracker`` is read as far as it makes sense.
    """
    match request:
        case wire.ConversationStart():
            return _read_start(request, event_id)
        case wire.ConversationTurn():
            return _read_turn(request, event_id)
        case wire.ConversationEnd():
            return _read_end(request, event_id)
        case wire.ConversationExpired():
            return _read_expired(request, event_id)
        case wire.ConversationFeedback():
            return _read_feedback(request, event_id)


# --- the set, in order --------------------------------------------------------------------------------------


def _merged(events: Iterable[Event]) -> list[Event]:
    """One event for each event id."""
    by_id: dict[str, list[Event]] = {}
    for event in events:
        by_id.setdefault(event.event_id, []).append(event)
    return [same[0] if len(same) == 1 else _merge(same) for same in by_id.values()]


def _merge(same: list[Event]) -> Event:
    """The first of `same` in a fixed order; the others add fields that it lacks and change none."""
    merged, *others = sorted(same, key=lambda event: (*_order(event), repr(event)))
    for other in others:
        if type(other) is type(merged):
            lacking = [f.name for f in fields(merged) if getattr(merged, f.name) is None]
            merged = replace(merged, **{name: getattr(other, name) for name in lacking})
    return merged


def _order(event: Event) -> tuple[int, int, str]:
    """By time; in the same microsecond life comes first, so that an end closes it too."""
    match event:
        case Start():
            return event.time_us, 0, event.event_id
        case Turn():
            return event.start_us, 1, event.event_id
        case End():
            return event.closes_us, 2, event.event_id
        case Feedback():
            return event.time_us, 3, event.event_id


# --- the walk -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Episode:
    """The events of one conversation, in order of time; the ends by who wins, the winning one first."""

    starts: list[Start] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    origin: Origin = Origin.RECOGNISED

    def add(self, event: Start | Turn | End) -> None:
        match event:
            case Start():
                self.starts.append(event)
                if event.origin == Origin.CALL:
                    self.origin = Origin.CALL
            case Turn():
                self.turns.append(event)
            case End():
                self._add_end(event)

    def _add_end(self, end: End) -> None:
        # What was started by a call has somebody to end it: only a call or its time to live does.
        if not (end.ended_by in (EndedBy.IDLE, EndedBy.TURN) and self.origin == Origin.CALL):
            self.ends.append(end)

    @property
    def agent_id(self) -> str:
        events: Iterator[_Lifecycle] = chain(self.starts, self.turns, self.ends)
        return next(events).agent_id

    @property
    def user_id(self) -> str | None:
        life: Iterator[Start | Turn] = chain(self.starts, self.turns)
        return next((event.user_id for event in life if event.user_id), None)

    @property
    def start_us(self) -> int:
        if self.starts:
            return self.starts[0].time_us
        if self.turns:
            return self.turns[0].start_us
        return self._claimed_start_us

    @property
    def _claimed_start_us(self) -> int:
        end_us = self.ends[0].closes_us
        claimed = (end.start_us for end in self.ends if end.start_us is not None)
        return min(next(claimed, end_us), end_us)


def _without_refuted(ordered: list[_Lifecycle]) -> list[_Lifecycle]:
    """All but the inferred ends that a turn still running, or life within their window, proves wrong."""
    kept = []
    busy_until = 0
    for event, next_life in zip(ordered, _next_lives(ordered), strict=True):
        if isinstance(event, Turn):
            busy_until = max(busy_until, event.end_us)
        if not _is_inferred(event) or _holds(event, busy_until, next_life):
            kept.append(event)
    return kept


def _next_lives(ordered: list[_Lifecycle]) -> list[int | None]:
    """For each event when the next start or turn after it begins."""
    lives: list[int | None] = []
    following = None
    for event in reversed(ordered):
        lives.append(following)
        if not isinstance(event, End):
            following = _order(event)[0]
    return lives[::-1]


def _is_inferred(event: _Lifecycle) -> TypeGuard[End]:
    return isinstance(event, End) and event.ended_by != EndedBy.CALL


def _holds(end: End, busy_until: int, next_life: int | None) -> bool:
    alive_after = busy_until > end.closes_us
    alive_within = next_life is not None and next_life <= end.closes_us + end.idle_us
    return not (alive_after or alive_within)


def _walk(ordered: list[_Lifecycle]) -> list[_Episode]:
    """Split the events into conversations: life after an end opens the next, an end joins the newest."""
    episodes: list[_Episode] = []
    for event in ordered:
        if not episodes or (episodes[-1].ends and not isinstance(event, End)):
            episodes.append(_Episode())
        episodes[-1].add(event)
    for episode in episodes:
        episode.ends.sort(key=_precedence)
    return episodes


def _precedence(end: End) -> tuple[int, int, int, str]:
    """The smallest wins: the earliest call, else the inference that saw the latest activity."""
    if end.ended_by == EndedBy.CALL:
        return 0, end.end_us, 0, end.event_id
    return 1, -end.closes_us, _INFERENCES.index(end.ended_by), end.event_id


def _attach(feedback: list[Feedback], episodes: list[_Episode]) -> None:
    """Give feedback to the conversation of its turn, else to the newest begun by then, else to the first."""
    if not (feedback and episodes):
        return
    of_turn = {turn.turn_id: episode for episode in reversed(episodes) for turn in episode.turns}
    starts = [episode.start_us for episode in episodes]
    for each in feedback:
        newest = episodes[max(bisect_right(starts, each.time_us) - 1, 0)]
        episode = of_turn.get(each.turn_id, newest) if each.turn_id else newest
        episode.feedback.append(each)


# --- what the events of one conversation say together -------------------------------------------------------


def _conversation(number: int, episode: _Episode) -> Conversation:
    end = episode.ends[0] if episode.ends else None
    said = end or _NOTHING_SAID
    ratings = _ratings(episode.feedback, said)
    return Conversation(
        number=number,
        agent_id=episode.agent_id,
        user_id=episode.user_id,
        start_us=episode.start_us,
        end_us=end.closes_us if end else None,
        outcome=said.outcome,
        ended_by=end.ended_by if end else None,
        quality=_quality(ratings),
        feedback=_comment(ratings),
        error_type=said.error_type,
        error_message=said.error_message,
        message_count=said.message_count,
        metadata=_user_metadata(*reversed(episode.starts), said),
        origin=episode.origin,
        turns=tuple(episode.turns),
        ratings=ratings,
        last_activity_us=max(_activity(episode)),
        ttl_seconds=max((start.ttl_seconds for start in episode.starts if start.ttl_seconds), default=None),
        waiting=bool(episode.turns) and episode.turns[-1].status == TurnStatus.WAITING,
        ungrouped=said.ungrouped,
        superseded=tuple(lost.event_id for lost in episode.ends[1:]),
    )


def _activity(episode: _Episode) -> Iterator[int]:
    yield episode.start_us
    yield from (start.time_us for start in episode.starts)
    yield from (turn.end_us for turn in episode.turns)
    yield from (end.last_known_us for end in episode.ends[:1])


def _user_metadata(*carriers: Start | End) -> Metadata | None:
    """Later carriers win, key by key."""
    merged: Metadata = {}
    for carrier in carriers:
        merged.update(carrier.metadata or {})
    merged.pop(_OURS, None)
    return merged or None


def _ratings(feedback: list[Feedback], end: End) -> tuple[Feedback, ...]:
    """All feedback in order of time; what the winning end brought is a user's, given at its end."""
    if end.quality is None and end.feedback is None:
        return tuple(feedback)
    brought = Feedback(
        feedback_id=end.event_id,
        time_us=end.end_us,
        source=FeedbackSource.USER,
        score=end.quality,
        text=end.feedback,
    )
    return tuple(sorted([*feedback, brought], key=_order))


def _quality(ratings: tuple[Feedback, ...]) -> float | None:
    """The newest rating of the whole by the highest source that rated anything, else its turns' mean."""
    for source in _SOURCES:
        scores = [(each.turn_id, each.score) for each in ratings if each.source == source and each.score]
        whole = [score for turn_id, score in scores if turn_id is None]
        if whole:
            return float(whole[-1])
        if scores:
            return sum(score for _, score in scores) / len(scores)
    return None


def _comment(ratings: tuple[Feedback, ...]) -> str | None:
    """The newest words of a person about the whole."""
    people = (FeedbackSource.USER, FeedbackSource.OPERATOR)
    about_the_whole = (each for each in reversed(ratings) if each.turn_id is None and each.source in people)
    return next((each.text for each in about_the_whole if each.text), None)


# --- from the wire ------------------------------------------------------------------------------------------


def _read_start(request: wire.ConversationStart, event_id: str) -> Start:
    ours = _Ours(request.metadata)
    return Start(
        event_id=event_id,
        time_us=_time("start_time", request.start_time),
        agent_id=request.agent_id,
        user_id=request.user_id,
        origin=ours.choice("origin", Origin.CALL),
        metadata=request.metadata,
        ttl_seconds=ours.seconds("ttl_seconds") or None,
    )


def _read_turn(request: wire.ConversationTurn, event_id: str) -> Turn:
    start_us = _time("start_time", request.start_time)
    return Turn(
        event_id=event_id,
        turn_id=request.turn_id,
        start_us=start_us,
        end_us=max(start_us, _time("end_time", request.end_time)),  # a wall clock may be set back meanwhile
        agent_id=request.agent_id,
        status=arguments.member("status", request.status, TurnStatus),
        user_id=request.user_id,
        error_type=request.error_type,
        error_message=request.error_message,
        time_to_first_token=request.time_to_first_token,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
    )


def _read_end(request: wire.ConversationEnd, event_id: str) -> End:
    ours = _Ours(request.metadata)
    score = request.quality_score
    return End(
        event_id=event_id,
        end_us=_time("end_time", request.end_time),
        agent_id=request.agent_id,
        outcome=_outcome(request.status, Outcome.COMPLETED, Outcome.FAILED),
        ended_by=ours.choice("ended_by", EndedBy.CALL),
        start_us=_time("start_time", request.start_time),
        last_activity_us=ours.time("last_activity_time"),
        idle_us=_microseconds(ours.seconds("idle_seconds")),
        quality=None if score is None else arguments.quality("quality_score", score),
        feedback=request.user_feedback,
        error_type=ours.text("error_type"),
        error_message=request.error_message,
        message_count=request.message_count,
        metadata=request.metadata,
        ungrouped=ours.flag("ungrouped"),
    )


def _read_expired(request: wire.ConversationExpired, event_id: str) -> End:
    ours = _Ours(request.metadata)
    reason = _EXPIRY[arguments.member("expiry_reason", request.expiry_reason, ExpiryReason)]
    ended_by = ours.choice("ended_by", reason)
    return End(
        event_id=event_id,
        end_us=_time("end_time", request.end_time),
        agent_id=request.agent_id,
        outcome=_outcome(request.status, Outcome.EXPIRED),
        ended_by=ended_by if ended_by in _EXPIRY.values() else reason,
        start_us=_time("start_time", request.start_time),
        last_activity_us=ours.time("last_activity_time"),
        idle_us=_microseconds(ours.seconds("idle_seconds")),
        metadata=request.metadata,
        ungrouped=ours.flag("ungrouped"),
    )


def _read_feedback(request: wire.ConversationFeedback, event_id: str) -> Feedback:
    score = request.quality_score
    return Feedback(
        feedback_id=event_id,
        time_us=_time("timestamp", request.timestamp),
        source=arguments.member("source", request.source, FeedbackSource),
        score=_thumbs(request.thumbs) if score is None else arguments.quality("quality_score", score),
        name=request.name,
        text=request.user_feedback,
        turn_id=request.turn_id,
    )


def _thumbs(thumbs: str | None) -> int | None:
    if thumbs is not None and thumbs not in _THUMBS:
        raise ValueError(f"thumbs must be one of {', '.join(_THUMBS)}, not {thumbs!r}")
    return None if thumbs is None else _THUMBS[thumbs]


def _outcome(status: str, *accepted: Outcome) -> Outcome:
    if status not in accepted:
        raise ValueError(f"status must be one of {', '.join(accepted)}, not {status!r}")
    return Outcome(status)


def _time(name: str, text: str) -> int:
    try:
        time_us = wire.parse_time(text)
    except ValueError:
        raise ValueError(f"{name} must be an RFC 3339 time, not {text[:64]!r}") from None
    if not 0 <= time_us < _YEAR_10000_US:
        raise ValueError(f"{name} must lie between 1970 and 9999, not {text[:64]!r}")
    return time_us


def _microseconds(seconds: float | None) -> int:
    return round((seconds or 0) * 1_000_000)


class _Ours:
    """``metadata.agent_tracker``, read leniently: a value that makes no sense is as if it were not there."""

    def __init__(self, metadata: Metadata | None) -> None:
        ours = (metadata or {}).get(_OURS)
        self._values: Metadata = ours if isinstance(ours, dict) else {}

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def flag(self, name: str) -> bool:
        return self._values.get(name) is True

    def choice(self, name: str, default: _Choice) -> _Choice:
        try:
            return type(default)(self._values.get(name, default))
        except ValueError:
            return default

    def seconds(self, name: str) -> float | None:
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if 0 <= value <= _YEAR_10000_US // 1_000_000 else None

    def time(self, name: str) -> int | None:
        text = self.text(name)
        try:
            return None if text is None else _time(name, text)
        except ValueError:
            return None


_OURS = "agent_tracker"
_YEAR_10000_US = 253_402_300_800_000_000
_INFERENCES = (EndedBy.TTL, EndedBy.IDLE, EndedBy.TURN, EndedBy.EVICTED, EndedBy.SERVER)
_SOURCES = (FeedbackSource.OPERATOR, FeedbackSource.USER, FeedbackSource.EVALUATOR)
_THUMBS = {"up": 5, "down": 1}
_EXPIRY = {
    ExpiryReason.TTL_TIMEOUT: EndedBy.TTL,
    ExpiryReason.EVICTED: EndedBy.EVICTED,
    ExpiryReason.SERVER: EndedBy.SERVER,
}
_NOTHING_SAID = End(event_id="", end_us=0, agent_id="", outcome=Outcome.ACTIVE)
