"""Rules of `AgentSpanProcessor`: what it stamps, and what it tells the turn above a span."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.trace import Status, StatusCode

from otel_agent_tracker import AgentPerformanceTracker, agents, assembly, semconv, session
from otel_agent_tracker.agents import AgentSpanProcessor, add_toucher, remove_toucher, watch
from otel_agent_tracker.testing import RecordedConversations
from otel_agent_tracker.turns import Observed, with_observed
from tests.event_spans import Kept
from tests.hosts import host_provider

LLM = {semconv.GEN_AI_OPERATION_NAME: "chat"}
AGENT = {semconv.GEN_AI_OPERATION_NAME: "invoke_agent"}


def tokens(given: int | None = None, answered: int | None = None) -> dict[str, Any]:
    """A model call with these tokens."""
    counts = {semconv.GEN_AI_INPUT_TOKENS: given, semconv.GEN_AI_OUTPUT_TOKENS: answered}
    return {**LLM, **{key: count for key, count in counts.items() if count is not None}}


class Host:
    """An application with our processor on its provider."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.processor = AgentSpanProcessor()
        self.kept = Kept()
        self.provider.add_span_processor(self.processor)
        self.provider.add_span_processor(self.kept)
        self.tracer: trace.Tracer = self.provider.get_tracer("host")

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that ended, by name."""
        return {span.name: span for span in self.kept.spans}


@pytest.fixture(name="host")
def _host() -> Iterator[Host]:
    host = Host()
    yield host
    host.provider.shutdown()


@pytest.fixture(name="observed")
def _observed(host: Host) -> Iterator[Observed]:
    """An open turn, whose span is current."""
    observed = Observed()
    with host.tracer.start_as_current_span("turn"):
        token = context.attach(with_observed(observed, context.get_current()))
        yield observed
        context.detach(token)


# --- stamps -------------------------------------------------------------------------------------------------


def test_spans_inside_a_session_are_stamped(host: Host) -> None:
    """With the session's id, on every span of every library; not outside, and not with the user's."""
    with session("thread-7", user_id="u1"), host.tracer.start_as_current_span("a"):
        host.tracer.start_span("b").end()
    host.tracer.start_span("c").end()
    spans = host.spans()
    for name in "ab":
        assert spans[name].attributes == {semconv.SESSION_ID: "thread-7"}
    assert spans["c"].attributes == {}


def test_spans_of_a_generator_inside_a_session_are_stamped(host: Host) -> None:
    """At each of its steps; its reader's are not."""

    @session("thread-7")
    def answer() -> Iterator[None]:
        for name in "ab":
            host.tracer.start_span(name).end()
            yield

    for number, _ in enumerate(answer()):
        host.tracer.start_span(f"reader {number}").end()
    stamped = {
        name: span.attributes == {semconv.SESSION_ID: "thread-7"} for name, span in host.spans().items()
    }
    assert stamped == {"a": True, "reader 0": False, "b": True, "reader 1": False}


def test_what_a_library_set_itself_stays(host: Host) -> None:
    """Its session id may mean something else."""
    with session("thread-7"):
        host.tracer.start_span("a", attributes={semconv.SESSION_ID: "its own"}).end()
    assert host.spans()["a"].attributes == {semconv.SESSION_ID: "its own"}


def test_a_span_that_starts_in_another_context_is_not_stamped(host: Host) -> None:
    """The Context it is started with counts, not the current one."""
    with session("thread-7"):
        host.tracer.start_span("a", context=Context()).end()
    assert host.spans()["a"].attributes == {}


# --- tokens -------------------------------------------------------------------------------------------------


def test_tokens_of_model_calls_are_added_up(host: Host, observed: Observed) -> None:
    """However deep they are."""
    with host.tracer.start_as_current_span("tool"):
        host.tracer.start_span("chat", attributes=tokens(10, 3)).end()
    host.tracer.start_span("chat", attributes=tokens(5, 0)).end()
    assert (observed.input_tokens, observed.output_tokens) == (15, 3)


