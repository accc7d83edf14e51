"""The page."""

from __future__ import annotations

import re

import pytest

from otel_agent_tracker import wire
from tests.server.world import Client, at, end, feedback, start, turn

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def page(client: Client, **parameters: str) -> str:
    answer = client.get("/", params=parameters)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return answer.text


def test_an_empty_tracker_says_what_to_do(client: Client) -> None:
    """No agent, no conversation."""
    text = page(client)
    assert "No agent has been heard of yet" in text
    assert "AGENT_TRACKER_URL" in text


def test_it_shows_conversations_and_agents(client: Client) -> None:
    """With outcome, quality, feedback and error, and which agents are silent; times are UTC."""
    client.tell(
        start("s1", user_id="ann"), turn("s1", 1), end("s1", 9, quality_score=4, user_feedback="lovely")
    )
    client.tell(start("s2"), end("s2", 9, status="failed", error_message="no more tokens"))
    client.tell(wire.AgentRegistration(agent_id="old-bot", registration_time=at(-3600), sdk_version="0.9"))
    text = re.sub(r"<[^>]+>|\s+", " ", page(client))
    for shown in ("ann", "completed", "4.0", "lovely", "failed", "no more tokens", "s1", "50.0%"):
        assert f" {shown} " in text
    assert re.search(r" old-bot +active +silent +2024-01-19 15:00:00 +0\.9 ", text)


def test_what_people_wrote_is_text(client: Client) -> None:
    """Ids, feedback, errors and versions are never markup."""
    client.tell(start(ATTACK, agent_id=ATTACK, user_id=ATTACK), feedback(ATTACK, 1, user_feedback=ATTACK))
    client.tell(end("s2", 9, agent_id="b", status="failed", error_message=ATTACK))
    client.tell(wire.AgentRegistration(agent_id=ATTACK, registration_time=at(0), sdk_version=ATTACK))
    text = page(client)
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<img" not in text


def test_right_to_left_text_stays_in_its_place(client: Client) -> None:
    """Ids that reverse the direction are isolated from what stands around them."""
    client.tell(start("\u202eabc"))
    assert "<bdi>\u202eabc</bdi>" in page(client)


def test_it_runs_no_script_and_loads_nothing_foreign(client: Client) -> None:
    """And browsers are told so."""
    answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script|\son\w+=|style=|https?://", answer.text)
    assert client.get("/static/style.css").headers["Content-Type"].startswith("text/css")


def test_older_conversations_are_a_page_away(client: Client) -> None:
    """By a link, as long as there are any."""
    client.tell(*(start(f"session-{number}", number) for number in range(51)))
    first = page(client)
    assert "session-50" in first
    link = re.search(r'href="/\?cursor=([^"]+)"', first)
    assert link is not None
    older = page(client, cursor=link[1])
    assert "session-0<" in older
    assert "session-1<" not in older
    assert "cursor=" not in older


def test_a_wrong_cursor_is_refused(client: Client) -> None:
    """As the API refuses it."""
    assert client.get("/", params={"cursor": "x"}).status_code == 422


def figures(client: Client) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page(client)))


def test_idle_ended_conversations_stand_beside_the_expired(client: Client) -> None:
    """They are among the outcomes, and counted apart."""
    idle = {"ended_by": "idle", "last_activity_time": at(3), "idle_seconds": 1800}
    recognised = {"agent_tracker": {"origin": "recognised"}}
    client.tell(start("s1", metadata=recognised), end("s1", 3, metadata={"agent_tracker": idle}))
    shown = figures(client)
    assert (shown["Ended idle"], shown["Completed"], shown["Expired"]) == ("1", "1", "0")
    assert list(shown).index("Ended idle") == list(shown).index("Expired") + 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.0 ms"), (0.0004, "0.4 ms"), (0.0871, "87.1 ms"), (0.1, "0.10 s"), (2, "2.00 s")],
)
def test_short_response_times_are_milliseconds(client: Client, seconds: float, shown: str) -> None:
    """Below a tenth of a second, where two decimals would say little."""
    client.tell(turn("s1", 1, seconds=seconds))
    assert figures(client)["Response time, median"] == shown
