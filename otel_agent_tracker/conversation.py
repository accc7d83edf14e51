"""`Conversation`, `Turn` and `session`: what runs inside a ``with`` block, or while a stream is read.

Logic is written once; the asynchronous forms only differ in the outermost line.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any, TypeVar, cast, overload

from opentelemetry import context, trace
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from otel_agent_tracker import arguments, semconv, session_id
from otel_agent_tracker.agents import watch
from otel_agent_tracker.events import Ending, TurnReport
from otel_agent_tracker.log import Log
from otel_agent_tracker.pipeline import Pipeline
from otel_agent_tracker.scope import Attached, Block, Scope, Stepwise, current_scope, with_scope
from otel_agent_tracker.semconv import VERSION, FeedbackSource, Outcome, TurnStatus
from otel_agent_tracker.turns import Observed, with_observed

__all__ = ["Conversation", "Turn", "session"]

_logger = Log(__name__)
_Chunk = TypeVar("_Chunk")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Conversation(Block):
    """A conversation that lasts as long as its block; an exception in the block makes it failed.

    Made by a tracker's `conversation`; `session_id` is there once the block is entered. Nothing raises but
    wrong arguments, and `turn` before the block.
    """

    def __init__(
        self, pipeline: Pipeline, agent_id: str, user_id: str | None, metadata: Mapping[str, Any] | None
    ) -> None:
        self.agent_id = agent_id
        self.session_id = ""
        self._pipeline = pipeline
        self._user_id = user_id
        self._metadata = metadata
        self._ending: dict[str, Any] = {}
        self._ended = False
        self._attached: Attached | None = None

    def turn(self) -> Turn:
        """A block for one request to the agent and its answer.

        Raises RuntimeError before the conversation's own block is entered.
        """
        if not self.session_id:
            raise RuntimeError(
                "the conversation has not begun: call turn() inside `with tracker.conversation(...) as ...:`"
            )
        return Turn(self._pipeline, self.session_id, agent_id=self.agent_id, user_id=self._user_id)

    def rate(self, quality_score: int, feedback: str | None = None) -> None:
        """How good the conversation was, from 1 to 5; it goes with the end, or after it by itself.

        Raises ValueError or TypeError for a score that is not accepted.
        """
        score = arguments.quality("quality_score", quality_score)
        text = None if feedback is None else arguments.text("feedback", feedback)
        if not self._ended:
            self._ending |= {"quality": score, "feedback": text}
            return
        self._pipeline.events.feedback(
            self.session_id,
            source=FeedbackSource.USER,
            score=score,
            thumbs=None,
            text=text,
            name=None,
            turn_id=None,
            agent_id=self.agent_id,
        )

    def fail(self, error: BaseException | str) -> None:
        """The conversation failed, though no exception leaves the block.

        Raises TypeError for what is neither an exception nor a str.
        """
        self._ending |= _failure(error)

    def set_message_count(self, message_count: int) -> None:
        """How many messages were exchanged; it goes with the end."""
        self._ending["message_count"] = arguments.count("message_count", message_count)

    def _enter(self) -> None:
        watch()
        self.session_id = self._pipeline.events.start(
            self.agent_id, user_id=self._user_id, metadata=self._metadata
        )
        self._attached = Attached(with_scope(Scope(self.session_id, self._user_id, self.agent_id)))

    def _leave(self, error: BaseException | None) -> None:
        if self._attached is not None:
            self._attached.detach()
        if error is not None:
            self.fail(error)
        self._ended = True
        ending = {"outcome": Outcome.COMPLETED, **self._ending}
        self._pipeline.events.end(self.session_id, Ending(**ending))


class Turn(Block):
    """One request to the agent and its answer; its duration is the response time.

    Inside the block a span ``invoke_agent {agent}`` of the host's provider is current, so that what
    frameworks do nests in it. An exception makes the turn failed, a cancellation cancelled. It reports itself
    once, when the block is left and the streams it was given have ended. Entering its block a second time
    raises RuntimeError.
    """

    def __init__(
        self, pipeline: Pipeline, session: str, *, agent_id: str | None = None, user_id: str | None = None
    ) -> None:
        self.session_id = session
        self.turn_id = ""
        self._pipeline = pipeline
        self._agent_id = agent_id
        self._user_id = user_id
        self._status: TurnStatus | None = None
        self._error: dict[str, Any] = {}
        self._observed = Observed()
        self._start_us = 0
        self._first_chunk_us: int | None = None
        self._streams = 0
        self._is_inside = False
        self._reported = False
        self._span: trace.Span = trace.INVALID_SPAN
        self._context = context.Context()
        self._attached: Attached | None = None

    def fail(self, error: BaseException | str, *, error_type: str | None = None) -> None:
        """The turn failed, though no exception leaves the block.

        Raises TypeError for what is neither an exception nor a str.
        """
        given = {} if error_type is None else {"error_type": arguments.text("error_type", error_type)}
        self._error = _failure(error) | given
        self._status = TurnStatus.FAILED

    def cancel(self) -> None:
        """Nobody wanted the answer any more; that is no failure."""
        self._status = TurnStatus.CANCELLED

    def wait(self) -> None:
        """A human is asked; the conversation is not idle until the next turn."""
        self._status = TurnStatus.WAITING

    @overload
    def stream(self, chunks: Iterable[_Chunk]) -> Iterator[_Chunk]: ...
    @overload
    def stream(self, chunks: AsyncIterable[_Chunk]) -> AsyncIterator[_Chunk]: ...
    def stream(
        self, chunks: Iterable[_Chunk] | AsyncIterable[_Chunk]
    ) -> Iterator[_Chunk] | AsyncIterator[_Chunk]:
        """The chunks, with the turn kept open until they end, are closed, or fail.

        The block may be left before; the first chunk's time is the time to first token. A stream that is closed,
        or dropped, before its first chunk makes the turn cancelled.
        """
        stream = (
            _AsyncStream(self, aiter(chunks))
            if isinstance(chunks, AsyncIterable)
            else _Stream(self, iter(chunks))
        )
        self._streams += 1
        return stream

    def _enter(self) -> None:
        if self.turn_id:
            raise RuntimeError("a turn is one request and its answer: make a new one for the next request")
        watch()
        self._is_inside = True
        scope = self._scope()
        agent_id = self._agent_id or self._known_agent_id(scope)
        self._agent_id, self._user_id = self._agent_id or scope.agent_id, self._user_id or scope.user_id
        parent = trace.get_current_span().get_span_context()
        self._start_us = self._now_us()
        self._start_span(agent_id)
        self.turn_id = _turn_id(self._span.get_span_context(), parent)
        self._span.set_attribute(semconv.TURN_ID, self.turn_id)
        inside = with_scope(Scope(self.session_id, self._user_id, agent_id))
        self._context = with_observed(self._observed, trace.set_span_in_context(self._span, inside))
        self._attached = Attached(self._context)

    def _leave(self, error: BaseException | None) -> None:
        if self._attached is not None:
            self._attached.detach()
        self._is_inside = False
        if error is not None:
            self._take_in(error)
        if error is not None or not self._streams:
            self._report()

    # --- streams --------------------------------------------------------------------------------------------

    def _stream(self, chunks: Iterator[_Chunk]) -> Generator[_Chunk, None, None]:
        inside = Stepwise(self._context)
        try:
            while True:
                try:
                    with inside:
                        chunk = next(chunks)
                except StopIteration:
                    break
                self._note_chunk()
                yield chunk
        except BaseException as error:
            self._take_in(error)
            raise
        finally:
            with inside:
                _close(chunks)
            self._end_stream()

    async def _astream(self, chunks: AsyncIterator[_Chunk]) -> AsyncGenerator[_Chunk, None]:
        inside = Stepwise(self._context)
        try:
            while True:
                try:
                    with inside:
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
                self._note_chunk()
                yield chunk
        except BaseException as error:
            self._take_in(error)
            raise
        finally:
            with inside:
                await _aclose(chunks)
            self._end_stream()

    def _note_chunk(self) -> None:
        if self._first_chunk_us is None:
            self._first_chunk_us = self._now_us()

    def _end_unbegun_stream(self) -> None:
        if self._status is None:
            self.cancel()
        self._end_stream()

    def _end_stream(self) -> None:
        self._streams -= 1
        if not self._streams and not self._is_inside:
            self._report()

    # --- the span, in which the host's own processors run --------------------------------------------------

    def _start_span(self, agent_id: str) -> None:
        with _guarded():
            self._span = trace.get_tracer("otel_agent_tracker", VERSION).start_span(
                f"invoke_agent {agent_id}",
                attributes={
                    semconv.GEN_AI_OPERATION_NAME: "invoke_agent",
                    semconv.GEN_AI_AGENT_NAME: agent_id,
                    semconv.GEN_AI_CONVERSATION_ID: self.session_id,
                    semconv.SESSION_ID: self.session_id,
                },
                links=[self._link_to_conversation()],
            )

    def _end_span(self, status: TurnStatus, error_type: str | None, message: str | None) -> None:
        with _guarded():
            if status is TurnStatus.FAILED:
                self._span.set_attribute(semconv.ERROR_TYPE, error_type or "_OTHER")
                self._span.set_status(Status(StatusCode.ERROR, message))
            self._span.end()

    # --- the report -----------------------------------------------------------------------------------------

    def _take_in(self, error: BaseException) -> None:
        if _is_cancellation(error):
            self.cancel()
        else:
            self.fail(error)

    def _report(self) -> None:
        if self._reported:
            return
        self._reported = True
        self._observed.close()
        status, error = self._outcome()
        end_us = self._now_us()
        text = self._pipeline.events.text
        self._end_span(status, text(error.get("error_type")), text(error.get("error_message")))
        first = self._first_chunk_us
        self._pipeline.events.turn(
            self.session_id,
            TurnReport(
                turn_id=self.turn_id,
                start_us=self._start_us,
                end_us=end_us,
                status=status,
                time_to_first_token=None if first is None else max(0, first - self._start_us) / 1e6,
                input_tokens=self._observed.input_tokens,
                output_tokens=self._observed.output_tokens,
                agent_id=self._agent_id,
                user_id=self._user_id,
                error_type=error.get("error_type"),
                error_message=error.get("error_message"),
                pieces=self._observed.pieces,
            ),
        )

    def _outcome(self) -> tuple[TurnStatus, dict[str, Any]]:
        """What was said of the turn, else what a direct agent below it showed."""
        if self._status is not None:
            return self._status, self._error
        if self._observed.failure is not None:
            return TurnStatus.FAILED, self._observed.failure
        return TurnStatus.OK, {}

    def _scope(self) -> Scope:
        """What `session` has said of the session around this turn."""
        scope = current_scope()
        return scope if scope and scope.session_id == self.session_id else Scope(self.session_id)

    def _known_agent_id(self, scope: Scope) -> str:
        live = self._pipeline.sessions.get(self.session_id)
        parsed = session_id.parse(self.session_id)
        if live is not None:
            return live.agent_id
        if scope.agent_id:
            return scope.agent_id
        config = self._pipeline.config
        return parsed.agent_id if parsed else config.agent_id or config.service_name

    def _link_to_conversation(self) -> Link:
        live = self._pipeline.sessions.get(self.session_id)
        span_id = session_id.conversation_span_id(self.session_id, live.start_us if live else 0)
        flags = TraceFlags(TraceFlags.SAMPLED)
        return Link(
            SpanContext(session_id.trace_id(self.session_id), span_id, is_remote=False, trace_flags=flags)
        )

    def _now_us(self) -> int:
        """The time; also of a clock that fails, which the host must not notice."""
        try:
            return self._pipeline.clock.time_ns() // 1000
        except Exception:  # noqa: BLE001 - whatever it raises is not the host's
            return time.time_ns() // 1000


class _Stream(Iterator[_Chunk]):
    """A turn's stream. A generator alone would run none of its code if it is closed before it has begun."""

    def __init__(self, turn: Turn, chunks: Iterator[_Chunk]) -> None:
        self._turn = turn
        self._chunks = chunks
        self._generator = turn._stream(chunks)
        self._begun = False

    def __next__(self) -> _Chunk:
        self._begun = True
        return next(self._generator)

    def close(self) -> None:
        """End the stream and the source of its chunks; idempotent."""
        self._generator.close()
        if not self._begun:
            self._begun = True
            try:
                _close(self._chunks)
            finally:
                self._turn._end_unbegun_stream()

    def __del__(self) -> None:
        if not self._begun:
            self._turn._end_unbegun_stream()


