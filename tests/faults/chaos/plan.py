"""What will be done in one conversation, step by step, and by which workers."""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["Plan", "Step", "draw"]


class Step(NamedTuple):
    """Who does what, how many seconds after the step before; several workers do it at the same moment."""

    op: str
    workers: tuple[int, ...]
    seconds: float


Plan = list[Step]


def draw(randomness: random.Random, workers: int, *, starter: int) -> tuple[str, Plan]:
    """A kind of conversation, and its steps; the first is the starter's and is done at once."""
    kind = randomness.choices(list(_KINDS), weights=list(_KINDS.values()))[0]

    def step(op: str, *, by: int = 1) -> Step:
        chosen = randomness.sample(range(workers), by)
        return Step(op, tuple(chosen), randomness.choice((0.0, 0.05, 0.3, 0.8)))

    turns = [step("turn") for _ in range(randomness.randrange(4))]
    rating = [step("rate")] if randomness.random() < 0.4 else []
    end = randomness.choice(("end", "end", "fail"))
    steps = {
        "plain": [*turns, *rating, step(end)],
        "abandoned": [*turns, *rating],
        "raced": [*turns, step(end, by=2), *rating],
        "resumed": [
            *turns,
            step(end),
            step("turn"),
            *rating,
            *([step(end)] if randomness.random() < 0.5 else []),
        ],
        "channel": [step("turn"), *turns, *rating],
        "ended channel": [step("turn"), *turns, *rating, step(end)],
    }[kind]
    first = Step("turn" if "channel" in kind else "start", (starter,), 0.0)
    return kind, [first, *steps]


_KINDS = {"plain": 40, "abandoned": 20, "raced": 10, "resumed": 10, "channel": 10, "ended channel": 10}
