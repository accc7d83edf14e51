"""Rules of `arguments`: what is accepted comes back finished, all else raises and says what would be."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_agent_tracker import arguments
from otel_agent_tracker.semconv import AgentStatus, ConversationQuality


@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=256))
def test_any_text_of_1_to_256_characters_is_an_id(text: str) -> None:
    """Unicode, underscores, spaces and punctuation are all fit for an id."""
    assert arguments.identifier("agent_id", text) == text


@pytest.mark.parametrize("unfit", ["\n", "\x00", "\x1b", "\x7f", "\x85", "\x9f", "\ud800"])
@pytest.mark.parametrize("beside", ["", "bot", "日本"])
def test_control_characters_are_refused_in_ids(unfit: str, beside: str) -> None:
    """Neither control characters nor lone surrogates; the message shows them escaped."""
    with pytest.raises(ValueError, match="agent_id must not contain control characters") as raised:
        arguments.identifier("agent_id", beside + unfit + beside)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("length", [0, 257, 100_000])
def test_an_id_has_1_to_256_characters(length: int) -> None:
    """The message tells the length, not the id."""
    with pytest.raises(ValueError, match=f"user_id must have 1 to 256 characters, not {length}$"):
        arguments.identifier("user_id", "x" * length)


@pytest.mark.parametrize("quality", [1, 5, ConversationQuality.GOOD])
def test_a_quality_is_an_int_from_1_to_5(quality: int) -> None:
    """As a number or by name; what comes back is a plain int."""
    finished = arguments.quality("quality_score", quality)
    assert finished == quality
    assert type(finished) is int


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (arguments.identifier, 7, TypeError, "x must be a str, not int"),
        (arguments.identifier, None, TypeError, "x must be a str, not NoneType"),
        (arguments.identifier, b"bot", TypeError, "x must be a str, not bytes"),
        (arguments.text, 7, TypeError, "x must be a str, not int"),
        (arguments.quality, 0, ValueError, "x must be a ConversationQuality or an int from 1 to 5, not 0"),
        (arguments.quality, 6, ValueError, "int from 1 to 5, not 6"),
        (arguments.quality, 10**30, ValueError, "int from 1 to 5"),
        (arguments.quality, 3.5, ValueError, "int from 1 to 5, not 3.5"),
        (arguments.quality, "good", ValueError, "int from 1 to 5, not 'good'"),
        (arguments.quality, True, ValueError, "int from 1 to 5, not True"),
        (arguments.quality, [4], TypeError, "int from 1 to 5, not list"),
        (arguments.count, -1, ValueError, "x must be 0 or more"),
        (arguments.count, 2**63, ValueError, "x must be 0 or more and fit in 63 bits"),
        (arguments.count, 1.0, TypeError, "x must be an int, not float"),
        (arguments.count, True, TypeError, "x must be an int, not bool"),
        (arguments.positive_number, 0, ValueError, "x must be a finite number above 0, not 0"),
        (arguments.positive_number, -1, ValueError, "above 0, not -1"),
        (arguments.positive_number, math.nan, ValueError, "above 0, not nan"),
        (arguments.positive_number, math.inf, ValueError, "above 0, not inf"),
        (arguments.positive_number, 10**400, ValueError, "x must be a finite number above 0"),
        (arguments.positive_number, "10", TypeError, "x must be a number, not str"),
        (arguments.positive_number, True, TypeError, "x must be a number, not bool"),
        (arguments.positive_number, Decimal(1), TypeError, "x must be a number, not Decimal"),
        (arguments.seconds, -0.1, ValueError, "above 0, not -0.1"),
        (arguments.seconds, False, TypeError, "x must be a number, not bool"),
        (arguments.mapping, [("a", 1)], TypeError, "x must be a mapping, not list"),
        (arguments.mapping, "a", TypeError, "x must be a mapping, not str"),
        (arguments.optional_identifier, "", ValueError, "x must have 1 to 256 characters, not 0"),
        (arguments.date_text, "yesterday", ValueError, "x must be an ISO 8601 date or time such as"),
        (arguments.date_text, 20240119, TypeError, "x must be a str, not int"),
    ],
)
def test_what_is_not_accepted_raises(
    check: Callable[[str, object], object], value: object, error: type[Exception], message: str
) -> None:
    """The message names the argument, what is accepted, and what came."""
    with pytest.raises(error) as raised:
        check("x", value)
    assert message in str(raised.value)


def test_members_are_taken_by_value_too() -> None:
    """A closed set is given as its member or the member's value."""
    assert arguments.member("status", "busy", AgentStatus) is AgentStatus.BUSY
    assert arguments.member("status", AgentStatus.BUSY, AgentStatus) is AgentStatus.BUSY


@pytest.mark.parametrize(("value", "error"), [("asleep", ValueError), (3, ValueError), (None, TypeError)])
def test_other_members_are_refused(value: object, error: type[Exception]) -> None:
    """The message lists what is accepted."""
    with pytest.raises(
        error, match="status must be one of active, idle, busy, error, offline, initializing, not"
    ):
        arguments.member("status", value, AgentStatus)


def test_what_is_accepted_comes_back_finished() -> None:
    """Numbers come back as floats, mappings and absent values as they are."""
    assert arguments.seconds("duration", 0) == 0.0
    assert arguments.seconds("duration", 2) == 2.0
    assert isinstance(arguments.positive_number("hours", 3), float)
    assert arguments.count("message_count", 0) == 0
    assert arguments.mapping("metadata", None) is None
    assert arguments.mapping("metadata", MappingProxyType({"a": 1})) == {"a": 1}
    assert arguments.optional_identifier("user_id", None) is None
    assert arguments.optional_identifier("user_id", "u") == "u"
    assert arguments.text("error_message", "") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2024, 1, 19), "2024-01-19"),
        (datetime(2024, 1, 19, 10, tzinfo=UTC), "2024-01-19T10:00:00+00:00"),
        ("2024-01-19", "2024-01-19"),
        ("2024-01-19T10:00:00Z", "2024-01-19T10:00:00Z"),
    ],
)
def test_dates_become_text(value: object, text: str) -> None:
    """A date, a time, or their ISO 8601 text."""
    assert arguments.date_text("start_date", value) == text
