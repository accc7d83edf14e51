"""The outcome rules, one by one, then as properties, then against a slow derivation by another method.

Times are small numbers of microseconds, so that the rules about equal moments are met often.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, combinations, count, pairwise, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_agent_tracker import wire
from otel_agent_tracker.outcome import (
    Conversation,
    ConversationRequest,
    End,
    Event,
    Feedback,
    Start,
    Turn,
    conversations,
    read_event,
)
from otel_agent_tracker.semconv import EndedBy, FeedbackSource, Origin, Outcome, TurnStatus

INFERRED = (EndedBy.TTL, EndedBy.IDLE, EndedBy.TURN, EndedBy.EVICTED, EndedBy.SERVER)
EVALUATOR, USER, OPERATOR = FeedbackSource.EVALUATOR, FeedbackSource.USER, FeedbackSource.OPERATOR


def start(time_us: int, event_id: str = "", **fields: Any) -> Start:
    return Start(event_id=event_id or f"start@{time_us}", time_us=time_us, agent_id="a", **fields)


def recognised(time_us: int, **fields: Any) -> Start:
    return start(time_us, origin=Origin.RECOGNISED, **fields)


def turn(
    start_us: int, end_us: int, event_id: str = "", *, status: TurnStatus = TurnStatus.OK, **fields: Any
) -> Turn:
    name = event_id or f"turn@{start_us}-{end_us}"
    return Turn(
        event_id=name, turn_id=name, start_us=start_us, end_us=end_us, agent_id="a", status=status, **fields
    )


def end(end_us: int, event_id: str = "", *, result: Outcome = Outcome.COMPLETED, **fields: Any) -> End:
    return End(event_id=event_id or f"end@{end_us}", end_us=end_us, agent_id="a", outcome=result, **fields)


def inferred(kind: EndedBy, last_us: int, idle_us: int = 0, event_id: str = "", **fields: Any) -> End:
    return End(
        event_id=event_id or f"{kind}@{last_us}+{idle_us}",
        end_us=last_us + idle_us,
        last_activity_us=last_us,
        idle_us=idle_us,
        agent_id="a",
        outcome=Outcome.COMPLETED if kind in (EndedBy.IDLE, EndedBy.TURN) else Outcome.EXPIRED,
        ended_by=kind,
        **fields,
    )


def ttl(last_us: int, idle_us: int = 0, event_id: str = "", **fields: Any) -> End:
    return inferred(EndedBy.TTL, last_us, idle_us, event_id, **fields)


def rating(
    time_us: int,
    score: int | None,
    source: FeedbackSource = USER,
    *,
    feedback_id: str = "",
    text: str | None = None,
    turn_id: str | None = None,
) -> Feedback:
    return Feedback(
        feedback_id=feedback_id or f"rating@{time_us}:{source}",
        time_us=time_us,
        source=source,
        score=score,
        text=text,
        turn_id=turn_id,
    )


def only(*events: Event) -> Conversation:
    """The one conversation that `events` make."""
    (conversation,) = conversations(events)
    return conversation


def spans(*events: Event) -> list[tuple[int, int | None, str | None]]:
    """Start, end and who ended it of each conversation."""
    return [(each.start_us, each.end_us, each.ended_by) for each in conversations(events)]


# --- the order of events ------------------------------------------------------------------------------------


def test_no_events_make_no_conversation() -> None:
    """Nothing is derived from nothing."""
    assert conversations([]) == []


def test_order_of_arrival_never_matters() -> None:
    """Events are put in order of time."""
    events: list[Event] = [start(1), turn(2, 3), end(4), start(6), turn(7, 8), ttl(8, 5)]
    expected = conversations(events)
    assert [each.outcome for each in expected] == [Outcome.COMPLETED, Outcome.EXPIRED]
    assert all(conversations(shuffled) == expected for shuffled in permutations(events))


def test_a_turn_is_placed_by_its_start() -> None:
    """A turn by its *start*: one that an end by call interrupts belongs to what that end closes."""
    conversation = only(start(0), turn(5, 20), end(10))
    assert (conversation.end_us, len(conversation.turns)) == (10, 1)


def test_a_start_in_the_microsecond_of_an_end_belongs_to_what_that_end_closes() -> None:
    """At equal times starts and turns come before ends."""
    assert spans(start(5), turn(5, 5), end(5)) == [(5, 5, "call")]
    assert spans(start(0), start(5, "again"), end(5)) == [(0, 5, "call")]
    assert spans(start(0), turn(5, 5), ttl(5, 3)) == [(0, 5, "ttl")]


def test_which_conversation_an_end_belongs_to_is_never_decided_by_the_start_it_claims() -> None:
    """It is decided by this walk alone, never by comparing start times."""
    assert spans(start(0), end(5), start(10), end(15, start_us=0)) == [(0, 5, "call"), (10, 15, "call")]


# --- what closes --------------------------------------------------------------------------------------------


def test_an_end_by_call_closes_at_its_end_time() -> None:
    """An end by call closes at its `end_time`."""
    assert spans(start(0), end(9, last_activity_us=4)) == [(0, 9, "call")]


@pytest.mark.parametrize("kind", INFERRED)
def test_an_inferred_end_closes_at_the_last_activity(kind: EndedBy) -> None:
    """It counts if nothing refutes it; it then closes at L."""
    assert spans(recognised(0), turn(1, 4), inferred(kind, 4, 30)) == [(0, 4, kind)]


def test_an_inferred_end_with_a_start_in_its_window_does_not_count() -> None:
    """It counts only if no start lies in (L, L+W]."""
    assert spans(start(0), ttl(4, 6), start(10)) == [(0, None, None)]


def test_the_window_is_open_at_the_last_activity_and_closed_at_its_far_side() -> None:
    """(L, L+W]: a start at L is the last activity itself, one after L+W opens the next conversation."""
    assert spans(start(4), ttl(4, 6)) == [(4, 4, "ttl")]
    assert spans(start(0), ttl(4, 6), start(11)) == [(0, 4, "ttl"), (11, None, None)]


@pytest.mark.parametrize("running", [turn(1, 5), turn(4, 5), turn(6, 20), turn(10, 10), turn(10, 11)])
def test_an_inferred_end_that_a_turn_overlaps_does_not_count(running: Turn) -> None:
    """It counts only if no turn overlaps it: none that starts by L+W and ends after L."""
    assert spans(start(0), running, ttl(4, 6)) == [(0, None, None)]


def test_turns_that_touch_the_window_from_outside_leave_it_standing() -> None:
    """A turn that ends at L, or starts after L+W, does not overlap."""
    assert spans(start(0), turn(1, 4), ttl(4, 6), turn(11, 12)) == [(0, 4, "ttl"), (11, None, None)]


def test_a_turn_of_an_earlier_conversation_refutes_too() -> None:
    """None can close what is alive: a turn still running from before is life of the session."""
    assert spans(start(0), turn(1, 30), end(5), start(10), ttl(12, 6)) == [(0, 5, "call"), (10, None, None)]


def test_a_refuted_end_is_as_if_it_had_never_been_sent() -> None:
    """It closes nothing, opens nothing, and what it says about start and metadata is not used."""
    events: list[Event] = [turn(10, 12), end(20)]
    refuted = ttl(5, 9, start_us=1, metadata={"key": "refuted"})
    assert conversations([*events, refuted]) == conversations(events)


def test_an_evicted_end_carries_its_window_as_any_other() -> None:
    """`evicted` carries the TTL as W."""
    evicted = inferred(EndedBy.EVICTED, 4, 6)
    assert spans(start(0), evicted, turn(10, 11)) == [(0, None, None)]
    assert spans(start(0), evicted, turn(11, 12)) == [(0, 4, "evicted"), (11, None, None)]


def test_an_inferred_end_without_further_fields_has_no_window() -> None:
    """Without these fields: L = `end_time`, W = 0."""
    plain = End(event_id="e", end_us=4, agent_id="a", outcome=Outcome.EXPIRED, ended_by=EndedBy.TTL)
    assert spans(start(0), plain, start(5)) == [(0, 4, "ttl"), (5, None, None)]
    assert spans(start(0), plain, turn(3, 5)) == [(0, None, None)]


@pytest.mark.parametrize("kind", [EndedBy.IDLE, EndedBy.TURN])
def test_idle_and_turn_ends_do_not_count_where_a_start_by_call_is_known(kind: EndedBy) -> None:
    """Idle and turn ends do not count where a start by call is known."""
    events: list[Event] = [recognised(0), start(1), turn(2, 4)]
    assert conversations([*events, inferred(kind, 4, 6)]) == conversations(events)


@pytest.mark.parametrize("kind", [EndedBy.TTL, EndedBy.EVICTED, EndedBy.SERVER])
def test_other_inferences_end_what_was_started_by_call(kind: EndedBy) -> None:
    """Sessions started by call end by call or TTL."""
    assert only(start(0), inferred(kind, 4, 6)).ended_by == kind


def test_a_start_by_call_bars_idle_ends_of_its_own_conversation_only() -> None:
    """What counts is the conversation that the end would end."""
    idle = inferred(EndedBy.IDLE, 14, 5)
    assert spans(start(0), end(5), turn(12, 14), idle) == [(0, 5, "call"), (12, 14, "idle")]
    assert spans(turn(12, 14), idle, start(30)) == [(12, 14, "idle"), (30, None, None)]


# --- what opens the next ------------------------------------------------------------------------------------


def test_a_start_after_an_end_by_call_opens_the_next_conversation() -> None:
    """A start after a closing end by call opens the next conversation."""
    assert spans(start(0), end(5), start(6)) == [(0, 5, "call"), (6, None, None)]


def test_a_turn_that_starts_after_an_end_by_call_opens_the_next_conversation() -> None:
    """A turn that *starts* after a closing end by call opens the next conversation."""
    assert spans(start(0), end(5), turn(6, 7)) == [(0, 5, "call"), (6, None, None)]


def test_after_an_inferred_end_the_next_begins_behind_its_window() -> None:
    """After L+W of a closing inferred end, not after L."""
    assert spans(start(0), ttl(5, 10), turn(16, 17)) == [(0, 5, "ttl"), (16, None, None)]
    assert spans(start(0), ttl(5, 10), turn(15, 17)) == [(0, None, None)]


def test_starts_and_turns_without_an_end_between_are_one_conversation() -> None:
    """Only what comes after an end opens the next."""
    assert spans(start(0), turn(1, 2), start(50), turn(60, 61)) == [(0, None, None)]


def test_a_later_end_by_call_with_no_life_between_belongs_to_the_closed_conversation() -> None:
    """A later end by call with no such event between belongs to the closed one."""
    conversation = only(start(0), end(5, "first"), end(9, "second"))
    assert (conversation.end_us, conversation.superseded) == (5, ("second",))


def test_a_call_that_corrects_an_inferred_end_moves_nothing_of_what_follows() -> None:
    """The corrected conversation ends by call; the border to the next one stays."""
    before: list[Event] = [start(0), ttl(5, 5), start(20), turn(21, 22), end(25)]
    after: list[Event] = [*before, end(12, "correction")]
    assert spans(*after) == [(0, 12, "call"), (20, 25, "call")]
    assert conversations(after)[1] == conversations(before)[1]


def test_a_call_after_the_next_conversation_began_ends_that_one() -> None:
    """With life between, the end by call does not reach back."""
    assert spans(start(0), ttl(5, 5), start(20), end(21)) == [(0, 5, "ttl"), (20, 21, "call")]


# --- which end wins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INFERRED)
def test_an_end_by_call_beats_inferred_ones(kind: EndedBy) -> None:
    """Within a conversation an end by call beats inferred ones, earlier and later ones alike."""
    for last_us in (4, 9):
        conversation = only(recognised(0), inferred(kind, last_us, event_id="guess"), end(6, "said"))
        assert (conversation.end_us, conversation.ended_by) == (6, EndedBy.CALL)
        assert conversation.superseded == ("guess",)


def test_among_several_by_call_the_earliest_wins() -> None:
    """Among several by call: smallest `end_time`."""
    assert only(start(0), end(7, "a"), end(6, "b", result=Outcome.FAILED)).outcome == Outcome.FAILED


def test_among_several_by_call_at_one_time_the_event_id_decides() -> None:
    """Then event id."""
    assert only(start(0), end(6, "b"), end(6, "a", result=Outcome.FAILED)).outcome == Outcome.FAILED


def test_among_inferred_ends_the_latest_activity_wins() -> None:
    """Among inferred ones: latest L, whatever their kind."""
    conversation = only(recognised(0), ttl(4, 2), inferred(EndedBy.SERVER, 5, 1))
    assert (conversation.end_us, conversation.ended_by) == (5, EndedBy.SERVER)


@pytest.mark.parametrize(("stronger", "weaker"), list(combinations(INFERRED, 2)))
def test_among_inferred_ends_at_one_moment_their_kind_decides(stronger: EndedBy, weaker: EndedBy) -> None:
    """Then ttl, idle, turn, evicted, server."""
    ends = [inferred(stronger, 4, event_id="z"), inferred(weaker, 4, event_id="a")]
    assert only(recognised(0), *ends).ended_by == stronger


def test_among_inferred_ends_of_one_kind_the_event_id_decides() -> None:
    """Then event id."""
    assert only(start(0), ttl(4, event_id="b"), ttl(4, event_id="a")).superseded == ("b",)


def test_the_latest_of_several_inferred_ends_sets_the_end() -> None:
    """Each window is free of life, so a later inference only extends the same conversation."""
    events: list[Event] = [start(0), ttl(4, 3), ttl(6, 30), ttl(5, 1), start(40)]
    assert spans(*events) == [(0, 6, "ttl"), (40, None, None)]


def test_the_winning_end_gives_the_outcome_and_what_comes_with_it() -> None:
    """Its outcome, error, message count and mark of an ungrouped conversation."""
    failed = end(
        9, result=Outcome.FAILED, error_type="E", error_message="broke", message_count=3, ungrouped=True
    )
    conversation = only(start(0), failed, end(10, error_message="later", message_count=4))
    assert conversation.outcome == Outcome.FAILED
    assert (conversation.error_type, conversation.error_message) == ("E", "broke")
    assert (conversation.message_count, conversation.ungrouped) == (3, True)


def test_without_an_end_the_conversation_is_active() -> None:
    """`active` without one."""
    conversation = only(turn(3, 4))
    assert (conversation.outcome, conversation.end_us, conversation.ended_by) == (Outcome.ACTIVE, None, None)


def test_an_idle_end_carries_the_outcome_of_the_last_turn() -> None:
    """`failed` with the last turn's error if that failed, as the end says it."""
    idle = replace(inferred(EndedBy.IDLE, 4), outcome=Outcome.FAILED, error_message="last turn")
    assert only(turn(1, 4), idle).outcome == Outcome.FAILED


