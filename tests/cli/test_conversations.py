"""`otel-agent-tracker conversations`, against a real tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from otel_agent_tracker import wire
from otel_agent_tracker.client import Delivered, TrackerClient
from otel_agent_tracker.server.run import Server
from tests.cli.terminal import Json, run, run_json, run_on_terminal, run_process
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond
from tests.server.world import at, end, start, turn

Tell = Callable[..., None]


def post(server: Server, *requests: wire.Request, key: str | None = None) -> None:
    client = TrackerClient(server.url, api_key=key)
    try:
        for request in requests:
            body = json.dumps(wire.to_json(request)).encode()
            assert client.send(request.PATH, body) == Delivered()
    finally:
        client.close()


@pytest.fixture
def tell(tracker_server: Server) -> Tell:
    """Posts requests to the tracker."""
    return partial(post, tracker_server)


@pytest.fixture
def url(tracker_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tracker's address, which the environment names."""
    monkeypatch.setenv("AGENT_TRACKER_URL", tracker_server.url)
    return tracker_server.url


LONG = "support-bot_1674123456_a1b2c3d4e5f60718"


def test_the_list_shows_the_newest_first(tell: Tell, url: str) -> None:
    """With status, quality and turns of each; the session's id is never broken, on a terminal either."""
    tell(start("s1", 0), start(LONG, 60), turn(LONG, 61), end(LONG, 90, 60, quality_score=4))
    for show in (run, run_on_terminal):
        lines = show("conversations", "list").stdout.splitlines()
        assert lines[0].split() == ["Started", "Agent", "Status", "Quality", "Turns", "Session"]
        assert lines[1].split()[3:] == ["completed", "4", "1", LONG]
        assert lines[2].split()[2:] == ["support-bot", "active", "0", "s1"]


def test_json_is_the_trackers_in_utc(tell: Tell, url: str) -> None:
    """Unchanged, so that machines have all of it."""
    tell(start("s1", 0), end("s1", 5))
    found = run_json("conversations", "list")
    assert found["total"] == 1
    assert [each["end_time"] for each in found["conversations"]] == [at(5)]
    assert run_json("conversations", "show", "s1")["episodes"][0]["start_time"] == at(0)


@pytest.fixture(scope="module")
def url_of_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracker that knows four conversations."""
    with Server(port=0, database=str(tmp_path_factory.mktemp("four") / "tracker.sqlite3")) as server:
        post(
            server,
            start("s1", 0),
            end("s1", 5),
            start("s2", 10, user_id="u2"),
            start("s3", 20, agent_id="other"),
            start("s4", 30),
            end("s4", 35, 30, status="failed", error_message="boom"),
        )
        yield server.url


@pytest.mark.parametrize(
    ("options", "sessions"),
    [
        ([], ["s4", "s3", "s2", "s1"]),
        (["--agent", "other"], ["s3"]),
        (["--user", "u2"], ["s2"]),
        (["--status", "failed"], ["s4"]),
        (["--status", "active"], ["s3", "s2"]),
        (["--active"], ["s3", "s2"]),
        (["--active", "--agent", "other"], ["s3"]),
        (["--since", "2024-01-19T16:00:15Z"], ["s4", "s3"]),
        (["--since", "2024-01-20"], []),
        (["--since", "1h"], []),
        (["--limit", "2"], ["s4", "s3"]),
    ],
)
def test_the_list_is_filtered(url_of_four: str, options: list[str], sessions: list[str]) -> None:
    """By agent, user, status and start; none, one or many."""
    found = run_json("conversations", "list", *options, "--url", url_of_four)
    assert [each["session_id"] for each in found["conversations"]] == sessions


def test_since_counts_back_from_now(tell: Tell, url: str) -> None:
    """In minutes, hours or days."""
    now = datetime.now(UTC)
    for name, age in (("old", timedelta(hours=3)), ("new", timedelta(minutes=5))):
        began = wire.format_time(int((now - age).timestamp() * 1e6))
        tell(wire.ConversationStart(session_id=name, agent_id="bot", start_time=began))
    for since, sessions in (("1m", []), ("30m", ["new"]), ("4h", ["new", "old"]), ("1d", ["new", "old"])):
        found = run_json("conversations", "list", "--since", since)
        assert [each["session_id"] for each in found["conversations"]] == sessions


@pytest.mark.parametrize("since", ["yesterday", "2x", "1", "-1h", "2024-13-01", ""])
def test_a_wrong_since_says_what_is_accepted(since: str) -> None:
    """Before anything is asked."""
    result = run("conversations", "list", "--since", since)
    assert result.exit_code == 2
    assert "90m, 24h, 7d" in result.stderr


def test_times_are_local(tell: Tell, url: str) -> None:
    """In the zone of whoever looks."""
    tell(start("s1", 0), end("s1", 5))
    told = run_process("conversations", "show", "s1", TZ="Asia/Tokyo").stdout
    assert "Started        2024-01-20 01:00:00" in told


def test_more_than_a_page_is_fetched_page_by_page() -> None:
    """By the tracker's cursors, until there are enough."""

    def page(request: ReceivedRequest) -> Action:
        [limit] = request.query["limit"]
        first = 0 if "cursor" not in request.query else int(request.query["cursor"][0])
        sessions: list[Json] = [{"session_id": f"s{first + each}"} for each in range(int(limit))]
        return json_reply({"conversations": sessions, "total": 5000, "next_cursor": str(first + int(limit))})

    with ScriptedServer(respond(page)) as server:
        found = run_json("conversations", "list", "--limit", 1200, "--url", server.url)
        asked = [request.query["limit"] for request in server.requests]
    assert asked == [["500"], ["500"], ["200"]]
    assert [each["session_id"] for each in found["conversations"]] == [f"s{each}" for each in range(1200)]


