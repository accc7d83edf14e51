"""Turns out of spans that start and end in any order; plain values, no span is kept, and no content.

A turn is an agent's or chain's span above which no other was open when it started, or a model call with nothing of
an agent's above it. What a span is often shows only at its end, and children end first. So a span that ends as an
agent below others that are still open is held by the nearest of them: that one swallows it when it ends as an agent,
else hands it on to the next; with none left it is a turn.

What holds whenever the lock is free:

- `_open` has a node for each open span that may matter, and for a foreign one the node of the span above it.
- A node that has ended is referred to by the nodes below it alone, and refers to at most one chain of open ones.
- Whatever is held is held by an open node, for a time that is bounded by what that node is likely to be.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from math import inf
from typing import Any, NamedTuple

from otel_agent_tracker.hot_lock import HotLock
from otel_agent_tracker.recognition import NO_IDS, Ids, Outcome, Seen, SpanClass, is_likely_scope
from otel_agent_tracker.semconv import FoundBy, TurnStatus
from otel_agent_tracker.turns import MAX_PIECES, Piece

__all__ = ["Assembly", "Ended", "Summary"]

MAX_OPEN_SPANS = 10_000
MAX_HELD = 64  # by one open span; sub-agents of one turn are few
MAX_SCOPES = 1_000
MAX_ENDED_SPANS = 1_000

WAIT_FOR_UNKNOWN = 5.0
"""Seconds that a turn waits for an open span of a library that has shown no agent yet: time for a web handler to
answer once its agent has, while one loop around everything delays its first turn only."""
WAIT_FOR_LIKELY = 600.0
"""For a span of a library that shows agents, at their ends: longer than agents usually work on after a sub-agent."""
WAIT_FOR_AGENT = 3600.0
"""For a span that is an agent's: after an hour it is taken for one that its library forgot to end."""


_Call = tuple[int, Outcome | None]
"""When a model call ended, and how."""
_NO_CALL: _Call = (0, None)


class Ended(NamedTuple):
    """What the end of a span adds to what it shows; times are Unix nanoseconds."""

    trace_id: int
    start_ns: int
    end_ns: int
    service: str | None = None
    scope: str = ""


class _Below:
    """What the spans below one add up to."""

    __slots__ = ("call", "conversation", "outcome", "pieces", "tokens", "user")

    def __init__(self) -> None:
        self.tokens: tuple[int | None, int | None] = (None, None)
        self.outcome: Outcome | None = None
        self.call = _NO_CALL  # of a model that ended last, and when it did
        self.conversation: tuple[int, str] | None = None  # with when its span started: the earliest counts
        self.user: tuple[int, str] | None = None
        self.pieces: tuple[Piece, ...] = ()

    def add(self, other: _Below) -> None:
        """Take in what another one adds up to."""
        self.tokens = (_sum(self.tokens[0], other.tokens[0]), _sum(self.tokens[1], other.tokens[1]))
        self.outcome = _stronger(self.outcome, other.outcome)
        self.call = max(self.call, other.call, key=_when)
        self.conversation = _earlier(self.conversation, other.conversation)
        self.user = _earlier(self.user, other.user)
        if other.pieces:
            self.pieces = (self.pieces + other.pieces)[-MAX_PIECES:]

    def note(self, seq: int, ids: Ids) -> None:
        """A span that started as number `seq` has these ids."""
        if ids.conversation is not None:
            self.conversation = _earlier(self.conversation, (seq, ids.conversation))
        if ids.user is not None:
            self.user = _earlier(self.user, (seq, ids.user))


class Summary(NamedTuple):
    """A turn, or what may become one; ids are None where nothing told any."""

    span_class: SpanClass
    trace_id: int
    span_id: int
    start_ns: int
    end_ns: int
    ids: Ids
    tokens: tuple[int | None, int | None]
    outcome: Outcome | None
    agent: str | None
    service: str | None
    found_by: FoundBy
    owner: Any
    seq: int
    held_since: float
    below: _Below

    @property
    def turn_id(self) -> str:
        """The id of the turn, which every observer of the span makes alike."""
        return f"{self.trace_id:032x}-{self.span_id:016x}"


