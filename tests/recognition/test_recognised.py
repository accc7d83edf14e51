"""Turns in other people's spans, from `install` to what a tracker is told: who they belong to and how they end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanLimits, TracerProvider
from opentelemetry.trace import Span, Status, StatusCode

import otel_agent_tracker
from otel_agent_tracker import AgentPerformanceTracker, Recognised, SpanClass, assembly, auto, session
from otel_agent_tracker.recognition import Recogniser
from otel_agent_tracker.semconv import EndedBy, Outcome
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.testing import RecordedConversation, RecordedConversations, recording

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "bot"}
LLM: dict[str, str | int] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.usage.input_tokens": 5,
    "gen_ai.usage.output_tokens": 2,
}
TOOL = {"gen_ai.operation.name": "execute_tool"}


class App:
    """An application with a provider of its own, and what a tracker is told of it."""

    def __init__(self, recorded: RecordedConversations, provider: TracerProvider) -> None:
        self.recorded = recorded
        self.provider = provider
        self.clock = recorded.clock

    def tracer(self, library: str = "app") -> trace.Tracer:
        """The tracer of a library."""
        return self.provider.get_tracer(library)

    @contextmanager
    def span(
        self, name: str, attributes: Mapping[str, Any] | None = None, *, library: str = "app"
    ) -> Iterator[Span]:
        """A span that is current, of the recorded clock's time."""
        span = self.tracer(library).start_span(name, attributes=attributes, start_time=self.now_ns())
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield span
        span.end(self.now_ns())

    def now_ns(self) -> int:
        """The recorded clock."""
        return self.clock.clock.time_ns()

    def turn(self, conversation: str | None = None, more: Mapping[str, Any] | None = None) -> None:
        """An agent's run with one model call; its id shows at its end."""
        known = {} if conversation is None else {"gen_ai.conversation.id": conversation}
        with self.span("invoke_agent bot", AGENT) as span:
            self.tracer().start_span("chat", attributes=LLM).end()
            span.set_attributes({**known, **(more or {})})

    @property
    def told(self) -> list[RecordedConversation]:
        """The conversations."""
        return self.recorded.conversations

    @property
    def found_by(self) -> Mapping[str, int]:
        """How many turns were recognised, by what told whose each is."""
        return self.recorded._pipeline.counted().turns

    @property
    def sessions(self) -> dict[str, int]:
        """How many turns each session has; the ungrouped count as one of ``""``."""
        found: dict[str, int] = {}
        for each in self.told:
            name = "" if each.ended_by is EndedBy.TURN else each.session_id
            found[name] = found.get(name, 0) + len(each.turns)
        return found


Install = Callable[..., App]


@pytest.fixture(name="install")
def _install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes an application that has called `install`; options are those of the configuration."""
    monkeypatch.setattr(auto, "_installed", None)
    opened: list[Any] = []

    def install(
        provider: TracerProvider | None = None, recognisers: tuple[Recogniser, ...] = (), **options: Any
    ) -> App:
        block = recording(**options)
        app = App(block.__enter__(), provider or TracerProvider(shutdown_on_exit=False))
        opened.append(block)
        otel_agent_tracker.install(app.provider, recognisers=recognisers)
        return app

    yield install
    if auto._installed is not None:
        auto._installed.close()
    for block in opened:
        block.__exit__(None, None, None)


@pytest.fixture(name="app")
def _app(install: Install) -> App:
    """An application with the defaults."""
    return install()


# --- outcomes without an end --------------------------------------------------------------------------------


def test_a_conversation_that_nobody_ends_completes_when_it_is_idle(app: App) -> None:
    """At its last activity, without a quality."""
    app.turn("thread-1")
    app.clock.advance(minutes=10)
    app.turn("thread-1")
    assert [(each.outcome, len(each.turns)) for each in app.told] == [(Outcome.ACTIVE, 2)]
    app.clock.advance(minutes=31)
    [ended] = app.told
    assert (ended.outcome, ended.ended_by, ended.quality, ended.agent_id) == (
        Outcome.COMPLETED,
        EndedBy.IDLE,
        None,
        "bot",
    )
    assert [(turn.input_tokens, turn.output_tokens) for turn in ended.turns] == [(5, 2), (5, 2)]


def test_a_conversation_whose_last_turn_failed_fails_when_it_is_idle(app: App) -> None:
    """With that turn's error."""
    app.turn("thread-1")
    with app.span("invoke_agent bot", AGENT | {"gen_ai.conversation.id": "thread-1"}) as span:
        span.set_status(Status(StatusCode.ERROR, "ValueError: no such order"))
    app.clock.advance(minutes=31)
    [ended] = app.told
    assert (ended.outcome, ended.ended_by) == (Outcome.FAILED, EndedBy.IDLE)
    assert (ended.error_type, ended.error_message) == ("ValueError", "ValueError: no such order")


