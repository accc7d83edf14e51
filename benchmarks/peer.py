"""One peer, in its own environment: ``python -m benchmarks.peer NAME URL {caller,exit} [--quick]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module

from benchmarks.plain_span import PlainSpan, make_provider
from benchmarks.timing import Subject, alone, beside_cpu_bound_thread

__all__: list[str] = []


def _caller(name: str, peer: Subject, url: str, quick: bool) -> None:
    subjects = {name: peer, "plain": PlainSpan(make_provider(url))}
    times = alone(subjects, rounds=4 if quick else 10, calls=200)
    busy = beside_cpu_bound_thread(subjects, rounds=1 if quick else 3, seconds=1.5 if quick else 4)
    figures = {
        f"{one}.start_end.{key}": value for one in times for key, value in times[one]._asdict().items()
    }
    figures |= {f"{one}.threads.{key}": value for one in busy for key, value in busy[one]._asdict().items()}
    print(json.dumps(figures), flush=True)


def _exit(peer: Subject) -> None:
    for _ in range(100):
        peer.call()
    print(json.dumps({"done": time.time()}), flush=True)


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("url")
    parser.add_argument("what", choices=["caller", "exit"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    peer: Subject = import_module(f"benchmarks.peer_{options.name}").Peer(options.url)
    if options.what == "exit":
        _exit(peer)
    else:
        _caller(options.name, peer, options.url, options.quick)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
