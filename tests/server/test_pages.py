"""Lists of conversations: filters, periods and cursors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.server.world import Client, at, end, start


def ids(client: Client, **parameters: Any) -> list[str]:
    return [each["session_id"] for each in client.json("/conversations", **parameters)["conversations"]]


def test_conversations_come_newest_first(client: Client) -> None:
    """By their start; those of one microsecond in a fixed order; a session's each for itself."""
    client.tell(start("b", 5), start("c", 5), start("a", 0), end("a", 1), start("a", 9))
    assert ids(client) == ["a", "c", "b", "a"]


def test_pages_leave_out_and_repeat_nothing(client: Client) -> None:
    """Whatever the limit, and although new conversations start meanwhile."""
    client.tell(*(start(f"s{number}", number // 3) for number in range(10)))
    expected = ids(client)
    found, cursor = [], None
    while True:
        page = client.json("/conversations", limit=3, **({"cursor": cursor} if cursor else {}))
        found += [each["session_id"] for each in page["conversations"]]
        client.tell(start(f"new{len(found)}", 100))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == expected


def test_filters_select(client: Client) -> None:
    """By agent, user and status, and together."""
    client.tell(
        start("s1", agent_id="a", user_id="u1"),
        start("s2", agent_id="a", user_id="u2"),
        start("s3", agent_id="b", user_id="u1"),
        end("s3", 5, agent_id="b"),
    )
    assert ids(client, agent_id="a") == ["s2", "s1"]
    assert ids(client, user_id="u1") == ["s3", "s1"]
    assert ids(client, status="completed") == ["s3"]
    assert ids(client, agent_id="a", user_id="u1", status="active") == ["s1"]
    assert client.json("/conversations", agent_id="a", limit=1)["total"] == 2


def test_active_conversations_have_no_outcome(client: Client) -> None:
    """Of all agents or one."""
    client.tell(start("s1", agent_id="a"), start("s2", agent_id="b"), start("s3"), end("s3", 5))
    answer = client.json("/conversations/active", limit=1)
    assert (answer["total"], len(answer["conversations"])) == (2, 1)
    of_b = client.json("/conversations/active", agent_id="b")["conversations"]
    assert [each["session_id"] for each in of_b] == ["s2"]


def test_a_limit_above_500_is_500(client: Client) -> None:
    """Clamped, not refused; 0 asks for the total alone."""
    client.tell(start("s1"))
    assert ids(client, limit=10**9) == ["s1"]
    assert client.json("/conversations", limit=0) == {"conversations": [], "total": 1, "next_cursor": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": "-1"},
        {"limit": "many"},
        {"cursor": "é"},
        {"cursor": "x"},
        {"cursor": "bnVsbA"},
        {"cursor": "WyJhIiwxLDJd"},
        {"status": "done"},
        {"start_date": "soon"},
        {"end_date": "2024-13-01"},
        {"end_date": "9999-12-31"},
        {"start_date": "2024-01-19T25:00"},
        {"tz": "Mars/Olympus"},
        {"tz": "../etc/passwd"},
        {"tz": "America"},
    ],
)
def test_what_is_wrong_is_refused(client: Client, wrong: dict[str, str]) -> None:
    """422 with what is accepted."""
    answer = client.get("/conversations", params=wrong)
    assert answer.status_code == 422
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2024-01-20", "2024-01-19"),
        ("2024-01-20T00:00", "2024-01-19"),
        ("2024-01-19T12:00:01", "2024-01-19T12:00:00"),
    ],
)
@pytest.mark.parametrize("path", ["/conversations", "/metrics/success-rates", "/metrics/overview"])
def test_a_period_that_ends_before_it_starts_is_refused(
    client: Client, path: str, since: str, until: str
) -> None:
    """Naming both: zeros would look like an answer."""
    answer = client.get(path, params={"start_date": since, "end_date": until})
    assert answer.status_code == 422
    told = answer.json()["detail"]
    assert all(each in told for each in ("start_date", "end_date", since, until))


def test_an_empty_period_is_answered(client: Client) -> None:
    """It is half-open, so one that ends where it starts holds nothing."""
    client.tell(start("s1"))
    assert ids(client, start_date=at(0), end_date=at(0)) == []


def test_sql_in_an_id_is_text(client: Client) -> None:
    """Ids are bound, and wildcards mean nothing."""
    odd = "'); DROP TABLE conversations; --"
    client.tell(start(odd, agent_id="%"), start("s2", agent_id="_"))
    assert ids(client, agent_id="%") == [odd]


PERIODS = [
    ({"start_date": "2024-01-19"}, {"noon", "last"}),
    ({"end_date": "2024-01-18"}, {"before"}),
    ({"start_date": "2024-01-19", "end_date": "2024-01-19"}, {"noon", "last"}),
    ({"start_date": "2024-01-19T12:00:00Z"}, {"noon", "last"}),
    ({"end_date": "2024-01-19T12:00:00Z"}, {"before"}),
    ({"end_date": "2024-01-19T12:00:00.000001Z"}, {"before", "noon"}),
    ({"start_date": "2024-01-19T13:00:00+01:00"}, {"noon", "last"}),
    ({"start_date": "2024-01-20", "tz": "Asia/Tokyo"}, {"last"}),
    ({"end_date": "2024-01-19", "tz": "Asia/Tokyo"}, {"before", "noon"}),
    ({"end_date": "2024-01-18", "tz": "America/New_York"}, {"before"}),
    ({"end_date": "2024-01-19T21:00", "tz": "Asia/Tokyo"}, {"before"}),
]


@pytest.mark.parametrize(("period", "selected"), PERIODS)
def test_a_period_is_half_open_and_of_its_zone(
    client: Client, period: dict[str, str], selected: set[str]
) -> None:
    """By the conversation's start; a date includes its whole day in `tz`, a time ends just before itself."""
    times = {
        "before": "2024-01-18T23:59:59.999999Z",
        "noon": "2024-01-19T12:00:00Z",
        "last": "2024-01-19T23:59:59.999999Z",
    }
    client.tell(*(replace(start(name), start_time=time) for name, time in times.items()))
    assert set(ids(client, **period)) == selected


def test_a_day_has_23_hours_where_clocks_are_set(client: Client) -> None:
    """The day ends at midnight of its zone, not 24 hours after it began."""
    times = {"in": "2024-03-31T21:59:59Z", "out": "2024-03-31T22:00:00Z"}
    client.tell(*(replace(start(name), start_time=time) for name, time in times.items()))
    assert ids(client, end_date="2024-03-31", tz="Europe/Berlin") == ["in"]
