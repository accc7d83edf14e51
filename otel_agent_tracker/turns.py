"""What is seen of other people's spans below a turn, while it is open."""

from __future__ import annotations

from typing import Any

from opentelemetry import context
from opentelemetry.context import Context

__all__ = ["MAX_PIECES", "Observed", "Piece", "observed_in", "with_observed"]

MAX_PIECES = 64  # of a turn, the last ones: its answer is among them
Piece = tuple[int, str | None]
"""The id of a span that a turn is made of, and that of the model's response which it shows."""

_KEY = context.create_key("agent-tracker-turn")


class Observed:
    """Tokens of the model calls below a turn, what it is made of, and the failure of an agent directly below it."""

    __slots__ = ("failure", "input_tokens", "is_over", "output_tokens", "pieces")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.failure: dict[str, Any] | None = None
        self.is_over = False
        self.pieces: list[Piece] = []

    def add_piece(self, piece: Piece) -> None:
        """A span of an agent's has ended below the turn."""
        self.pieces.append(piece)
        del self.pieces[:-MAX_PIECES]

    def add_tokens(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Count the tokens of one model call."""
        if input_tokens is not None:
            self.input_tokens = (self.input_tokens or 0) + input_tokens
        if output_tokens is not None:
            self.output_tokens = (self.output_tokens or 0) + output_tokens

    def fail(self, error_type: object, message: str | None) -> None:
        """An agent directly below the turn failed; a type that is no text is none."""
        known = error_type if isinstance(error_type, str) else None
        self.failure = {"error_type": known, "error_message": message}

    def close(self) -> None:
        """The turn has been reported: what starts in a Context that it left behind is not below it."""
        self.is_over = True


def with_observed(observed: Observed, of: Context) -> Context:
    """The Context `of`, with an open turn in it that sees what `observed` is told."""
    return context.set_value(_KEY, observed, of)


def observed_in(of: Context | None) -> Observed | None:
    """What the turn that is open in the Context `of` observes with, if one is."""
    found = context.get_value(_KEY, of)
    return found if isinstance(found, Observed) and not found.is_over else None
