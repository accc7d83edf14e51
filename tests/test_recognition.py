"""Rules of `recognition`: what a span shows, from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from otel_agent_tracker import recognition
from otel_agent_tracker.recognition import Ids, Outcome, Reader, Recognised, SpanClass
from otel_agent_tracker.semconv import TurnStatus

OPERATION = "gen_ai.operation.name"
KIND = "openinference.span.kind"


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("x", {OPERATION: "invoke_agent"}, SpanClass.AGENT),
        ("x", {OPERATION: "invoke_workflow"}, SpanClass.AGENT),
        ("x", {OPERATION: "chat"}, SpanClass.LLM),
        ("x", {OPERATION: "execute_tool"}, SpanClass.TOOL),
        ("x", {OPERATION: "create_agent"}, SpanClass.STEP),
        ("x", {OPERATION: "embeddings"}, SpanClass.STEP),
        ("x", {OPERATION: "unknown"}, SpanClass.OTHER),
        ("x", {OPERATION: "chain", "langsmith.span.kind": "chain"}, SpanClass.CHAIN),
        ("x", {OPERATION: "execute_event_loop_cycle", KIND: "CHAIN"}, SpanClass.STEP),
        ("invoke_agent bot", {OPERATION: "generate_content", KIND: "LLM"}, SpanClass.AGENT),
        ("x", {KIND: "AGENT"}, SpanClass.AGENT),
        ("x", {KIND: "RETRIEVER"}, SpanClass.STEP),
        ("x", {"traceloop.span.kind": "workflow"}, SpanClass.AGENT),
        ("x", {"traceloop.span.kind": "task"}, SpanClass.OTHER),
        ("x", {"llm.request.type": "chat"}, SpanClass.LLM),
        ("x", {"langfuse.observation.type": "span"}, SpanClass.CHAIN),
        ("x", {"langfuse.observation.type": "generation"}, SpanClass.LLM),
        ("x", {"langsmith.span.kind": "retriever"}, SpanClass.STEP),
        ("workflow.run", {"workflow.id": "7"}, SpanClass.AGENT),
        ("workflow.run", {}, SpanClass.OTHER),
        ("x", {"gen_ai.agent.name": "bot"}, SpanClass.OTHER),
        ("x", {OPERATION: 7, KIND: ["AGENT"]}, SpanClass.OTHER),
    ],
)
def test_the_first_convention_that_says_anything_decides(
    name: str, attributes: Mapping[str, Any], expected: SpanClass
) -> None:
    """A value that is no text says nothing."""
    assert recognition.classify(name, attributes) is expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        None,
        7,
        ["thread-1"],
        b"thread-1",
        "[Scrubbed due to 'session']",
        "resp_68a1",
        "None",
        "session_id",
        "00000000-0000-0000-0000-000000000000",
        "a" * 321,
        "a" * 10_000,
        "a\nb",
        "a\ud800",
    ],
)
def test_what_could_merge_two_conversations_is_no_id(value: object) -> None:
    """Nothing of it is guessed: neither cut, nor turned into text."""
    assert recognition.usable_id(value) is None
    assert Reader().ids({"session.id": value, "thread_id": "thread-1"}).conversation == "thread-1"


@pytest.mark.parametrize("value", ["thread-1", "7", "a" * 320, "conv_1", "ü", "a b"])
def test_any_other_text_is_an_id(value: str) -> None:
    """As it is."""
    assert recognition.usable_id(value) == value


def test_the_order_of_ids_is_the_conventions_and_can_be_set() -> None:
    """Those that are named come first, in their order; the others follow."""
    attributes = {"gen_ai.conversation.id": "c-1", "session.id": "s-1", "app.chat": "a-1", "thread_id": "t-1"}
    assert Reader().ids(attributes).conversation == "c-1"
    assert Reader(("session.id",)).ids(attributes).conversation == "s-1"
    assert Reader(("nothing", "app.chat", "thread_id")).ids(attributes).conversation == "a-1"
    assert Reader(("nothing",)).ids(attributes).conversation == "c-1"


def test_every_id_of_a_span_is_known() -> None:
    """Two on one span name two sessions that are alive."""
    assert Reader().carried({"session.id": "s-1", "gen_ai.conversation.id": "c-1", "x": "y"}) == {
        "s-1",
        "c-1",
    }


def test_the_context_is_read_as_the_attributes() -> None:
    """Each library's own keys; those of other things are passed over."""
    reader = Reader()
    cases: list[tuple[dict[str, Any], Ids]] = [
        ({"session.id": "s", "user.id": "u", "metadata": {"session_id": "x"}}, Ids("s", "u")),
        ({"opentelemetry.util.genai.conversation_id-1f5de255-5586": "c"}, Ids("c")),
        ({"association_properties": {"session_id": "s", "user_id": "u"}}, Ids("s", "u")),
        ({"conversation_id": "c", "association_properties": {"session_id": "s"}}, Ids("c")),
        ({"langfuse.propagated.session_id": "l"}, Ids("l")),
        ({"association_properties": 7, "session.id": None}, Ids()),
        ({}, Ids()),
    ]
    for context, expected in cases:
        assert reader.ids_in_context(context) == expected
    assert reader.ids_in_baggage({"langfuse_session_id": "b", "user_id": "u"}) == Ids("b", "u")


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("x", {"gen_ai.agent.name": "bot", "agent.name": "other"}, "bot"),
        ("x", {"agent.name": "bot"}, "bot"),
        ("x", {"gen_ai.agent.name": "OpenAI Agent", "agent.name": "bot"}, "bot"),
        ("invoke_agent bot", {}, "bot"),
        ("triage.run", {}, "triage"),
        ("invocation [shop]", {}, "shop"),
        ("LangGraph", {}, None),
        ("Agent workflow", {}, None),
        ("Crew_c1f3d1a2-5b1e-4d3a-9c0a-6f0d7b1a2c3d.kickoff", {}, None),
        ("x" * 300, {}, None),
        ("x", {"gen_ai.agent.name": ["bot"]}, "x"),
    ],
)
def test_an_agent_has_the_name_that_somebody_gave_it(
    name: str, attributes: Mapping[str, Any], expected: str | None
) -> None:
    """A framework's own default, and a name that is new with each run, is none."""
    assert Reader().read(name, {OPERATION: "invoke_agent", **attributes}).agent == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"gen_ai.usage.input_tokens": 3, "gen_ai.usage.prompt_tokens": 3}, (3, None)),
        ({"gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 4}, (3, 4)),
        ({"llm.token_count.prompt": 3, "llm.token_count.completion": 0}, (3, 0)),
        ({"langfuse.observation.usage_details": '{"input": 3, "output": 4}'}, (3, 4)),
        ({"langfuse.observation.usage_details": "[" * 100_000}, (None, None)),
        ({"langfuse.observation.usage_details": "[1]"}, (None, None)),
        ({"gen_ai.usage.input_tokens": True, "gen_ai.usage.output_tokens": -1}, (None, None)),
        ({"gen_ai.usage.input_tokens": "3", "gen_ai.usage.output_tokens": 2**70}, (None, None)),
    ],
)
def test_tokens_are_counts(attributes: Mapping[str, Any], expected: tuple[int | None, int | None]) -> None:
    """What is no count is unknown."""
    assert recognition.tokens(attributes) == expected


