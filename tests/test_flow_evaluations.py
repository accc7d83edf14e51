"""Evaluators' words, from a log event of the application to what the tracker says of its conversations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span

import otel_agent_tracker
from otel_agent_tracker import AgentPerformanceTracker, EvaluationLogRecordProcessor, auto, evaluators
from otel_agent_tracker.hearing import hear
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordedConversation, RecordedConversations, recording
from tests.hosts import host_provider
from tests.meters import meter_provider, read

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "bot"}
CHAT = {"gen_ai.operation.name": "chat"}


class App:
    """An application with agents and evaluators, on providers of its own."""

    def __init__(self) -> None:
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.tracer_provider.get_tracer("app")
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(EvaluationLogRecordProcessor())

    def answer(self, conversation: str | None, response: str | None = None) -> tuple[Span, Span]:
        """A turn of an agent with one model call, both ended."""
        agent = self.tracer.start_span("invoke_agent bot", attributes=AGENT)
        chat = self.tracer.start_span("chat", trace.set_span_in_context(agent), attributes=CHAT)
        if response is not None:
            chat.set_attribute("gen_ai.response.id", response)
        chat.end()
        if conversation is not None:
            agent.set_attribute("gen_ai.conversation.id", conversation)
        agent.end()
        return agent, chat

    def evaluate(self, span: Span | None, value: float | None, **more: Any) -> None:
        """An evaluator's word on what the span did, or on what the attributes say."""
        attributes = {"gen_ai.evaluation.name": "Relevance", "gen_ai.evaluation.score.value": value}
        attributes |= {f"gen_ai.{name.replace('_', '.')}": given for name, given in more.items()}
        self.emit(
            LogRecord(
                context=trace.set_span_in_context(span or trace.INVALID_SPAN),
                event_name="gen_ai.evaluation.result",
                attributes={name: given for name, given in attributes.items() if given is not None},
            )
        )

    def emit(self, record: LogRecord) -> None:
        """What an evaluator hands in."""
        self.logger_provider.get_logger("evaluator").emit(record)


@pytest.fixture(name="app")
def _app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setattr(auto, "_installed", None)
    yield App()
    if auto._installed is not None:
        auto._installed.close()


@pytest.fixture(name="recorded")
def _recorded(app: App, recorded_conversations: RecordedConversations) -> RecordedConversations:
    """What the application, which has called `install`, would have told its tracker."""
    otel_agent_tracker.install(app.tracer_provider)
    return recorded_conversations


def feedback(recorded: RecordedConversations) -> list[dict[str, Any]]:
    """The bodies of all feedback."""
    return [each.body for each in recorded.requests if each.path == "/conversations/feedback"]


def the_only(recorded: RecordedConversations) -> RecordedConversation:
    """The only conversation."""
    (conversation,) = recorded.conversations
    return conversation


def turn_id(span: Span) -> str:
    """The id of the turn that the span shows."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}-{context.span_id:016x}"


# --- to the tracker -----------------------------------------------------------------------------------------


def test_a_tracker_tells_the_quality_that_evaluators_found(
    app: App, tracker_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The mean of the turns; one evaluation counts once, however often it is emitted."""
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path / "state"))
    tracker = otel_agent_tracker.install(app.tracer_provider, base_url=tracker_server.url)
    first, _ = app.answer("thread-1")
    _, chat = app.answer("thread-1", "resp_2")
    for _ in range(3):
        app.evaluate(first, 1.0, evaluation_explanation="to the point")
    app.evaluate(None, 0.25, response_id="resp_2")
    app.evaluate(chat, None, evaluation_score_label="fail", evaluation_name="Safety")
    assert tracker.flush(20.0)
    told = tracker.get_session_info("thread-1")
    assert told is not None
    assert (told["turns"], told["quality_score"]) == (2, pytest.approx((5 + 2 + 1) / 3))
    assert tracker.delivery_stats()["dead_lettered"] == 0


