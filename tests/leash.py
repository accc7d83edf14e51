"""The command line in a process that does not outlive the tests, however they end.

    with leashed("serve", "--port", "0") as process:
        ...  # told to end when the block is left, killed when this process is gone

``python -m tests.leash DESCRIPTOR ARGUMENTS`` is that process: it ends at once when the pipe that it was given ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from otel_agent_tracker.cli import main

__all__ = ["leashed"]


@contextmanager
def leashed(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``otel-agent-tracker ARGUMENTS``; what it writes, to stderr too, is its stdout."""
    held, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.leash", str(held), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[held],
    )
    os.close(held)
    try:
        yield process
        process.terminate()
        process.communicate(timeout=30)
    finally:
        os.close(ours)
        process.communicate()


def _end_with(held: int) -> None:
    """No signal of the parent's death is asked for: that would be its thread's, and Linux's alone."""
    os.read(held, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    main(sys.argv[2:], prog_name="otel-agent-tracker")