def outcome(
    description: str | None = None,
    error_type: str | None = None,
    raised: str | None = None,
    *,
    failed: bool = True,
) -> Outcome | None:
    """How an agent ended whose span says this."""
    attributes = {OPERATION: "invoke_agent"} | ({"error.type": error_type} if error_type else {})
    events = [("exception", {"exception.type": raised})] if raised else []
    return Reader().read("x", attributes, failed=failed, description=description, events=events).outcome


def test_the_class_of_an_error_is_what_names_it_best() -> None:
    """Its own attribute, else the exception, else the description's first word."""
    message = "ValueError: no\nmore"
    assert outcome(message, "a.B", "c.D") == Outcome(TurnStatus.FAILED, "a.B", "ValueError: no")
    assert outcome(message, "_OTHER", "c.D") == Outcome(TurnStatus.FAILED, "c.D", "ValueError: no")
    assert outcome(message, "_OTHER") == Outcome(TurnStatus.FAILED, "ValueError", "ValueError: no")
    assert outcome("it went wrong") == Outcome(TurnStatus.FAILED, None, "it went wrong")
    assert outcome("E('x')Traceback (most recent call last):\n a")[2] == "E('x')"  # type: ignore[index]
    assert outcome() == Outcome(TurnStatus.FAILED)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("OpenAIAPIError('no')Traceback", Outcome(TurnStatus.FAILED, "OpenAIAPIError")),
        ("GeneratorExit()Traceback", Outcome(TurnStatus.CANCELLED)),
        ("GraphInterrupt((Interrupt(value=1),))", Outcome(TurnStatus.WAITING)),
        ("it went wrong", Outcome(TurnStatus.FAILED, "Exception")),
        (7, Outcome(TurnStatus.FAILED, "Exception")),
    ],
)
def test_the_class_of_an_error_is_in_the_message_where_a_library_wraps_it(
    message: object, expected: Outcome
) -> None:
    """Of the message nothing else is used."""
    event = ("exception", {"exception.type": "Exception", "exception.message": message})
    assert Reader().read("x", {OPERATION: "chat"}, failed=True, events=[event]).outcome == expected