# --- the start ----------------------------------------------------------------------------------------------


def test_a_conversation_begins_with_its_earliest_start_event() -> None:
    """Start of a conversation: its start event."""
    assert only(turn(1, 2), start(3), start(5), end(9, start_us=0)).start_us == 3


def test_without_a_start_event_it_begins_with_its_first_turn() -> None:
    """Else its first turn's start."""
    assert only(turn(4, 5), turn(2, 9), end(9, start_us=0)).start_us == 2


def test_of_an_unknown_conversation_the_end_claims_the_start() -> None:
    """Else the `start_time` an end claims; an end for an unknown conversation is accepted."""
    conversation = only(end(9, start_us=3))
    assert (conversation.start_us, conversation.end_us, conversation.number) == (3, 9, 1)


def test_the_winning_ends_claim_comes_before_the_others() -> None:
    """The winning end's claim, else any other's."""
    assert only(end(9, start_us=3), ttl(9, start_us=1)).start_us == 3
    assert only(end(9), ttl(9, start_us=1)).start_us == 1


def test_a_claimed_start_never_lies_after_the_end() -> None:
    """A conversation does not begin after it ended; one that nothing dates begins at its end."""
    assert only(end(9, start_us=12)).start_us == 9
    assert only(end(9)).start_us == 9


