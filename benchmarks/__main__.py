"""Run the measurements, each in processes of its own, and show them against their budgets."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Row, rows
from benchmarks.peers import PEERS, command_of
from benchmarks.sink import running_sink

__all__ = ["main", "table"]

_ROOT = Path(__file__).parent.parent
_TIMEOUT_SECONDS = 1_800


@click.command()
@click.option("--quick", is_flag=True, help="Fewer calls and sessions; for a first look.")
@click.option("--only", multiple=True, help="A measurement by name; may be given more than once.")
@click.option("--peers/--no-peers", default=True, help="Whether langfuse, logfire and agentops are measured.")
@click.option(
    "--conversations",
    type=click.IntRange(1_000),
    help="How many a tracker knows when it is asked; 1,000,000.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to write the numbers.")
def main(
    quick: bool, only: tuple[str, ...], peers: bool, conversations: int | None, file: Path | None
) -> None:
    """Measure what it costs and what it can do, in ratios to what people know.

    With --json FILE the numbers are merged into FILE, which `python -m benchmarks.report FILE` makes
    docs/benchmarks.md of.
    """
    measurements = _measurements(quick, peers, conversations)
    if unknown := set(only) - set(measurements):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(measurements)}")
    raw: dict[str, float] = {}
    for name in only or measurements:
        click.echo(f"measuring {name} …", err=True)
        raw |= {f"{name}.{key}": value for key, value in measurements[name]().items()}
        if file:
            _merge(file, raw, quick)
    Console().print(table(raw))


def _merge(file: Path, raw: dict[str, float], quick: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text())["raw"] if file.exists() else {}
    file.write_text(json.dumps({"machine": _machine(quick), "raw": before | raw}, indent=2) + "\n")


def _measurements(
    quick: bool, peers: bool, conversations: int | None
) -> dict[str, Callable[[], Mapping[str, float]]]:
    flags = ["--quick"] if quick else []
    no_peers = [] if peers else ["--no-peers"]
    known = [] if conversations is None else ["--conversations", str(conversations)]
    return {
        "caller": lambda: _module("benchmarks.caller", *flags),
        "disk": lambda: _module("benchmarks.disk", *flags),
        "hostile": lambda: _module("benchmarks.hostile", *flags),
        **{peer: partial(_peer, peer, *flags) for peer in PEERS if peers},
        "spans": lambda: _module("benchmarks.spans", *flags),
        "delivery": lambda: _module("benchmarks.delivery", *flags),
        "burst": lambda: _module("benchmarks.delivery", "--burst", *flags),
        "lifetime": lambda: _module("benchmarks.lifetime", *flags, *no_peers),
        "tracker": lambda: _module("benchmarks.tracker", *flags, *known),
        "sessions": lambda: _module("benchmarks.sessions", *(["100000"] if quick else [])),
    }


def _module(name: str, *arguments: str) -> dict[str, float]:
    return _numbers([sys.executable, "-m", name, *arguments], _ROOT)


def _peer(name: str, *arguments: str) -> dict[str, float]:
    with running_sink() as sink, TemporaryDirectory() as folder:
        return _numbers(command_of(name, sink.url, "caller", *arguments), Path(folder))


def _numbers(command: list[str], folder: Path) -> dict[str, float]:
    """The JSON object that the command prints last, at whose end standard output may hold other lines."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    ran = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, cwd=folder, env=environment, timeout=_TIMEOUT_SECONDS
    )
    numbers: dict[str, float] = json.loads(ran.stdout[ran.stdout.index(b"{") :])
    return numbers


def _machine(quick: bool) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "opentelemetry": version("opentelemetry-sdk"),
        "quick": quick,
    }


def table(raw: Mapping[str, float]) -> Table:
    """All figures that were measured, by group."""
    shown = Table("what", "value", "ratio", "budget", "verdict", title="otel-agent-tracker")
    for group, members in groupby(rows(raw), key=lambda row: row.figure.group):
        shown.add_section()
        shown.add_row(f"[bold]{group}[/bold]")
        for row in members:
            shown.add_row(row.figure.what, *cells(row), style="red" if row.verdict == "missed" else "")
    return shown


def cells(row: Row) -> tuple[str, str, str, str]:
    """Value, ratio, budget and verdict as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    return f"{row.value:,.10g} {row.figure.unit}", ratio, row.figure.budget, row.verdict


if __name__ == "__main__":
    main()
