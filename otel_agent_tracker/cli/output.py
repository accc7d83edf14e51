"""What commands print: tables, JSON, times of day; nothing that a terminal would obey."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from otel_agent_tracker import wire

__all__ = [
    "duration",
    "errors",
    "local_time",
    "local_time_of",
    "output",
    "plain",
    "print_json",
    "print_table",
    "progress",
    "properties",
    "shortened",
    "table",
]


def output() -> Console:
    """Standard output, as wide as the terminal; without a limit where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else _unlimited()


def errors() -> Console:
    """Standard error, for what must not mix with results."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def print_table(shown: Table) -> None:
    """Print a table with one line a row, however wide the terminal is: what is copied from it is whole."""
    _unlimited().print(shown)


def progress() -> Progress:
    """Progress on standard error, gone when it is done; nothing where nobody looks on."""
    console = errors()
    console.quiet = not console.is_terminal  # a disabled Progress of rich 13 still ends a line
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=console.quiet)


def table(*headings: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table without frame; `numbers` are the headings of columns that are set to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    return made


def properties(rows: dict[str, Any]) -> Table:
    """Names and values, one a line, without those that are None."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            made.add_row(name, plain(value))
    return made


def plain(value: object) -> Text:
    """`value` as text in which nothing is a command to the terminal or to rich."""
    text = " ".join(str(value).split()) if isinstance(value, str) else str(value)
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def shortened(text: str, most: int) -> str:
    """The first `most` characters for a terminal; all of it where no terminal is."""
    return f"{text[: most - 1]}…" if len(text) > most and output().is_terminal else text


def local_time(text: str | None) -> str:
    """A time of the wire in the local zone, to the second; what is no such time stays as it is."""
    if not text:
        return ""
    try:
        return local_time_of(wire.parse_time(text))
    except ValueError:
        return text


def local_time_of(time_us: int) -> str:
    """Unix microseconds in the local zone, to the second."""
    return f"{datetime.fromtimestamp(time_us // 1_000_000).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """A duration in its two largest units, as ``3 h 20 min``."""
    seconds = max(0, round(seconds))
    parts = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _unlimited() -> Console:
    return Console(highlight=False, width=_UNLIMITED, height=_HEIGHT)


_HEIGHT = 25  # of no effect, but a terminal without colours is 80 columns wide to rich unless both are given
_UNLIMITED = 10_000  # columns