@pytest.mark.parametrize("kind", INFERRED)
def test_an_inferred_end_alone_is_a_conversation(kind: EndedBy) -> None:
    """A session of which only an inferred end is known is a conversation, ended by it."""
    assert spans(inferred(kind, 9, 5, start_us=3)) == [(3, 9, kind)]


def test_what_arrives_later_fills_in() -> None:
    """Start and turns that were late belong to the conversation whose end was there first."""
    late: list[Event] = [start(2, user_id="u", metadata={"k": 1}), turn(4, 5)]
    conversation = only(end(9, start_us=3), *late)
    assert (conversation.start_us, conversation.user_id) == (2, "u")
    assert (conversation.metadata, len(conversation.turns)) == ({"k": 1}, 1)


def test_a_start_claimed_by_an_end_never_reaches_before_the_previous_close() -> None:
    """Never before the previous close: behind it there is always life, which dates the conversation."""
    assert spans(end(9), turn(12, 13), end(15, start_us=1)) == [(9, 9, "call"), (12, 15, "call")]


# --- repeated events ----------------------------------------------------------------------------------------


def test_a_repeated_event_counts_once() -> None:
    """The set of events decides."""
    events: list[Event] = [start(0), turn(1, 2), rating(2, 4), end(5, quality=3)]
    assert conversations(events * 3) == conversations(events)


def test_a_repeated_event_id_adds_fields_and_changes_none() -> None:
    """A repeated event id adds fields that the stored event lacks and changes none, in any order."""
    first = start(0, "same", user_id="u")
    fuller = start(1, "same", user_id="other", metadata={"k": 1})
    same: list[Event] = [first, fuller, end(0, "same")]
    for events in permutations(same):
        conversation = only(*events)
        assert (conversation.start_us, conversation.user_id) == (0, "u")
        assert (conversation.metadata, conversation.outcome) == ({"k": 1}, Outcome.ACTIVE)


# --- feedback and quality -----------------------------------------------------------------------------------


