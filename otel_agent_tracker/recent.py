"""`RecentTurns`: the turns of the last ten minutes, by the spans they are made of, for evaluations to find theirs.

Evaluators speak before a turn has ended, or after it. So turns are remembered here, and evaluations wait here. Kept
are ids and what the evaluator said; nothing that was evaluated.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from otel_agent_tracker.evaluation import Evaluation
from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.log import Log
from otel_agent_tracker.semconv import FoundBy
from otel_agent_tracker.turns import Piece

__all__ = ["RecentTurns", "Target"]

_logger = Log(__name__)

WINDOW_SECONDS = 600.0
MAX_PIECES = 20_000
MAX_WAITING = 1_000

_Key = tuple[FoundBy, str]  # the id of a span or of a response


class Target(NamedTuple):
    """What was evaluated; without a turn, the conversation."""

    session: str
    turn_id: str | None


class RecentTurns:
    """Finds what evaluations are about; safe from any thread.

    `counts` has how many found it and by what. Whatever has a response's id is looked for by that first: an evaluator
    may be an agent, which speaks in a span of its own. An id that responses of two turns share tells nothing.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._turns: OrderedDict[_Key, tuple[float, Target | None]] = OrderedDict()
        self._waiting: OrderedDict[Evaluation, float] = OrderedDict()
        self._waiting_for: dict[_Key, list[Evaluation]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = HotLock()  # a signal handler or a finaliser that ends a turn may interrupt us

    @property
    def counts(self) -> Counter[str]:
        """How many evaluations found what they are about, and by what."""
        with self._lock:
            self._forget_old()
            return +self._counts

    def after_fork_in_child(self) -> None:
        """What waits, and what was counted, is the parent's to tell; another thread may have held the lock there."""
        self._lock = HotLock()
        self._waiting.clear()
        self._waiting_for.clear()
        self._counts.clear()

    def add(self, target: Target, pieces: Iterable[Piece]) -> list[Evaluation]:
        """A turn has ended; the evaluations that have waited for it."""
        with self._lock:
            now = self._forget_old()
            found: list[Evaluation] = []
            for key in _keys_of_turn(target, pieces):
                _, known = self._turns.pop(key, (0.0, target))
                self._turns[key] = now, target if known == target else None
                for evaluation in list(self._waiting_for.get(key, ())):
                    self._forget(evaluation)
                    self._counts[key[0]] += 1
                    found.append(evaluation)
            while len(self._turns) > MAX_PIECES:
                self._turns.popitem(last=False)
            return found

    def find(self, evaluation: Evaluation) -> Target | None:
        """What the evaluation is about; None if that is not known, or not yet: then it waits."""
        with self._lock:
            now = self._forget_old()
            for key in _keys(evaluation):
                _, target = self._turns.get(key, (now, None))
                if target is not None:
                    self._counts[key[0]] += 1
                    return target
            if evaluation.conversation_id is not None:
                self._counts[FoundBy.CONVERSATION] += 1
                return Target(evaluation.conversation_id, evaluation.span)
            if evaluation not in self._waiting:
                self._wait(evaluation, now)
            return None

    def _wait(self, evaluation: Evaluation, now: float) -> None:
        self._waiting[evaluation] = now
        for key in _keys(evaluation):
            self._waiting_for.setdefault(key, []).append(evaluation)
        if len(self._waiting) > MAX_WAITING:
            self._give_up(next(iter(self._waiting)))

    def _forget_old(self) -> float:
        """Let go of what is older than the window; the time."""
        now = self._monotonic()
        while self._turns and next(iter(self._turns.values()))[0] <= now - WINDOW_SECONDS:
            self._turns.popitem(last=False)
        while self._waiting and next(iter(self._waiting.values())) <= now - WINDOW_SECONDS:
            self._give_up(next(iter(self._waiting)))
        return now

    def _give_up(self, evaluation: Evaluation) -> None:
        self._forget(evaluation)
        self._counts[FoundBy.NOTHING] += 1
        _logger.debug("an evaluation %r is of no turn that was seen in ten minutes", evaluation.name)

    def _forget(self, evaluation: Evaluation) -> None:
        del self._waiting[evaluation]
        for key in _keys(evaluation):
            others = self._waiting_for[key]
            others.remove(evaluation)
            if not others:
                del self._waiting_for[key]


def _keys(evaluation: Evaluation) -> Iterator[_Key]:
    if evaluation.response_id is not None:
        yield FoundBy.RESPONSE, evaluation.response_id
    if evaluation.span is not None:
        yield FoundBy.SPAN, evaluation.span


def _keys_of_turn(target: Target, pieces: Iterable[Piece]) -> Iterator[_Key]:
    if target.turn_id is None:
        return
    yield FoundBy.SPAN, target.turn_id
    trace_id = target.turn_id.partition("-")[0]
    for span_id, response_id in pieces:
        yield FoundBy.SPAN, f"{trace_id}-{span_id:016x}"
        if response_id is not None:
            yield FoundBy.RESPONSE, response_id