class _AsyncStream(AsyncIterator[_Chunk]):
    """The same for ``async for``."""

    def __init__(self, turn: Turn, chunks: AsyncIterator[_Chunk]) -> None:
        self._turn = turn
        self._chunks = chunks
        self._generator = turn._astream(chunks)
        self._begun = False

    async def __anext__(self) -> _Chunk:
        self._begun = True
        return await anext(self._generator)

    async def aclose(self) -> None:
        """End the stream and the source of its chunks; idempotent."""
        await self._generator.aclose()
        if not self._begun:
            self._begun = True
            try:
                await _aclose(self._chunks)
            finally:
                self._turn._end_unbegun_stream()

    def __del__(self) -> None:
        if not self._begun:
            self._turn._end_unbegun_stream()


class session(Block):  # noqa: N801 - a context manager that reads as a word
    """Everything inside belongs to this session: every span of every library gets its ids.

    A context manager and a decorator, sync and async, of functions and of generator functions, so that
    ``session(chat_id)(answer)(question)`` is the stream that ``answer(question)`` is; it starts and ends nothing.
    Raises ValueError or TypeError for ids that are not accepted.
    """

    def __init__(self, session_id: str, user_id: str | None = None, agent_id: str | None = None) -> None:
        self._scope = Scope(
            arguments.session_identifier("session_id", session_id),
            None if user_id is None else arguments.identifier("user_id", user_id),
            None if agent_id is None else arguments.identifier("agent_id", agent_id),
        )
        self._attached: list[Attached] = []

    def _enter(self) -> None:
        watch()
        self._attached.append(Attached(with_scope(self._scope)))

    def _leave(self, error: BaseException | None) -> None:
        self._attached.pop().detach()

    def __call__(self, function: _Function) -> _Function:
        """The function, run inside the session at each call; what it is, a coroutine or generator function, it stays.

        A generator's steps run inside, whoever takes them; whoever takes them stays outside.
        """
        decorate = next((each for is_one, each in _DECORATIONS if is_one(function)), _inside)
        return cast("_Function", functools.wraps(function)(decorate(self._scope, function)))


