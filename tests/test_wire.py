"""Rules of `wire`: times, and requests as JSON, to the letter of the protocol."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import wire

FIELDS = {
    "/conversations/start": "session_id agent_id start_time user_id? metadata?",
    "/conversations/end": (
        "session_id agent_id start_time end_time duration_seconds status "
        "quality_score? user_feedback? error_message? message_count? metadata?"
    ),
    "/conversations/expired": (
        "session_id agent_id start_time end_time duration_seconds status? expiry_reason? metadata?"
    ),
    "/conversations/turn": (
        "turn_id session_id agent_id start_time end_time duration_seconds status error_type? error_message? "
        "time_to_first_token? input_tokens? output_tokens? user_id? service?"
    ),
    "/conversations/feedback": (
        "feedback_id session_id timestamp source? "
        "quality_score? thumbs? name? turn_id? user_feedback? agent_id?"
    ),
    "/agents/register": "agent_id registration_time sdk_version? metadata?",
    "/agents/status": "agent_id status timestamp previous_status? metadata?",
    "/agents/activity": "agent_id action timestamp details? duration?",
    "/agents/heartbeat": "agent_id timestamp instance delivery service?",
}
"""The protocol's fields in order; those with a question mark may be left out when a request is made."""


def test_every_request_has_the_fields_of_the_protocol() -> None:
    """Names and order are the protocol's; nothing more, nothing less."""
    found = {
        path: " ".join(
            f.name + "?" * (f.default is None or isinstance(f.default, str)) for f in fields(request)
        )
        for path, request in wire.REQUESTS.items()
    }
    assert found == FIELDS


@given(st.integers(-30_610_224_000_000_000, 253_402_300_799_999_999))
def test_times_are_read_as_they_are_written(time_us: int) -> None:
    """Microseconds survive the way through text, from the year 1000 to 9999."""
    assert wire.parse_time(wire.format_time(time_us)) == time_us


def test_times_are_rfc_3339_in_utc_with_microseconds() -> None:
    """Always six digits and a Z, before 1970 too."""
    assert wire.format_time(1705681056000001) == "2024-01-19T16:17:36.000001Z"
    assert wire.format_time(-1) == "1969-12-31T23:59:59.999999Z"


@pytest.mark.parametrize(
    "text",
    ["2024-01-19T16:17:36", "2024-01-19T16:17:36+00:00", "2024-01-19T18:17:36+02:00", "2024-01-19T16:17:36Z"],
)
def test_a_time_without_a_zone_is_utc(text: str) -> None:
    """Other senders' times are read whatever zone they name, and as UTC if none."""
    assert wire.parse_time(text) == 1705681056000000


def test_text_that_is_no_time_raises() -> None:
    """Who reads has to know."""
    with pytest.raises(ValueError, match="noon"):
        wire.parse_time("noon")


def test_fields_that_are_none_are_left_out() -> None:
    """Absent is absent, while false, zero and empty are values."""
    activity = wire.AgentActivity(agent_id="bot", action="", timestamp="t", details={}, duration=0.0)
    assert wire.to_json(activity) == {
        "agent_id": "bot",
        "action": "",
        "timestamp": "t",
        "details": {},
        "duration": 0.0,
    }
    start = wire.ConversationStart(session_id="s", agent_id="bot", start_time="t")
    assert wire.to_json(start) == {"session_id": "s", "agent_id": "bot", "start_time": "t"}
