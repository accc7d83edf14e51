"""The demo: a tracker, real agents that are tracked, and a comparison of what both sides say."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from otel_agent_tracker import AgentOperationsTracker, AgentPerformanceTracker
from otel_agent_tracker.demo.figures import Figures
from otel_agent_tracker.demo.ledger import Ledger, differences
from otel_agent_tracker.demo.script import Script
from otel_agent_tracker.server.run import Server, spoken

__all__ = ["run"]


def run(*, leave: bool, port: int) -> int:
    """Play the demo on loopback at `port` (0: any that is free); returns the exit code.

    That is 1 if the tracker says anything else than what was done, which `leave` or not is told; without
    `leave` the page is served until Ctrl-C. Raises OSError if the port cannot be had.
    """
    console = Console(highlight=False, soft_wrap=True)
    with TemporaryDirectory(prefix="otel-agent-tracker-demo-") as name:
        folder = Path(name)
        with Server(port=port, database=str(folder / "tracker.sqlite3")) as server:
            console.print(f"[bold]Tracker[/]   {spoken(server.url)}")
            console.print(f"[bold]Database[/]  {server.database}")
            console.print(f"[bold]State[/]     {folder / 'state'}")
            wrong = _play(console, server.url, folder / "state")
            if not leave:
                _serve(console, server)
    return 1 if wrong else 0


def _play(console: Console, url: str, state: Path) -> list[str]:
    """Play the script, show the tracker's figures, and return where they are wrong."""
    ledger = _hold_conversations(console, url, state)
    figures = _ask(url, state, sorted(ledger.statuses))
    console.print(figures.table(), figures.failures())
    wrong = differences(ledger.operations(), figures.operations)
    for agent, told in figures.performance.items():
        wrong += differences(ledger.performance(agent), told, agent)
    for line in wrong:
        console.print(f"[red]wrong[/]  {line}")
    if not wrong:
        console.print("[green]Every figure agrees with what was done.[/]")
    return wrong


def _hold_conversations(console: Console, url: str, state: Path) -> Ledger:
    with Progress(console=console) as progress:
        task = progress.add_task("Conversations")
        script = Script(url, state, lambda: progress.advance(task))
        progress.update(task, total=len(script.scenes))
        asyncio.run(script.play())
    return script.ledger


def _ask(url: str, state: Path, agents: list[str]) -> Figures:
    with (
        AgentPerformanceTracker(url, state_dir=state) as tracker,
        AgentOperationsTracker(url, state_dir=state) as operations,
    ):
        return Figures.ask(tracker, operations, agents)


def _serve(console: Console, server: Server) -> None:
    console.print(
        f"[bold]Page[/]      {spoken(server.page_url())}  [dim](Ctrl-C stops it and removes everything)[/]"
    )
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
