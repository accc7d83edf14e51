"""What happens in a storm, and when: worked out beforehand from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults.chaos.proxy import CALM, Weather

__all__ = ["Storm", "Strike"]

FLOOD_SECONDS = 4.5
FLOOD_EVERY = 30.0

WEATHERS = (
    CALM,
    Weather("cut requests", refuse=0.2, cut_request=0.2),
    Weather("lost answers", lose_answer=0.3, cut_answer=0.1),
    Weather("late answers", delay_answer=0.5, longest_delay=1.6),
    Weather(
        "storm",
        refuse=0.2,
        cut_request=0.1,
        lose_answer=0.2,
        cut_answer=0.1,
        delay_answer=0.2,
        longest_delay=1.5,
    ),
    Weather("closed", refuse=1.0),
)


@dataclass(frozen=True, slots=True)
class Strike:
    """At `at` seconds something is done to a worker, the tracker (`seconds` long) or the weather."""

    at: float
    kind: str
    worker: int = 0
    seconds: float = 0.0
    weather: Weather = CALM

    def __str__(self) -> str:
        match self.kind:
            case "weather":
                return f"the weather is: {self.weather.name}"
            case "tracker":
                return f"the tracker is killed for {self.seconds:.1f} s"
        verb = {"kill": "is killed", "pause": "is stopped"}[self.kind]
        return f"worker {self.worker} {verb} for {self.seconds:.1f} s"


class Storm:
    """The strikes of `seconds` of storm over `workers`, and the floods that fill the state folders."""

    def __init__(self, seed: int, seconds: float, workers: int) -> None:
        self._random = random.Random(f"{seed} storm")
        self._seconds = seconds
        self._workers = workers
        self.floods = list(self._floods())
        strikes = [*self._kills(), *self._weathers(), *self._outages()]
        self.strikes = sorted(strikes, key=lambda strike: strike.at)

    def _times(self, shortest: float, longest: float) -> Iterator[float]:
        at = self._random.uniform(0.3, longest)
        while at < self._seconds:
            yield at
            at += self._random.uniform(shortest, longest)

    def _floods(self) -> Iterator[tuple[float, float]]:
        """The tracker is away for so long that the folders reach their limit, and events are refused."""
        at = self._random.uniform(0.3, 0.4) * min(self._seconds, FLOOD_EVERY)
        while at < self._seconds:
            yield at, min(at + FLOOD_SECONDS, self._seconds)
            at += FLOOD_EVERY

    def _kills(self) -> Iterator[Strike]:
        for at in self._times(0.3, 2.5):
            kind = self._random.choice(("kill", "kill", "kill", "pause"))
            yield Strike(
                at, kind, self._random.randrange(self._workers), self._random.choice((0.0, 0.2, 1.0, 2.0))
            )

    def _weathers(self) -> Iterator[Strike]:
        for at in self._times(0.5, 3.0):
            yield Strike(at, "weather", weather=self._random.choice(WEATHERS))

    def _outages(self) -> Iterator[Strike]:
        for begin, end in self.floods:
            yield Strike(begin, "tracker", seconds=end - begin)
        for at in self._times(4.0, 10.0):
            yield Strike(at, "tracker", seconds=self._random.choice((0.0, 0.5, 2.0)))
