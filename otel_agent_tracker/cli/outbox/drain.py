"""`otel-agent-tracker outbox drain`: deliver now."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import configured, usable_key
from otel_agent_tracker.cli.outbox.choice import WHY_REFUSED, on_a_folder, readable
from otel_agent_tracker.cli.output import progress
from otel_agent_tracker.config import Config, Durability

if TYPE_CHECKING:
    from otel_agent_tracker.cli.folders import StateFolder
    from otel_agent_tracker.pipeline import Pipeline

__all__ = ["drain"]

_POLL_SECONDS = 0.25
_FOR_EVER_HOURS = 1_000_000.0
_ADVICE = (
    "Give the settings that its application has: AGENT_TRACKER_URL, the key, OTEL_SERVICE_NAME; "
    "`otel-agent-tracker outbox status` names its service."
)


@click.command(
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
@on_a_folder
def drain(timeout: float, folder: str | None, **given: Any) -> None:
    """Deliver now what waits, also what processes left that have died.

    The settings that name the destination must be the application's: tracker, key and service name. Exit code
    1: something still waits.
    """
    config = configured(**given)
    meant = _drainable(config, folder)
    with readable():
        before = meant.books()
    if before.pending:
        _deliver(config, before.pending, timeout)
    with readable():
        after = meant.books()
    click.echo(
        f"Delivered {after.counts.delivered - before.counts.delivered}, pending {after.pending}, "
        f"dead-lettered {after.counts.dead_lettered}."
    )
    refused = after.counts.dead_lettered - before.counts.dead_lettered
    if refused > 0:
        click.echo(f"{refused} of them were refused now. {WHY_REFUSED}")
    if after.pending:
        raise click.ClickException("Something still waits. `otel-agent-tracker doctor` says what is wrong.")


def _drainable(config: Config, folder: str | None) -> StateFolder:
    """The folder of the configured destination, which must be the one that is meant."""
    from otel_agent_tracker.cli.folders import StateFolder, folders_below

    if not config.destination and not config.sdk_disabled and config.enabled:
        raise click.UsageError("no tracker is configured: give --url, or set AGENT_TRACKER_URL.")
    if config.disabled_because is not None:
        raise click.UsageError(f"Nothing can be sent: {config.disabled_because}.")
    if config.durability is Durability.MEMORY:
        raise click.UsageError("With AGENT_TRACKER_DURABILITY=memory nothing waits on disk.")
    usable_key(config)
    if folder is not None and folder != config.state_folder.name:
        raise click.UsageError(
            f"The folder {folder} belongs to another destination than the configured one, whose folder is "
            f"{config.state_folder.name}. {_ADVICE}"
        )
    others = [each.name for each in folders_below(config.state_dir)]
    if others and config.state_folder.name not in others:
        raise click.ClickException(
            f"These settings have no state folder in {config.state_dir}, others have: {', '.join(others)}. {_ADVICE}"
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
