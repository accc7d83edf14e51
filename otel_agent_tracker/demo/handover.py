"""Hands a conversation to a second process, which reports what it did."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from otel_agent_tracker.demo.stopwatch import Bounds

__all__ = ["Report", "take_over"]

COLLEAGUE = "otel_agent_tracker.demo.colleague"


@dataclass(frozen=True, slots=True)
class Report:
    """What the second process says that it did: one turn, and an end of this quality."""

    seconds: Bounds
    quality: int

    def to_json(self) -> str:
        """As the second process writes it."""
        return json.dumps(
            {"least": self.seconds.least, "most": self.seconds.most, "quality": int(self.quality)}
        )

    @classmethod
    def from_json(cls, text: bytes) -> Report:
        """As the first process reads it."""
        report = json.loads(text)
        return cls(Bounds(report["least"], report["most"]), report["quality"])


async def take_over(url: str, folder: Path, session_id: str) -> Report:
    """Let a new process go on with the session and end it; raises RuntimeError if it fails.

    It ends with this call. Ctrl-C reaches it through us alone: it would answer with a traceback.
    """
    command = (sys.executable, "-m", COLLEAGUE, url, str(folder), session_id)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the second process ended with {process.returncode}")
    return Report.from_json(output)
