"""Ids, metadata and secrets of every kind, from the public API to what the tracker stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, AgentStatus
from otel_agent_tracker.server.run import Server
from tests.conftest import MakeTracker
from tests.hosts import tracker_answer
from tests.scripted_server import ScriptedServer, respond

# --- ids ----------------------------------------------------------------------------------------------------

ACCEPTED = (
    *("a_b", "a-b", "a b", " a", "a ", "a/b", "/", "..", ".", "../x", "%2e%2e", "%2F", "a%00b", "a?b=c", "a#b", "a&b"),
    *("é🤖", "\u00e9", "e\u0301", "\u200fعربي", "a\u202eb", "\u2028", "'; drop table events;--", "<script>", "a:b@c"),
    *("None", "null", "0", "a+b", "a\\b", "*", '"', "x" * 256),
)  # fmt: skip
REFUSED: tuple[Any, ...] = (
    "",
    "x" * 321,
    "a\r\nX-Evil: 1",
    "a\nb",
    "a\x00b",
    "a\tb",
    "a\x85b",
    "a\x7fb",
    "\ud800",
    7,
    None,
    b"a",
    1.5,
)


def test_fault_44_ids_of_every_kind_arrive_to_the_letter(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """Agents, users and sessions are found at the tracker under just the id that was given, be it a path, a URL's
    escape, or a letter that can be written in two ways. No two of them become one."""
    tracker = make_tracker(tracker_server.url)
    sessions = {}
    for each in ACCEPTED:
        sessions[each] = tracker.start_conversation(each, each)
        with tracker.turn(each, agent_id=each, user_id=each):
            pass
        assert tracker.end_conversation(each, 5)
    assert tracker.flush(30)
    for each in ACCEPTED:
        for session in (each, sessions[each]):
            told = tracker.get_session_info(session) or {}
            assert [told["session_id"], told["agent_id"], told["user_id"]] == [session, each, each]
            assert (len(told["episodes"]), told["turns"]) == (1, session == each)
        rates = tracker.get_success_rates(each)
        assert (rates["total"], rates["completed"], rates["active"]) == (2, 1, 1), each
    assert tracker.get_success_rates()["total"] == 2 * len(ACCEPTED)
    assert tracker.delivery_stats()["dead_lettered"] == 0


def test_fault_44_48_ids_that_are_none_are_refused_before_anything_changes(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """Empty ids, too long ones, and ids with line breaks, other control characters or half a letter raise at once;
    nothing is sent or opened. A tracker answers 422 to whoever sends them all the same."""
    tracker = make_tracker(tracker_server.url)
    for each in REFUSED:
        calls: list[Callable[[], object]] = [
            partial(tracker.turn, each),
            partial(tracker.end_conversation, each, agent_id="bot"),
            partial(tracker.record_failed_session, each, "boom", agent_id="bot"),
            partial(tracker.record_feedback, each, 5),
            partial(tracker.touch_session, each),
            partial(tracker.start_conversation, each),
        ]
        for call in calls:
            with pytest.raises((ValueError, TypeError)):
                call()
        if each is not None:
            with pytest.raises((ValueError, TypeError)):
                tracker.start_conversation("bot", each)
    stats = tracker.get_session_stats(), tracker.delivery_stats()
    assert (stats[0]["total_cached_sessions"], stats[1]["accepted"]) == (0, 0)
    with httpx.Client(base_url=tracker_server.url) as client:
        for each in (each for each in REFUSED if each != "\ud800" and not isinstance(each, bytes)):
            body = {"session_id": each, "agent_id": each, "start_time": "2024-01-19T16:00:00Z"}
            assert client.post("/conversations/start", json=body).status_code == 422, each
    assert tracker.get_success_rates()["total"] == 0


# --- metadata -----------------------------------------------------------------------------------------------

called: list[str] = []


class Meta(type):
    def __getattr__(cls, name: str) -> Any:
        called.append(name)
        raise RuntimeError


class Hostile(metaclass=Meta):
    """Whoever asks it anything waits for long, or worse."""

    def _asked(self, *_: object) -> Any:
        called.append("method")
        threading.Event().wait(5)
        raise SystemExit

    __repr__ = __str__ = __hash__ = __eq__ = __bool__ = __len__ = __iter__ = __getattr__ = __format__ = _asked
    __dict__ = property(_asked)  # who asks is caught
    keys = items = __float__ = __int__ = __index__ = __reduce__ = __getitem__ = _asked


class HostileText(str):
    __slots__ = ()

    def _asked(self, *_: object) -> Any:
        called.append("text")
        raise SystemExit

    __str__ = __repr__ = __len__ = __iter__ = encode = __getitem__ = _asked  # type: ignore[assignment]  # as above


class Colour(Enum):
    RED = "red"


CYCLE: dict[str, Any] = {"a": 1}
CYCLE["self"] = CYCLE
DEEP: Any = "bottom"
for _ in range(100_000):
    DEEP = [DEEP]

NAMED: dict[str, tuple[Any, Any]] = {
    "object": (object(), "<object>"),
    "hostile object": (Hostile(), "<Hostile>"),
    "hostile text": (HostileText("abc"), "abc"),
    "bytes": (b"123", "<bytes 3>"),
    "set": ({1}, [1]),
    "datetime": (datetime(2024, 1, 19, tzinfo=UTC), "2024-01-19T00:00:00+00:00"),
    "Decimal": (Decimal("1.10"), "1.10"),
    "Enum": (Colour.RED, "red"),
    "NaN": (float("nan"), None),
    "infinity": ([float("inf"), -float("inf")], [None, None]),
    "large int": (2**70, str(2**70)),
    "lone surrogate": ("a\ud800b", "a?b"),
    "keys": ({2: "a", None: "b", True: "c"}, {"2": "a", "null": "b", "true": "c"}),
    "cycle": (CYCLE, {"a": 1, "self": "<cycle>"}),
}
CUT: dict[str, Any] = {
    "deep": DEEP,
    "long text": "x" * 1_000_000,
    "many keys": dict.fromkeys(map(str, range(100_000)), 1),
    "many items": list(range(100_000)),
}


def test_fault_45_metadata_that_json_cannot_hold_arrives_as_json(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """Whatever is handed in as metadata, the event is kept, and what JSON lacks is named in it. What is too deep, too
    long or too much is cut and marked. Nothing of an object in it is called, so none that raises or blocks can."""
    tracker = make_tracker(tracker_server.url)
    called.clear()  # whoever collects tests asks everything in a module
    sessions = {
        name: tracker.start_conversation("bot", metadata={"it": it}) for name, (it, _) in NAMED.items()
    }
    for name, it in CUT.items():
        sessions[name] = tracker.start_conversation("bot")
        assert tracker.end_conversation(sessions[name], 5, metadata={"it": it})
    assert tracker.flush(30)
    assert called == []
    told = {name: (tracker.get_session_info(each) or {})["metadata"] for name, each in sessions.items()}
    assert {name: told[name] for name in NAMED} == {name: {"it": copy} for name, (_, copy) in NAMED.items()}
    for name in CUT:
        assert told[name]["_truncated"] is True, name
        assert len(repr(told[name])) < 100_000
    assert tracker.delivery_stats()["dead_lettered"] == 0


def test_fault_45_metadata_that_another_thread_changes_is_copied_or_cut(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """While another thread adds and removes keys, every start is kept, with a copy of what was there or the mark of
    what could not be copied."""
    tracker = make_tracker(tracker_server.url)
    shared: dict[str, Any] = {"stays": 1}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(50):
                shared[f"k{number}"] = object()
            for number in range(50):
                del shared[f"k{number}"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        sessions = [tracker.start_conversation("bot", metadata=shared) for _ in range(200)]
    finally:
        stop.set()
        thread.join()
    assert tracker.flush(30)
    rates = tracker.get_success_rates("bot")
    assert rates["total"] == len(set(sessions)) == 200
    for session in sessions[::20]:
        metadata = (tracker.get_session_info(session) or {})["metadata"]
        assert metadata.get("stays") == 1 or metadata["_truncated"] is True


def test_fault_46_keys_of_users_take_the_place_of_none_of_ours(
    make_tracker: MakeTracker, tracker_server: Server
) -> None:
    """Metadata may have keys that are named as ours: they arrive as metadata, and neither make two events one nor say
    whose an event is, what kind, or what ended it. Only the key `agent_tracker` is ours."""
    tracker = make_tracker(tracker_server.url)
    names = (
        "event_id",
        "type",
        "key",
        "path",
        "session_id",
        "agent_id",
        "status",
        "ended_by",
        "service",
        "value",
    )
    theirs = dict.fromkeys(names, "same for all")
    evil = {"event_id": "f" * 32, "ended_by": "ttl", "origin": "recognised", "idle_seconds": 1e9}
    sessions = [
        tracker.start_conversation("bot", metadata={**theirs, "agent_tracker": evil}) for _ in range(3)
    ]
    for session in sessions:
        assert tracker.end_conversation(session, 5, metadata={**theirs, "agent_tracker": evil})
    assert tracker.flush(30)
    for session in sessions:
        told = tracker.get_session_info(session) or {}
        assert (told["session_id"], told["agent_id"], told["metadata"]) == (session, "bot", theirs)
        assert (told["status"], told["ended_by"], len(told["episodes"])) == ("completed", "call", 1)
    assert tracker.get_success_rates("bot")["completed"] == 3


# --- secrets ------------------------------------------------------------------------------------------------

SECRETS = (
    "sk-proj-abcdefghijklmnop1234567890",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "hunter2-of-the-database",
    "the-bearer-0123456789",
    "a-plain-word-under-a-key",
)
SAID = (
    f"the key {SECRETS[0]} and {SECRETS[1]}, token {SECRETS[2]}; postgres://app:{SECRETS[3]}@db/x; "
    f"Authorization: Bearer {SECRETS[4]}; kept-words"
)
API_KEY = "the-key-of-the-tracker-0123"


@pytest.fixture
def plain_tracker() -> Iterator[ScriptedServer]:
    with ScriptedServer(respond(tracker_answer)) as server:
        yield server


def say_it_everywhere(tracker: AgentPerformanceTracker, operations: AgentOperationsTracker) -> None:
    metadata = {"note": SAID, "nested": [{"authorization": SECRETS[5], "API-Key": SECRETS[5], SAID: 1}]}
    session = tracker.start_conversation("bot", metadata=metadata)
    with pytest.raises(OSError, match="kept-words"), tracker.turn(session):
        raise OSError(SAID)
    tracker.record_feedback(session, 5, SAID)
    tracker.end_conversation(session, 5, SAID, metadata=metadata)
    tracker.record_failed_session(tracker.start_conversation("bot"), SAID, metadata)
    with tracker.turn("thread-7", agent_id="bot") as turn:
        turn.fail(SAID)
    operations.register_agent("bot", "1", metadata)
    operations.update_agent_status("bot", AgentStatus.BUSY, metadata=metadata)
    operations.log_activity("bot", SAID, metadata)


def test_fault_47_secrets_reach_neither_the_disk_nor_the_wire(
    plain_tracker: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys, tokens and passwords in metadata, ratings, errors and activities are taken out before an event is written:
    no file of the state folder, no request and no line of the log holds one, at no moment. The words around stay."""
    written = bytearray()

    def look() -> None:
        for path in (tmp_path / "state").rglob("*"):
            if path.is_file():
                written.extend(path.read_bytes())

    options: dict[str, Any] = {"state_dir": tmp_path / "state", "flush_timeout_seconds": 0.1}
    with (
        AgentPerformanceTracker(plain_tracker.url, API_KEY, **options) as tracker,
        AgentOperationsTracker(plain_tracker.url, API_KEY, **options) as operations,
    ):
        say_it_everywhere(tracker, operations)
        look()
        assert tracker.flush(20)
        look()
        assert tracker.delivery_stats()["delivered"] == 11
    look()
    sent = b"".join(request.target.encode() + request.body for request in plain_tracker.requests)
    for secret in (*SECRETS, API_KEY):
        assert secret.encode() not in bytes(written)
        assert secret.encode() not in sent
        assert secret not in caplog.text
    assert written.count(b"kept-words") >= 10
    assert sent.count(b"kept-words") >= 10