def test_a_failure_that_was_made_good_fails_nothing(app: App) -> None:
    """The last turn decides."""
    with app.span("invoke_agent bot", AGENT | {"gen_ai.conversation.id": "thread-1"}) as span:
        span.set_status(Status(StatusCode.ERROR, "no"))
    app.turn("thread-1")
    app.clock.advance(minutes=31)
    assert [each.outcome for each in app.told] == [Outcome.COMPLETED]


def call_model(app: App, status: Status | None = None, error_type: str | None = None) -> None:
    """One call, which by default goes well."""
    span = app.tracer().start_span("chat", attributes=LLM)
    if error_type is not None:
        span.set_attribute("error.type", error_type)
    if status is not None:
        span.set_status(status)
    span.end()


REFUSED = Status(StatusCode.ERROR, "ValueError: the model refuses")


def test_an_agent_that_keeps_its_models_failure_to_itself_has_failed(app: App) -> None:
    """Some answer with the error's text, and their spans end well."""
    with app.span("invoke_agent bot", AGENT), app.span("turn", {"openinference.span.kind": "CHAIN"}):
        call_model(app)
        call_model(app, REFUSED)
    [told] = app.told
    assert (told.outcome, told.error_type) == (Outcome.FAILED, "ValueError")
    assert told.error_message == "ValueError: the model refuses"


def test_a_call_of_the_model_that_was_made_again_fails_nothing(app: App) -> None:
    """The one that ended last decides, also where a subagent's was the first."""
    with app.span("invoke_agent bot", AGENT):
        call_model(app, REFUSED)
        call_model(app)
    with app.span("invoke_agent bot", AGENT):
        with app.span("invoke_agent below", AGENT):
            call_model(app, REFUSED)
        call_model(app)
    assert [each.outcome for each in app.told] == [Outcome.COMPLETED] * 2


def test_a_call_of_the_model_that_its_agent_does_without_fails_nothing(app: App) -> None:
    """A tool's is the tool's, whose caller copes; one that was cancelled may have lost a race."""
    with app.span("invoke_agent bot", AGENT):
        with app.span("summarise", TOOL):
            call_model(app, REFUSED)
        with app.span("ask", TOOL), app.span("invoke_agent below", AGENT):
            call_model(app, REFUSED)
    with app.span("invoke_agent bot", AGENT):
        call_model(app)
        call_model(app, Status(StatusCode.ERROR), "asyncio.exceptions.CancelledError")
    assert [each.outcome for each in app.told] == [Outcome.COMPLETED] * 2


def test_a_conversation_that_waits_for_a_human_is_not_idle(app: App) -> None:
    """Until the answer; the interrupt is shown below a status that is fine."""
    chain = {"openinference.span.kind": "CHAIN"}
    with app.span("LangGraph", chain | {"session.id": "thread-9"}), app.span("ask", chain) as node:
        node.add_event("exception", {"exception.type": "langgraph.errors.GraphInterrupt"})
    app.clock.advance(hours=3)
    [waiting] = app.told
    assert (waiting.outcome, [turn.status for turn in waiting.turns]) == (Outcome.ACTIVE, ["waiting"])
    app.turn("thread-9")
    app.clock.advance(minutes=31)
    assert [(each.outcome, len(each.turns)) for each in app.told] == [(Outcome.COMPLETED, 2)]


def test_a_user_who_returns_the_next_day_has_a_second_conversation(app: App) -> None:
    """In the same session."""
    app.turn("thread-1")
    app.clock.advance(hours=24)
    app.turn("thread-1")
    assert [(each.session_id, each.number, each.outcome, len(each.turns)) for each in app.told] == [
        ("thread-1", 1, Outcome.COMPLETED, 1),
        ("thread-1", 2, Outcome.ACTIVE, 1),
    ]