class _Node:
    """A span that is open, or has ended above one that is."""

    __slots__ = (
        "below",
        "end_ns",
        "ended",
        "has_counted",
        "held",
        "ids",
        "is_passed",
        "name",
        "owner",
        "parent",
        "said",
        "scope",
        "seq",
        "span_class",
        "span_id",
    )

    def __init__(
        self,
        span_id: int,
        seq: int,
        parent: _Node | None,
        scope: str = "",
        span_class: SpanClass = SpanClass.OTHER,
        said: Ids = NO_IDS,
        ids: Ids = NO_IDS,
        owner: object = None,
    ) -> None:
        self.span_id = span_id
        self.name = ""
        self.seq = seq
        self.parent = parent
        self.scope = scope
        self.span_class = span_class
        self.said = said
        self.ids = ids
        self.owner = owner
        self.ended = 0
        self.end_ns = 0
        self.is_passed = False  # waited for in vain
        self.has_counted = False  # tokens of model calls below it were told to its owner
        self.held: list[Summary] | None = None
        self.below: _Below | None = None

    def take_below(self) -> _Below:
        """What its spans below add up to, made if there is nothing yet."""
        if self.below is None:
            self.below = _Below()
        return self.below

    def take_held(self) -> list[Summary]:
        """What it holds, which is no longer held."""
        held, self.held = self.held, None
        return held or []


