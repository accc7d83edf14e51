"""Rules of `scope`: the session that code runs in, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import AsyncGenerator, Generator, Iterator
from threading import Thread

import pytest
from opentelemetry import context

from otel_agent_tracker import session
from otel_agent_tracker.scope import Attached, Scope, current_scope, with_scope


@pytest.fixture(autouse=True)
def _nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After every test the Context is the one before it, and OpenTelemetry has nothing to complain of."""
    before = context.get_current()
    yield
    assert current_scope() is None
    assert context.get_current() == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def session_id() -> str | None:
    """The id of the session that the code runs in."""
    scope = current_scope()
    return scope.session_id if scope else None


def test_a_block_and_the_blocks_in_it() -> None:
    """The innermost session is the current one."""
    with session("a", "u1", "bot"):
        assert current_scope() == Scope("a", "u1", "bot")
        with session("b"):
            assert current_scope() == Scope("b")
        assert session_id() == "a"
    assert session_id() is None


def test_an_exception_leaves_the_session() -> None:
    """And goes on."""
    with pytest.raises(OSError, match="no route"), session("a"):
        raise OSError("no route")
    assert session_id() is None


def test_a_session_can_be_entered_again_and_inside_itself() -> None:
    """One object, any number of blocks."""
    a = session("a")
    with a, session("b"), a:
        assert session_id() == "a"
    with a:
        assert session_id() == "a"


def test_a_decorator_runs_each_call_inside() -> None:
    """Sync; arguments, result and name stay."""

    @session("a")
    def answer(question: str, *, loud: bool) -> tuple[str | None, str, bool]:
        """Its docstring."""
        return session_id(), question, loud

    assert answer("why?", loud=True) == ("a", "why?", True)
    assert (answer.__name__, answer.__doc__) == ("answer", "Its docstring.")
    assert session_id() is None


def test_a_decorator_of_a_coroutine_function() -> None:
    """The function stays one, and each task has its own session."""

    @session("a")
    async def answer() -> str | None:
        await asyncio.sleep(0)
        return session_id()

    async def main() -> list[str | None]:
        async with session("b"):
            return [*await asyncio.gather(answer(), answer()), session_id()]

    assert asyncio.iscoroutinefunction(answer)
    assert asyncio.run(main()) == ["a", "a", "b"]


def test_a_decorator_of_a_generator_function() -> None:
    """Each step is inside and its taker outside; what is sent, thrown and returned goes through."""

    @session("a")
    def answer(*words: str) -> Generator[str | None, str, str]:
        """Its docstring."""
        got = []
        for _ in words:
            try:
                got.append((yield session_id()))
            except KeyError:
                got.append("thrown")
        return " ".join([*got, session_id() or ""])

    assert inspect.isgeneratorfunction(answer)
    steps = answer("one", "two", "three")
    assert (next(steps), session_id()) == ("a", None)
    with session("b"):
        assert (steps.send("sent"), session_id()) == ("a", "b")
    assert (steps.throw(KeyError()), session_id()) == ("a", None)
    with pytest.raises(StopIteration) as stopped:
        steps.send("last")
    assert stopped.value.value == "sent thrown last a"


def test_a_decorator_of_an_asynchronous_generator_function() -> None:
    """The same, also if each step is taken in a task of its own, as some servers do."""

    @session("a")
    async def answer(*words: str) -> AsyncGenerator[str | None, str]:
        """Its docstring."""
        for _ in words:
            await asyncio.sleep(0)
            try:
                got = yield session_id()
            except KeyError:
                got = "thrown"
            yield f"{got} {session_id()}"

    async def main() -> list[tuple[str | None, str | None]]:
        steps = answer("one", "two", "three")
        taken = [
            (await asyncio.create_task(step), session_id())
            for step in (anext(steps), steps.asend("sent"), anext(steps), steps.athrow(KeyError()))
        ]
        return [*taken, *[(each, session_id()) async for each in steps]]

    assert inspect.isasyncgenfunction(answer)
    assert asyncio.run(main()) == [
        ("a", None),
        ("sent a", None),
        ("a", None),
        ("thrown a", None),
        ("a", None),
        ("None a", None),
    ]


