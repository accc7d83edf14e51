"""The session that code runs in, carried by the OpenTelemetry Context."""

from __future__ import annotations

from contextvars import Token
from dataclasses import dataclass
from typing import Self, cast

from opentelemetry import context
from opentelemetry.context import Context

from otel_agent_tracker import sdk_private

__all__ = ["Attached", "Block", "Scope", "Stepwise", "current_scope", "with_scope"]

_KEY = context.create_key("agent-tracker-scope")
_TOP = context.create_key("agent-tracker-attached")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose conversation the code works for."""

    session_id: str
    user_id: str | None = None
    agent_id: str | None = None


def current_scope(of: Context | None = None) -> Scope | None:
    """The scope in the Context `of`, by default the current one."""
    return cast("Scope | None", context.get_value(_KEY, _living(of)))


def with_scope(scope: Scope) -> Context:
    """The current Context, with `scope` in it."""
    return context.set_value(_KEY, scope)


class Attached:
    """Makes a Context current, and then the one before it, in any order and task; it neither logs nor leaks."""

    def __init__(self, attached: Context) -> None:
        self.before = _living()
        self._below = _top()
        self._attached = context.set_value(_TOP, self, attached)
        self._token: Token[Context] | None = context.attach(self._attached)
        self._is_left_open = False
        self.is_void = False
        """Whether it was left where the Context that it was entered in cannot be reached: what is there is over."""

    def detach(self) -> None:
        """Go back; idempotent. Where a later one is still current, that one goes back past this one."""
        token, self._token = self._token, None
        if token is None:
            return
        if self._is_below(_top()):
            self._is_left_open = True
            return
        self.is_void = not sdk_private.detach(token)
        if context.get_current() is self._attached:  # a copy in another task, where the token is not known
            context.attach(self.before)
        while (top := _top()) is not None and top._is_left_open:
            context.attach(top.before)

    def _is_below(self, other: Attached | None) -> bool:
        while other is not None and other is not self:
            other = other._below
            if other is self:
                return True
        return False


def _top() -> Attached | None:
    """The last one that is in the current Context and not over."""
    return cast("Attached | None", context.get_value(_TOP, _living()))


def _living(of: Context | None = None) -> Context:
    """The Context `of`, by default the current one, or the last one before it of which nothing is over."""
    values = context.get_current() if of is None else of
    while (top := cast("Attached | None", context.get_value(_TOP, values))) is not None and top.is_void:
        values = top.before
    return values


class Stepwise:
    """A Context for code that pauses, as a generator does: each step goes on in what the one before it left.

    So a span that the code has made current stays so inside, and whoever takes the steps sees nothing of it.
    """

    def __init__(self, begun_in: Context) -> None:
        self._context = context.set_value(_TOP, None, begun_in)  # blocks left inside go back no further
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        """Begin a step; the next may be taken in another task or thread."""
        self._token = context.attach(self._context)

    def __exit__(self, *error: object) -> None:
        token, self._token = self._token, None
        self._context = context.get_current()
        if token is not None:
            sdk_private.detach(token)


class Block:
    """A ``with`` block that may be an ``async with`` block too."""

    def _enter(self) -> None:
        raise NotImplementedError

    def _leave(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        self._leave(error)

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        self._leave(error)
