"""``python -m tests.faults.chaos``: one run after another, each with a seed of its own."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.run import Chaos

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """0 if all was well, 1 if something was wrong, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    for number in range(given.runs):
        if wrong := _run(seed + number, given):
            return wrong
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.chaos",
        description="Processes talk about conversations while they, the tracker and the connections between them "
        "are killed and cut; afterwards everything that a call returned must be known, with the right outcome, "
        "once. The seed decides the schedule, as far as that can be among many processes.",
    )
    parser.add_argument("--seed", type=int, help="decides what happens when; a fresh one if not given")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the storm lasts (default: 30)")
    parser.add_argument("--runs", type=int, default=1, help="as many runs, with the seeds that follow")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder also if all was well")
    return parser


def _run(seed: int, given: argparse.Namespace) -> int:
    print(f"seed {seed}, {given.seconds:g} seconds", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    try:
        wrong = Chaos(seed, given.seconds, folder, tell=lambda line: print(line, flush=True)).run()
    except KeyboardInterrupt:
        print("stopped; every process has ended")
        shutil.rmtree(folder)
        return 130
    if wrong or given.keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    for each in wrong:
        print(f"WRONG  {each}")
    print(f"seed {seed}: {f'{len(wrong)} things were wrong' if wrong else 'all is well'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
