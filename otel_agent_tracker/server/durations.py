"""Durations of turns, summed up: how many lie in each of many buckets, and the sum of all.

Buckets are narrow and their bounds exact, so a rank is found in one of them, and the duration that has the rank
among the few that lie there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from math import frexp, inf, ldexp

import orjson

__all__ = ["Durations"]

PER_OCTAVE = 32  # buckets between a duration and its double: each is 2 to 3 percent wide
FIRST, LAST = -29 * PER_OCTAVE, 41 * PER_OCTAVE  # below two nanoseconds, and beyond 34,000 years
LONGEST_SECONDS = 2.0**40  # beyond it nothing is a duration, and must not make the sum infinite


@dataclass(slots=True)
class Durations:
    """`histogram` says how many there are in each bucket, `seconds` their sum.

    Sums of floats that come and go may differ in the last digits from a sum made at once.
    """

    histogram: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @classmethod
    def read(cls, histogram: str, seconds: float) -> Durations:
        """Those of which `write` made the text `histogram`, and which have the sum `seconds`."""
        return cls(Counter(dict(orjson.loads(histogram))), seconds)

    def write(self) -> str:
        """The histogram as JSON."""
        return orjson.dumps(
            sorted((bucket, count) for bucket, count in self.histogram.items() if count)
        ).decode()

    @property
    def total(self) -> int:
        """How many there are."""
        return self.histogram.total()

    def count(self, seconds: float) -> None:
        """Add one."""
        self.histogram[_bucket(seconds)] += 1
        self.seconds += min(seconds, LONGEST_SECONDS)

    def add(self, others: Durations) -> None:
        """Add all others."""
        self.histogram.update(others.histogram)
        self.seconds += others.seconds

    def subtract(self, others: Durations) -> None:
        """Take others away, which are among these."""
        self.histogram.subtract(others.histogram)
        self.seconds -= others.seconds

    def locate(self, rank: int) -> tuple[float, float, int]:
        """Where the duration of a rank lies, the shortest of all having rank 1.

        The bounds of its bucket, the upper one not included, and how many shorter ones lie in the bucket.
        """
        buckets = sorted(self.histogram)
        upto = list(accumulate(self.histogram[bucket] for bucket in buckets))
        place = next(place for place, reached in enumerate(upto) if reached >= rank)
        bucket = buckets[place]
        shorter = upto[place] - self.histogram[bucket]
        beyond = inf if bucket == LAST else _shortest(bucket + 1)
        return 0.0 if bucket == FIRST else _shortest(bucket), beyond, rank - shorter - 1


def _bucket(seconds: float) -> int:
    if not seconds:
        return FIRST
    fraction, exponent = frexp(seconds)  # a fraction from 0.5 up to 1
    return min(max(exponent * PER_OCTAVE + int((2 * fraction - 1) * PER_OCTAVE), FIRST), LAST)


def _shortest(bucket: int) -> float:
    exponent, step = divmod(bucket, PER_OCTAVE)
    return ldexp((1 + step / PER_OCTAVE) / 2, exponent)
