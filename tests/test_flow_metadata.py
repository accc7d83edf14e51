"""Hostile metadata: from every door that takes any to the bytes that a tracker gets."""

from __future__ import annotations

import json
import threading
import time
from collections import ChainMap, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

import pytest

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker, Conversation
from otel_agent_tracker.testing import RecordedConversations, RecordedRequest, recording
from tests.conftest import MakeTracker
from tests.hosts import tracker_answer
from tests.scripted_server import ScriptedServer, respond
from tests.test_metadata import FORBIDDEN, HOSTILE, forbidden

MARK = {"_truncated": True}
LIMIT = 65_536


class Told(Mapping[str, Any]):
    """A mapping of somebody's own: `keys` are told one by one, and `value` is asked for each."""

    def __init__(self, keys: Callable[[], Iterator[str]], value: Callable[[str], Any] = str.upper) -> None:
        self._keys = keys
        self._value = value

    def __iter__(self) -> Iterator[str]:
        return self._keys()

    def __getitem__(self, key: str) -> Any:
        return self._value(key)

    def __len__(self) -> int:
        raise AssertionError("nobody needs to know")

    keys = items = values = get = __contains__ = __eq__ = __repr__ = __len__  # type: ignore[assignment]  # nor these
    __hash__ = None  # type: ignore[assignment]  # as of every mapping


class Proxy:
    """What stands for a dict and has none, as a web framework's request outside of one."""

    __class__ = dict  # type: ignore[assignment]  # the point


def raises(*_: object) -> Any:
    raise RuntimeError("the connection is closed")


def until_it_raises() -> Iterator[str]:
    yield "a"
    raise SystemError("the cursor is gone")


def changing() -> UserDict[str, int]:
    """A mapping that changes while it is read, whatever one does."""
    changed: UserDict[str, int] = UserDict(a=1)
    changed.data = type("Changing", (dict,), {"__getitem__": lambda _, key: changed.update(b=2) or 1})(a=1)
    return changed


class Loop(dict[str, Any]):
    """A dict that contains itself."""

    def __init__(self) -> None:
        super().__init__(a=1)
        self["self"] = self


def subclass(base: type, *arguments: Any) -> Any:
    """An object of a subclass of which no method may be called."""
    return type("Hostile", (base,), dict.fromkeys(FORBIDDEN, forbidden))(*arguments)


SHAPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "mapping of another class": (lambda: Told(lambda: iter("ab")), {"a": "A", "b": "B"}),
    "user dict": (lambda: UserDict(a=1), {"a": 1}),
    "read-only view": (lambda: MappingProxyType({"a": 1}), {"a": 1}),
    "chain": (lambda: ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    "ordered dict": (lambda: OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "default dict": (lambda: defaultdict(list, a=1), {"a": 1}),
    "mapping that cannot be begun": (lambda: Told(raises), MARK),
    "mapping that breaks off": (lambda: Told(until_it_raises), {"a": "A", **MARK}),
    "mapping without values": (lambda: Told(lambda: iter("a"), raises), MARK),
    "mapping that changes": (changing, {"a": 1, **MARK}),
    "proxy of nothing": (Proxy, MARK),
    "dict that must not be asked": (lambda: subclass(dict, {"a": 1}), {"a": 1}),
    "texts and numbers that must not be asked": (
        lambda: {"a": [subclass(str, "x"), subclass(int, 7), subclass(float, 1.5), subclass(list, [1])]},
        {"a": ["x", 7, 1.5, [1]]},
    ),
    "object that must not be asked": (lambda: {"a": subclass(object)}, {"a": "<Hostile>"}),
    "generator": (lambda: {"a": (each for each in "abc")}, {"a": "<generator>"}),
    "mapping below": (lambda: {"a": Told(raises)}, {"a": "<Told>"}),
    "loop": (Loop, {"a": 1, "self": "<cycle>"}),
    "what JSON has no number for": (
        lambda: {"a": [float("nan"), float("inf"), 2**70]}, {"a": [None, None, "1180591620717411303424"]},
    ),
    "bytes": (
        lambda: {"a": b"\xff", "b": bytearray(2), "c": memoryview(b"abc")},
        {"a": "<bytes 1>", "b": "<bytes 2>", "c": "<memoryview>"},
    ),
    "half a letter": (lambda: {"\ud800": "\udfff"}, {"?": "?"}),
    "long text": (lambda: {"a": "x" * 1_000_000}, {"a": "x" * 4_096, **MARK}),
}  # fmt: skip


def begin(conversation: Conversation) -> None:
    """Enter the block and leave it."""
    with conversation:
        pass


DOORS: dict[str, tuple[Callable[[AgentPerformanceTracker, AgentOperationsTracker, Any], object], str]] = {
    "start": (lambda t, o, m: t.start_conversation("bot", metadata=m), "metadata"),
    "block": (lambda t, o, m: begin(t.conversation("bot", metadata=m)), "metadata"),
    "end": (lambda t, o, m: t.end_conversation("thread-1", metadata=m, agent_id="bot"), "metadata"),
    "failure": (lambda t, o, m: t.record_failed_session("thread-2", "no", m, agent_id="bot"), "metadata"),
    "registration": (lambda t, o, m: o.register_agent("bot", metadata=m), "metadata"),
    "status": (lambda t, o, m: o.update_agent_status("bot", "idle", metadata=m), "metadata"),
    "activity": (lambda t, o, m: o.log_activity("bot", "look", m), "details"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_arrives_from_every_door(recorded_conversations: RecordedConversations, shape: str) -> None:
    """Nothing raises, no event is lost, and what is wrong with it is named or marked."""
    make, expected = SHAPES[shape]
    tracker, operations = AgentPerformanceTracker(), AgentOperationsTracker()
    for door, _ in DOORS.values():
        door(tracker, operations, make())
    brought = [each for each in recorded_conversations.requests if not is_end_of_block(each)]
    assert len(brought) == len(DOORS)
    for request, (_, field) in zip(brought, DOORS.values(), strict=True):
        request.body[field].pop("agent_tracker", None)
        assert request.body[field] == expected


def is_end_of_block(request: RecordedRequest) -> bool:
    """Whether it is the end that brings no metadata of a user's."""
    return request.path == "/conversations/end" and request.body["metadata"].keys() == {"agent_tracker"}


def test_a_mapping_without_an_end_is_cut(recorded_conversations: RecordedConversations) -> None:
    """After some hundred keys."""
    AgentPerformanceTracker().start_conversation("bot", metadata=Told(lambda: map(str, count())))
    (start,) = recorded_conversations.requests
    assert start.body["metadata"]["_truncated"] is True
    assert start.body["metadata"]["50"] == "50"


def test_a_slow_mapping_is_left(recorded_conversations: RecordedConversations) -> None:
    """Who makes us wait is asked once more at most: the caller waits for one answer and not for a thousand."""

    def slowly(key: str) -> str:
        threading.Event().wait(0.05)
        return key

    start = time.perf_counter()
    AgentPerformanceTracker().start_conversation("bot", metadata=Told(lambda: map(str, range(1_000)), slowly))
    assert time.perf_counter() - start < 5
    (request,) = recorded_conversations.requests
    del request.body["metadata"]["agent_tracker"]
    assert request.body["metadata"] == {"0": "0", **MARK}


def test_what_a_redactor_makes_longer_fits() -> None:
    """A function of the user's may write more than it reads; the bound of 64 KB is kept all the same."""
    with recording(redactor=lambda text: text * 100) as recorded:
        AgentPerformanceTracker().start_conversation("bot", metadata={str(n): "é" * 500 for n in range(100)})
        (start,) = recorded.requests
    del start.body["metadata"]["agent_tracker"]
    assert start.body["metadata"]["_truncated"] is True
    assert start.body["metadata"]["0"] == "é" * 4_096
    assert 50_000 < len(json.dumps(start.body["metadata"], ensure_ascii=False).encode()) <= LIMIT


def test_an_interrupt_is_the_users(recorded_conversations: RecordedConversations) -> None:
    """Ctrl-C in a user's mapping is the user's."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AgentPerformanceTracker().start_conversation("bot", metadata=Told(lambda: iter("a"), interrupt))
    assert recorded_conversations.requests == []


SECRETIVE = ("=abc", "token=", "token=abc ", '"token": "abc" ', "sk-a", "bearer a", "://a", "eyJ", '"', "\\")
COSTLY: dict[str, Callable[[], Any]] = HOSTILE | {
    f"texts of {piece!r}": partial(dict.fromkeys, map(str, range(15)), piece * (4_096 // len(piece)))
    for piece in SECRETIVE
}


@pytest.mark.parametrize("shape", COSTLY)
def test_it_costs_the_caller_little_and_the_wire_no_more_than_64_kb(
    make_tracker: MakeTracker, shape: str
) -> None:
    """The whole call, redaction and journal with it; the bound leaves room for a slow machine."""
    value = COSTLY[shape]()
    metadata = value if isinstance(value, dict) else {"it": value}
    with ScriptedServer(respond(tracker_answer)) as server:
        tracker = make_tracker(server.url)
        assert (
            min(seconds(lambda: tracker.start_conversation("bot", metadata=metadata)) for _ in range(9))
            < 0.05
        )
        assert tracker.flush(10)
        starts = [
            json.loads(request.body) for request in server.requests if request.path == "/conversations/start"
        ]
    assert len(starts) == 9
    for start in starts:
        del start["metadata"]["agent_tracker"]
        assert len(json.dumps(start["metadata"], ensure_ascii=False, separators=(",", ":")).encode()) <= LIMIT


def seconds(call: Callable[[], object]) -> float:
    """The time of the calling thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start
