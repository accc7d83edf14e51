"""Wrong input at every door: it raises what was wrong and what is accepted, before anything changes.

The tables go by name: each parameter of each public method has its wrong values here, or the tests say so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import TracerProvider

import otel_agent_tracker
from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    auto,
)
from otel_agent_tracker.config import Config, Options
from otel_agent_tracker.testing import RecordedConversations
from tests.cli.terminal import NOWHERE
from tests.conftest import MakeTracker
from tests.test_config import WRONG as WRONG_TEXTS

SECRET = "sk-7f3a9c1e5b2d8046-very-secret"


class Unprintable:
    """What must not be printed, in a message neither."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __format__ = __hash__ = __eq__ = __repr__  # type: ignore[assignment]  # none is to be called


class Unbound:
    """A web framework's stand-in for the request, where there is none."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("working outside of a request")


class UnprintableText(str):
    """A text that must not be asked for itself."""

    __slots__ = ()
    __repr__ = __str__ = __format__ = Unprintable.__repr__  # type: ignore[assignment]  # none is to be called


class Wrong(NamedTuple):
    """A value that is not accepted, and what is said of it."""

    value: Any
    error: type[Exception]
    message: str


def wrong_ids(longest: int) -> list[Wrong]:
    """What no id can be."""
    return [
        Wrong("", ValueError, f"must have 1 to {longest} characters, not 0"),
        Wrong("a" * (longest + 1), ValueError, f"must have 1 to {longest} characters, not {longest + 1}"),
        Wrong("a\nb", ValueError, r"must not contain control characters or lone surrogates, but has '\n'"),
        Wrong("a\0", ValueError, r"but has '\x00'"),
        Wrong("日\x85本", ValueError, r"but has '\x85'"),
        Wrong("\ud800", ValueError, r"but has '\ud800'"),
        Wrong(b"bot", TypeError, "must be a str, not bytes"),
        Wrong(Unprintable(), TypeError, "must be a str, not Unprintable"),
    ]


NO_TEXT = [
    Wrong(7, TypeError, "must be a str, not int"),
    Wrong(ValueError("x"), TypeError, "must be a str, not ValueError"),
]
NO_PERIOD = [
    Wrong(0, ValueError, "must be a finite number above 0, not 0"),
    Wrong(-1, ValueError, "must be a finite number above 0, not -1"),
    Wrong(math.nan, ValueError, "must be a finite number above 0, not nan"),
    Wrong(math.inf, ValueError, "must be a finite number above 0, not inf"),
    Wrong(1e300, ValueError, "must be at most 10000000, not 1e+300"),
    Wrong(10**5000, ValueError, "must be a finite number above 0, not an int of 16610 bits"),
    Wrong("10", TypeError, "must be a number, not str"),
    Wrong(True, TypeError, "must be a number, not bool"),
]
NO_DATE = [
    Wrong("soon", ValueError, "must be an ISO 8601 date or time such as 2024-01-19, not 'soon'"),
    Wrong(UnprintableText("soon"), ValueError, "must be an ISO 8601 date or time such as"),
    Wrong(20240119, TypeError, "must be a str, not int"),
]
NO_STATUS = [
    Wrong("sleeping", ValueError, "must be one of active, idle, busy, error, offline, initializing, not"),
    Wrong(Unprintable(), TypeError, "must be one of active, idle, busy, error, offline, initializing, not"),
]

WRONG: dict[str, list[Wrong]] = {
    "agent_id": wrong_ids(256),
    "user_id": wrong_ids(256),
    "turn_id": wrong_ids(256),
    "session_id": wrong_ids(320),
    "metadata": [
        Wrong(["a"], TypeError, "must be a mapping, not list"),
        Wrong("a", TypeError, "must be a mapping, not str"),
        Wrong(Unprintable(), TypeError, "must be a mapping, not Unprintable"),
        Wrong(Unbound(), TypeError, "must be a mapping, not Unbound"),
    ],
    "quality_score": [
        Wrong(0, ValueError, "must be a ConversationQuality or an int from 1 to 5, not 0"),
        Wrong(6, ValueError, "must be a ConversationQuality or an int from 1 to 5, not 6"),
        Wrong(3.5, ValueError, "must be a ConversationQuality or an int from 1 to 5, not 3.5"),
        Wrong("good", ValueError, "must be a ConversationQuality or an int from 1 to 5, not 'good'"),
        Wrong("x" * 10**6, ValueError, "xxx' and so on"),
        Wrong(True, ValueError, "must be a ConversationQuality or an int from 1 to 5, not True"),
        Wrong(10**5000, ValueError, "int from 1 to 5, not an int of 16610 bits"),
        Wrong(UnprintableText("good"), ValueError, "int from 1 to 5, not 'good'"),
        Wrong(Unprintable(), TypeError, "int from 1 to 5, not Unprintable"),
    ],
    "message_count": [
        Wrong(-1, ValueError, "must be 0 or more and fit in 63 bits, not -1"),
        Wrong(10**5000, ValueError, "must be 0 or more and fit in 63 bits, not an int of 16610 bits"),
        Wrong(1.0, TypeError, "must be an int, not float"),
    ],
    "limit": [
        Wrong(-1, ValueError, "must be 0 or more and fit in 63 bits, not -1"),
        Wrong("50", TypeError, "must be an int, not str"),
    ],
    "thumbs": [
        Wrong("sideways", ValueError, "must be one of up, down, not 'sideways'"),
        Wrong(["up"], TypeError, "must be one of up, down, not list"),
        Wrong(Unprintable(), TypeError, "must be one of up, down, not Unprintable"),
    ],
    "source": [
        Wrong("boss", ValueError, "must be one of operator, user, evaluator, not 'boss'"),
        Wrong(Unprintable(), TypeError, "must be one of operator, user, evaluator, not Unprintable"),
    ],
    "error": [
        Wrong(7, TypeError, "must be an exception or a str, not int"),
        Wrong(OSError, TypeError, "must be an exception or a str, not type"),
    ],
    "duration": [
        Wrong(-1, ValueError, "must be a finite number above 0, not -1"),
        Wrong(math.nan, ValueError, "must be a finite number above 0, not nan"),
        Wrong(2e9, ValueError, "must be at most 1000000000 seconds, not 2000000000.0"),
        Wrong("1", TypeError, "must be a number, not str"),
    ],
    "status": NO_STATUS,
    "previous_status": NO_STATUS,
    "start_date": NO_DATE,
    "end_date": NO_DATE,
    "hours": NO_PERIOD,
    "timeout_seconds": NO_PERIOD,
    **dict.fromkeys(
        ("user_feedback", "feedback", "error_message", "error_type", "name", "sdk_version", "action"), NO_TEXT
    ),
}
ANYTHING_GOES = {"details"}

RIGHT: dict[str, Any] = {
    "agent_id": "bot",
    "session_id": "bot_1674123456_a1b2c3d4",
    "quality_score": 4,
    "message_count": 2,
    "error": "no route",
    "error_message": "no route",
    "status": "idle",
    "action": "look",
    "details": {},
    "hours": 1.0,
}
"""A value for each parameter that has to be given, or that a method may need beside a wrong one."""


class Case(NamedTuple):
    """A method, or function, and the one argument that is wrong."""

    method: str
    arguments: dict[str, Any]
    wrong: Wrong
    parameter: str


def methods_of(kind: type) -> list[str]:
    """The public methods."""
    return [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]


def parameters_of(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters that a caller gives."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    }


def cases_of(function: Callable[..., object]) -> Iterator[Case]:
    """A case for each wrong value of each parameter; None is one where the parameter has to be given."""
    parameters = parameters_of(function)
    needed = {name: RIGHT[name] for name, given in parameters.items() if given.default is given.empty}
    if "thumbs" in parameters:
        needed["user_feedback"] = "fine"
    for name in parameters.keys() - ANYTHING_GOES:
        none = (
            [Wrong(None, TypeError, "NoneType")]
            if parameters[name].default is inspect.Parameter.empty
            else []
        )
        for wrong in WRONG[name] + none:
            yield Case(function.__name__, {**needed, name: wrong.value}, wrong, name)


def cases(kind: type) -> list[Any]:
    """The cases of each public method of `kind`, for pytest."""
    found = [case for name in methods_of(kind) for case in cases_of(getattr(kind, name))]
    return [pytest.param(case, id=f"{case.method}-{case.parameter}-{n}") for n, case in enumerate(found)]


@contextmanager
def refused(case: Case) -> Iterator[None]:
    """What is inside raises as the case says; the message names the argument, and a key is not told with it."""
    with pytest.raises(case.wrong.error) as raised:
        yield
    message = str(raised.value)
    assert SECRET not in message
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert message.startswith(f"{case.parameter} must ")
    assert case.wrong.message in message
    assert len(message) < 300


def unchanged(recorded: RecordedConversations, tracker: AgentPerformanceTracker) -> bool:
    """No event, no session, and the TTL as it was."""
    stats = tracker.get_session_stats()
    return (recorded.requests, stats["total_cached_sessions"], stats["ttl_hours"]) == ([], 0, 10.0)


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(AgentPerformanceTracker))
def test_the_tracker_refuses_it(recorded_conversations: RecordedConversations, case: Case) -> None:
    """Each method, each argument; the twin for asyncio says the same."""
    tracker, twin = AgentPerformanceTracker(), AsyncAgentPerformanceTracker()
    with refused(case):
        getattr(tracker, case.method)(**case.arguments)
    with refused(case):
        asyncio.run(awaited(getattr(twin, case.method), case.arguments))
    assert unchanged(recorded_conversations, tracker)


@pytest.mark.parametrize("case", cases(AgentOperationsTracker))
def test_the_operations_tracker_refuses_it(recorded_conversations: RecordedConversations, case: Case) -> None:
    """As the other does."""
    with refused(case):
        getattr(AgentOperationsTracker(), case.method)(**case.arguments)
    with refused(case):
        asyncio.run(awaited(getattr(AsyncAgentOperationsTracker(), case.method), case.arguments))
    assert unchanged(recorded_conversations, AgentPerformanceTracker())


async def awaited(method: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Call a method of a twin; blocks are made without waiting."""
    answer = method(**arguments)
    if inspect.isawaitable(answer):
        await answer


