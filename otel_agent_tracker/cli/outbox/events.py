"""`otel-agent-tracker outbox list` and `show`: the events that wait, and those that were refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import orjson

from otel_agent_tracker import wire
from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import WholeNumber, as_json, configured
from otel_agent_tracker.cli.outbox.choice import on_a_folder, opened
from otel_agent_tracker.cli.output import (
    local_time_of,
    output,
    plain,
    print_json,
    print_table,
    properties,
    shortened,
    table,
)

if TYPE_CHECKING:
    from otel_agent_tracker.redaction import Redactor
    from otel_agent_tracker.state import OutboxRow

__all__ = ["list_events", "show"]

Json = dict[str, Any]
MOST_OF_A_REASON = 40  # characters, on a terminal


@click.command(
    "list",
    epilog=examples(
        "otel-agent-tracker outbox list --dead", "otel-agent-tracker outbox list --folder 0123456789ab"
    ),
)
@click.option("--dead", is_flag=True, help="Only dead letters: what the tracker refused.")
@click.option("--pending", is_flag=True, help="Only what waits to be delivered; with --dead, both.")
@click.option(
    "--limit", default=50, type=WholeNumber(1, 100_000), help="At most so many of each, oldest first."
)
@on_a_folder
@as_json
def list_events(
    dead: bool, pending: bool, limit: int, folder: str | None, as_json: bool, **given: Any
) -> None:
    """Show dead letters and pending events. What is still in the journal is only counted, by `status`."""
    with opened(configured(**given), folder) as state:
        refused = state.dead_letters(limit) if dead or not pending else []
        waiting = state.pending(limit) if pending or not dead else []
    if as_json:
        print_json(
            {
                "dead_letters": [_summary(row, dead=True) for row in refused],
                "pending": [_summary(row, dead=False) for row in waiting],
            }
        )
        return
    if not refused and not waiting:
        click.echo("There is none.")
        return
    _print([*((row, True) for row in refused), *((row, False) for row in waiting)])


@click.command(
    "show",
    short_help="Show an event whole, as the tracker would get it.",
    epilog=examples("otel-agent-tracker outbox show 17"),
)
@click.argument("event", metavar="ID", type=WholeNumber(1))
@on_a_folder
@as_json
def show(event: int, folder: str | None, as_json: bool, **given: Any) -> None:
    """Show the event ID whole, as the tracker would get it, with secrets taken out."""
    with opened(configured(**given), folder) as state:
        found = state.row(event)
    if found is None:
        raise click.ClickException(f"The outbox has no event {event}; `outbox list` shows those it has.")
    row, is_dead = found
    told = _summary(row, dead=is_dead) | {
        "service": _without_secrets(row.service),
        "body": _without_secrets(row.body),
    }
    if as_json:
        print_json(told)
        return
    body = told.pop("body")
    told |= {"time": local_time_of(row.time_us), "service": (told["service"] or {}).get("name")}
    output().print(properties(told))
    click.echo()
    print_json(body)


def _print(rows: list[tuple[OutboxRow, bool]]) -> None:
    shown = table("Id", "State", "Time", "Event", "Reason", "Session or agent", numbers=("Id",))
    for row, is_dead in rows:
        state, when = "dead" if is_dead else "pending", local_time_of(row.time_us)[:16]
        reason = shortened(_redactor().text(row.reason or ""), MOST_OF_A_REASON)
        shown.add_row(str(row.id), state, when, *map(plain, (row.event, reason, row.lane)))
    print_table(shown)


def _summary(row: OutboxRow, *, dead: bool) -> Json:
    return {
        "id": row.id,
        "state": "dead" if dead else "pending",
        "event": row.event,
        "event_id": row.event_id,
        "path": row.path,
        "lane": row.lane,
        "time": wire.format_time(row.time_us),
        "attempts": row.attempts,
        "reason": None if row.reason is None else _redactor().text(row.reason),
    }


def _without_secrets(text: bytes) -> Any:
    """JSON as it may be shown: events are made without secrets, but perhaps with `AGENT_TRACKER_REDACT=false`."""
    return _redactor().json(orjson.loads(text))


def _redactor() -> Redactor:
    """What hides secrets in events, and in reasons: a tracker may tell what it refuses word for word."""
    from otel_agent_tracker.redaction import Redactor

    return Redactor()