def test_a_real_tracker_tells_the_same(
    tracker_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A conversation of two turns, one of which failed, and one turn that is nobody's."""
    monkeypatch.setattr(auto, "_installed", None)
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path / "state"))
    provider = TracerProvider(shutdown_on_exit=False)
    tracker = otel_agent_tracker.install(provider, base_url=tracker_server.url)
    tracer = provider.get_tracer("app")
    for failed in (True, False):
        span = tracer.start_span("invoke_agent bot", attributes=AGENT)
        span.set_attributes({"gen_ai.conversation.id": "thread-1", "user.id": "u1"})
        if failed:
            span.set_status(Status(StatusCode.ERROR, "no"))
        span.end()
    tracer.start_span("invoke_agent alone", attributes={"gen_ai.operation.name": "invoke_agent"}).end()
    try:
        assert tracker.flush(20.0)
        found = tracker.get_session_info("thread-1")
        rates = tracker.get_success_rates()
    finally:
        tracker.close()
        monkeypatch.setattr(auto, "_installed", None)
    assert found is not None
    assert (found["status"], found["agent_id"], found["user_id"], found["turns"]) == (
        "active",
        "bot",
        "u1",
        2,
    )
    assert (rates["total"], rates["completed"], rates["active"]) == (2, 1, 1)


# --- whose a turn is ----------------------------------------------------------------------------------------


def test_our_own_block_says_whose_a_turn_is(app: App) -> None:
    """Whatever id the framework gives its run."""
    with session("chat-42", user_id="u1", agent_id="support"):
        app.turn("an id of the framework's")
    [told] = app.told
    assert (told.session_id, told.user_id, told.agent_id, len(told.turns)) == ("chat-42", "u1", "support", 1)


def test_nothing_is_told_twice(app: App) -> None:
    """A framework's run inside a turn of ours is that turn."""
    with (
        AgentPerformanceTracker() as tracker,
        tracker.conversation("support") as conversation,
        app.span("work"),
        conversation.turn(),
    ):
        app.turn("an id of the framework's")
    [told] = app.told
    assert (told.agent_id, len(told.turns), told.outcome) == ("support", 1, Outcome.COMPLETED)
    assert told.turns[0].input_tokens == 5