FUNCTIONS = [
    *cases_of(otel_agent_tracker.end_conversation),
    *cases_of(otel_agent_tracker.record_feedback),
    *(case._replace(method="session") for case in cases_of(otel_agent_tracker.session)),
]


@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: f"{case.method}-{case.parameter}")
def test_the_functions_refuse_it(
    recorded_conversations: RecordedConversations, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    """Those of the package, without a tracker object in hand."""
    monkeypatch.setattr(auto, "_installed", None)
    with refused(case):
        getattr(otel_agent_tracker, case.method)(**case.arguments)
    assert unchanged(recorded_conversations, AgentPerformanceTracker())


@pytest.mark.parametrize("case", cases(otel_agent_tracker.Conversation), ids=str)
def test_a_conversation_refuses_it(recorded_conversations: RecordedConversations, case: Case) -> None:
    """Inside the block; the conversation ends as if nothing had been said."""
    with AgentPerformanceTracker().conversation("bot") as conversation, refused(case):
        getattr(conversation, case.method)(**case.arguments)
    (told,) = recorded_conversations.conversations
    assert (told.outcome, told.quality, told.feedback, told.message_count, told.error_message) == (
        "completed", None, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("case", [*cases_of(otel_agent_tracker.Turn.fail)], ids=str)
def test_a_turn_refuses_it(recorded_conversations: RecordedConversations, case: Case) -> None:
    """Inside the block; the turn is as if nothing had been said."""
    with AgentPerformanceTracker().turn("thread-1", agent_id="bot") as turn, refused(case):
        turn.fail(**case.arguments)
    (told,) = recorded_conversations.conversations
    assert (told.turns[0].status, told.turns[0].error_type, told.turns[0].error_message) == ("ok", None, None)


def test_a_turn_s_stream_has_to_be_one(recorded_conversations: RecordedConversations) -> None:
    """What cannot be iterated over is refused at once, and the turn does not wait for it."""
    with (
        AgentPerformanceTracker().turn("thread-1", agent_id="bot") as turn,
        pytest.raises(TypeError, match="'int' object is not iterable"),
    ):
        turn.stream(7)  # type: ignore[call-overload]  # the point
    (told,) = recorded_conversations.conversations
    assert told.turns[0].status == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "feedback needs a quality_score, thumbs or a user_feedback"),
        ({"quality_score": 5, "thumbs": "up"}, "feedback takes either a quality_score or thumbs, not both"),
    ],
)
def test_feedback_says_one_thing(
    recorded_conversations: RecordedConversations, arguments: dict[str, Any], message: str
) -> None:
    """Neither nothing nor two scores."""
    tracker = AgentPerformanceTracker()
    with pytest.raises(ValueError, match=message):
        tracker.record_feedback("thread-1", **arguments)
    assert unchanged(recorded_conversations, tracker)