def test_feedback_belongs_to_the_conversation_of_its_turn() -> None:
    """Feedback that names a turn goes with it, whenever it came."""
    late = rating(99, 2, turn_id="t")
    first, second = conversations([turn(1, 2, "t"), end(5), turn(10, 11), late])
    assert (first.ratings, second.ratings) == ((late,), ())


def test_feedback_on_a_turn_told_under_two_event_ids_goes_with_the_earlier_one() -> None:
    """One turn id in two conversations: the first that holds it."""
    late = rating(99, 2, turn_id="t")
    again = replace(turn(10, 11, "again"), turn_id="t")
    first, second = conversations([turn(1, 2, "t"), end(5), again, late])
    assert (first.ratings, second.ratings) == ((late,), ())


def test_other_feedback_belongs_to_the_newest_conversation_begun_by_then() -> None:
    """Else to the newest conversation that starts at or before its time, ended or not."""
    early, late = rating(9, 2), rating(10, 3)
    first, second = conversations([start(1), end(5), start(10), early, late])
    assert (first.ratings, second.ratings) == ((early,), (late,))


def test_feedback_for_a_turn_that_never_arrived_is_placed_by_its_time() -> None:
    """A turn id that nothing knows does not lose the rating."""
    lost = rating(12, 2, turn_id="unknown")
    first, second = conversations([start(1), end(5), start(10), lost])
    assert (first.ratings, second.ratings, second.quality) == ((), (lost,), 2.0)


def test_feedback_before_the_start_belongs_to_the_first_conversation() -> None:
    """All feedback is kept, in every state, before the start too."""
    assert only(rating(1, 4), start(5)).quality == 4.0


def test_feedback_alone_makes_no_conversation() -> None:
    """It is kept by the store, and nothing is derived."""
    assert conversations([rating(1, 4)]) == []


def test_the_winning_ends_quality_is_a_users_rating_at_its_end_time() -> None:
    """An older rating by a user is outdated by it, a newer one outdates it."""
    ended: list[Event] = [start(0), end(5, quality=3)]
    assert only(*ended).quality == 3.0
    assert only(*ended, rating(4, 1)).quality == 3.0
    assert only(*ended, rating(6, 1)).quality == 1.0
    assert only(*ended).ratings == (rating(5, 3, feedback_id="end@5"),)


def test_a_rating_with_an_inferred_end_counts_from_its_end_time() -> None:
    """At its `end_time`, not at the last activity at which it closes."""
    assert only(recognised(0), inferred(EndedBy.IDLE, 4, 5, quality=3), rating(6, 1)).quality == 3.0


def test_a_losing_ends_quality_does_not_count() -> None:
    """A losing end's is kept and does not count."""
    conversation = only(start(0), end(5), end(6, quality=1, feedback="bad"))
    assert (conversation.quality, conversation.feedback, conversation.ratings) == (None, None, ())


def test_quality_is_the_newest_rating_of_the_conversation() -> None:
    """The newest conversation-level rating; feedback without a score is none."""
    ratings: list[Event] = [rating(1, 5), rating(3, 2), rating(2, 4), rating(9, None, text="words")]
    assert only(start(0), *ratings).quality == 2.0


def test_of_two_ratings_at_one_moment_the_later_id_counts() -> None:
    """By time, then id."""
    assert only(start(0), rating(1, 5, feedback_id="b"), rating(1, 2, feedback_id="a")).quality == 5.0


@pytest.mark.parametrize(("higher", "lower"), list(combinations((OPERATOR, USER, EVALUATOR), 2)))
def test_the_highest_source_decides(higher: FeedbackSource, lower: FeedbackSource) -> None:
    """Of the highest source present: operator, user, then evaluator; a newer lower one changes nothing."""
    assert only(start(0), rating(1, 2, higher), rating(2, 5, lower)).quality == 2.0


def test_without_a_rating_of_the_whole_its_turns_are_averaged() -> None:
    """Else the mean of its turns' ratings from that source."""
    turns: list[Event] = [turn(1, 2, "t1"), turn(3, 4, "t2")]
    rated: list[Event] = [rating(5, 5, turn_id="t1"), rating(6, 2, turn_id="t2")]
    assert only(start(0), *turns, *rated).quality == 3.5


def test_a_rating_of_the_whole_stands_above_the_turns_of_its_source() -> None:
    """Turns are asked only where the source did not rate the conversation."""
    assert only(start(0), turn(1, 2, "t"), rating(3, 4), rating(9, 1, turn_id="t")).quality == 4.0


def test_evaluators_scores_never_mix_into_users() -> None:
    """A user's rating of one turn stands above an evaluator's of everything."""
    evaluated: list[Event] = [rating(8, 1, EVALUATOR), rating(9, 1, EVALUATOR, feedback_id="t", turn_id="t")]
    assert only(start(0), turn(1, 2, "t"), rating(3, 4, turn_id="t"), *evaluated).quality == 4.0


def test_the_comment_is_the_newest_of_a_person_about_the_whole() -> None:
    """The text of the newest conversation-level user or operator feedback that has text."""
    ended: list[Event] = [start(0), turn(1, 2, "t"), end(5, feedback="fine")]
    beside: list[Event] = [
        rating(7, 1),
        rating(8, 1, EVALUATOR, text="evaluated"),
        rating(9, 1, feedback_id="t", text="one turn", turn_id="t"),
    ]
    assert only(*ended, *beside, rating(4, 3, text="older")).feedback == "fine"
    assert only(*ended, *beside, rating(6, None, OPERATOR, text="newer")).feedback == "newer"


# --- what is told besides -----------------------------------------------------------------------------------


def test_metadata_is_the_users_with_the_winning_ends_over_the_starts() -> None:
    """User metadata of the start, the winning end's over it, without the tracker's own key."""
    ours = {"agent_tracker": {"event_id": "e"}}
    conversation = only(
        start(0, metadata={"a": 1, "b": 1, **ours}),
        end(5, metadata={"b": 2, **ours}),
        end(6, metadata={"b": 3, "c": 3}),
    )
    assert conversation.metadata == {"a": 1, "b": 2}
    assert only(start(0, metadata=ours)).metadata is None