def test_a_list_that_was_cut_says_so(tell: Tell, url: str) -> None:
    """On standard error, where it disturbs nobody."""
    tell(start("s1", 0), start("s2", 1))
    assert run("conversations", "list", "--limit", 1).stderr == "1 of 2; more with --limit.\n"


def test_show_tells_everything(tell: Tell, url: str) -> None:
    """Also the conversations before, if there are any."""
    tell(
        start("s1", 0, user_id="u1", metadata={"plan": "pro"}),
        end("s1", 60, quality_score=4, user_feedback="fine"),
        start("s1", 100),
        end("s1", 7300, 100, status="failed", error_message="boom"),
    )
    lines = run("conversations", "show", "s1").stdout.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("Last activity"))
    assert (told["Session"].strip(), told["Status"].strip(), told["Error"].strip()) == (
        "s1",
        "failed",
        "boom",
    )
    assert told["Lasted"].strip() == "2 h"
    assert told["1"].split()[:2] == ["completed", "4"]
    assert told["2"].split()[0] == "failed"


@pytest.mark.parametrize("session_id", ["a/b", "..", "é🤖", "active", "[red]s[/]", "%2e"])
def test_any_session_can_be_shown(tell: Tell, url: str, session_id: str) -> None:
    """Ids that no path can carry go by query, and none is taken for markup."""
    tell(start(session_id, 0))
    assert run_json("conversations", "show", session_id)["session_id"] == session_id
    assert session_id in run("conversations", "show", session_id).stdout
    assert session_id in run("conversations", "list").stdout


def test_nothing_that_a_terminal_obeys_is_printed(tell: Tell, url: str) -> None:
    """Feedback and errors are other people's text."""
    tell(start("s1", 0), end("s1", 5, user_feedback="\x1b[2J\x07evil\u202e", quality_score=1))
    told = run("conversations", "show", "s1").stdout
    assert "\ufffd[2J\ufffdevil\ufffd" in told
    assert "\x1b" not in run("conversations", "show", "s1", "--json").stdout


def test_an_unknown_session_is_said_to_be(url: str) -> None:
    """Exit code 1."""
    result = run("conversations", "show", "nope")
    assert (result.exit_code, result.stderr) == (1, "Error: The tracker knows no session 'nope'.\n")


@pytest.mark.parametrize("session_id", ["", "a\nb", "x" * 321])
def test_an_unfit_session_id_is_wrong_use(url: str, session_id: str) -> None:
    """Exit code 2, and what is accepted."""
    result = run("conversations", "show", session_id)
    assert result.exit_code == 2
    assert "session_id must" in result.stderr


def test_no_conversation_is_said_in_words(url: str) -> None:
    """Not by an empty table."""
    assert run("conversations", "list").stdout == "No conversation is like that.\n"


def test_no_tracker_is_wrong_use() -> None:
    """It says where to name one."""
    result = run("conversations", "list")
    assert result.exit_code == 2
    assert "AGENT_TRACKER_URL" in result.stderr


@pytest.mark.parametrize("wrong", ["tracker", "ftp://x", "http://u:secret@h", "http://h?x=1"])
def test_a_wrong_url_is_wrong_use(wrong: str) -> None:
    """It says what is accepted, and shows no password."""
    result = run("conversations", "list", "--url", wrong)
    assert result.exit_code == 2
    assert "--url must" in result.stderr
    assert "secret" not in result.stderr


def test_the_url_option_beats_the_environment(
    tell: Tell, tracker_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every argument."""
    monkeypatch.setenv("AGENT_TRACKER_URL", "http://127.0.0.1:9")
    tell(start("s1", 0))
    assert run_json("conversations", "list", "--url", tracker_server.url)["total"] == 1


def test_the_key_comes_from_a_file(
    tell: Tell, tracker_server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which beats a key in the environment; without one the tracker's refusal is told."""
    key = tracker_server.store.keys.create()
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    tell(start("s1", 0), key=key)
    refused = run("conversations", "list")
    assert refused.exit_code == 1
    assert "the key is not accepted" in refused.stderr
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", "another")
    found = run("conversations", "list", "--api-key-file", file)
    assert found.exit_code == 0
    assert key not in found.output


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_key_file_that_cannot_be_read_is_wrong_use(
    url: str, tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by the option or by the environment."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    assert run("conversations", "list", "--api-key-file", file).exit_code == 2
    monkeypatch.setenv("AGENT_TRACKER_API_KEY_FILE", str(file))
    result = run("conversations", "list")
    assert result.exit_code == 2
    assert str(file) in result.stderr


def test_a_tracker_that_lists_open_conversations_only_is_asked_with_active() -> None:
    """It says so where the list is not known."""
    with ScriptedServer(reply(404), json_reply({"conversations": []})) as server:
        result = run("conversations", "list", "--url", server.url)
        assert result.exit_code == 1
        assert "--active" in result.stderr
        assert run_json("conversations", "list", "--active", "--url", server.url) == {
            "conversations": [],
            "total": 0,
        }


def test_active_goes_with_agent_only(url: str) -> None:
    """The request has no other filters."""
    result = run("conversations", "list", "--active", "--user", "u1")
    assert result.exit_code == 2
    assert "--agent only" in result.stderr