def test_wrong_input_makes_no_file(make_tracker: MakeTracker, tmp_path: Path) -> None:
    """Nor does it start the worker: a tracker that was only misused leaves no trace on the disk."""
    tracker = make_tracker(NOWHERE)
    for case in (parameter.values[0] for parameter in cases(AgentPerformanceTracker)):
        with refused(case):
            getattr(tracker, case.method)(**case.arguments)
    assert list(tmp_path.iterdir()) == []
    assert not tracker._pipeline._handle.started


# --- settings -----------------------------------------------------------------------------------------------


async def answer_later() -> str:
    return SECRET


NO_FLAG = [
    Wrong("perhaps", ValueError, "must be true or false, not 'perhaps'"),
    Wrong(2, ValueError, "must be true or false, not 2"),
    Wrong(Unprintable(), TypeError, "must be true or false, not Unprintable"),
]
NO_PATH = [
    Wrong(7, TypeError, "must be a path, not int"),
    Wrong("", ValueError, "must be a path, which is not empty"),
    Wrong("a\0b", ValueError, "must be a path, which is not empty and has no NUL in it"),
    Wrong("~no-such-user/x", ValueError, "must not begin with the home folder of a user who has none here"),
]
WRONG_SETTINGS: dict[str, list[Wrong]] = {
    "base_url": [
        Wrong(
            "tracker.example.com", ValueError, "must be a URL such as https://tracker.example.com; it does"
        ),
        Wrong(SECRET, ValueError, "must be a URL such as https://tracker.example.com; it does not begin"),
        Wrong("", ValueError, "must be a URL such as https://tracker.example.com; it does not begin"),
        Wrong("http://", ValueError, "must be a URL such as https://tracker.example.com; it has no host"),
        Wrong(
            "https:///path", ValueError, "must be a URL such as https://tracker.example.com; it has no host"
        ),
        Wrong("ftp://tracker", ValueError, "must be a URL such as https://tracker.example.com; it does not"),
        Wrong(f"https://host:{SECRET}", ValueError, "its host or port cannot be read"),
        Wrong("https://[::1", ValueError, "its host or port cannot be read"),
        Wrong("https://tracker..example.com", ValueError, "each part of its host has 1 to 63 characters"),
        Wrong("https://" + "t" * 64, ValueError, "each part of its host has 1 to 63 characters"),
        Wrong("https://\u0130" + "ü" * 64, ValueError, "each part of its host has 1 to 63 characters"),
        Wrong(f"https://t?key={SECRET}", ValueError, "must be a URL without query, fragment or spaces"),
        Wrong(f"https://user:{SECRET}@t", ValueError, "must not hold a user name or password"),
        Wrong(7, TypeError, "must be a str, not int"),
    ],
    "api_key": [
        Wrong(f"{SECRET}\n", ValueError, "must be printable ASCII without spaces or newlines"),
        Wrong(f"{SECRET}\r\nX-Admin: 1", ValueError, "must be printable ASCII without spaces or newlines"),
        Wrong("", ValueError, "must be printable ASCII without spaces or newlines"),
        Wrong("clé", ValueError, "must be printable ASCII without spaces or newlines"),
        Wrong(7, TypeError, "must be a str, or a function that returns one, not int"),
        Wrong(
            answer_later, TypeError, "must be a str, or a function that returns one, not an async function"
        ),
    ],
    "redactor": [
        Wrong("Jane", TypeError, "must be a function that takes a str and returns one"),
        Wrong(
            answer_later, TypeError, "must be a function that takes a str and returns one, and is not async"
        ),
    ],
    "durability": [
        Wrong("maybe", ValueError, "must be one of disk, memory, not 'maybe'"),
        Wrong(Unprintable(), TypeError, "must be one of disk, memory, not Unprintable"),
    ],
    "ungrouped": [
        Wrong("some", ValueError, "must be one of turns, all, ignore, not 'some'"),
        Wrong(Unprintable(), TypeError, "must be one of turns, all, ignore, not Unprintable"),
    ],
    "user_id": [Wrong("erase", ValueError, "must be one of keep, hash, drop, not 'erase'")],
    "max_sessions": [
        Wrong(0, ValueError, "must be above 0"),
        Wrong(-1, ValueError, "must be 0 or more"),
        Wrong(1e6, TypeError, "must be an int, not float"),
    ],
    "outbox_max_mb": [wrong for wrong in NO_PERIOD if "at most" not in wrong.message],
    "agent_id": wrong_ids(256),
    "id_precedence": [
        Wrong([7], TypeError, "must be attribute names, as a list or separated by commas"),
        Wrong(7, TypeError, "must be attribute names, as a list or separated by commas"),
    ],
    **dict.fromkeys(
        (
            "session_ttl_hours",
            "cleanup_interval_minutes",
            "idle_minutes",
            "timeout_seconds",
            "flush_timeout_seconds",
        ),
        NO_PERIOD,
    ),
    **dict.fromkeys(
        ("enabled", "otlp", "otlp_content", "propagate", "redact", "trust_env", "allow_insecure"), NO_FLAG
    ),
    **dict.fromkeys(("state_dir", "api_key_file"), NO_PATH),
}
SETTINGS = [
    pytest.param(name, wrong, id=f"{name}-{number}")
    for name, wrongs in WRONG_SETTINGS.items()
    for number, wrong in enumerate(wrongs)
]