def test_a_tracker_object_alone_tells_nothing_of_other_peoples_turns(
    recorded_conversations: RecordedConversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who tracks by call would have each conversation twice."""
    monkeypatch.setattr(auto, "_installed", None)
    app = App(recorded_conversations, TracerProvider(shutdown_on_exit=False))
    with AgentPerformanceTracker():
        otel_agent_tracker.agents.watch(app.provider)
        app.turn("thread-1")
    assert app.told == []


def test_the_context_tells_what_the_span_does_not(app: App) -> None:
    """As libraries keep ids there; it is read when the turn begins."""
    token = context.attach(context.set_value("session.id", "thread-1"))
    app.turn()
    context.detach(token)
    assert app.sessions == {"thread-1": 1}


@pytest.mark.parametrize(("propagate", "expected"), [(True, {"thread-1": 1}), (False, {"": 1})])
def test_baggage_is_read_only_if_asked_for(
    install: Install, propagate: bool, expected: dict[str, int]
) -> None:
    """Another process may have set it."""
    app = install(propagate=propagate)
    token = context.attach(baggage.set_baggage("session_id", "thread-1"))
    app.turn()
    context.detach(token)
    assert app.sessions == expected


def test_the_earliest_span_below_tells_last(app: App) -> None:
    """Where neither the turn nor its Context has an id; spans that end later may have begun earlier."""
    with app.span("invoke_agent bot", AGENT), app.span("work") as early:
        app.tracer().start_span("chat", attributes=LLM | {"session.id": "late"}).end()
        early.set_attribute("session.id", "early")
    assert app.sessions == {"early": 1}


def test_the_order_of_ids_can_be_set(install: Install) -> None:
    """An application's own attribute before all others."""
    app = install(id_precedence=("app.chat",))
    app.turn("an id of the framework's", {"app.chat": "chat-1"})
    assert app.sessions == {"chat-1": 1}


@pytest.mark.parametrize(("ungrouped", "expected"), [("turns", {"": 1}), ("all", {"": 2}), ("ignore", {})])
def test_what_becomes_of_turns_without_an_id_can_be_chosen(
    install: Install, ungrouped: str, expected: dict[str, int]
) -> None:
    """An agent's is a conversation of its own, a lone model call's nothing, unless it is said otherwise."""
    app = install(ungrouped=ungrouped)
    app.turn()
    app.tracer().start_span("chat", attributes=LLM).end()
    assert app.sessions == expected


def test_a_turn_of_nobody_has_ended_with_it_and_says_so(app: App) -> None:
    """It is counted apart."""
    with app.span("invoke_agent bot", AGENT) as span:
        span.set_status(Status(StatusCode.ERROR, "no"))
    [told] = app.told
    assert (told.outcome, told.ended_by, len(told.turns)) == (Outcome.FAILED, EndedBy.TURN, 1)
    ends = [each.body for each in app.recorded.requests if each.path.endswith("/end")]
    assert [each["metadata"]["agent_tracker"]["ungrouped"] for each in ends] == [True]


def test_agent_id_overrides_what_spans_call_themselves(install: Install) -> None:
    """For every recognised turn."""
    app = install(agent_id="support")
    app.turn("thread-1")
    assert [each.agent_id for each in app.told] == ["support"]


def test_a_rule_of_ones_own_recognises_a_framework_of_ones_own(install: Install) -> None:
    """One that raises is told of in the log, and harms nobody."""

    def rule(name: str, attributes: Mapping[str, Any]) -> Recognised | None:
        if name == "broken":
            raise RuntimeError("a mistake of the host")
        return Recognised(SpanClass.AGENT, attributes["chat"], agent_id="mine") if name == "handle" else None

    app = install(recognisers=(rule,))
    app.tracer().start_span("broken").end()
    app.tracer().start_span("handle", attributes={"chat": "chat-1"}).end()
    assert [(each.session_id, each.agent_id) for each in app.told] == [("chat-1", "mine")]
    with pytest.raises(TypeError, match="recognisers must be a sequence of functions"):
        otel_agent_tracker.install(recognisers=(7,))  # type: ignore[arg-type]


# --- wrong input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "None",
        "default",
        "session_id",
        "0" * 32,
        "resp_68a1",
        "[Scrubbed due to 'session']",
        "x" * 10_000,
        ["a", "b"],
        7,
        True,
        "a\nb",
    ],
)
def test_an_id_that_cannot_name_a_conversation_names_none(
    app: App, caplog: pytest.LogCaptureFixture, value: object
) -> None:
    """Two users with the same one stay apart, the turns are counted as unresolved, and the log says so once."""
    for _ in range(2):
        app.turn(None, {"session.id": value})
    assert app.sessions == {"": 2}
    assert len(app.told) == 2
    assert caplog.text.count("cannot name a conversation") == 1


@pytest.mark.parametrize(
    ("shown", "found_by"),
    [
        ({"gen_ai.conversation.id": "thread-1"}, "span"),
        ({"gen_ai.conversation.id": "resp_1", "session.id": ["a"]}, "unusable"),
        ({"user.id": "u1"}, "nothing"),
        ({}, "nothing"),
    ],
)
def test_a_turn_is_counted_by_what_told_whose_it_is(
    app: App, caplog: pytest.LogCaptureFixture, shown: Mapping[str, Any], found_by: str
) -> None:
    """Where nothing can be known too; a debug line names such a turn."""
    caplog.set_level(logging.DEBUG, "otel_agent_tracker.reporting")
    app.turn(None, shown)
    assert app.found_by == {found_by: 1}
    named = [each.getMessage() for each in caplog.records if each.levelno == logging.DEBUG]
    assert [found_by in each for each in named] == ([] if found_by == "span" else [True])


def test_what_is_around_a_turn_and_below_it_is_counted_apart(app: App) -> None:
    """A block of ours, what the span showed when it started, and a span below."""
    with session("chat-42"):
        app.turn()
    with app.span("invoke_agent bot", AGENT | {"session.id": "thread-1"}) as span:
        span.set_attribute("session.id", "[Scrubbed due to 'session']")
    with app.span("invoke_agent bot", AGENT):
        app.tracer().start_span("chat", attributes=LLM | {"session.id": "thread-2"}).end()
    assert app.found_by == {"block": 1, "start": 1, "below": 1}