class Assembly:
    """Told of starts and ends, returns the turns that are known to be ones by then; safe from any thread.

    `owner` of a span stands for a turn that somebody else reports: nothing below becomes a turn; tokens are
    returned at once, and agents directly below when they have ended, as summaries that carry the owner.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self._open: OrderedDict[int, _Node] = OrderedDict()
        self._ended: OrderedDict[int, _Node] = OrderedDict()
        self._holding: dict[_Node, None] = {}
        self._shown: set[str] = set()
        self._seq = 0
        self._next_check = inf
        self._lock = HotLock()  # a signal handler or a finaliser that makes a span may interrupt us

    def __len__(self) -> int:
        """How many open spans are remembered."""
        return len(self._open)

    @property
    def open_spans(self) -> Container[int]:
        """Their ids, as they are at each look."""
        return self._open

    def owner(self, span_id: int) -> object:
        """What stands for the turn that somebody else reports, if the open span is below one."""
        node = self._open.get(span_id)
        return None if node is None else node.owner

    @property
    def is_holding(self) -> bool:
        """Whether a turn waits for spans above it."""
        return bool(self._holding)

    def after_fork_in_child(self) -> None:
        """Make the lock new, which a thread of the parent may have held; what is held is the parent's to tell."""
        self._lock = HotLock()
        for node in self._holding:
            node.held = None
        self._holding = {}

    def start(
        self,
        span_id: int,
        parent_id: int | None,
        *,
        start_ns: int = 0,
        name: str = "",
        scope: str = "",
        span_class: SpanClass = SpanClass.OTHER,
        said: Ids = NO_IDS,
        ids: Ids = NO_IDS,
        owner: object = None,
    ) -> list[Summary]:
        """A span has started; `said` are the ids of our own blocks, `ids` what it and its Context show."""
        with self._lock:
            parent = (
                None
                if parent_id is None
                else self._open.get(parent_id) or self._above_ended(parent_id, start_ns)
            )
            if parent is not None and owner is not parent.owner:
                if owner is None:
                    owner = parent.owner
                else:
                    parent = None
            self._seq += 1
            node = _Node(span_id, self._seq, parent, scope, span_class, said, ids, owner)
            self._open[span_id] = node
            turns = self._forget_oldest() if len(self._open) > MAX_OPEN_SPANS else []
            if span_class is SpanClass.AGENT:
                node.name = name
                if parent is not None and _was_left_open(parent, node):
                    turns = turns + self._give_up(parent)
            return turns

    def start_foreign(self, span_id: int, parent_id: int) -> None:
        """A span has started that is no agent's: remembered only as a link to what is above it."""
        if parent_id not in self._open:
            return
        with self._lock:
            parent = self._open.get(parent_id)
            if parent is not None:
                self._open[span_id] = parent
                if len(self._open) > MAX_OPEN_SPANS:
                    self._open.popitem(last=False)

    def end(self, span_id: int, seen: Seen, ended: Ended) -> list[Summary]:
        """A span has ended; one that is not known started before anybody looked, and tells nothing."""
        with self._lock:
            node = self._open.pop(span_id, None)
            if node is None or node.span_id != span_id:
                return []
            self._seq += 1
            node.ended, node.end_ns, node.span_class = self._seq, ended.end_ns, seen.span_class
            self._holding.pop(node, None)
            turns = self._settle(node, seen, ended)
            self._shorten(node)
            node.below = None
            if node.parent is not None or seen.span_class is not SpanClass.OTHER:
                self._ended[span_id] = node
                if len(self._ended) > MAX_ENDED_SPANS:
                    self._ended.popitem(last=False)
            return turns

    def tick(self) -> list[Summary]:
        """The turns that have waited long enough."""
        if self.monotonic() < self._next_check:
            return []
        with self._lock:
            now = self.monotonic()
            turns: list[Summary] = []
            for node in list(self._holding):
                if node.held and node.held[0].held_since + self._patience(node) <= now:
                    turns += self._give_up(node)
            self._next_check = min(
                (node.held[0].held_since + self._patience(node) for node in self._holding if node.held),
                default=inf,
            )
            return turns

    def release(self) -> list[Summary]:
        """Everything that waits: nothing more will end."""
        with self._lock:
            turns: list[Summary] = []
            while self._holding:
                turns += self._give_up(next(iter(self._holding)))
            return turns

    def _above_ended(self, span_id: int, start_ns: int) -> _Node | None:
        """What a span is below whose parent has ended.

        Some libraries make their spans when all is over, parents first: then the times tell. In a Context that
        was left behind, the parent's time is over; what is open above it counts.
        """
        node = self._ended.get(span_id)
        return node if node is None or node.end_ns > start_ns else node.parent

    # --- the end of a span ----------------------------------------------------------------------------------

    def _settle(self, node: _Node, seen: Seen, ended: Ended) -> list[Summary]:
        if seen.span_class is SpanClass.OTHER:
            return self._end_other(node, seen)
        if len(self._shown) < MAX_SCOPES:
            self._shown.add(ended.scope)
        if node.owner is None:
            node.take_below().pieces += ((node.span_id, seen.response_id),)
        match seen.span_class:
            case SpanClass.AGENT | SpanClass.CHAIN:
                return self._end_agent(node, seen, ended)
            case SpanClass.LLM:
                return self._end_llm(node, seen, ended)
            case _:
                return self._end_step(node, seen)

    def _end_agent(self, node: _Node, seen: Seen, ended: Ended) -> list[Summary]:
        """It swallows what it holds; its own tokens count only where no model call below has any."""
        below = node.take_below()
        for held in node.take_held():
            below.add(held.below)
        self._pass_counted(node)
        if seen.is_ours:
            return []
        if below.tokens == (None, None):
            below.tokens = seen.tokens
        own = seen.outcome
        # an exception that an agent lets through reaches the block of the turn that owns it by itself
        outcome = own if node.owner is not None else own or below.outcome
        if seen.span_class is SpanClass.AGENT or (own is not None and own.status is TurnStatus.WAITING):
            below.outcome = outcome  # a chain copes with its own failures; an agent's is its caller's
        # some agents answer with the error of their model, and end well; after a call that is fine they coped
        return self._place(
            node.parent, self._summary(node, seen, ended, outcome or _failure_of(below), below)
        )

    def _end_llm(self, node: _Node, seen: Seen, ended: Ended) -> list[Summary]:
        """A model call around others repeats their tokens."""
        turns = self._hand_on(node, swallowed=SpanClass.LLM) if node.held else _NOTHING
        if node.owner is not None:
            has_counted, node.has_counted = node.has_counted, node.has_counted or seen.tokens != (None, None)
            self._pass_counted(node)
            if (holder := _open_above(node)) is not None:
                holder.take_below().call = (node.ended, seen.outcome)
            return turns if has_counted else [*turns, _counted(node, seen)]
        below = node.take_below()
        below.call = (node.ended, seen.outcome)
        if below.tokens == (None, None):
            below.tokens = seen.tokens
        summary = self._summary(node, seen, ended, seen.outcome, below)
        return turns + self._place(node.parent, summary)

    def _end_step(self, node: _Node, seen: Seen) -> list[Summary]:
        """A tool's caller copes with what fails in it, and hears of it if a human is asked."""
        is_tool = seen.span_class is SpanClass.TOOL
        below, turns = node.take_below(), self._hand_on(node, swallowed=SpanClass.LLM, as_tool=is_tool)
        if is_tool:
            below.outcome, below.call = _if_waiting(below.outcome), _NO_CALL
        below.outcome = _stronger(below.outcome, _if_waiting(seen.outcome))
        self._pass_below(node, seen)
        return turns

    def _end_other(self, node: _Node, seen: Seen) -> list[Summary]:
        if node.held is None and node.below is None and node.parent is None:
            return _NOTHING
        turns = self._hand_on(node)
        self._pass_below(node, seen)
        return turns

    def _summary(
        self, node: _Node, seen: Seen, ended: Ended, outcome: Outcome | None, below: _Below
    ) -> Summary:
        earliest = Ids(
            below.conversation[1] if below.conversation else None, below.user[1] if below.user else None
        )
        own = _first(node.said, seen.ids, node.ids)
        found_by = _found_by(node, seen, below)
        below.note(node.seq, own)
        return Summary(
            seen.span_class,
            ended.trace_id,
            node.span_id,
            ended.start_ns,
            ended.end_ns,
            _first(own, earliest),
            below.tokens,
            outcome,
            own.agent or seen.agent,
            ended.service,
            found_by,
            node.owner,
            node.seq,
            self.monotonic(),
            below,
        )

    # --- up the tree ----------------------------------------------------------------------------------------

    def _place(self, above: _Node | None, summary: Summary) -> list[Summary]:
        """Give the summary to the nearest open span; with none it is a turn, unless one was open at its start."""
        holder, is_late = above, False
        while holder is not None and (holder.ended or holder.is_passed):
            if _is_above(holder.span_class, summary.span_class):
                is_late = is_late or holder.ended > summary.seq or holder.end_ns > summary.start_ns
            holder = holder.parent
        if (
            holder is None
        ):  # one that outlived the agent it worked for is a part of a turn that is told already
            return [] if is_late else [summary]
        if is_late:
            holder.take_below().add(summary.below)
            return []
        if summary.span_class is SpanClass.LLM and holder.span_class is not SpanClass.OTHER:
            holder.take_below().add(summary.below)
            return []
        if holder.held is None:
            holder.held = []
            self._holding[holder] = None
        holder.held.append(summary)
        self._next_check = min(self._next_check, holder.held[0].held_since + self._patience(holder))
        if len(holder.held) > MAX_HELD:
            if self._patience(holder) == WAIT_FOR_UNKNOWN:
                return self._give_up(holder)
            holder.take_below().add(holder.held.pop(0).below)
        return []

    def _hand_on(
        self, node: _Node, *, swallowed: SpanClass | None = None, as_tool: bool = False
    ) -> list[Summary]:
        """Place what the node holds above it, but for what is of the class that it swallows."""
        turns: list[Summary] = []
        for held in node.take_held():
            if held.span_class is swallowed:
                node.take_below().add(held.below)
                continue
            if as_tool:
                held.below.outcome, held.below.call = _if_waiting(held.below.outcome), _NO_CALL
            turns += self._place(node.parent, held)
        return turns

    def _pass_below(self, node: _Node, seen: Seen) -> None:
        self._pass_counted(node)
        if node.owner is None and not (seen.ids is node.said is node.ids):  # all three are NO_IDS
            node.take_below().note(node.seq, _first(node.said, seen.ids, node.ids))
        holder = _open_above(node)
        if holder is not None and node.below is not None:
            holder.take_below().add(node.below)

    def _pass_counted(self, node: _Node) -> None:
        if node.has_counted and (holder := _open_above(node)) is not None:
            holder.has_counted = True

    def _shorten(self, node: _Node) -> None:
        """Let go of what is above the ended node, but for what decides about those that started below it."""
        above = node.parent
        is_agent = node.span_class in _AGENTS
        while above is not None and above.ended:
            if not is_agent and above.ended > node.seq and above.span_class is not SpanClass.OTHER:
                break
            above = above.parent
        node.parent = above

    # --- what never ends ------------------------------------------------------------------------------------

    def _patience(self, node: _Node) -> float:
        if node.span_class is not SpanClass.OTHER:
            return WAIT_FOR_AGENT
        return WAIT_FOR_LIKELY if self._is_likely(node) else WAIT_FOR_UNKNOWN

    def _is_likely(self, node: _Node) -> bool:
        return node.scope in self._shown or is_likely_scope(node.scope)

    def _give_up(self, node: _Node) -> list[Summary]:
        """Wait no more for the node to end: what it holds goes on, and so will what ends below it later.

        Below one that is likely an agent's only agents go on: a chain or a model call was a part of its work.
        """
        node.is_passed = True
        self._holding.pop(node, None)
        was_agent = node.span_class is not SpanClass.OTHER or self._is_likely(node)
        turns: list[Summary] = []
        for held in node.take_held():
            if not was_agent or held.span_class is SpanClass.AGENT:
                turns += self._place(node.parent, held)
        return turns

    def _forget_oldest(self) -> list[Summary]:
        span_id, node = self._open.popitem(last=False)
        if node.span_id != span_id:
            return []
        return self._give_up(node)


