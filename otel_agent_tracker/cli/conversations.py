"""`otel-agent-tracker conversations`: what the tracker knows of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otel_agent_tracker import queries, wire
from otel_agent_tracker.cli.commands import Group, examples
from otel_agent_tracker.cli.options import WholeNumber, as_json, configured, connected, destination
from otel_agent_tracker.cli.output import (
    duration,
    local_time,
    output,
    plain,
    print_json,
    print_table,
    progress,
    properties,
    table,
)
from otel_agent_tracker.semconv import Outcome

if TYPE_CHECKING:
    from otel_agent_tracker.client import TrackerClient

__all__ = ["command"]

Json = dict[str, Any]
MOST_A_PAGE = 500


@click.group("conversations", cls=Group)
def command() -> None:
    """Ask the tracker for conversations."""


def _since(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A duration back from now, a date (its midnight here) or a time, as a time of the wire."""
    if value is None:
        return None
    moment = _moment(value)
    if moment is None:
        raise click.BadParameter(
            f"{value!r} is neither a duration (90m, 24h, 7d) nor a date or time (ISO 8601)"
        )
    return wire.format_time(int(moment.timestamp() * 1_000_000))


def _moment(text: str) -> datetime | None:
    if back := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[back[2]]: int(back[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        return None


@command.command(
    "list",
    epilog=examples(
        "otel-agent-tracker conversations list --agent support-bot --status failed --since 24h",
        "otel-agent-tracker conversations list --active --json",
    ),
)
@click.option("--agent", metavar="ID", help="Only of this agent.")
@click.option("--user", metavar="ID", help="Only of this user.")
@click.option("--status", type=click.Choice([each.value for each in Outcome]), help="Only of this outcome.")
@click.option(
    "--since", callback=_since, metavar="WHEN", help="Only those started since: 90m, 24h, 7d, 2026-01-31."
)
@click.option("--active", is_flag=True, help="Only those without an outcome; every tracker answers this.")
@click.option("--limit", default=50, type=WholeNumber(1, 100_000), help="At most so many, newest first.")
@destination
@as_json
def list_conversations(
    agent: str | None,
    user: str | None,
    status: str | None,
    since: str | None,
    active: bool,
    limit: int,
    url: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Show conversations, the newest first. Times are local."""
    path, query = (
        "/conversations",
        {"agent_id": agent, "user_id": user, "status": status, "start_date": since},
    )
    if active:
        if user or status or since:
            raise click.UsageError("--active goes with --agent only.")
        path, query = "/conversations/active", {"agent_id": agent}
    with connected(configured(url=url, api_key_file=api_key_file)) as client:
        found, total = _pages(client, path, query, limit)
    if as_json:
        print_json({"conversations": found, "total": total})
    else:
        _print_list(found, total)


@command.command(
    "show",
    short_help="Show the newest conversation of a session.",
    epilog=examples("otel-agent-tracker conversations show support-bot_1674123456_a1b2c3d4e5f60718"),
)
@click.argument("session_id")
@destination
@as_json
def show(session_id: str, url: str | None, api_key_file: Path | None, as_json: bool) -> None:
    """Show the newest conversation of SESSION_ID, and all that came before it. Times are local."""
    try:
        query = queries.session(session_id)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SESSION_ID") from error
    with connected(configured(url=url, api_key_file=api_key_file)) as client:
        found = client.get(query.path, query.query)
    if found is None:
        raise click.ClickException(f"The tracker knows no session {session_id!a}.")
    if as_json:
        print_json(found)
    else:
        _print_one(found)


def _pages(
    client: TrackerClient, path: str, query: dict[str, str | None], limit: int
) -> tuple[list[Json], int]:
    """The first `limit` conversations, page by page, and how many there are."""
    found: list[Json] = []
    cursor: str | None = None
    with progress() as shown:
        task = shown.add_task("Conversations", total=limit)
        while True:
            page = {"limit": min(limit - len(found), MOST_A_PAGE), "cursor": cursor}
            answer = client.get(path, {**query, **page})
            if answer is None:
                raise click.ClickException(
                    f"The tracker has no {path}. Is the URL right? One that lists open conversations only "
                    "is asked with --active."
                )
            found += answer.get("conversations") or []
            total = answer.get("total") or len(found)
            cursor = answer.get("next_cursor")
            shown.update(task, completed=len(found), total=min(total, limit))
            if not cursor or not answer.get("conversations") or len(found) >= limit:
                return found[:limit], total


def _print_list(found: list[Json], total: int) -> None:
    if not found:
        click.echo("No conversation is like that.")
        return
    shown = table("Started", "Agent", "Status", "Quality", "Turns", "Session", numbers=("Quality", "Turns"))
    for each in found:
        shown.add_row(
            plain(local_time(each.get("start_time"))[:16]),
            plain(each.get("agent_id")),
            _status(each),
            _quality(each),
            plain("" if each.get("turns") is None else each["turns"]),
            plain(each.get("session_id")),
        )
    print_table(shown)
    if total > len(found):
        click.echo(f"{len(found)} of {total}; more with --limit.", err=True)


def _print_one(found: Json) -> None:
    console = output()
    console.print(properties(_properties(found)))
    episodes = found.get("episodes") or []
    if len(episodes) > 1:
        shown = table(
            "No.", "Status", "Quality", "Turns", "Started", "Ended", numbers=("No.", "Quality", "Turns")
        )
        for each in episodes:
            shown.add_row(
                plain(each.get("number")),
                _status(each),
                _quality(each),
                plain(each.get("turns")),
                plain(local_time(each.get("start_time"))),
                plain(local_time(each.get("end_time"))),
            )
        console.print()
        print_table(shown)


def _properties(found: Json) -> Json:
    metadata = found.get("metadata")
    rows = {
        "Session": found.get("session_id"),
        "Agent": found.get("agent_id"),
        "User": found.get("user_id"),
        "Status": found.get("status"),
        "Ended by": found.get("ended_by"),
        "Quality": found.get("quality_score"),
        "Feedback": found.get("user_feedback"),
        "Error": ": ".join(filter(None, (found.get("error_type"), found.get("error_message")))) or None,
        "Started": local_time(found.get("start_time")) or None,
        "Ended": local_time(found.get("end_time")) or None,
        "Last activity": local_time(found.get("last_activity_time")) or None,
        "Lasted": _lasted(found),
        "Turns": found.get("turns"),
        "Messages": found.get("message_count"),
        "Service": " ".join(filter(None, map(found.get, ("service", "version", "environment")))) or None,
    }
    return rows | {f"Metadata {name}": value for name, value in (metadata or {}).items()}


def _lasted(found: Json) -> str | None:
    try:
        start, end = (wire.parse_time(found[name]) for name in ("start_time", "end_time"))
    except (KeyError, TypeError, ValueError):
        return None
    return duration((end - start) / 1e6)


def _status(conversation: Json) -> Any:
    text = plain(conversation.get("status"))
    text.stylize(_STYLES.get(text.plain, ""))
    return text


def _quality(conversation: Json) -> Any:
    score = conversation.get("quality_score")
    return plain(f"{score:g}" if isinstance(score, int | float) else "")


_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_STYLES = {"active": "cyan", "completed": "green", "failed": "red", "expired": "yellow"}
