"""`otel-agent-tracker outbox`: what waits for delivery, and what the tracker has refused."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from otel_agent_tracker import wire
from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import as_json, configured, destination, state_dir, usable_key
from otel_agent_tracker.cli.output import (
    duration,
    local_time_of,
    output,
    plain,
    print_json,
    progress,
    properties,
    table,
)
from otel_agent_tracker.config import Config, Durability

if TYPE_CHECKING:
    from otel_agent_tracker.cli.folders import Books, StateFolder
    from otel_agent_tracker.pipeline import Pipeline
    from otel_agent_tracker.state import OutboxRow

__all__ = ["command"]

Json = dict[str, Any]
_Command = TypeVar("_Command", bound=Callable[..., None])
_POLL_SECONDS = 0.25
_FOR_EVER_HOURS = 1_000_000.0

_folder_option = click.option(
    "--folder",
    metavar="NAME",
    help="Which state folder, by its 12 hex digits.  [default: the configured destination's, else the only one]",
)


def _on_a_folder(command: _Command) -> _Command:
    """The options that choose a state folder."""
    return destination(state_dir(_folder_option(command)))


@click.group("outbox")
def command() -> None:
    """Look after the events that wait on this machine for delivery.

    All of it works while the application runs. Each destination (tracker, key and service) has a state folder
    of its own.
    """


# --- status -------------------------------------------------------------------------------------------------


@command.command(
    "status",
    epilog=examples("otel-agent-tracker outbox status", "otel-agent-tracker outbox status --json"),
)
@_on_a_folder
@as_json
def status(folder: str | None, as_json: bool, **given: Any) -> None:
    """Show the books: accepted = delivered + pending + dead-lettered + dropped.

    Without --folder all state folders are shown; `*` marks that of the configured destination.
    """
    from otel_agent_tracker.cli.folders import folders_below

    config = configured(**given)
    folders = folders_below(config.state_dir) if folder is None else [_chosen(config, folder)]
    with _readable():
        books = {each.name: each.books() for each in folders}
    configured_name = _configured_name(config)
    if as_json:
        print_json(
            {
                "state_dir": str(config.state_dir),
                "folders": [
                    {"folder": name, "configured": name == configured_name, **_times_told(each.to_json())}
                    for name, each in books.items()
                ],
            }
        )
    elif not books:
        click.echo(f"Nothing was accepted yet: there is no state folder in {config.state_dir}.")
    elif len(books) == 1:
        [(name, one)] = books.items()
        output().print(properties({"Folder": str(config.state_dir / name), **_rows(one)}))
    else:
        _print_folders(config, books, configured_name)


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


def _print_folders(config: Config, books: dict[str, Books], configured_name: str | None) -> None:
    numbers = ("Accepted", "Delivered", "Pending", "Dead", "Dropped")
    shown = table("", "Folder", "Service", *numbers, numbers=numbers)
    for name, each in books.items():
        counts = each.counts
        shown.add_row(
            "*" if name == configured_name else "",
            name,
            plain(each.service or ""),
            *map(str, (each.accepted, counts.delivered, each.pending, counts.dead_lettered, counts.dropped)),
        )
    console = output()
    console.print(plain(f"State folders in {config.state_dir}"))
    console.print(shown)
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


# --- events -------------------------------------------------------------------------------------------------


@command.command(
    "list",
    epilog=examples("otel-agent-tracker outbox list --dead", "otel-agent-tracker outbox list --folder 5f2c…"),
)
@click.option("--dead", "only", flag_value="dead", help="Only dead letters: what the tracker refused.")
@click.option("--pending", "only", flag_value="pending", help="Only what waits to be delivered.")
@click.option(
    "--limit", default=50, type=click.IntRange(1, 100_000), help="At most so many of each, oldest first."
)
@_on_a_folder
@as_json
def list_events(only: str | None, limit: int, folder: str | None, as_json: bool, **given: Any) -> None:
    """Show dead letters and pending events. What is still in the journal is only counted, by `status`."""
    with _opened(configured(**given), folder) as state:
        dead = [] if only == "pending" else state.dead_letters(limit)
        pending = [] if only == "dead" else state.pending(limit)
    if as_json:
        print_json(
            {
                "dead_letters": [_summary(row, dead=True) for row in dead],
                "pending": [_summary(row, dead=False) for row in pending],
            }
        )
        return
    if not dead and not pending:
        click.echo("There is none.")
        return
    shown = table("Id", "State", "Event", "Session or agent", "Time", "Reason", numbers=("Id",))
    shown.columns[1].no_wrap = True
    for row, is_dead in [*((row, True) for row in dead), *((row, False) for row in pending)]:
        shown.add_row(
            str(row.id),
            "dead" if is_dead else "pending",
            plain(row.event),
            plain(row.lane),
            local_time_of(row.time_us),
            plain(row.reason or ""),
        )
    output().print(shown)


@command.command("show", epilog=examples("otel-agent-tracker outbox show 17"))
@click.argument("event", metavar="ID", type=click.IntRange(1))
@_on_a_folder
@as_json
def show(event: int, folder: str | None, as_json: bool, **given: Any) -> None:
    """Show the event ID whole, as the tracker would get it, with secrets taken out."""
    with _opened(configured(**given), folder) as state:
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
    output().print(properties({**told, "time": local_time_of(row.time_us)}))
    click.echo()
    print_json(body)


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
        "reason": row.reason,
    }


def _without_secrets(text: bytes) -> Any:
    """JSON as it may be shown: events are made without secrets, but perhaps with `AGENT_TRACKER_REDACT=false`."""
    from otel_agent_tracker.redaction import Redactor

    return Redactor().json(orjson.loads(text))


# --- dead letters -------------------------------------------------------------------------------------------

_event_or_all = click.argument("event", metavar="[ID]", type=click.IntRange(1), required=False)
_all = click.option("--all", "every", is_flag=True, help="All dead letters.")


@command.command(
    "retry", epilog=examples("otel-agent-tracker outbox retry 17", "otel-agent-tracker outbox retry --all")
)
@_event_or_all
@_all
@_on_a_folder
def retry(event: int | None, every: bool, folder: str | None, **given: Any) -> None:
    """Make the dead letter ID, or all of them, pending again.

    A running application sends them within a second or so; else `outbox drain` does.
    """
    _one_or_all(event, every)
    with _opened(configured(**given), folder) as state, state.transaction():
        number = state.revive(event)
    _require_found(event, number)
    click.echo(f"{_dead_letters(number)} pending again.")


@command.command(
    "purge",
    epilog=examples("otel-agent-tracker outbox purge 17", "otel-agent-tracker outbox purge --all --yes"),
)
@_event_or_all
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@_on_a_folder
def purge(event: int | None, every: bool, yes: bool, folder: str | None, **given: Any) -> None:
    """Delete the dead letter ID, or all of them, for ever; they count as dropped."""
    _one_or_all(event, every)
    config = configured(**given)
    if not yes:
        what = "all dead letters" if every else f"the dead letter {event}"
        click.confirm(f"Delete {what} in {_chosen(config, folder).path} for ever?", abort=True, err=True)
    with _opened(config, folder) as state, state.transaction():
        number = state.purge(event)
    _require_found(event, number)
    click.echo(f"{_dead_letters(number)} deleted.")


def _one_or_all(event: int | None, every: bool) -> None:
    if (event is None) is not every:
        raise click.UsageError(
            "Give either the ID of a dead letter, which `outbox list --dead` shows, or --all."
        )


def _require_found(event: int | None, number: int) -> None:
    if event is not None and not number:
        raise click.ClickException(
            f"There is no dead letter {event}; `outbox list --dead` shows those there are."
        )


def _dead_letters(number: int) -> str:
    return "1 dead letter is" if number == 1 else f"{number} dead letters are"


# --- drain --------------------------------------------------------------------------------------------------


@command.command(
    "drain",
    epilog=examples(
        "AGENT_TRACKER_URL=https://tracker.example.com OTEL_SERVICE_NAME=shop otel-agent-tracker outbox drain",
        "otel-agent-tracker outbox drain --timeout 600",
    ),
)
@click.option(
    "--timeout",
    default=60.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up after so long; nothing is lost then.",
)
@_on_a_folder
def drain(timeout: float, folder: str | None, **given: Any) -> None:
    """Deliver now what waits, also what processes left that have died.

    The settings that name the destination must be the application's: tracker, key and service name. Exit code
    1: something still waits.
    """
    config = configured(**given)
    chosen = _drainable(config, folder)
    with _readable():
        before = chosen.books()
    if before.pending:
        _deliver(config, before.pending, timeout)
    with _readable():
        after = chosen.books()
    click.echo(
        f"Delivered {after.counts.delivered - before.counts.delivered}, pending {after.pending}, "
        f"dead-lettered {after.counts.dead_lettered}."
    )
    if after.pending:
        raise click.ClickException("Something still waits. `otel-agent-tracker doctor` says what is wrong.")


def _drainable(config: Config, folder: str | None) -> StateFolder:
    """The folder of the configured destination, which must be the one that is meant."""
    from otel_agent_tracker.cli.folders import StateFolder

    if config.disabled_because is not None:
        raise click.UsageError(f"Nothing can be sent: {config.disabled_because}.")
    if config.durability is Durability.MEMORY:
        raise click.UsageError("With AGENT_TRACKER_DURABILITY=memory nothing waits on disk.")
    usable_key(config)
    if folder is not None and folder != config.state_folder.name:
        raise click.UsageError(
            f"The folder {folder} belongs to another destination than the configured one, whose folder is "
            f"{config.state_folder.name}. Give the settings that its application has: AGENT_TRACKER_URL, the "
            "key, OTEL_SERVICE_NAME; `outbox status` names its service."
        )
    return StateFolder(config.state_folder)


def _deliver(config: Config, pending: int, timeout: float) -> None:
    from otel_agent_tracker.pipeline import acquire

    # It delivers what was accepted and ends nobody's conversations: the application may have other limits.
    pipeline = acquire(
        replace(
            config,
            session_ttl_hours=_FOR_EVER_HOURS,
            idle_minutes=_FOR_EVER_HOURS,
            max_sessions=1_000_000,
            flush_timeout_seconds=_POLL_SECONDS,
        )
    )
    try:
        _flush(pipeline, pending, timeout)
    finally:
        pipeline.release()


def _flush(pipeline: Pipeline, pending: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with progress() as shown:
        task = shown.add_task("Delivering", total=pending)
        while (left := deadline - time.monotonic()) > 0:
            is_empty = pipeline.flush(min(_POLL_SECONDS, left))
            still = pipeline.delivery_stats()["pending"]
            shown.update(task, total=max(pending, still), completed=max(pending, still) - still)
            if is_empty and not still:
                return


# --- which folder -------------------------------------------------------------------------------------------


def _chosen(config: Config, folder: str | None) -> StateFolder:
    """The folder that is meant; a usage error that lists them if that is not clear."""
    from otel_agent_tracker.cli.folders import folders_below

    folders = {each.name: each for each in folders_below(config.state_dir)}
    if folder is not None and folder not in folders:
        raise click.BadParameter(f"there is no {folder!r} {_those(config, folders)}", param_hint="--folder")
    name = folder or _configured_name(config)
    if name in folders:
        return folders[name]
    if len(folders) == 1:
        return next(iter(folders.values()))
    if not folders:
        raise click.ClickException(
            f"Nothing was accepted yet: there is no state folder in {config.state_dir}."
        )
    raise click.UsageError(f"Choose a state folder with --folder {_those(config, folders)}.")


def _those(config: Config, folders: dict[str, StateFolder]) -> str:
    return f"(in {config.state_dir}: {', '.join(folders) or 'none'})"


def _configured_name(config: Config) -> str | None:
    return config.state_folder.name if config.destination else None


@contextmanager
def _opened(config: Config, folder: str | None) -> Iterator[Any]:
    """The state of the folder that is meant."""
    chosen = _chosen(config, folder)
    with _readable(), chosen.state() as state:
        yield state


@contextmanager
def _readable() -> Iterator[None]:
    """Trouble with a state file as one line."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(f"The state folder cannot be used: {reason}.") from error