def test_every_setting_has_its_wrong_values() -> None:
    """A setting that is added is added here."""
    assert WRONG_SETTINGS.keys() == {"base_url", "api_key"} | Options.__annotations__.keys()


@pytest.mark.parametrize(("name", "wrong"), SETTINGS)
def test_no_tracker_is_made_of_wrong_settings(tmp_path: Path, name: str, wrong: Wrong) -> None:
    """Of all four kinds; no file appears, and no key is in the message or in what is shown with it."""
    settings: dict[str, Any] = {"base_url": "https://t", "state_dir": tmp_path} | {name: wrong.value}
    for kind in (
        AgentPerformanceTracker,
        AsyncAgentPerformanceTracker,
        AgentOperationsTracker,
        AsyncAgentOperationsTracker,
    ):
        with refused(Case(kind.__name__, settings, wrong, name)):
            kind(**settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "http://tracker.example.com", "api_key": SECRET}, "plain http to the public host"),
        ({"base_url": "http://8.8.8.8", "api_key": lambda: SECRET}, "plain http to the public host 8.8.8.8"),
        (
            {"base_url": "http://tracker.example.com", "api_key_file": "key"},
            "use https, or set AGENT_TRACKER",
        ),
        ({"colour": "red"}, "unknown option colour; accepted: agent_id, allow_insecure, api_key"),
    ],
)
def test_what_settings_say_together_may_be_wrong(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """A key does not travel in the open, and a name with a typo is none."""
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        AgentPerformanceTracker(state_dir=tmp_path, **settings)
    assert SECRET not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


INSTALL: list[tuple[dict[str, Any], Wrong]] = [
    *(({name: wrong.value}, wrong) for name in ("base_url", "api_key", "redactor") for wrong in WRONG_SETTINGS[name]),
    ({"tracer_provider": "https://t"}, Wrong(None, TypeError, "must be a TracerProvider, not str; the tracker's URL")),
    ({"recognisers": 7}, Wrong(None, TypeError, "must be a sequence of functions of a span's name")),
    ({"recognisers": print}, Wrong(None, TypeError, "must be a sequence of functions of a span's name")),
    ({"recognisers": [print, "rule"]}, Wrong(None, TypeError, "must be a sequence of functions of a span's name")),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "wrong"), INSTALL, ids=str)
