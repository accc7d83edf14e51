"""The API key against trackers that repeat it: it is in nothing that is told, by whichever door."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from otel_agent_tracker import (
    AgentOperationsTracker,
    AgentPerformanceTracker,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    TrackerUnavailable,
)
from otel_agent_tracker.wire import Capabilities
from tests.cli.terminal import run
from tests.conftest import MakeTracker
from tests.scripted_server import Action, ReceivedRequest, ScriptedServer, json_reply, raw, reply, respond
from tests.test_mask import EACH_SPELLING, ODD_KEY, SPELLINGS, Spell

Echo = Callable[[ReceivedRequest, str], Action]


def refusal(request: ReceivedRequest, text: str) -> Action:
    """400, with the key in the body and in a header, where an event or a question comes."""
    if request.path == Capabilities.PATH:
        return reply(404)
    return reply(400, f"bad key: {text}", headers={"WWW-Authenticate": f"Bearer token={text}"})


def refusal_of_each(request: ReceivedRequest, text: str) -> Action:
    """The same for each event of a batch."""
    if request.path == Capabilities.PATH:
        return json_reply({"batch": {"path": "/batch", "max_events": 500}})
    content = request.json()
    assert isinstance(content, dict)
    ids = [event["event_id"] for event in content["events"]]
    return json_reply(
        {"results": [{"event_id": each, "status": 422, "error": f"bad key: {text}"} for each in ids]}
    )


def garbage(request: ReceivedRequest, text: str) -> Action:
    """No HTTP at all."""
    return raw(f"Bearer {text}\r\n\r\n".encode())


@pytest.fixture(autouse=True)
def talkative(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every logger says all that it can, and in no test does one of them say the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert_untold(*map(logging.Formatter().format, caplog.get_records("call")))


def assert_untold(*texts: str) -> None:
    """In none of the texts is the key, in no spelling."""
    assert not [text for text in texts for spell in SPELLINGS.values() if spell(ODD_KEY) in text]


def echoing(echo: Echo, spell: Spell) -> ScriptedServer:
    """A tracker that answers with the key of the request, spelt that way."""

    def answer(request: ReceivedRequest) -> Action:
        key = request.headers["authorization"].removeprefix("Bearer ")
        assert key == ODD_KEY
        return echo(request, spell(key))

    return ScriptedServer(respond(answer))


def all_files(folder: Path) -> str:
    """The bytes of the state folder, as text."""
    return "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())


@EACH_SPELLING
@pytest.mark.parametrize("echo", [refusal, refusal_of_each])
def test_a_dead_letter_has_a_reason_without_the_key(
    make_tracker: MakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spell: Spell, echo: Echo
) -> None:
    """On disk, in `outbox list` and in `outbox show`."""
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", ODD_KEY)
    with echoing(echo, spell) as server:
        tracker = make_tracker(server.url)
        tracker.start_conversation("bot")
        assert tracker.flush(10)
        assert tracker.delivery_stats()["dead_lettered"] == 1
        where = ("--url", server.url, "--state-dir", tmp_path / "state")
        listed = run("outbox", "list", "--json", *where).stdout
        [dead] = json.loads(listed)["dead_letters"]
        shown = [run("outbox", *command, *where).stdout for command in (("list",), ("show", str(dead["id"])))]
        tracker.close()
    assert dead["reason"].endswith("bad key: ***")
    assert "***" in shown[1]
    assert_untold(dead["reason"], *shown, all_files(tmp_path / "state"))


def ask(url: str, state_dir: Path) -> Iterator[str]:
    """What is raised by a question of each kind of tracker object, as a traceback with all variables tells it."""
    for question in (_performance, _operations, _performance_twin, _operations_twin):
        with pytest.raises(TrackerUnavailable) as raised:
            question(url, state_dir)
        told = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
        yield "".join(told.format()) + repr(raised.value)


def _performance(url: str, state_dir: Path) -> None:
    with AgentPerformanceTracker(url, ODD_KEY, state_dir=state_dir) as tracker:
        tracker.get_session_info("s1")


def _operations(url: str, state_dir: Path) -> None:
    with AgentOperationsTracker(url, ODD_KEY, state_dir=state_dir) as tracker:
        tracker.get_operations_overview()


def _performance_twin(url: str, state_dir: Path) -> None:
    async def question() -> None:
        async with AsyncAgentPerformanceTracker(url, ODD_KEY, state_dir=state_dir) as tracker:
            await tracker.get_session_info("s1")

    asyncio.run(question())


def _operations_twin(url: str, state_dir: Path) -> None:
    async def question() -> None:
        async with AsyncAgentOperationsTracker(url, ODD_KEY, state_dir=state_dir) as tracker:
            await tracker.get_operations_overview()

    asyncio.run(question())


@EACH_SPELLING
@pytest.mark.parametrize("echo", [refusal, garbage])
def test_a_question_without_an_answer_raises_without_the_key(
    tmp_path: Path, spell: Spell, echo: Echo
) -> None:
    """Of either tracker object and its asyncio twin."""
    with echoing(echo, spell) as server:
        told = list(ask(server.url, tmp_path))
    assert_untold(*told)
    if echo is refusal:
        assert ["bad key: ***" in text for text in told] == [True] * 4


def test_the_log_of_a_tracker_that_is_none_is_without_the_key(
    make_tracker: MakeTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """What came in place of HTTP is told, and the key in it is not."""
    with echoing(garbage, SPELLINGS["as it is"]) as server:
        tracker = make_tracker(server.url, api_key=ODD_KEY)
        tracker.start_conversation("bot")
        assert not tracker.flush(0.5)
    assert [text for text in caplog.messages if "events are kept" in text and "***" in text]


@pytest.mark.parametrize("echo", [refusal, garbage])
def test_commands_say_what_is_wrong_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: Echo
) -> None:
    """`doctor`, which asks everything, and `conversations`, which asks one thing."""
    monkeypatch.setenv("AGENT_TRACKER_API_KEY", ODD_KEY)
    with echoing(echo, SPELLINGS["JSON"]) as server:
        where = ("--url", server.url, "--state-dir", tmp_path)
        examined = run("doctor", "--send", *where)
        asked = run("conversations", "list", "--url", server.url)
    assert (examined.exit_code, asked.exit_code) == (1, 1)
    assert "***" in asked.stderr
    assert_untold(examined.output, examined.stderr, asked.output, asked.stderr)


def test_keys_of_an_otlp_endpoint_are_not_told_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word of each header that OTEL_EXPORTER_OTLP_HEADERS gives."""
    monkeypatch.setenv("AGENT_TRACKER_OTLP", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{quote(ODD_KEY)}")
    with echoing(refusal, SPELLINGS["JSON"]) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        with AgentPerformanceTracker(state_dir=tmp_path / "state") as tracker:
            tracker.start_conversation("bot")
            assert tracker.flush(10)
            assert tracker.delivery_stats()["dead_lettered"] == 1
        listed = run("outbox", "list", "--json", "--state-dir", tmp_path / "state").stdout
    [dead] = json.loads(listed)["dead_letters"]
    assert dead["reason"] == "400 bad key: ***"
    assert_untold(all_files(tmp_path / "state"))