def _inside(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _within(scope):
            return function(*args, **kwargs)

    return run


def _coroutine_inside(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        with _within(scope):
            return await function(*args, **kwargs)

    return run


def _generator_inside(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        watch()
        return (yield from _Steps(function(*args, **kwargs), Stepwise(with_scope(scope))))

    return run


def _async_generator_inside(scope: Scope, function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        watch()
        inside, steps = Stepwise(with_scope(scope)), function(*args, **kwargs)
        step = steps.asend(None)
        while True:
            try:
                with inside:
                    item = await step
            except StopAsyncIteration:
                return
            try:
                step = steps.asend((yield item))
            except BaseException as error:  # noqa: BLE001 - it is the generator's to take, and to raise again
                step = steps.athrow(error)

    return run


class _Steps(Generator[Any, Any, Any]):
    """A generator whose steps are taken inside."""

    def __init__(self, generator: Generator[Any, Any, Any], inside: Stepwise) -> None:
        self._generator = generator
        self._inside = inside

    def send(self, value: Any) -> Any:
        with self._inside:
            return self._generator.send(value)

    def throw(self, *error: Any) -> Any:
        with self._inside:
            return self._generator.throw(*error)


@contextmanager
def _within(scope: Scope) -> Iterator[None]:
    watch()
    attached = Attached(with_scope(scope))
    try:
        yield
    finally:
        attached.detach()


@contextmanager
def _guarded() -> Iterator[None]:
    """Processors and samplers of the host run inside: a mistake of theirs costs the turn its span, no more."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - they are the host's own code
        _logger.warn_once("the host's tracing failed, a turn has no span: %r", error)


_DECORATIONS: tuple[tuple[Callable[[object], bool], Callable[..., Callable[..., Any]]], ...] = (
    (inspect.iscoroutinefunction, _coroutine_inside),
    (inspect.isgeneratorfunction, _generator_inside),
    (inspect.isasyncgenfunction, _async_generator_inside),
)


def _failure(error: BaseException | str) -> dict[str, Any]:
    if isinstance(error, str):
        return {"outcome": Outcome.FAILED, "error_message": error}
    if not isinstance(error, BaseException):
        raise TypeError(f"error must be an exception or a str, not {type(error).__name__}")
    return {
        "outcome": Outcome.FAILED,
        "error_type": _qualified_name(type(error)),
        "error_message": _message(error),
    }


def _is_cancellation(error: BaseException) -> bool:
    """Whether a task or a generator was told to stop; without asyncio loaded there is no task."""
    asyncio = sys.modules.get("asyncio")
    return isinstance(error, GeneratorExit) or (
        asyncio is not None and isinstance(error, asyncio.CancelledError)
    )


def _qualified_name(error_type: type[BaseException]) -> str:
    module = error_type.__module__
    return error_type.__qualname__ if module == "builtins" else f"{module}.{error_type.__qualname__}"


def _message(error: BaseException) -> str:
    """The exception's text; an exception whose text raises still has a name."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - the host's own code runs here, and whatever it raises is not ours to pass on
        return type(error).__name__


def _turn_id(own: SpanContext, parent: SpanContext) -> str:
    if own.is_valid and own.span_id != parent.span_id:
        return f"{own.trace_id:032x}-{own.span_id:016x}"
    return f"{session_id.mint_event_id()}-{session_id.mint_span_id():016x}"


def _close(chunks: object) -> None:
    close = getattr(chunks, "close", None)
    if callable(close):
        close()


async def _aclose(chunks: object) -> None:
    aclose = getattr(chunks, "aclose", None)
    if callable(aclose):
        await aclose()
