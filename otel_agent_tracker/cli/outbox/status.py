"""`otel-agent-tracker outbox status`: the books of the state folders."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from otel_agent_tracker import wire
from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import as_json, configured
from otel_agent_tracker.cli.outbox.choice import (
    WHY_REFUSED,
    chosen,
    configured_name,
    on_a_folder,
    readable,
)
from otel_agent_tracker.cli.output import (
    duration,
    local_time_of,
    output,
    plain,
    print_json,
    print_table,
    properties,
    table,
)
from otel_agent_tracker.config import Config

if TYPE_CHECKING:
    from otel_agent_tracker.cli.folders import Books

__all__ = ["status"]

Json = dict[str, Any]


@click.command(
    "status",
    short_help="Show the books of the state folders.",
    epilog=examples("otel-agent-tracker outbox status", "otel-agent-tracker outbox status --json"),
)
@on_a_folder
@as_json
def status(folder: str | None, as_json: bool, **given: Any) -> None:
    """Show the books: accepted = delivered + pending + dead-lettered + dropped.

    Without --folder all state folders are shown; `*` marks that of the configured destination.
    """
    from otel_agent_tracker.cli.folders import folders_below

    config = configured(**given)
    folders = folders_below(config.state_dir) if folder is None else [chosen(config, folder)]
    with readable():
        books = {each.name: each.books() for each in folders}
    ours = configured_name(config)
    if as_json:
        print_json(
            {
                "state_dir": str(config.state_dir),
                "folders": [
                    {"folder": name, "configured": name == ours, **_times_told(each.to_json())}
                    for name, each in books.items()
                ],
            }
        )
    elif not books:
        click.echo(f"Nothing was accepted yet: there is no state folder in {config.state_dir}.")
    elif len(books) == 1:
        [(name, one)] = books.items()
        output().print(properties({"Folder": str(config.state_dir / name) + _note(name, ours), **_rows(one)}))
    else:
        _print_folders(config, books, ours)
    if not as_json and any(each.counts.dead_lettered for each in books.values()):
        output().print(f"The tracker has refused events. {WHY_REFUSED}", style="dim")


def _note(name: str, ours: str | None) -> str:
    return "" if ours in (None, name) else f" (these settings have another, {ours}, with nothing in it)"


def _rows(books: Books) -> Json:
    counts, unread = books.counts, books.unread_total
    dropped = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.dropped_by_kind.items()))
    oldest = counts.oldest_pending_us
    return {
        "Service": books.service,
        "Accepted": books.accepted,
        "Delivered": counts.delivered,
        "Pending": f"{books.pending} ({unread} of them still in the journal)" if unread else books.pending,
        "Dead-lettered": counts.dead_lettered,
        "Dropped": f"{counts.dropped} ({dropped})" if dropped else counts.dropped,
        "Oldest pending": None if oldest is None else f"{local_time_of(oldest)}, {_age(oldest)} ago",
    }


def _print_folders(config: Config, books: dict[str, Books], ours: str | None) -> None:
    numbers = ("Accepted", "Delivered", "Pending", "Dead", "Dropped")
    shown = table("Folder", *numbers, "Service", numbers=numbers)
    for name, each in books.items():
        counts = each.counts
        shown.add_row(
            f"{name}*" if name == ours else name,
            *map(str, (each.accepted, counts.delivered, each.pending, counts.dead_lettered, counts.dropped)),
            plain(each.service or ""),
        )
    console = output()
    console.print(plain(f"State folders in {config.state_dir}"))
    print_table(shown)
    console.print("One of them in full: --folder NAME.", style="dim")


def _age(time_us: int) -> str:
    return duration(time.time() - time_us / 1e6)


def _times_told(books: Json) -> Json:
    oldest = books.pop("oldest_pending_us")
    return {
        **books,
        "oldest_pending_time": None if oldest is None else wire.format_time(oldest),
        "oldest_pending_seconds": 0.0 if oldest is None else max(0.0, time.time() - oldest / 1e6),
    }