def test_metadata_of_a_second_start_fills_in_what_the_first_lacks() -> None:
    """A recognised start before a start by call does not hide what the caller said."""
    conversation = only(
        recognised(0, metadata={"k": 0}),
        start(1, user_id="u", metadata={"k": 1, "plan": "pro"}, ttl_seconds=60.0),
    )
    assert conversation.metadata == {"k": 0, "plan": "pro"}
    assert (conversation.user_id, conversation.ttl_seconds) == ("u", 60.0)
    assert conversation.origin == Origin.CALL


def test_deriving_leaves_the_events_as_they_were() -> None:
    """A pure function: metadata of the events is not written to."""
    metadata = {"agent_tracker": {}, "k": 1}
    only(start(0, metadata=metadata), end(5, metadata={"k": 2}))
    assert metadata == {"agent_tracker": {}, "k": 1}


def test_agent_and_user_are_those_of_the_start_else_of_the_first_turn_else_of_the_end() -> None:
    """Who is known first."""
    by_b = replace(turn(1, 2, user_id="u2"), agent_id="b")
    by_c = replace(end(5), agent_id="c")
    told = [only(start(0), by_b, by_c), only(by_b, by_c), only(by_c)]
    assert [(each.agent_id, each.user_id) for each in told] == [("a", "u2"), ("b", "u2"), ("c", None)]


def test_last_activity_is_the_latest_sign_of_life() -> None:
    """The largest of its starts' times, its turns' ends, and the winning end's last activity."""
    assert only(start(0), start(7)).last_activity_us == 7
    assert only(start(0), turn(1, 9), turn(2, 3)).last_activity_us == 9
    assert only(start(0), turn(1, 2), end(9, last_activity_us=6)).last_activity_us == 6
    assert only(start(0), ttl(8, 30)).last_activity_us == 8
    assert only(end(9, start_us=1)).last_activity_us == 9
    assert only(start(0), end(5), ttl(9)).last_activity_us == 5


def test_a_conversation_waits_while_its_last_turn_does() -> None:
    """A turn that waits suspends idle until the next turn."""
    waits = turn(1, 2, status=TurnStatus.WAITING)
    assert only(start(0), waits).waiting
    assert not only(start(0), waits, turn(3, 4)).waiting
    assert not only(start(0)).waiting


def test_a_long_session_is_derived_quickly() -> None:
    """n log n: ten times the events take far less than a hundred times as long."""
    few, many = (min(_seconds_to_derive(size) for _ in range(3)) for size in (400, 4_000))
    assert many < 50 * few


def _seconds_to_derive(size: int) -> float:
    events: list[Event] = [recognised(0)]
    for i in range(size):
        events += [turn(10 * i, 10 * i + 3, f"t{i}"), inferred(EndedBy.IDLE, 10 * i + 3, i % 20, f"e{i}")]
        events += [rating(10 * i + 1, 3, feedback_id=f"f{i}"), ttl(10 * size, i, f"x{i}")]
    begun = time.thread_time()
    assert conversations(events)
    return time.thread_time() - begun


# --- from the wire ------------------------------------------------------------------------------------------

T0, T5, T9 = (f"2024-01-19T16:17:3{second}.000000Z" for second in (0, 5, 9))
US0, US5, US9 = (wire.parse_time(text) for text in (T0, T5, T9))


def wire_start(**fields: Any) -> wire.ConversationStart:
    return wire.ConversationStart(**{"session_id": "s", "agent_id": "a", "start_time": T0, **fields})


def wire_end(**fields: Any) -> wire.ConversationEnd:
    times = {"start_time": T0, "end_time": T9, "duration_seconds": 9.0}
    return wire.ConversationEnd(
        **{"session_id": "s", "agent_id": "a", "status": "completed", **times, **fields}
    )


def wire_expired(**fields: Any) -> wire.ConversationExpired:
    times = {"start_time": T0, "end_time": T9, "duration_seconds": 9.0}
    return wire.ConversationExpired(**{"session_id": "s", "agent_id": "a", **times, **fields})


def wire_turn(**fields: Any) -> wire.ConversationTurn:
    times = {"start_time": T0, "end_time": T5, "duration_seconds": 5.0}
    ids = {"turn_id": "t", "session_id": "s", "agent_id": "a"}
    return wire.ConversationTurn(**{**ids, "status": "ok", **times, **fields})


def wire_feedback(**fields: Any) -> wire.ConversationFeedback:
    return wire.ConversationFeedback(**{"feedback_id": "f", "session_id": "s", "timestamp": T5, **fields})


def read_start(ours: object) -> Start:
    """A start whose ``metadata.agent_tracker`` is `ours`."""
    event = read_event(wire_start(metadata={"agent_tracker": ours}), "e")
    assert isinstance(event, Start)
    return event


def read_end(ours: object) -> End:
    """An end whose ``metadata.agent_tracker`` is `ours`."""
    event = read_event(wire_end(metadata={"agent_tracker": ours}), "e")
    assert isinstance(event, End)
    return event


def read_expired(ours: object) -> End:
    """An expired conversation whose ``metadata.agent_tracker`` is `ours`."""
    event = read_event(wire_expired(metadata={"agent_tracker": ours}), "e")
    assert isinstance(event, End)
    return event


def test_a_start_is_read() -> None:
    """Without `metadata.agent_tracker` it is by call and has no time to live."""
    expected = Start(event_id="e", time_us=US0, agent_id="a", user_id="u", origin=Origin.CALL)
    assert read_event(wire_start(user_id="u"), "e") == expected


def test_a_starts_origin_and_time_to_live_are_read() -> None:
    """A start's origin and `ttl_seconds` come from `metadata.agent_tracker`."""
    begun = read_start({"origin": "recognised", "ttl_seconds": 60})
    assert (begun.origin, begun.ttl_seconds) == (Origin.RECOGNISED, 60.0)