def test_install_refuses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: dict[str, Any], wrong: Wrong
) -> None:
    """The provider is not watched, and what was installed before stays."""
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(auto, "_installed", before := object())
    provider = TracerProvider(shutdown_on_exit=False)
    given: dict[str, Any] = {"tracer_provider": provider, "base_url": "https://t"} | arguments
    with refused(Case("install", given, wrong, *arguments)):
        otel_agent_tracker.install(**given)
    assert auto._installed is before
    assert provider._active_span_processor._span_processors == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["localhost", "tracker.example.com.", "bücher.example", "[::1]", "t" * 63])
def test_a_host_that_can_be_looked_up_is_one(tmp_path: Path, host: str) -> None:
    """Names of the network, of other scripts, with a dot at their end, and addresses."""
    with AgentPerformanceTracker(f"https://{host}", state_dir=tmp_path) as tracker:
        assert tracker._config.url == f"https://{host}"


def test_rules_may_come_one_by_one(recorded_conversations: RecordedConversations) -> None:
    """A generator of rules is read once, and its rules are there afterwards."""
    asked: list[str] = []
    provider = TracerProvider(shutdown_on_exit=False)

    def rule(name: str, attributes: object) -> None:
        asked.append(name)

    with otel_agent_tracker.install(provider, recognisers=(each for each in [rule])):  # type: ignore[arg-type]  # the point
        provider.get_tracer("framework").start_span(
            "work", attributes={"gen_ai.operation.name": "chat"}
        ).end()
    assert asked == ["work"]
    assert recorded_conversations.requests == []


# --- the environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG_TEXTS)
@pytest.mark.parametrize(
    "kind", [AgentPerformanceTracker, AsyncAgentOperationsTracker, otel_agent_tracker.install]
)
def test_a_wrong_variable_is_one_error_and_the_default_stands(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    kind: Callable[[], Any],
    name: str,
) -> None:
    """A typo in a deployment does not stop the host: the log names the variable and what is accepted."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(auto, "_installed", None)
    text, accepted = WRONG_TEXTS[name]
    monkeypatch.setenv(f"AGENT_TRACKER_{name.upper()}", text)
    tracker = kind()
    tracker._release()
    assert tracker._config.sources[name] == "default"
    if name != "state_dir":  # the platform's
        assert getattr(tracker._config, name) == getattr(Config(), name)
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage().startswith(f"AGENT_TRACKER_{name.upper()} must ")
    assert accepted in error.getMessage()
    assert list(tmp_path.iterdir()) == []