def test_a_user_s_word_outranks_an_evaluator_s(app: App, recorded: RecordedConversations) -> None:
    """They never mix."""
    span, _ = app.answer("thread-1")
    app.evaluate(span, 0.0)
    assert the_only(recorded).quality == 1
    otel_agent_tracker.record_feedback("thread-1", 4)
    app.evaluate(span, 0.1)
    assert the_only(recorded).quality == 4


# --- which turn ---------------------------------------------------------------------------------------------


def test_an_evaluation_carries_what_the_evaluator_said(app: App, recorded: RecordedConversations) -> None:
    """Of which turn, with what result, by whom and why; secrets are taken out."""
    agent, chat = app.answer("thread-1")
    app.evaluate(chat, 4.0, evaluation_explanation="quotes Bearer abcdefghijklmnop0123456789")
    [told] = feedback(recorded)
    assert {name: told[name] for name in ("session_id", "turn_id", "source", "quality_score", "name")} == {
        "session_id": "thread-1",
        "turn_id": turn_id(agent),
        "source": "evaluator",
        "quality_score": 4,
        "name": "Relevance",
    }
    assert "[redacted]" in told["user_feedback"]
    assert "abcdefghij" not in told["user_feedback"]


def test_an_evaluation_may_come_before_its_turn_has_ended(app: App, recorded: RecordedConversations) -> None:
    """A guard that speaks inside the agent's run, where nobody knows yet whose the turn is."""
    with app.tracer.start_as_current_span("invoke_agent bot", attributes=AGENT) as agent:
        with app.tracer.start_as_current_span("chat", attributes=CHAT) as chat:
            app.evaluate(chat, 1.0)
        app.evaluate(agent, 2.0)
        assert feedback(recorded) == []
        agent.set_attribute("gen_ai.conversation.id", "thread-1")
    assert [(each["turn_id"], each["quality_score"]) for each in feedback(recorded)] == [
        (turn_id(agent), 2),
        (turn_id(agent), 5),
    ]
    assert the_only(recorded).quality == pytest.approx(3.5)


def test_a_turn_of_ours_is_evaluated_as_well(app: App, recorded: RecordedConversations) -> None:
    """By its own span, which is current in its block, and by what frameworks do in it."""
    with (
        host_provider(app.tracer_provider),
        AgentPerformanceTracker() as tracker,
        tracker.conversation("support") as conversation,
    ):
        with conversation.turn() as turn:
            app.evaluate(trace.get_current_span(), 1.0)
            _, chat = app.answer("an id of the framework's", "resp_1")
        app.evaluate(chat, 0.5)
        app.evaluate(None, 0.0, response_id="resp_1")
    told = feedback(recorded)
    assert [(each["session_id"], each["turn_id"], each["quality_score"]) for each in told] == [
        (conversation.session_id, turn.turn_id, score) for score in (5, 3, 1)
    ]


def test_a_sub_agent_s_answer_is_a_part_of_the_turn(app: App, recorded: RecordedConversations) -> None:
    """Whoever evaluates it evaluates the turn."""
    with app.tracer.start_as_current_span("invoke_agent outer", attributes=AGENT) as outer:
        outer.set_attribute("session.id", "thread-1")
        with app.tracer.start_as_current_span("tool", attributes={"gen_ai.operation.name": "execute_tool"}):
            inner, chat = app.answer(None, "resp_1")
    for span in (inner, chat):
        app.evaluate(span, 1.0)
    assert {each["turn_id"] for each in feedback(recorded)} == {turn_id(outer)}


def test_a_turn_of_nobody_is_evaluated_too(app: App, recorded: RecordedConversations) -> None:
    """It is a conversation of its own, which has ended by then."""
    span, _ = app.answer(None)
    app.evaluate(span, 0.75)
    assert the_only(recorded).quality == 4


