"""Turns that were recognised in other people's spans become events, at once or when their spans are gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan

from otel_agent_tracker import semconv
from otel_agent_tracker.agents import seen_at_end
from otel_agent_tracker.assembly import Summary
from otel_agent_tracker.clock import Clock
from otel_agent_tracker.evaluation import Evaluation
from otel_agent_tracker.events import Events, TurnReport
from otel_agent_tracker.gathering import EndedSpan, EndedSpans
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.log import Log
from otel_agent_tracker.recognition import Reader, SpanClass
from otel_agent_tracker.sdk_private import attributes_of
from otel_agent_tracker.semconv import FoundBy, TurnStatus

__all__ = ["GatheredTurns", "TurnCounts", "TurnReporter"]

_logger = Log(__name__)


class TurnReporter:
    """Says whose a recognised turn is, and what becomes of one that is nobody's.

    `ungrouped` is what a turn without a conversation id is taken for: an agent's for a conversation of its own
    (``turns``), a lone model call's too (``all``), or nothing (``ignore``). `counts` is told of every turn, by what
    told whose it is.
    """

    def __init__(
        self,
        events: Events,
        reader: Reader,
        clock: Clock,
        *,
        agent_id: str | None,
        service_name: str,
        ungrouped: str,
        reads_baggage: bool,
        expect_tick: Callable[[], None],
        counts: TurnCounts,
    ) -> None:
        self.reader = reader
        self.monotonic = clock.monotonic
        self.reads_baggage = reads_baggage
        self.expect_tick = expect_tick
        self._counts = counts
        self._events = events
        self._agent_id = agent_id
        self._service_name = service_name
        self._ungrouped = ungrouped
        self._told = False

    def report(self, turn: Summary) -> None:
        """Make the turn's events."""
        session = turn.ids.conversation
        self._counts.add(turn.found_by)
        if session is not None:
            self._events.turn(session, self._report_of(turn))
            return
        self._tell_unresolved(turn)
        if self._ungrouped == "ignore" or (turn.span_class is SpanClass.LLM and self._ungrouped != "all"):
            return
        self._events.turn_alone(self._report_of(turn))

    def evaluate(self, evaluation: Evaluation) -> None:
        """Make the feedback that an evaluator's word is."""
        self._events.evaluate(evaluation)

    def _report_of(self, turn: Summary) -> TurnReport:
        outcome, (input_tokens, output_tokens) = turn.outcome, turn.tokens
        return TurnReport(
            turn_id=turn.turn_id,
            start_us=turn.start_ns // 1000,
            end_us=turn.end_ns // 1000,
            status=TurnStatus.OK if outcome is None else outcome.status,
            error_type=None if outcome is None else outcome.error_type,
            error_message=None if outcome is None else outcome.error_message,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            agent_id=self._agent_id or turn.agent or turn.service or self._service_name,
            user_id=turn.ids.user,
            pieces=turn.below.pieces,
        )

    def _tell_unresolved(self, turn: Summary) -> None:
        _logger.debug("turn %s is nobody's: its conversation id is %s", turn.turn_id, turn.found_by)
        if turn.found_by is FoundBy.UNUSABLE and not self._told:
            self._told = True
            _logger.warning(
                "a turn carries only ids that cannot name a conversation (empty, scrubbed, constant, resp_…, too "
                "long, or no text); such turns are counted as ungrouped"
            )


class TurnCounts:
    """How many turns were recognised, by what told whose each is; safe from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = HotLock()  # a signal handler or a finaliser that ends a turn may interrupt us

    def add(self, found_by: FoundBy) -> None:
        """Count one turn."""
        with self._lock:
            self._counts[found_by] += 1

    def read(self) -> dict[str, int]:
        """The counts as they are now."""
        with self._lock:
            return dict(self._counts)

    def after_fork_in_child(self) -> None:
        """What was counted is the parent's to tell; another thread may have held the lock there."""
        self._lock = HotLock()
        self._counts.clear()


class GatheredTurns:
    """Reports the turns that ended spans show, whoever hands them in, through `reporter`; raises nothing.

    Safe from any thread. `touch` is called with the id of each session that a span carries.
    """

    def __init__(self, reporter: TurnReporter, *, touch: Callable[[str], object]) -> None:
        self._reporter = reporter
        self._touch = touch
        self._spans = EndedSpans(reporter.monotonic)

    def add(self, span: ReadableSpan) -> None:
        """Take note of a span; event spans of ours, and copies of them, say nothing new."""
        attributes = attributes_of(span)
        if semconv.EVENT in attributes or span.context is None:
            return
        for session in self._reporter.reader.carried(attributes):
            self._touch(session)
        service, parent = span.resource.attributes.get(semconv.SERVICE_NAME), span.parent
        self._spans.add(
            EndedSpan(
                span.context.trace_id,
                span.context.span_id,
                None if parent is None else parent.span_id,
                parent is not None and not parent.is_remote,
                span.start_time or 0,
                span.end_time or 0,
                seen_at_end(self._reporter.reader, span, attributes),
                span.instrumentation_scope.name if span.instrumentation_scope else "",
                service if isinstance(service, str) else None,
            )
        )

    def tick(self) -> None:
        """Report what is complete by now, and have the worker look again as long as something waits."""
        self._report(self._spans.decide())
        if self._spans.is_holding:
            self._reporter.expect_tick()

    def release(self) -> None:
        """Report everything: nothing more will come."""
        self._report(self._spans.release())

    def after_fork_in_child(self) -> None:
        """What waits is the parent's to tell."""
        self._spans.after_fork_in_child()

    def _report(self, turns: list[tuple[Summary, object]]) -> None:
        for turn, _ in turns:
            self._reporter.report(turn)