def _counted(node: _Node, seen: Seen) -> Summary:
    """Tokens for the owner, and nothing else that it does not know."""
    return Summary(
        *(
            seen.span_class,
            0,
            node.span_id,
            0,
            0,
            NO_IDS,
            seen.tokens,
            None,
            None,
            None,
            FoundBy.NOTHING,
            node.owner,
        ),
        node.seq,
        0.0,
        _NONE_BELOW,
    )


def _was_left_open(above: _Node, node: _Node) -> bool:
    """Whether an agent that starts directly below one of the same name shows that this one was forgotten.

    Some libraries never end the span of a run that raises, and leave its Context behind: the next run is below it.
    """
    return (
        not above.ended
        and above.span_class is SpanClass.AGENT
        and (above.name, above.scope) == (node.name, node.scope)
    )


def _open_above(node: _Node) -> _Node | None:
    above = node.parent
    while above is not None and (above.ended or above.is_passed):
        above = above.parent
    return above


def _is_above(above: SpanClass, span_class: SpanClass) -> bool:
    """Whether a span of the class `above` keeps one of the other class below it from being a turn."""
    return above in _AGENTS if span_class in _AGENTS else above is not SpanClass.OTHER


def _found_by(node: _Node, seen: Seen, below: _Below) -> FoundBy:
    """What tells whose conversation a turn is, in the order in which `_summary` looks."""
    if node.said.conversation is not None:
        return FoundBy.BLOCK
    if seen.ids.conversation is not None:
        return FoundBy.SPAN
    if node.ids.conversation is not None:
        return FoundBy.START
    if below.conversation is not None:
        return FoundBy.BELOW
    return FoundBy.UNUSABLE if seen.refused_id else FoundBy.NOTHING


