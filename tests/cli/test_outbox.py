"""`otel-agent-tracker outbox`, on real state folders."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_agent_tracker.server.run import Server
from tests.cli.terminal import NOWHERE, leave_in_journal, run, run_json, run_process, state_folder
from tests.conftest import MakeTracker
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, reply, respond


def refusing(request: ReceivedRequest) -> Action:
    """A tracker of the plain protocol that refuses every end."""
    if request.path == "/capabilities":
        return reply(404)
    return reply(422, "no, because") if request.path == "/conversations/end" else json_reply({})


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The folder that `make_tracker` uses."""
    return tmp_path / "state"


@pytest.fixture
def dead_letters(
    make_tracker: MakeTracker, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The state folder of a destination that has refused two ends; the environment names both."""
    with ScriptedServer(respond(refusing)) as server:
        tracker = make_tracker(server.url, redact=False)
        for number in (1, 2):
            session_id = tracker.start_conversation("bot")
            tracker.end_conversation(
                session_id, metadata={"api_key": "sk-abcdefgh12345678", "number": number}
            )
        assert tracker.flush(20)
        tracker.close()
        monkeypatch.setenv("AGENT_TRACKER_URL", server.url)
        monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(state_dir))
        yield state_folder(state_dir, server.url)


def ids_of_the_dead() -> list[int]:
    return [each["id"] for each in run_json("outbox", "list", "--dead")["dead_letters"]]


# --- status ---------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_was_accepted(tmp_path: Path) -> None:
    """And nothing is made."""
    result = run("outbox", "status", "--state-dir", tmp_path / "none")
    assert (result.exit_code, result.stdout.startswith("Nothing was accepted yet")) == (0, True)
    assert run_json("outbox", "status", "--state-dir", tmp_path / "none")["folders"] == []
    assert not (tmp_path / "none").exists()


def test_the_books_are_told(dead_letters: Path) -> None:
    """As accepted = delivered + pending + dead-lettered + dropped."""
    [books] = run_json("outbox", "status")["folders"]
    told = [books[name] for name in ("accepted", "delivered", "pending", "dead_lettered", "dropped")]
    assert told == [4, 2, 0, 2, 0]
    assert (books["folder"], books["configured"]) == (dead_letters.name, True)
    text = run("outbox", "status").stdout
    assert "Dead-lettered  2" in text


def test_what_is_still_in_the_journal_counts_as_pending(state_dir: Path) -> None:
    """Though no worker has ever read it, and though looking on leaves it there."""
    leave_in_journal(state_folder(state_dir, NOWHERE), 3)
    for _ in range(2):
        [books] = run_json("outbox", "status", "--state-dir", state_dir)["folders"]
        assert (books["accepted"], books["pending"], books["unread_by_kind"]) == (3, 3, {"agent.activity": 3})
    assert "3 (3 of them still in the journal)" in run("outbox", "status", "--state-dir", state_dir).stdout
    assert not list(state_dir.glob("*/state.sqlite3"))


def test_all_folders_are_told(state_dir: Path) -> None:
    """With a mark at that of the configured destination; one of them in full on demand."""
    first, second = (state_folder(state_dir, f"http://127.0.0.1:{port}") for port in (9, 10))
    leave_in_journal(first, 1)
    leave_in_journal(second, 2)
    (state_dir / "no folder of ours").mkdir()
    result = run("outbox", "status", "--state-dir", state_dir, "--url", NOWHERE)
    rows = {words[0]: words for words in map(str.split, result.stdout.splitlines()[2:-1])}
    assert rows.keys() == {f"{first.name}*", second.name}
    assert rows[second.name][1:6] == ["2", "0", "2", "0", "0"]
    [only] = run_json("outbox", "status", "--state-dir", state_dir, "--folder", second.name)["folders"]
    assert (only["folder"], only["configured"]) == (second.name, False)


def test_a_folder_of_other_settings_is_said_to_be(state_dir: Path) -> None:
    """Or one would take its books for one's own."""
    leave_in_journal(state_folder(state_dir, NOWHERE), 1)
    result = run("outbox", "status", "--state-dir", state_dir, "--url", "http://127.0.0.1:10")
    assert "these settings have another" in " ".join(result.stdout.split())


def test_the_books_hold_while_the_application_works(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Read by another process, at any moment."""
    tracker = make_tracker(NOWHERE)
    for _ in range(50):
        tracker.end_conversation(tracker.start_conversation("bot"))
    [books] = run_json("outbox", "status", "--state-dir", state_dir, "--url", NOWHERE)["folders"]
    assert (books["accepted"], books["pending"]) == (100, 100)


# --- events ---------------------------------------------------------------------------------------------


def test_events_are_listed_with_the_reason(dead_letters: Path) -> None:
    """Dead letters and pending events, or only one kind."""
    both = run_json("outbox", "list")
    assert [(each["event"], each["reason"]) for each in both["dead_letters"]] == [
        ("conversation", "422 no, because")
    ] * 2
    assert both["pending"] == []
    assert len(run_json("outbox", "list", "--limit", 1)["dead_letters"]) == 1
    assert run("outbox", "list", "--pending").stdout == "There is none.\n"
    lines = run("outbox", "list", "--dead", "--pending").stdout.splitlines()
    assert "dead" in lines[1]
    assert [line.split()[-1] for line in lines[1:]] == [each["lane"] for each in both["dead_letters"]]


def test_a_purge_of_nothing_asks_nothing(state_dir: Path) -> None:
    """It says that there is none."""
    leave_in_journal(state_folder(state_dir, NOWHERE), 1)
    result = run("outbox", "purge", "--all", "--state-dir", state_dir)
    assert (result.exit_code, result.stdout) == (0, "There are no dead letters.\n")


def test_an_event_is_shown_without_secrets(dead_letters: Path) -> None:
    """Even where the application was told to keep them."""
    [first, _] = ids_of_the_dead()
    told = run_json("outbox", "show", first)
    assert (told["state"], told["path"], told["body"]["metadata"]["number"]) == (
        "dead",
        "/conversations/end",
        1,
    )
    assert told["body"]["metadata"]["api_key"] == "[redacted]"
    text = run("outbox", "show", first).stdout
    assert "422 no, because" in text
    assert "sk-abc" not in text


def test_an_unknown_event_is_said_to_be(dead_letters: Path) -> None:
    """Exit code 1; an id that is no number is wrong use."""
    assert run("outbox", "show", 999).exit_code == 1
    assert run("outbox", "show", "x").exit_code == 2
    assert run("outbox", "show").exit_code == 2


# --- dead letters ---------------------------------------------------------------------------------------


def test_a_dead_letter_is_made_pending(dead_letters: Path) -> None:
    """That one, or all of them."""
    [first, second] = ids_of_the_dead()
    assert run("outbox", "retry", first).stdout == "1 dead letter is pending again.\n"
    assert ids_of_the_dead() == [second]
    assert run("outbox", "retry", "--all").stdout == "1 dead letter is pending again.\n"
    assert len(run_json("outbox", "list")["pending"]) == 2
    assert run("outbox", "retry", first).exit_code == 1


def test_a_purge_asks_first(dead_letters: Path) -> None:
    """A no, or no answer, changes nothing."""
    for answer in ("n\n", ""):
        assert run("outbox", "purge", "--all", typed=answer).exit_code == 1
    assert len(ids_of_the_dead()) == 2


def test_a_purge_deletes_and_counts_as_dropped(dead_letters: Path) -> None:
    """With a yes, or unasked."""
    [first, second] = ids_of_the_dead()
    assert run("outbox", "purge", first, typed="y\n").exit_code == 0
    assert ids_of_the_dead() == [second]
    assert run("outbox", "purge", "--all", "--yes").stdout == "1 dead letter is deleted.\n"
    [books] = run_json("outbox", "status")["folders"]
    assert (books["accepted"], books["dropped_by_kind"]) == (4, {"purged": 2})


@pytest.mark.parametrize("command", ["retry", "purge"])
def test_one_dead_letter_or_all_must_be_named(dead_letters: Path, command: str) -> None:
    """Not both, not neither."""
    for arguments in ([], [1, "--all"]):
        result = run("outbox", command, *arguments)
        assert result.exit_code == 2
        assert "--all" in result.stderr
    assert len(ids_of_the_dead()) == 2


def test_a_running_application_sends_what_is_retried(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Without being restarted."""
    willing = False

    def play(request: ReceivedRequest) -> Action:
        return json_reply({}) if willing and request.path != "/capabilities" else refusing(request)

    with ScriptedServer(respond(play)) as server:
        tracker = make_tracker(server.url)
        tracker.end_conversation(tracker.start_conversation("bot"))
        assert tracker.flush(20)
        willing = True
        result = run("outbox", "retry", "--all", "--state-dir", state_dir, "--url", server.url)
        assert result.exit_code == 0
        assert tracker.flush(20)
        stats = tracker.delivery_stats()
        tracker.close()
    assert (stats["delivered"], stats["dead_lettered"]) == (2, 0)


# --- the books, from refusal to delivery ----------------------------------------------------------------


def test_the_books_add_up_at_every_step(make_tracker: MakeTracker, state_dir: Path) -> None:
    """A refusal, a purge, a retry in vain, one that works, and a drain when a tracker is back.

    The application and the command line tell the same, and nothing is counted twice or not at all.
    """
    willing = False

    def play(request: ReceivedRequest) -> Action:
        return json_reply({}) if willing and request.path != "/capabilities" else refusing(request)

    def outbox(*arguments: object) -> str:
        result = run("outbox", *arguments, "--state-dir", state_dir, "--url", server.url)
        assert result.exit_code == 0, result.output
        return result.stdout

    def books() -> list[int]:
        assert tracker.flush(20)
        [told] = run_json("outbox", "status", "--state-dir", state_dir, "--url", server.url)["folders"]
        numbers = {
            name: told[name] for name in ("accepted", "delivered", "pending", "dead_lettered", "dropped")
        }
        assert numbers == {name: tracker.delivery_stats()[name] for name in numbers}
        return list(numbers.values())

    with ScriptedServer(respond(play)) as server:
        tracker = make_tracker(server.url)
        for _ in range(3):
            tracker.end_conversation(tracker.start_conversation("bot"))
        assert books() == [6, 3, 0, 3, 0]
        first, *_ = (
            each["id"]
            for each in run_json("outbox", "list", "--state-dir", state_dir, "--url", server.url)[
                "dead_letters"
            ]
        )
        outbox("purge", first, "--yes")
        assert books() == [6, 3, 0, 2, 1]
        outbox("retry", "--all")
        assert books() == [6, 3, 0, 2, 1]
        willing = True
        outbox("retry", "--all")
        assert books() == [6, 5, 0, 0, 1]
        tracker.close()
    tracker = make_tracker(server.url)
    for _ in range(2):
        tracker.end_conversation(tracker.start_conversation("bot"))
    tracker.close()
    with ScriptedServer(respond(play), port=server.port):
        drained = run_process("outbox", "drain", "--url", server.url, "--state-dir", state_dir)
        assert (drained.returncode, drained.stdout) == (0, "Delivered 4, pending 0, dead-lettered 0.\n")
        tracker = make_tracker(server.url)
        assert books() == [10, 9, 0, 0, 1]
        tracker.close()


def test_a_dead_letter_tells_how_often_it_was_sent(dead_letters: Path) -> None:
    """The sending that was refused is one; a retry begins anew."""
    [first, _] = ids_of_the_dead()
    assert run_json("outbox", "show", first)["attempts"] == 1
    run("outbox", "retry", first)
    assert run_json("outbox", "show", first)["attempts"] == 0


def test_a_refusal_is_shown_without_secrets(make_tracker: MakeTracker, state_dir: Path) -> None:
    """Trackers repeat what they refuse."""

    def repeating(request: ReceivedRequest) -> Action:
        return refusing(request) if request.path == "/capabilities" else reply(422, request.body)

    with ScriptedServer(respond(repeating)) as server:
        tracker = make_tracker(server.url, redact=False)
        tracker.start_conversation("bot", metadata={"api_key": "sk-abcdefgh12345678"})
        assert tracker.flush(20)
        here = ("--state-dir", state_dir, "--url", server.url)
        [dead] = run_json("outbox", "list", *here)["dead_letters"]
        shown = run("outbox", "show", dead["id"], *here).stdout + run("outbox", "list", *here).stdout
    assert "sk-abc" not in str(dead) + shown
    assert "[redacted]" in dead["reason"]


def test_who_looks_at_the_books_is_told_where_the_reasons_are(dead_letters: Path) -> None:
    """Only where something was refused."""
    assert "outbox list --dead" in run("outbox", "status").stdout
    run("outbox", "purge", "--all", "--yes")
    assert "outbox list --dead" not in run("outbox", "status").stdout


# --- drain ----------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from otel_agent_tracker import AgentPerformanceTracker
tracker = AgentPerformanceTracker(sys.argv[1], state_dir=sys.argv[2])
session_id = tracker.start_conversation("bot")
if sys.argv[3] == "ended":
    tracker.end_conversation(session_id)
print(session_id, flush=True)
os._exit(9)
"""


def killed_process(url: str, state_dir: Path, conversation: str) -> str:
    """A conversation of a process that dies right after; its session id."""
    arguments = [sys.executable, "-c", KILLED, url, str(state_dir), conversation]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 9
    return result.stdout.strip()


def test_a_drain_delivers_what_a_dead_process_left(tracker_server: Server, state_dir: Path) -> None:
    """As a process of its own, which leaves nothing behind."""
    session_id = killed_process(tracker_server.url, state_dir, "ended")
    result = run_process("outbox", "drain", "--url", tracker_server.url, "--state-dir", state_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("pending 0, dead-lettered 0.\n")
    shown = run_json("conversations", "show", session_id, "--url", tracker_server.url)
    assert shown["status"] == "completed"


def test_a_drain_ends_nobodys_conversation(
    tracker_server: Server, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever limits it is itself given: the application may have others."""
    monkeypatch.setenv("AGENT_TRACKER_SESSION_TTL_HOURS", "0.000001")
    monkeypatch.setenv("AGENT_TRACKER_IDLE_MINUTES", "0.000001")
    session_id = killed_process(tracker_server.url, state_dir, "open")
    assert run("outbox", "drain", "--url", tracker_server.url, "--state-dir", state_dir).exit_code == 0
    shown = run_json("conversations", "show", session_id, "--url", tracker_server.url)
    assert shown["status"] == "active"


def test_a_drain_gives_up_in_time_and_keeps_everything(state_dir: Path) -> None:
    """Exit code 1."""
    killed_process(NOWHERE, state_dir, "ended")
    result = run("outbox", "drain", "--url", NOWHERE, "--state-dir", state_dir, "--timeout", 0.5)
    assert result.exit_code == 1
    assert "Delivered 0, pending 2" in result.stdout
    [books] = run_json("outbox", "status", "--url", NOWHERE, "--state-dir", state_dir)["folders"]
    assert (books["accepted"], books["pending"]) == (2, 2)


def test_a_drain_beside_the_application_waits_for_it(
    make_tracker: MakeTracker, tracker_server: Server, state_dir: Path
) -> None:
    """One of them sends at a time, and both see the end."""
    tracker = make_tracker(tracker_server.url)
    for _ in range(20):
        tracker.end_conversation(tracker.start_conversation("bot"))
    result = run_process("outbox", "drain", "--url", tracker_server.url, "--state-dir", state_dir)
    assert result.returncode == 0
    assert tracker.delivery_stats()["accepted"] == 40
    assert run_json("conversations", "list", "--url", tracker_server.url)["total"] == 20


def test_a_drain_says_what_was_refused(dead_letters: Path) -> None:
    """Exit code 0: it does not wait any more. Where the reasons are is said."""
    run("outbox", "retry", "--all")
    result = run("outbox", "drain")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "Delivered 0, pending 0, dead-lettered 2."
    assert result.stdout.splitlines()[1].startswith(
        "2 of them were refused now. `otel-agent-tracker outbox list"
    )


def test_a_drain_without_anything_is_done(dead_letters: Path) -> None:
    """Dead letters do not wait."""
    assert run("outbox", "drain").stdout == "Delivered 0, pending 0, dead-lettered 2.\n"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "no tracker is configured"),
        ({"AGENT_TRACKER_URL": NOWHERE, "OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED is true"),
        ({"AGENT_TRACKER_URL": NOWHERE, "AGENT_TRACKER_DURABILITY": "memory"}, "nothing waits on disk"),
    ],
)
def test_a_drain_needs_a_destination(
    state_dir: Path, environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, and why."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    result = run("outbox", "drain", "--state-dir", state_dir)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_drain_sends_nothing_of_another_destination(state_dir: Path) -> None:
    """A folder's events belong to one tracker, key and service."""
    other = state_folder(state_dir, "http://127.0.0.1:10")
    leave_in_journal(other, 1)
    named = run("outbox", "drain", "--url", NOWHERE, "--state-dir", state_dir, "--folder", other.name)
    assert named.exit_code == 2
    unnamed = run("outbox", "drain", "--url", NOWHERE, "--state-dir", state_dir)
    assert unnamed.exit_code == 1
    assert other.name in unnamed.stderr
    assert all("OTEL_SERVICE_NAME" in result.stderr for result in (named, unnamed))


# --- which folder ---------------------------------------------------------------------------------------


def test_a_folder_must_be_chosen_where_there_are_several(state_dir: Path) -> None:
    """Unless the settings name one of them."""
    folders = [state_folder(state_dir, f"http://127.0.0.1:{port}") for port in (9, 10)]
    for folder in folders:
        leave_in_journal(folder, 1)
    result = run("outbox", "list", "--state-dir", state_dir)
    assert result.exit_code == 2
    assert all(folder.name in result.stderr for folder in folders)
    assert run("outbox", "list", "--state-dir", state_dir, "--url", NOWHERE).exit_code == 0
    assert run("outbox", "list", "--state-dir", state_dir, "--folder", folders[1].name).exit_code == 0


@pytest.mark.parametrize("wrong", ["nope", "../state", "0123456789ab"])
def test_an_unknown_folder_is_wrong_use(state_dir: Path, wrong: str) -> None:
    """It names those there are."""
    folder = state_folder(state_dir, NOWHERE)
    leave_in_journal(folder, 1)
    result = run("outbox", "list", "--state-dir", state_dir, "--folder", wrong)
    assert result.exit_code == 2
    assert folder.name in result.stderr


def test_no_folder_at_all_is_said(state_dir: Path) -> None:
    """Exit code 1."""
    result = run("outbox", "list", "--state-dir", state_dir)
    assert result.exit_code == 1
    assert "Nothing was accepted yet" in result.stderr


def test_a_state_file_of_a_newer_release_is_left_alone(dead_letters: Path) -> None:
    """Exit code 1, and why."""
    with sqlite3.connect(dead_letters / "state.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    result = run("outbox", "list")
    assert result.exit_code == 1
    assert "newer" in result.stderr


def test_a_damaged_state_file_is_left_as_it_is(dead_letters: Path) -> None:
    """Only the application may set it aside."""
    for path in dead_letters.glob("state.sqlite3*"):
        path.unlink()
    file = dead_letters / "state.sqlite3"
    file.write_bytes(b"no database" * 1000)
    for arguments in (["status"], ["list"], ["retry", "--all"], ["drain"]):
        result = run("outbox", *arguments)
        assert (result.exit_code, "cannot be used" in result.stderr) == (1, True)
    assert file.read_bytes() == b"no database" * 1000
    assert not list(dead_letters.glob("*corrupt*"))