def test_a_turn_is_read() -> None:
    """Every field of a turn arrives."""
    fields: dict[str, Any] = {
        "user_id": "u",
        "error_type": "E",
        "error_message": "broke",
        "time_to_first_token": 0.5,
        "input_tokens": 3,
        "output_tokens": 4,
    }
    expected = Turn(
        event_id="e", turn_id="t", start_us=US0, end_us=US5, agent_id="a", status=TurnStatus.FAILED, **fields
    )
    assert read_event(wire_turn(status="failed", **fields), "e") == expected


def test_a_turn_never_ends_before_it_starts() -> None:
    """A wall clock that was set back during the turn costs its duration, not the turn."""
    event = read_event(wire_turn(start_time=T5, end_time=T0), "e")
    assert isinstance(event, Turn)
    assert (event.start_us, event.end_us) == (US5, US5)


def test_an_end_without_our_fields_is_by_call() -> None:
    """What other clients send on /conversations/end is an end by call."""
    fields: dict[str, Any] = {"error_message": "broke", "message_count": 3}
    request = wire_end(status="failed", quality_score=2, user_feedback="bad", **fields)
    assert read_event(request, "e") == End(
        event_id="e",
        end_us=US9,
        agent_id="a",
        outcome=Outcome.FAILED,
        ended_by=EndedBy.CALL,
        start_us=US0,
        quality=2,
        feedback="bad",
        **fields,
    )


def test_an_inferred_end_is_read_from_our_fields() -> None:
    """Who ended it, L, W, the error's type and whether it is ungrouped."""
    event = read_end(
        {
            "ended_by": "idle",
            "last_activity_time": T5,
            "idle_seconds": 1800.5,
            "ungrouped": True,
            "error_type": "E",
        }
    )
    assert (event.ended_by, event.last_activity_us, event.idle_us) == (EndedBy.IDLE, US5, 1_800_500_000)
    assert (event.ungrouped, event.error_type, event.closes_us) == (True, "E", US5)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("ttl_timeout", EndedBy.TTL), ("evicted", EndedBy.EVICTED), ("server", EndedBy.SERVER)],
)
def test_an_expired_without_our_fields_is_inferred_by_its_reason(reason: str, kind: EndedBy) -> None:
    """L = `end_time`, W = 0, and who ended it from `expiry_reason`."""
    event = read_event(wire_expired(expiry_reason=reason), "e")
    assert event == End(
        event_id="e", end_us=US9, agent_id="a", outcome=Outcome.EXPIRED, ended_by=kind, start_us=US0
    )
    assert isinstance(event, End)
    assert (event.closes_us, event.idle_us) == (US9, 0)


def test_an_expired_end_is_read_from_our_fields() -> None:
    """Who ended it, L and W of an expired conversation."""
    event = read_expired({"ended_by": "evicted", "last_activity_time": T5, "idle_seconds": 36_000})
    assert (event.ended_by, event.closes_us, event.idle_us) == (EndedBy.EVICTED, US5, 36_000_000_000)


@pytest.mark.parametrize("said", ["call", "idle", "turn", "nobody", 7, None])
def test_only_a_deadline_expires_a_conversation(said: object) -> None:
    """Where `ended_by` contradicts the request, its reason says who ended it: an expiry is never by call."""
    assert read_expired({"ended_by": said}).ended_by == EndedBy.TTL


@pytest.mark.parametrize(
    ("fields", "score"),
    [
        ({"quality_score": 4}, 4),
        ({"thumbs": "up"}, 5),
        ({"thumbs": "down"}, 1),
        ({"quality_score": 2, "thumbs": "up"}, 2),
        ({"user_feedback": "words"}, None),
    ],
)
def test_feedback_is_read_with_thumbs_as_scores(fields: dict[str, Any], score: int | None) -> None:
    """Thumbs up count 5, down 1; a score says it more exactly; words alone are no rating."""
    expected = Feedback(
        feedback_id="e",
        time_us=US5,
        source=OPERATOR,
        score=score,
        name="n",
        text=fields.get("user_feedback"),
        turn_id="t",
    )
    assert read_event(wire_feedback(source="operator", name="n", turn_id="t", **fields), "e") == expected


@pytest.mark.parametrize("ours", [None, 7, "text", [], {}, {"unknown": 1}])
def test_what_others_put_under_our_key_is_ignored(ours: object) -> None:
    """Readers are lenient, and the metadata stays as it came."""
    plain = read_event(wire_end(), "e")
    assert isinstance(plain, End)
    assert read_end(ours) == replace(plain, metadata={"agent_tracker": ours})


@pytest.mark.parametrize(
    "value", [[], {}, True, None, "x", -1, float("nan"), float("inf"), 1e300, 10**400], ids=repr
)
def test_ill_typed_values_of_ours_are_ignored(value: object) -> None:
    """Ill-typed values inside `metadata.agent_tracker` are ignored, not refused."""
    event = read_end({"ended_by": value, "last_activity_time": value, "idle_seconds": value})
    assert (event.ended_by, event.last_activity_us, event.idle_us) == (EndedBy.CALL, None, 0)
    begun = read_start({"origin": value, "ttl_seconds": value})
    assert (begun.origin, begun.ttl_seconds) == (Origin.CALL, None)