def test_a_model_call_around_another_is_counted_once(host: Host, observed: Observed) -> None:
    """Two instrumentations show one call as nested spans; the inner one counts."""
    with host.tracer.start_as_current_span("outer", attributes=tokens(10, 3)):
        host.tracer.start_span("inner", attributes=tokens(10, 3)).end()
    assert (observed.input_tokens, observed.output_tokens) == (10, 3)


def test_a_model_call_further_around_is_counted_once_too(host: Host, observed: Observed) -> None:
    """Whatever stands between the two."""
    with (
        host.tracer.start_as_current_span("outer", attributes=tokens(10, 3)),
        host.tracer.start_as_current_span("http"),
    ):
        host.tracer.start_span("inner", attributes=tokens(10, 3)).end()
    assert (observed.input_tokens, observed.output_tokens) == (10, 3)


def test_three_nested_model_calls_are_counted_once(host: Host, observed: Observed) -> None:
    """That a span only repeated its child's tokens is known one level up, too."""
    with (
        host.tracer.start_as_current_span("outer", attributes=tokens(10, 3)),
        host.tracer.start_as_current_span("middle", attributes=tokens(10, 3)),
    ):
        host.tracer.start_span("inner", attributes=tokens(10, 3)).end()
    assert (observed.input_tokens, observed.output_tokens) == (10, 3)


def test_a_model_call_around_one_without_tokens_counts_itself(host: Host, observed: Observed) -> None:
    """Nothing is repeated where nothing was said."""
    with host.tracer.start_as_current_span("outer", attributes=tokens(10, 3)):
        host.tracer.start_span("inner", attributes=LLM).end()
    assert (observed.input_tokens, observed.output_tokens) == (10, 3)


def test_unknown_tokens_stay_unknown(host: Host, observed: Observed) -> None:
    """None is not zero; one of the two may be known alone."""
    host.tracer.start_span("chat", attributes=LLM).end()
    assert (observed.input_tokens, observed.output_tokens) == (None, None)
    host.tracer.start_span("chat", attributes=tokens(answered=0)).end()
    assert (observed.input_tokens, observed.output_tokens) == (None, 0)


def test_tokens_of_other_spans_do_not_count(host: Host, observed: Observed) -> None:
    """An agent's span sums its model calls up: they would count twice."""
    attributes = tokens(10, 3)
    host.tracer.start_span("agent", attributes={**attributes, **AGENT}).end()
    host.tracer.start_span("odd", attributes={**attributes, semconv.GEN_AI_OPERATION_NAME: "x"}).end()
    assert (observed.input_tokens, observed.output_tokens) == (None, None)


def test_model_calls_outside_a_turn_tell_nobody(host: Host) -> None:
    """Nothing is remembered of them."""
    host.tracer.start_span("chat", attributes=tokens(10, 3)).end()
    assert not len(host.processor._assembly)


# --- failures -----------------------------------------------------------------------------------------------


def failing_agent(tracer: trace.Tracer) -> None:
    """An agent of another library that fails."""
    with tracer.start_as_current_span("invoke_agent x", attributes=AGENT) as span:
        span.set_attribute(semconv.ERROR_TYPE, "OSError")
        span.set_status(Status(StatusCode.ERROR, "no route"))


def test_an_agent_directly_below_a_turn_that_fails_fails_it(host: Host, observed: Observed) -> None:
    """It is the turn, as another library sees it."""
    failing_agent(host.tracer)
    assert observed.failure == {"error_type": "OSError", "error_message": "no route"}


def test_an_agent_that_keeps_its_models_failure_to_itself_fails_it(host: Host, observed: Observed) -> None:
    """If the call that failed was its last."""
    for made_again in (True, False):
        with host.tracer.start_as_current_span("invoke_agent x", attributes=AGENT):
            span = host.tracer.start_span("chat", attributes=LLM | {semconv.ERROR_TYPE: "OSError"})
            span.set_status(Status(StatusCode.ERROR, "no route"))
            span.end()
            if made_again:
                host.tracer.start_span("chat", attributes=LLM).end()
        assert (observed.failure is None) is made_again
    assert observed.failure == {"error_type": "OSError", "error_message": "no route"}


def test_an_agent_further_down_does_not(host: Host, observed: Observed) -> None:
    """A subagent may fail and its caller cope."""
    with host.tracer.start_as_current_span("invoke_agent outer", attributes=AGENT):
        failing_agent(host.tracer)
    assert observed.failure is None