def test_fault_47_48_a_key_that_no_header_can_carry_is_refused_unseen(
    make_tracker: MakeTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key with a line break or a letter beyond ASCII raises where it is set, or is one line in the log if it comes
    from the environment. Neither shows the key."""
    for key in (f"{API_KEY}\r\nX-Evil: 1", f"{API_KEY}\x00", f"{API_KEY}é"):
        with pytest.raises(ValueError, match="key") as raised:
            make_tracker("http://127.0.0.1:9", api_key=key)
        assert API_KEY not in f"{raised.value!r} {raised.value.__cause__!r}"
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", f"{API_KEY}\r\nX-Evil: 1")
    tracker = make_tracker("http://127.0.0.1:9")
    assert tracker.start_conversation("bot")
    assert "AGENT_TRACKER_API_KEY" in caplog.text
    assert API_KEY not in caplog.text


def test_fault_48_no_id_of_a_user_is_part_of_a_header(plain_tracker: ScriptedServer, tmp_path: Path) -> None:
    """What users choose goes in bodies alone: with an agent, a user and a session of odd letters every header of every
    request is ours, and plain ASCII."""
    with AgentPerformanceTracker(plain_tracker.url, API_KEY, state_dir=tmp_path) as tracker:
        with tracker.turn("é: 1/../☃", agent_id="☃", user_id="X-Evil: ☃"):
            pass
        assert tracker.end_conversation("é: 1/../☃", 5)
        assert tracker.flush(20)
    posts = [request for request in plain_tracker.requests if request.method == "POST"]
    assert len(posts) == 3
    for request in posts:
        assert request.headers["authorization"] == f"Bearer {API_KEY}"
        assert len(request.headers["idempotency-key"]) == 32
        assert all(name.isascii() and value.isascii() for name, value in request.headers.items())
        assert request.target in ("/conversations/start", "/conversations/turn", "/conversations/end")