@pytest.mark.parametrize("value", [[], {}, 1, None, ["E"]])
def test_ill_typed_flags_and_texts_of_ours_are_ignored(value: object) -> None:
    """Only True says ungrouped, and only a text is an error's type."""
    event = read_end({"ungrouped": value, "error_type": value})
    assert (event.ungrouped, event.error_type) == (False, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2024-13-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:00-00:01",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_impossible_times_are_refused_by_name(text: str) -> None:
    """Times before 1970 or after 9999 are refused, and what is no time; inside our key they are ignored."""
    requests: list[tuple[str, ConversationRequest]] = [
        ("start_time", wire_start(start_time=text)),
        ("start_time", wire_turn(start_time=text)),
        ("start_time", wire_end(start_time=text)),
        ("start_time", wire_expired(start_time=text)),
        ("end_time", wire_turn(end_time=text)),
        ("end_time", wire_end(end_time=text)),
        ("end_time", wire_expired(end_time=text)),
        ("timestamp", wire_feedback(timestamp=text)),
    ]
    for name, request in requests:
        with pytest.raises(ValueError, match=f"^{name} must "):
            read_event(request, "e")
    assert read_end({"last_activity_time": text}).last_activity_us is None


def test_the_first_and_the_last_microsecond_are_read() -> None:
    """1970 and 9999 belong to the range."""
    first, last = "1970-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"
    for text in (first, last):
        event = read_event(wire_feedback(timestamp=text), "e")
        assert isinstance(event, Feedback)
        assert wire.format_time(event.time_us) == text


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("status", wire_end(status="expired")),
        ("status", wire_end(status="active")),
        ("quality_score", wire_end(quality_score=0)),
        ("quality_score", wire_end(quality_score=6)),
        ("status", wire_expired(status="completed")),
        ("expiry_reason", wire_expired(expiry_reason="bored")),
        ("status", wire_turn(status="running")),
        ("quality_score", wire_feedback(quality_score=6)),
        ("thumbs", wire_feedback(thumbs="sideways")),
        ("source", wire_feedback(source="robot")),
    ],
)
def test_words_and_scores_outside_their_sets_are_refused(name: str, refused: ConversationRequest) -> None:
    """ValueError says what was wrong."""
    with pytest.raises(ValueError, match=f"^{name} must be"):
        read_event(refused, "e")


# --- properties ---------------------------------------------------------------------------------------------

moments = st.integers(0, 14)
windows = st.integers(0, 6)
scores = st.none() | st.integers(1, 5)
metadatas = st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 1))

starts = st.builds(
    Start,
    event_id=st.just("?"),
    time_us=moments,
    agent_id=st.sampled_from("ab"),
    user_id=st.none() | st.just("u"),
    origin=st.sampled_from(Origin),
    metadata=metadatas,
)
turns = st.builds(
    lambda start_us, length, status: turn(start_us, start_us + length, "?", status=status),
    moments,
    windows,
    st.sampled_from(TurnStatus),
)
calls = st.builds(
    End,
    event_id=st.just("?"),
    end_us=moments,
    agent_id=st.just("a"),
    outcome=st.sampled_from([Outcome.COMPLETED, Outcome.FAILED]),
    start_us=st.none() | moments,
    quality=scores,
    feedback=st.none() | st.just("with the end"),
    metadata=metadatas,
)
inferences = st.builds(
    inferred, st.sampled_from(INFERRED), moments, windows, st.just("?"), start_us=st.none() | moments
)
feedbacks = st.builds(
    Feedback,
    feedback_id=st.just("?"),
    time_us=moments,
    source=st.sampled_from(FeedbackSource),
    score=scores,
    text=st.none() | st.just("words"),
    turn_id=st.none() | st.sampled_from(["turn0", "turn1", "turn2"]),
)


def named(event: Event, event_id: str) -> Event:
    match event:
        case Feedback():
            return replace(event, feedback_id=event_id)
        case Turn():
            return replace(event, event_id=event_id, turn_id=event_id)
        case _:
            return replace(event, event_id=event_id)


def with_own_ids(events: Iterable[Event]) -> list[Event]:
    """Events named in the order of the draw; turns so that feedback meets them."""
    turn_numbers = count()
    return [
        named(event, f"turn{next(turn_numbers)}" if isinstance(event, Turn) else f"event{number:02}")
        for number, event in enumerate(events)
    ]


any_event = st.one_of(starts, turns, calls, inferences, feedbacks)
sessions = st.lists(any_event, max_size=12).map(with_own_ids)
colliding_sessions = st.lists(st.builds(named, any_event, st.sampled_from("vwxyz")), max_size=8)


@given(sessions | colliding_sessions, st.data())
def test_property_order_and_repetition_of_arrival_change_nothing(
    events: list[Event], data: st.DataObject
) -> None:
    """A pure function of the set of events, also where one id was given to several."""
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=4)) if events else []
    arrived = data.draw(st.permutations([*events, *repeated]))
    assert conversations(arrived) == conversations(events)


@given(st.lists(sessions.map(lambda events: events[:4]), max_size=3), st.data())
def test_property_arrival_in_pieces_ends_the_same(pieces: list[list[Event]], data: st.DataObject) -> None:
    """However a store is fed, and whatever it derived between, it derives the same from everything."""
    events = with_own_ids(chain.from_iterable(pieces))
    store: dict[str, Event] = {}
    for event in data.draw(st.permutations(events)):
        store[event.event_id] = event
        conversations(store.values())
    assert conversations(store.values()) == conversations(events)


@given(sessions)
def test_property_every_conversation_has_exactly_one_outcome(events: list[Event]) -> None:
    """Active without an end, else that of one end; only the newest conversation can be active."""
    found = conversations(events)
    for each in found:
        ended = {each.end_us is not None, each.ended_by is not None, each.outcome != Outcome.ACTIVE}
        assert len(ended) == 1
    assert all(each.outcome != Outcome.ACTIVE for each in found[:-1])


@given(sessions)
def test_property_conversations_follow_one_another(events: list[Event]) -> None:
    """They never overlap in time and are numbered in order of time."""
    found = conversations(events)
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert all(each.end_us is None or each.start_us <= each.end_us for each in found)
    for earlier, later in pairwise(found):
        assert earlier.end_us is not None
        assert earlier.end_us < later.start_us


@given(sessions)
def test_property_every_turn_and_feedback_belongs_to_exactly_one_conversation(events: list[Event]) -> None:
    """None is lost and none counts twice, as long as there is a conversation."""
    found = conversations(events)
    turn_ids = [each.event_id for conversation in found for each in conversation.turns]
    assert sorted(turn_ids) == sorted(event.event_id for event in events if isinstance(event, Turn))
    ratings = [each.event_id for conversation in found for each in conversation.ratings]
    assert len(ratings) == len(set(ratings))
    assert not found or {event.event_id for event in events if isinstance(event, Feedback)} <= set(ratings)