def test_other_spans_that_fail_do_not(host: Host, observed: Observed) -> None:
    """A tool or a model call that failed may have been tried again."""
    for attributes in (LLM, {}):
        span = host.tracer.start_span("x", attributes=attributes)
        span.set_status(Status(StatusCode.ERROR))
        span.end()
    host.tracer.start_span("invoke_agent x", attributes=AGENT).end()
    assert observed.failure is None


# --- touches ------------------------------------------------------------------------------------------------


@pytest.fixture(name="touched")
def _touched() -> Iterator[list[str]]:
    """The ids of the sessions that spans touched."""
    touched: list[str] = []
    add_toucher(touched.append)
    yield touched
    remove_toucher(touched.append)


@pytest.mark.parametrize("key", [semconv.SESSION_ID, semconv.GEN_AI_CONVERSATION_ID])
def test_a_span_that_carries_a_session_touches_it_at_its_end(
    host: Host, touched: list[str], key: str
) -> None:
    """Whoever set the id, at its start or later."""
    span = host.tracer.start_span("work")
    span.set_attribute(key, "thread-7")
    assert touched == []
    span.end()
    assert touched == ["thread-7"]


def test_both_ids_of_a_span_are_touched_once_each(host: Host, touched: list[str]) -> None:
    """One touch where they are the same."""
    for conversation in ("thread-7", "thread-8"):
        attributes = {semconv.SESSION_ID: "thread-7", semconv.GEN_AI_CONVERSATION_ID: conversation}
        host.tracer.start_span("work", attributes=attributes).end()
    assert sorted(touched) == ["thread-7", "thread-7", "thread-8"]


def test_spans_without_a_session_touch_nothing(host: Host, touched: list[str]) -> None:
    """Nor do ids that are no text."""
    host.tracer.start_span("work", attributes={"a": 1}).end()
    host.tracer.start_span("work", attributes={semconv.SESSION_ID: 7}).end()
    assert touched == []


def test_a_toucher_that_was_removed_is_not_called(host: Host) -> None:
    """Added twice, it is removed by one call; removing it again does nothing."""
    touched: list[str] = []
    add_toucher(touched.append)
    add_toucher(touched.append)
    for _ in range(2):
        remove_toucher(touched.append)
    host.tracer.start_span("work", attributes={semconv.SESSION_ID: "thread-7"}).end()
    assert touched == []


