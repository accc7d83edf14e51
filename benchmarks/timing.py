"""Timing of calls in alternating blocks, so that noise of the machine falls on each subject alike.

Standard library only: the environments of other tools import this too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from statistics import median
from typing import NamedTuple, Protocol

__all__ = ["Subject", "Times", "alone", "beside_cpu_bound_thread", "in_threads"]


class Subject(Protocol):
    """Something whose cost to its caller is measured."""

    def call(self) -> object:
        """One start and one end of whatever it is."""

    def settle(self) -> None:
        """Wait until what the calls left behind is done, so that it does not burden another's block."""


class Times(NamedTuple):
    """How long calls took, in microseconds.

    `p50` is the median of the quietest block, because the machine's speed changes while it measures and a
    median over two speeds tells nothing; the others are over all blocks, because there the noise may be ours.
    """

    p50: float
    p99: float
    p999: float
    worst: float

    @classmethod
    def of(cls, blocks: Sequence[Sequence[int]]) -> Times:
        """The percentiles of what `time.perf_counter_ns` measured, block by block."""
        ordered = sorted(chain.from_iterable(blocks))
        at = [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.99, 0.999, 1.0)]
        return cls(*(round(value / 1e3, 2) for value in (min(median(block) for block in blocks), *at)))


def alone(subjects: Mapping[str, Subject], *, rounds: int, calls: int) -> dict[str, Times]:
    """Each subject's call in a loop, nothing else running but its own background work."""

    def block(subject: Subject) -> list[int]:
        return _timed(subject.call, range(calls))

    return _alternating(subjects, rounds, block)


def in_threads(
    subjects: Mapping[str, Subject], *, rounds: int, seconds: float, threads: int = 8, rate: float = 100.0
) -> dict[str, Times]:
    """`threads` threads that call `rate` times a second each."""

    def block(subject: Subject) -> list[int]:
        return _timed_in_threads(subject.call, seconds, threads, 1 / rate)

    return _alternating(subjects, rounds, block)


def beside_cpu_bound_thread(
    subjects: Mapping[str, Subject], *, rounds: int, seconds: float, threads: int = 8, rate: float = 100.0
) -> dict[str, Times]:
    """The same beside a thread that never waits."""

    def block(subject: Subject) -> list[int]:
        with _cpu_bound_thread():
            return _timed_in_threads(subject.call, seconds, threads, 1 / rate)

    return _alternating(subjects, rounds, block)


def _alternating(
    subjects: Mapping[str, Subject], rounds: int, block: Callable[[Subject], list[int]]
) -> dict[str, Times]:
    blocks: dict[str, list[list[int]]] = {name: [] for name in subjects}
    for number in range(-1, rounds):  # the first round warms up
        for name in list(subjects)[:: 1 if number % 2 else -1]:
            measured = block(subjects[name])
            subjects[name].settle()
            if number >= 0:
                blocks[name].append(measured)
    return {name: Times.of(measured) for name, measured in blocks.items()}


def _timed(call: Callable[[], object], turns: range | Iterator[int]) -> list[int]:
    times: list[int] = []
    now = time.perf_counter_ns
    for _ in turns:
        start = now()
        call()
        times.append(now() - start)
    return times


def _timed_in_threads(call: Callable[[], object], seconds: float, threads: int, interval: float) -> list[int]:
    times: list[int] = []
    end = time.perf_counter() + seconds

    def ticks() -> Iterator[int]:
        start = time.perf_counter()
        for number in count():
            due = start + number * interval
            if due > end:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            yield number

    _run_all([threading.Thread(target=lambda: times.extend(_timed(call, ticks()))) for _ in range(threads)])
    return times


def _run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _cpu_bound_thread() -> Iterator[None]:
    stop = threading.Event()

    def compute() -> None:
        number = 1
        while not stop.is_set():
            for _ in range(1_000):
                number = number * 48_271 % 2_147_483_647

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