@given(sessions, starts | turns, inferences, st.data())
def test_property_an_inferred_end_that_life_refutes_changes_nothing(
    events: list[Event], life: Start | Turn, guess: End, data: st.DataObject
) -> None:
    """One whose window contains a start or a turn, or that a turn overlaps, is as if never sent."""
    known = [*events, named(life, "life")]
    begun_us = life.time_us if isinstance(life, Start) else life.start_us
    over_us = begun_us if isinstance(life, Start) else life.end_us
    last_us = data.draw(st.integers(begun_us - 3, max(begun_us, over_us) - 1))
    window_us = max(0, begun_us - last_us) + data.draw(windows)
    refuted = replace(guess, event_id="guess", last_activity_us=last_us, idle_us=window_us)
    assert conversations([*known, refuted]) == conversations(known)


@given(sessions)
def test_property_an_end_by_call_always_beats_inferred_ones(events: list[Event]) -> None:
    """Every end by call is the winner of its conversation, or lost against another one by call."""
    by_call = {
        event.event_id for event in events if isinstance(event, End) and event.ended_by == EndedBy.CALL
    }
    found = conversations(events)
    assert all(each.ended_by == EndedBy.CALL for each in found if by_call & {*each.superseded})
    lost = {event_id for each in found for event_id in each.superseded}
    won = [each for each in found if each.ended_by == EndedBy.CALL]
    assert len(by_call - lost) == len(won)


# --- the same by another method -----------------------------------------------------------------------------


class Enumeration:
    """The rules read as conditions on the *set of ends that count*, which is found by trying every set.

    A set is consistent if just those ends count that are in it, given the conversations it makes. That only
    one is consistent shows that the rules decide every session, and in one way only.
    """

    def __init__(self, events: list[Event]) -> None:
        self.life = [event for event in events if isinstance(event, Start | Turn)]
        self.ends = [event for event in events if isinstance(event, End)]
        self.feedback = [event for event in events if isinstance(event, Feedback)]
        subsets = chain.from_iterable(combinations(self.ends, size) for size in range(len(self.ends) + 1))
        (self.closing,) = (each for each in subsets if self.is_consistent(each))

    def is_consistent(self, closing: tuple[End, ...]) -> bool:
        return all((each in closing) == self.counts(each, closing) for each in self.ends)

    def counts(self, each: End, closing: tuple[End, ...]) -> bool:
        if each.ended_by == EndedBy.CALL:
            return True
        last, until = at(each), at(each) + each.idle_us
        if any(isinstance(x, Start) and last < x.time_us <= until for x in self.life):
            return False
        if any(isinstance(x, Turn) and x.start_us <= until and x.end_us > last for x in self.life):
            return False
        ended = [x for x in self.life if at(x) <= last and key(x, closing) == self.key_of(each, closing)]
        by_call = any(isinstance(x, Start) and x.origin == Origin.CALL for x in ended)
        return not (by_call and each.ended_by in (EndedBy.IDLE, EndedBy.TURN))

    def key_of(self, each: End, closing: tuple[End, ...]) -> frozenset[str]:
        """An end belongs to the conversation of the latest life at or before it."""
        earlier = [x for x in self.life if at(x) <= at(each)]
        return key(max(earlier, key=at), closing) if earlier else frozenset()

    def summaries(self) -> list[dict[str, object]]:
        keys = {key(x, self.closing) for x in self.life} | {
            self.key_of(x, self.closing) for x in self.closing
        }
        found = [self.summary(each) for each in sorted(keys, key=len)]
        for each in self.feedback if found else []:
            next(self.homes(each, found))["feedback"] |= {each.event_id}
        return found

    def summary(self, mine: frozenset[str]) -> dict[str, Any]:
        life = [x for x in self.life if key(x, self.closing) == mine]
        ends = by_strength([x for x in self.closing if self.key_of(x, self.closing) == mine])
        begun = [at(x) for x in life if isinstance(x, Start)] or [at(x) for x in life]
        return {
            "start": min(begun) if begun else claimed(ends),
            "end": at(ends[0]) if ends else None,
            "outcome": ends[0].outcome if ends else Outcome.ACTIVE,
            "ended_by": ends[0].ended_by if ends else None,
            "superseded": [x.event_id for x in ends[1:]],
            "turns": {x.event_id for x in life if isinstance(x, Turn)},
            "feedback": set(),
        }

    def homes(self, each: Feedback, found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Where a feedback may belong, the best first."""
        yield from (home for home in found if each.turn_id in home["turns"])
        yield from (home for home in reversed(found) if home["start"] <= each.time_us)
        yield found[0]


def at(event: Start | Turn | End) -> int:
    match event:
        case Start():
            return event.time_us
        case Turn():
            return event.start_us
        case End(ended_by=EndedBy.CALL):
            return event.end_us
        case End():
            return event.end_us if event.last_activity_us is None else event.last_activity_us


def key(life: Start | Turn, closing: tuple[End, ...]) -> frozenset[str]:
    """What is of one conversation has the same closing ends before it."""
    return frozenset(each.event_id for each in closing if at(each) < at(life))


def by_strength(ends: list[End]) -> list[End]:
    """Stable sorts from the least reason to the greatest."""
    ordered = sorted(ends, key=lambda each: each.event_id)
    ordered.sort(key=lambda each: [EndedBy.CALL, *INFERRED].index(each.ended_by))
    ordered.sort(key=at, reverse=True)
    calls = [each for each in ordered if each.ended_by == EndedBy.CALL]
    return sorted(calls, key=at) + [each for each in ordered if each not in calls]


def claimed(ends: list[End]) -> int:
    claims = [each.start_us for each in ends if each.start_us is not None]
    return min([at(ends[0]), *claims[:1]])


@settings(max_examples=300)
@given(st.lists(any_event, max_size=9).map(with_own_ids))
def test_an_enumeration_of_closings_says_the_same(events: list[Event]) -> None:
    """Exactly one set of closing ends satisfies the rules, and it makes the conversations of the walk."""
    assert Enumeration(events).summaries() == [
        {
            "start": each.start_us,
            "end": each.end_us,
            "outcome": each.outcome,
            "ended_by": each.ended_by,
            "superseded": list(each.superseded),
            "turns": {x.event_id for x in each.turns},
            "feedback": {x.event_id for x in each.ratings}
            - {x.event_id for x in events if isinstance(x, End)},
        }
        for each in conversations(events)
    ]