def test_two_users_answers_under_one_response_id_stay_apart(
    app: App, recorded: RecordedConversations
) -> None:
    """Whose the evaluation is cannot be known: it is nobody's."""
    app.answer("thread-1", "chatcmpl-1")
    app.answer("thread-2", "chatcmpl-1")
    app.evaluate(None, 0.0, response_id="chatcmpl-1")
    assert feedback(recorded) == []


def test_every_evaluation_is_counted_by_what_told_its_turn(app: App) -> None:
    """Ten minutes after a turn nobody knows it any more; ten minutes later an evaluation of it is given up."""
    with meter_provider() as reader, recording() as recorded:
        otel_agent_tracker.install(app.tracer_provider)
        span, _ = app.answer("thread-1", "resp_1")
        app.evaluate(span, 1.0)
        app.evaluate(None, 1.0, response_id="resp_1")
        recorded.clock.advance(minutes=10)
        app.evaluate(span, 1.0, conversation_id="thread-1")
        app.evaluate(span, 0.9)
        recorded.clock.advance(minutes=10)
        assert len(feedback(recorded)) == 3
        told = read(reader)["agent_tracker.evaluations"]
    assert told == {("span",): 1, ("response",): 1, ("conversation",): 1, ("nothing",): 1}


# --- manners ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        LogRecord(body="a line of the application's"),
        LogRecord(event_name="gen_ai.evaluation.result"),
        LogRecord(event_name="something else", attributes={"gen_ai.evaluation.score.value": 1.0}),
        LogRecord(
            event_name="gen_ai.evaluation.result",
            attributes={"gen_ai.evaluation.score.value": 1.0, "error.type": "timeout"},
        ),
    ],
    ids=["a line", "empty", "another event", "an evaluator that failed"],
)
def test_other_records_tell_nothing(app: App, recorded: RecordedConversations, record: LogRecord) -> None:
    """Nor do they wait."""
    app.answer("thread-1")
    app.emit(record)
    recent = recorded._pipeline.events.recent
    assert recent is not None
    assert not recent._waiting
    assert feedback(recorded) == []


def test_an_event_s_name_may_be_an_attribute(app: App, recorded: RecordedConversations) -> None:
    """As it was before log records had names."""
    span, _ = app.answer("thread-1")
    app.emit(
        LogRecord(
            context=trace.set_span_in_context(span),
            attributes={"event.name": "gen_ai.evaluation.result", "gen_ai.evaluation.score.label": "pass"},
        )
    )
    assert the_only(recorded).quality == 5


def test_without_install_nobody_listens(app: App, recorded_conversations: RecordedConversations) -> None:
    """A tracker object alone reports its own turns."""
    with AgentPerformanceTracker():
        app.evaluate(None, 1.0, conversation_id="thread-1")
    assert recorded_conversations.requests == []


class Broken:
    """A record, or a provider, that raises whatever is asked."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("a mistake of the host")


def test_nothing_raises_into_the_host(
    recorded: RecordedConversations, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a record that cannot be read, nor a provider that takes no processor; the log says so once."""
    monkeypatch.setattr(evaluators._logger, "said", set())
    broken: Any = Broken()
    for _ in range(2):
        EvaluationLogRecordProcessor().on_emit(broken)
        hear(broken)
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(told) == 2
    assert all("a mistake of the host" in each for each in told)


def test_a_provider_is_listened_to_once() -> None:
    """Whoever installs twice hears each evaluation once; one that is not the SDK's is left alone."""
    provider = LoggerProvider(shutdown_on_exit=False)
    for _ in range(2):
        hear(provider)
    processors = provider._multi_log_record_processor._log_record_processors
    assert [type(each) for each in processors] == [EvaluationLogRecordProcessor]
    assert processors[0].force_flush()
    assert [processors[0].enabled(event_name=name) for name in (None, "a", "gen_ai.evaluation.result")] == [
        True,
        False,
        True,
    ]
    processors[0].shutdown()
    hear()