def _first(*found: Ids) -> Ids:
    return Ids(
        next((each.conversation for each in found if each.conversation is not None), None),
        next((each.user for each in found if each.user is not None), None),
        found[0].agent,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _earlier(one: tuple[int, str] | None, other: tuple[int, str] | None) -> tuple[int, str] | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


def _stronger(one: Outcome | None, other: Outcome | None) -> Outcome | None:
    """Of two outcomes the one that says more; of the same kind the earlier one."""
    known: Iterable[Outcome] = [each for each in (one, other) if each is not None]
    return min(known, key=lambda each: _STRENGTH[each.status], default=None)


def _when(call: _Call) -> int:
    return call[0]


def _failure_of(below: _Below) -> Outcome | None:
    """The failure of the model call that ended last; a call that was cancelled may have lost a race."""
    outcome = below.call[1]
    return outcome if outcome is not None and outcome.status is TurnStatus.FAILED else None


def _if_waiting(outcome: Outcome | None) -> Outcome | None:
    return outcome if outcome is not None and outcome.status is TurnStatus.WAITING else None


_NOTHING: list[Summary] = []
_NONE_BELOW = _Below()
_AGENTS = (SpanClass.AGENT, SpanClass.CHAIN)
_STRENGTH = {TurnStatus.WAITING: 0, TurnStatus.FAILED: 1, TurnStatus.CANCELLED: 2, TurnStatus.OK: 3}