def test_a_toucher_that_raises_never_reaches_the_host(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once."""
    monkeypatch.setattr(agents._logger, "said", set())

    def fail(session: str) -> None:
        raise RuntimeError(session)

    add_toucher(fail)
    try:
        for _ in range(3):
            host.tracer.start_span("work", attributes={semconv.SESSION_ID: "thread-7"}).end()
    finally:
        remove_toucher(fail)
    assert len(host.kept.spans) == 3
    assert caplog.text.count("could not be touched") == 1


def test_a_span_of_the_host_keeps_its_session_alive(recorded_conversations: RecordedConversations) -> None:
    """Nine hours after the last call, for another ten."""
    clock, provider = recorded_conversations.clock, TracerProvider()
    with host_provider(provider), AgentPerformanceTracker() as tracker:
        watched, idle = tracker.start_conversation("bot"), tracker.start_conversation("bot")
        clock.advance(hours=9)
        with session(watched):
            provider.get_tracer("another library").start_span("work").end()
        clock.advance(hours=2)
        live = [found is not None for found in map(tracker.get_live_session, (watched, idle))]
    assert live == [True, False]
    provider.shutdown()


# --- interruptions ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_handler_that_makes_a_span_does_not_hang(host: Host, observed: Observed) -> None:
    """While a span is being remembered on the same thread."""
    host.processor._assembly._lock.acquire()
    before = signal.signal(
        signal.SIGALRM, lambda *_: host.tracer.start_span("chat", attributes=tokens(1)).end()
    )
    try:
        finished = threading.Event()
        watchdog = threading.Timer(10, lambda: finished.is_set() or os._exit(3))
        watchdog.start()
        signal.raise_signal(signal.SIGALRM)
        finished.set()
        watchdog.cancel()
        watchdog.join()
    finally:
        signal.signal(signal.SIGALRM, before)
        host.processor._assembly._lock.release()
    assert observed.input_tokens == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(host: Host, observed: Observed) -> None:
    """The thread that held the lock at the fork is not in the child."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with host.processor._assembly._lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    if (child := os.fork()) == 0:
        signal.alarm(10)
        host.tracer.start_span("chat", attributes=tokens(1)).end()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0


# --- never in the way ---------------------------------------------------------------------------------------


class Hostile(str):
    """An attribute's value with a mistake in it."""

    __slots__ = ()

    def lower(self) -> str:
        raise RuntimeError("a mistake of the host")

    def __str__(self) -> str:
        raise RuntimeError("a mistake of the host")


def test_attributes_that_raise_raise_nothing_into_the_host(
    host: Host, observed: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The span is passed over, the log says so, the next one is read."""
    monkeypatch.setattr(agents._logger, "said", set())
    host.tracer.start_span("odd", attributes={semconv.GEN_AI_OPERATION_NAME: Hostile("chat")}).end()
    host.tracer.start_span("chat", attributes=tokens(1, 1)).end()
    assert observed.input_tokens == 1
    assert "could not be read" in caplog.text


def test_what_is_remembered_is_bounded(
    host: Host, observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans that never end are forgotten, oldest first."""
    monkeypatch.setattr(assembly, "MAX_OPEN_SPANS", 10)
    never_ended = [host.tracer.start_span("x") for _ in range(100)]
    for _ in range(100):
        parent = trace.set_span_in_context(host.tracer.start_span("p"))
        host.tracer.start_span("chat", context=parent, attributes=tokens(1, 1)).end()
    assert len(host.processor._assembly) <= 10
    assert observed.input_tokens == 100
    never_ended[0].end()


def test_spans_that_end_are_forgotten(host: Host, observed: Observed) -> None:
    """Nothing stays behind of a turn whose spans have ended."""
    with host.tracer.start_as_current_span("outer", attributes=tokens(10, 3)):
        host.tracer.start_span("inner", attributes=tokens(10, 3)).end()
    assert not len(host.processor._assembly)


# --- where it sits ------------------------------------------------------------------------------------------


def test_a_provider_is_watched_once() -> None:
    """However often it is asked for."""
    provider = TracerProvider()
    for _ in range(3):
        watch(provider)
    with session("thread-7"):
        span = provider.get_tracer("host").start_span("a")
    assert span.attributes == {semconv.SESSION_ID: "thread-7"}  # type: ignore[attr-defined]  # the SDK's has them
    processors = provider._active_span_processor._span_processors
    assert [type(processor) for processor in processors] == [AgentSpanProcessor]
    provider.shutdown()


def test_the_global_provider_is_the_default() -> None:
    """The one of the moment."""
    provider = TracerProvider()
    with host_provider(provider):
        watch()
    assert len(provider._active_span_processor._span_processors) == 1
    assert isinstance(provider.get_tracer("host"), Tracer)
    provider.shutdown()


class Refusing(TracerProvider):
    """A provider of a host that takes no processor, at first."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = True

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        if self.refuses:
            raise RuntimeError("a mistake of the host")
        super().add_span_processor(span_processor)


def test_a_provider_that_raises_raises_nothing_into_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, and the provider is watched as soon as it can be."""
    monkeypatch.setattr(agents._logger, "said", set())
    provider = Refusing()
    with host_provider(provider):
        for _ in range(2):
            with session("thread-7"):
                pass
        assert caplog.text.count("takes no span processor") == 1
        provider.refuses = False
        with session("thread-7"):
            span = provider.get_tracer("host").start_span("a")
    assert span.attributes == {semconv.SESSION_ID: "thread-7"}  # type: ignore[attr-defined]  # the SDK's has them
    provider.shutdown()


@pytest.mark.parametrize("provider", [trace.NoOpTracerProvider(), trace.ProxyTracerProvider()])
def test_a_provider_that_takes_no_processors_is_left_alone(provider: trace.TracerProvider) -> None:
    """There is nothing to watch."""
    watch(provider)
    assert not provider.__dict__
