"""The forms in which a plain tracker gets turns and feedback."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from otel_agent_tracker import forms, session_id
from otel_agent_tracker.rollup import RollUp
from otel_agent_tracker.state import OutboxRow, Tombstone

START_US, END_US = 1_705_665_600_000_000, 1_705_665_660_500_000
END = {
    "session_id": "s",
    "status": "completed",
    "metadata": {"plan": "pro", "agent_tracker": {"origin": "call"}},
}
EXPIRED = {"session_id": "s", "status": "expired", "metadata": {"plan": "pro"}}
ENDED = Tombstone("s", "bot", START_US, END_US, "completed", "call", 4, None)


def row(body: dict[str, Any], service: Any = None) -> OutboxRow:
    return OutboxRow(
        7, "e7", "conversation.feedback", "/conversations/feedback", "s", orjson.dumps(body),
        orjson.dumps(service), b"", END_US, 0, None,
    )  # fmt: skip


def feedback(**said: object) -> bytes:
    return orjson.dumps({"feedback_id": "f", "source": "user", **said})


def with_feedback(end: dict[str, Any], *given: bytes) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(forms.end_with_feedback(orjson.dumps(end), given))
    return body


def second(given: dict[str, Any], ended: Tombstone = ENDED) -> tuple[str, dict[str, Any]]:
    path, body = forms.second_end(row({"feedback_id": "f", **given}, {"name": "shop"}), ended)
    return path, orjson.loads(body)


def test_an_element_of_a_batch_says_where_it_goes() -> None:
    """Event id, path, body and service, in the form that it is sent in."""
    element = orjson.loads(forms.batch_event(row({}, {"name": "shop"}), "/conversations/end", b'{"a": 1}'))
    expected = {"event_id": "e7", "path": "/conversations/end", "body": {"a": 1}, "service": {"name": "shop"}}
    assert element == expected


def test_a_roll_up_goes_into_our_part_of_the_metadata() -> None:
    """What was there stays."""
    roll_up = RollUp()
    roll_up.add({"duration_seconds": 2.0, "status": "ok"})
    metadata = orjson.loads(forms.end_with_roll_up(orjson.dumps(END), roll_up))["metadata"]
    assert metadata == {"plan": "pro", "agent_tracker": {"origin": "call", **roll_up.summary()}}


# --- feedback before the end --------------------------------------------------------------------------------


def test_an_end_without_feedback_stays_as_it_is() -> None:
    """Nothing given, nothing changed."""
    assert with_feedback(END) == END


@pytest.mark.parametrize(
    ("said", "score"), [({"thumbs": "up"}, 5), ({"thumbs": "down"}, 1), ({"quality_score": 3}, 3)]
)
def test_a_rating_goes_with_the_end(said: dict[str, Any], score: int) -> None:
    """Thumbs count as 5 and 1."""
    assert with_feedback(END, feedback(**said)) == {**END, "quality_score": score}


def test_the_newest_word_counts_for_each_field() -> None:
    """A later rating replaces an earlier one; a text without a rating leaves it."""
    given = [feedback(quality_score=2), feedback(quality_score=4), feedback(user_feedback="thanks")]
    assert with_feedback(END, *given) == {**END, "quality_score": 4, "user_feedback": "thanks"}


def test_what_the_end_itself_says_is_newer() -> None:
    """The user who ended the conversation with a rating had the last word."""
    end = {**END, "quality_score": 5}
    assert with_feedback(end, feedback(quality_score=2, user_feedback="hm")) == {**end, "user_feedback": "hm"}


def test_an_operator_overrules_the_user_and_the_user_an_evaluator() -> None:
    """The highest source present counts, whenever it spoke."""
    end = {**END, "quality_score": 5}
    operator, evaluator = (feedback(source=source, quality_score=1) for source in ("operator", "evaluator"))
    scores = [
        with_feedback(end, operator, feedback(quality_score=3))["quality_score"],
        with_feedback(end, evaluator)["quality_score"],
        with_feedback(END, feedback(quality_score=3), evaluator)["quality_score"],
        with_feedback(END, evaluator)["quality_score"],
    ]
    assert scores == [1, 5, 3, 1]


def test_a_rating_of_one_turn_does_not_replace_that_of_the_conversation() -> None:
    """It counts only where nobody rated the whole."""
    of_turn = feedback(quality_score=1, turn_id="t")
    assert with_feedback(END, feedback(quality_score=4), of_turn)["quality_score"] == 4
    assert with_feedback({**END, "quality_score": 5}, of_turn)["quality_score"] == 5
    assert with_feedback(END, of_turn)["quality_score"] == 1


def test_an_expired_conversation_keeps_feedback_in_its_metadata() -> None:
    """Its request has no place for it; what the user called so himself stays."""
    given = feedback(quality_score=2, user_feedback="too slow")
    body = with_feedback({**EXPIRED, "metadata": {"quality_score": "mine"}}, given)
    assert body["metadata"] == {"quality_score": "mine", "user_feedback": "too slow"}
    assert "quality_score" not in body


# --- feedback after the end ---------------------------------------------------------------------------------


def test_a_second_end_repeats_the_first_and_adds_the_feedback() -> None:
    """Original outcome and times, from the tombstone."""
    path, body = second({"source": "user", "quality_score": 2, "user_feedback": "broke"})
    trace_id = f"{session_id.trace_id('s'):032x}"
    assert [path, body] == [
        "/conversations/end",
        {
            "session_id": "s",
            "agent_id": "bot",
            "start_time": "2024-01-19T12:00:00.000000Z",
            "end_time": "2024-01-19T12:01:00.500000Z",
            "duration_seconds": 60.5,
            "status": "completed",
            "quality_score": 2,
            "user_feedback": "broke",
            "metadata": {
                "agent_tracker": {
                    "event_id": "e7",
                    "trace_id": trace_id,
                    "ended_by": "call",
                    "service": {"name": "shop"},
                }
            },
        },
    ]


def test_a_second_end_of_a_failure_has_its_error() -> None:
    """The tracker must not forget why it failed."""
    _, body = second(
        {"user_feedback": "sad"}, ENDED._replace(outcome="failed", error_message="boom", quality=None)
    )
    assert [body["status"], body["error_message"], body["user_feedback"]] == ["failed", "boom", "sad"]
    assert "quality_score" not in body


@pytest.mark.parametrize(("ended_by", "reason"), [("ttl", "ttl_timeout"), ("evicted", "evicted")])
def test_a_second_end_of_an_expired_one_expires_it_again(ended_by: str, reason: str) -> None:
    """By the same reason."""
    path, body = second(
        {"quality_score": 2}, ENDED._replace(outcome="expired", ended_by=ended_by, quality=None)
    )
    assert [path, body["status"], body["expiry_reason"]] == ["/conversations/expired", "expired", reason]
    assert [body["metadata"]["quality_score"], "quality_score" in body] == [2, False]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ({"source": "operator", "quality_score": 1}, 1),
        ({"source": "user", "quality_score": 1}, 1),
        ({"source": "evaluator", "quality_score": 1}, 4),
        ({"source": "user", "quality_score": 1, "turn_id": "t"}, 4),
        ({"source": "user", "user_feedback": "text alone"}, 4),
    ],
)
def test_only_a_word_of_weight_replaces_the_users_rating(said: dict[str, Any], score: int) -> None:
    """A score of an evaluator, or about a turn, does not become the user's."""
    assert second(said)[1]["quality_score"] == score