def test_a_generator_that_is_closed_cleans_up_inside() -> None:
    """Sync and async; a generator that was never begun has nothing to clean up."""
    closed: list[str | None] = []

    @session("a")
    def answer() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append(session_id())

    @session("b")
    async def answer_async() -> AsyncGenerator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            await asyncio.sleep(0)
            closed.append(session_id())

    async def main() -> None:
        steps = answer_async()
        await anext(steps)
        await steps.aclose()
        await answer_async().aclose()

    steps = answer()
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator has it
    answer().close()  # type: ignore[attr-defined]
    asyncio.run(main())
    assert closed == ["a", "b"]


def test_a_generator_s_own_context_is_its_own_from_step_to_step() -> None:
    """A block that it holds open over a step is there in the next one, and not for its reader."""

    @session("a")
    def answer() -> Iterator[str | None]:
        with session("inner"):
            yield session_id()
            yield session_id()
        yield session_id()

    assert [(each, session_id()) for each in answer()] == [("inner", None), ("inner", None), ("a", None)]


def test_a_task_has_the_session_it_was_made_in() -> None:
    """Also when the block has been left."""

    async def later(left: asyncio.Event) -> str | None:
        await left.wait()
        return session_id()

    async def main() -> str | None:
        left = asyncio.Event()
        async with session("a"):
            task = asyncio.create_task(later(left))
        left.set()
        return await task

    assert asyncio.run(main()) == "a"


def test_a_block_left_in_another_task_neither_logs_nor_leaks() -> None:
    """Fixtures and web frameworks do that."""

    async def main() -> tuple[str | None, str | None]:
        block = session("a")
        block.__enter__()

        async def leave() -> str | None:
            block.__exit__(None, None, None)
            return session_id()

        return await asyncio.create_task(leave()), session_id()

    assert asyncio.run(main()) == (None, None)


def test_a_block_left_in_another_thread_neither_logs_nor_raises() -> None:
    """The thread that entered it keeps its Context, in which the session is over."""
    attached = Attached(with_scope(Scope("a")))
    thread = Thread(target=attached.detach)
    thread.start()
    thread.join()
    assert session_id() is None
    context.attach(attached.before)


def test_a_block_inside_one_that_was_left_elsewhere_goes_on() -> None:
    """Only what was left is over."""
    with session("a"):
        lost = Attached(with_scope(Scope("b")))
        thread = Thread(target=lost.detach)
        thread.start()
        thread.join()
        assert session_id() == "a"
        with session("c"):
            assert session_id() == "c"
        assert session_id() == "a"


def test_blocks_that_were_left_elsewhere_do_not_pile_up() -> None:
    """A worker that loses one with each request keeps none of them."""
    before = context.get_current()
    lost = []
    for number in range(3):
        lost.append(Attached(with_scope(Scope(f"user-{number}"))))
        thread = Thread(target=lost[-1].detach)
        thread.start()
        thread.join()
    assert [each.before for each in lost] == [before] * 3
    context.attach(before)


def test_a_stream_that_nobody_reads_to_its_end_leaves_no_session_behind() -> None:
    """A block in an asynchronous generator is left by the loop, in a task of its own."""

    async def answer() -> AsyncGenerator[str | None]:
        with session("a"):
            yield session_id()
            yield session_id()

    async def main() -> tuple[str | None, str | None]:
        first = None
        async for first in answer():  # noqa: B007 - as whoever wants one chunk alone
            break
        for _ in range(3):  # the loop closes what was dropped
            gc.collect()
            await asyncio.sleep(0)
        return first, session_id()

    assert asyncio.run(main()) == ("a", None)


def test_blocks_left_in_the_wrong_order_leave_nothing() -> None:
    """The first to be entered may be the first to be left."""
    first = Attached(with_scope(Scope("a")))
    second = Attached(with_scope(Scope("b")))
    first.detach()
    assert session_id() == "b"
    second.detach()
    first.detach()
    assert session_id() is None


@pytest.mark.parametrize("wrong", ["", "x" * 1000, "a\nb"])
def test_wrong_ids_raise_before_anything_changes(wrong: str) -> None:
    """When the object is made, naming what is wrong."""
    with pytest.raises(ValueError, match="session_id must"):
        session(wrong)
    with pytest.raises(ValueError, match="user_id must"):
        session("a", wrong)
    with pytest.raises(ValueError, match="agent_id must"):
        session("a", None, wrong)
