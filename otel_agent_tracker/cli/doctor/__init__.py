"""`otel-agent-tracker doctor`: what is set, what works, and what to do about the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.doctor.checks import Check, Level
from otel_agent_tracker.cli.doctor.settings import Setting, check_settings, overheard, settings_of
from otel_agent_tracker.cli.options import as_json, configured, destination, state_dir
from otel_agent_tracker.cli.output import errors, output, plain, print_json, table
from otel_agent_tracker.config import Config
from otel_agent_tracker.semconv import VERSION

__all__ = ["command"]

Found = list[tuple[str, Check]]  # with the section that each belongs to


@click.command(
    "doctor",
    epilog=examples(
        "otel-agent-tracker doctor",
        "otel-agent-tracker doctor --send",
        "otel-agent-tracker doctor --url https://tracker.example.com --api-key-file key --json",
    ),
)
@click.option(
    "--send", is_flag=True, help="Also send a conversation the whole way, and have it removed again."
)
@destination
@state_dir
@as_json
@click.pass_context
def command(
    context: click.Context,
    send: bool,
    url: str | None,
    api_key_file: Path | None,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Show all settings and check the way to the tracker.

    Every setting with where it came from, the state folder and its disk, OpenTelemetry, the tracker with its
    key and what it offers. Run it with the environment of the application. Exit code 1: something is wrong;
    a warning is no reason.
    """
    with overheard() as complaints:
        config = configured(url=url, api_key_file=api_key_file, state_dir=state_dir)
    console = errors()
    with console.status("Checking …") if console.is_terminal else nullcontext():
        found = [("Settings", check) for check in check_settings(config, complaints, os.environ)]
        found += _checks(config, send)
    settings = settings_of(config)
    is_well = all(check.level is not Level.WRONG for _, check in found)
    if as_json:
        print_json(_json(settings, found, is_well))
    else:
        _print(settings, found, is_well)
    context.exit(0 if is_well else 1)


def _checks(config: Config, send: bool) -> Found:
    # only now: they bring SQLite, the SDK and the client, which `--help` does without
    from otel_agent_tracker.cli.doctor import disk, probe, reach, telemetry

    found = [("State folder", check) for check in disk.check_state_folder(config)]
    found += [("OpenTelemetry", check) for check in telemetry.check_telemetry()]
    if config.to_otlp:
        found += [("OTLP endpoint", check) for check in reach.check_otlp(config)]
    elif config.url is not None and _has_usable_key(config):
        reached = [("Tracker", check) for check in reach.check_tracker(config)]
        found += reached
        if send and all(check.level is not Level.WRONG for _, check in reached):
            found += [("Probe", check) for check in probe.send_probe(config)]
    return found


def _has_usable_key(config: Config) -> bool:
    """Whether the key can be had; if not, the settings' checks have said so."""
    try:
        config.key()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _json(settings: list[Setting], found: Found, is_well: bool) -> dict[str, Any]:
    return {
        "ok": is_well,
        "version": VERSION,
        "settings": [asdict(setting) for setting in settings],
        "checks": [{"section": section, **asdict(check)} for section, check in found],
    }


def _print(settings: list[Setting], found: Found, is_well: bool) -> None:
    console = output()
    shown = table("Setting", "Value", "From")
    for setting in settings:
        shown.add_row(setting.name, plain(setting.value), setting.source, style=_DIM.get(setting.source))
    console.print(shown)
    for section, checks in _by_section(found):
        console.print(f"\n[bold]{section}[/]")
        shown = table("", "", "")
        shown.show_header = False
        shown.columns[1].no_wrap = True
        for check in checks:
            shown.add_row(_MARKS[check.level], check.name, plain(check.finding))
            if check.advice:
                shown.add_row("", "", plain(f"→ {check.advice}"), style="bold")
        console.print(shown)
    console.print("\n[green]All is well.[/]" if is_well else "\n[red]Something is wrong: see ✗ above.[/]")


def _by_section(found: Found) -> Iterator[tuple[str, list[Check]]]:
    for section in dict.fromkeys(section for section, _ in found):
        yield section, [check for its, check in found if its == section]


_MARKS = {Level.OK: "[green]✓[/]", Level.WARNING: "[yellow]![/]", Level.WRONG: "[red]✗[/]"}
_DIM = {"default": "dim"}