def test_a_block_that_was_left_elsewhere_takes_in_nobody_else(app: App) -> None:
    """A worker's task enters a block for one user, whose stream is closed by another task; then comes the next user."""

    async def stream() -> AsyncGenerator[None]:
        with session("chat-of-ann"):
            app.turn()
            yield
            yield

    async def worker() -> None:
        steps = stream()
        await anext(steps)
        await asyncio.create_task(steps.aclose())
        app.turn("thread-of-bob")
        app.turn()

    asyncio.run(worker())
    assert app.sessions == {"chat-of-ann": 1, "thread-of-bob": 1, "": 1}


def test_an_id_that_a_scrubber_replaces_is_known_from_the_start(app: App) -> None:
    """What a span had before is used where what it has is none."""
    with app.span("invoke_agent bot", AGENT | {"session.id": "thread-1"}) as span:
        span.set_attribute("session.id", "[Scrubbed due to 'session']")
    assert app.sessions == {"thread-1": 1}


def test_an_id_that_a_limit_evicts_is_known_from_the_start(install: Install) -> None:
    """128 attributes later the first ones are gone."""
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=128), shutdown_on_exit=False)
    app = install(provider)
    with app.span("invoke_agent bot", {"session.id": "thread-1", **AGENT}) as span:
        for number in range(127):
            span.set_attribute(f"message.{number}", "text")
        span.set_attribute("gen_ai.operation.name", "invoke_agent")
    assert app.sessions == {"thread-1": 1}


def test_of_two_ids_the_convention_that_says_conversation_wins(app: App) -> None:
    """In one documented order."""
    app.turn("c-1", {"session.id": "s-1"})
    assert app.sessions == {"c-1": 1}


def test_a_nested_agents_own_id_is_not_the_turns(app: App) -> None:
    """Neither that of a tool's agent, nor that of one whose turn has none but the outer one's."""
    with app.span("invoke_agent outer", AGENT) as outer, app.span("tool", TOOL):
        app.turn("inner")
        outer.set_attribute("gen_ai.conversation.id", "outer")
    assert app.sessions == {"outer": 1}


def test_a_context_that_was_left_behind_makes_no_nested_turn(app: App) -> None:
    """A run below a span that has ended is a turn of its own."""
    first = app.tracer().start_span("invoke_agent bot", attributes=AGENT | {"gen_ai.conversation.id": "a"})
    token = context.attach(trace.set_span_in_context(first))
    first.end()
    for conversation in "bc":
        app.tracer().start_span(
            "invoke_agent bot", attributes=AGENT | {"gen_ai.conversation.id": conversation}
        ).end()
    context.detach(token)
    assert app.sessions == {"a": 1, "b": 1, "c": 1}


def test_a_block_of_ours_that_was_left_behind_keeps_no_turn(app: App) -> None:
    """What a task that was begun in a turn does after it is a turn of its own."""
    with AgentPerformanceTracker() as tracker, tracker.conversation("support") as conversation:
        with conversation.turn():
            left_behind = context.get_current()
        token = context.attach(left_behind)
        app.turn()
        context.detach(token)
    [told] = app.told
    assert len(told.turns) == 2