def test_a_reader_who_leaves_cancels_and_a_question_to_a_human_waits() -> None:
    """Neither is a failure, though the status says so; an interrupt is one even where it does not."""
    cancelled, waiting = Outcome(TurnStatus.CANCELLED), Outcome(TurnStatus.WAITING)
    assert outcome("abandoned stream", "_OTHER") == cancelled
    assert outcome("GeneratorExit()Traceback (most recent call last)", raised="GeneratorExit") == cancelled
    assert outcome(raised="asyncio.exceptions.CancelledError") == cancelled
    assert outcome(raised="langgraph.errors.GraphInterrupt") == waiting
    assert outcome(raised="langgraph.errors.GraphInterrupt", failed=False) == waiting
    assert outcome(raised="ValueError", failed=False) is None


def test_a_rule_of_ones_own_is_asked_first() -> None:
    """What it leaves open the library's rules tell."""

    def rule(name: str, attributes: Mapping[str, Any]) -> Recognised | None:
        return Recognised(SpanClass.AGENT, attributes.get("app.chat")) if name == "handle" else None

    seen = Reader((), (rule,)).read("handle", {"app.chat": "c-1", "user.id": "u-1"})
    assert (seen.span_class, seen.ids, seen.agent) == (SpanClass.AGENT, Ids("c-1", "u-1"), "handle")
    assert Reader((), (rule,)).read("chat", {OPERATION: "chat"}).span_class is SpanClass.LLM


def test_the_span_of_our_own_turn_is_known() -> None:
    """It reports itself."""
    assert Reader().read("x", {"agent_tracker.turn_id": "t"}).is_ours


def test_instrumentations_of_requests_and_databases_are_foreign() -> None:
    """Not the one of Bedrock's client, and not a span that shows a model."""
    for scope in ("opentelemetry.instrumentation.asgi", "opentelemetry.instrumentation.psycopg"):
        assert recognition.is_foreign_scope(scope)
        assert not recognition.is_likely_scope(scope)
    for scope in ("opentelemetry.instrumentation.botocore.bedrock", "app", "", "pydantic-ai"):
        assert not recognition.is_foreign_scope(scope)
    assert recognition.is_foreign({"http.request.method": "GET"})
    assert not recognition.is_foreign({"rpc.system": "grpc", OPERATION: "chat"})
    assert recognition.is_likely_scope("openinference.instrumentation.langchain")