def test_spans_that_never_end_leave_nothing_behind(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten beyond a number, and turns below them are told all the same."""
    monkeypatch.setattr(assembly, "MAX_OPEN_SPANS", 10)
    for number in range(50):
        parent = trace.set_span_in_context(app.tracer("loops").start_span("never ended"))
        app.tracer().start_span(
            "invoke_agent bot", context=parent, attributes=AGENT | {"gen_ai.conversation.id": f"t-{number}"}
        ).end()
    [processor] = [each for each in otel_agent_tracker.agents._processors if len(each._assembly)]
    assert len(processor._assembly) <= 10
    app.clock.advance(seconds=6)
    assert app.sessions == {f"t-{number}": 1 for number in range(50)}


def test_one_long_span_above_holds_no_conversation_back(app: App) -> None:
    """Five seconds, then turns below it are told as they come."""
    with app.span("main loop", library="loops"):
        app.turn("thread-1")
        assert app.sessions == {}
        app.clock.advance(seconds=6)
        assert app.sessions == {"thread-1": 1}
        app.turn("thread-2")
        assert app.sessions == {"thread-1": 1, "thread-2": 1}


def test_a_turn_waits_longer_for_a_library_that_shows_agents(app: App) -> None:
    """Its root may take minutes after a sub-agent, and says what it is at its end."""
    with app.span("root", library="openinference.instrumentation.langchain") as root:
        with app.span("node", {"openinference.span.kind": "CHAIN"}):
            pass
        app.clock.advance(minutes=5)
        assert app.sessions == {}
        root.set_attributes({"openinference.span.kind": "AGENT", "session.id": "thread-1"})
    assert app.sessions == {"thread-1": 1}


def test_runs_below_an_agent_that_never_ends_are_told_after_an_hour(app: App) -> None:
    """Its library forgot to end it, and left its Context behind."""
    token = context.attach(trace.set_span_in_context(app.tracer().start_span("leaked", attributes=AGENT)))
    app.turn("thread-1")
    app.clock.advance(minutes=61)
    app.turn("thread-2")
    context.detach(token)
    assert app.sessions == {"thread-1": 1, "thread-2": 1}


def test_a_turn_of_very_many_steps_is_one_turn(app: App) -> None:
    """What is kept of its steps is bounded, and their tokens are counted all the same."""
    chain = {"openinference.span.kind": "CHAIN"}
    with app.span("root", library="openinference.instrumentation.langchain") as root:
        for _ in range(200):
            with app.span("node", chain):
                app.tracer().start_span("chat", attributes=LLM).end()
        root.set_attributes(chain | {"session.id": "thread-1"})
    [told] = app.told
    assert [(turn.input_tokens, turn.output_tokens) for turn in told.turns] == [(1000, 400)]


def test_the_next_run_below_one_that_never_ended_is_a_turn_at_once(app: App) -> None:
    """An agent does not call itself with nothing between: its library forgot to end the run that failed."""
    token = context.attach(
        trace.set_span_in_context(app.tracer().start_span("invoke_agent bot", attributes=AGENT))
    )
    app.turn("thread-1")
    app.turn("thread-2")
    context.detach(token)
    assert app.sessions == {"thread-1": 1, "thread-2": 1}


def test_what_waits_is_told_when_the_pipeline_stops(install: Install) -> None:
    """A script whose main span is still open when it ends."""
    app = install()
    app.tracer().start_span("main")
    with app.span("main"):
        app.turn("thread-1")
        app.recorded._pipeline.begin_to_stop()
        app.recorded._pipeline.stop()
    assert [body["session_id"] for _, body in app.recorded._sender.requests][:1] == ["thread-1"]


def test_a_clock_that_runs_backwards_harms_nobody(app: App) -> None:
    """A turn that ends before it begins takes no time."""
    span = app.tracer().start_span(
        "invoke_agent bot", attributes=AGENT | {"session.id": "a"}, start_time=2 * 10**18
    )
    span.end(10**18)
    [told] = app.told
    assert [turn.duration_seconds for turn in told.turns] == [0.0]


def test_requests_and_queries_are_looked_through(app: App) -> None:
    """A web server's span holds no turn back, and an agent's span far above is still above."""
    asgi = "opentelemetry.instrumentation.asgi"
    with app.span("POST /chat", library=asgi):
        app.turn("thread-1")
        assert app.sessions == {"thread-1": 1}
    with (
        app.span("invoke_agent outer", AGENT | {"session.id": "thread-2"}),
        app.span("GET", {"http.request.method": "GET"}),
    ):
        app.turn("inner")
    assert app.sessions == {"thread-1": 1, "thread-2": 1}


def test_processors_that_run_concurrently_tell_the_same(install: Install) -> None:
    """Threads of the SDK call us then; many conversations at once neither mix nor hang."""
    processors = ConcurrentMultiSpanProcessor(num_threads=4)
    app = install(TracerProvider(active_span_processor=processors, shutdown_on_exit=False))

    def talk(number: int) -> None:
        for _ in range(5):
            app.turn(f"t-{number}")

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert app.sessions == {f"t-{number}": 5 for number in range(8)}
    processors.shutdown()
