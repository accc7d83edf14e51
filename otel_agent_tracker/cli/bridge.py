"""`otel-agent-tracker bridge`: OTLP in, a tracker's requests out."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from ssl import SSLError
from threading import Event
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from otel_agent_tracker.cli.commands import examples
from otel_agent_tracker.cli.options import WholeNumber, configured, destination, state_dir, usable_key

if TYPE_CHECKING:
    from otel_agent_tracker.bridge.run import Bridge

__all__ = ["command"]

_port = WholeNumber(0, 65535)
_file = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)


@click.command(
    "bridge",
    short_help="Receive OTLP from a Collector and call the tracker.",
    epilog=examples(
        "otel-agent-tracker bridge --url https://tracker.example.com",
        "otel-agent-tracker bridge --host 0.0.0.0 --ingest-token-file /run/secrets/ingest",
    ),
)
@destination
@click.option(
    "--host", default="127.0.0.1", help="Address to receive on; any but this machine's needs tokens."
)
@click.option("--http-port", default=14318, type=_port, help="OTLP over HTTP; 0 takes a free one.")
@click.option("--grpc-port", default=14317, type=_port, help="OTLP over gRPC; 0 takes a free one.")
@click.option("--admin-host", default="127.0.0.1", help="Address of /healthz, /readyz and /metrics.")
@click.option("--admin-port", default=8701, type=_port, help="Their port; 0 takes a free one.")
@click.option("--tls-cert", type=_file, metavar="FILE", help="Certificate chain, in PEM; with --tls-key.")
@click.option("--tls-key", type=_file, metavar="FILE", help="Its private key, in PEM.")
@click.option(
    "--ingest-token-file",
    type=_file,
    metavar="FILE",
    help="Bearer tokens, one a line, of which senders must have one; read again when it changes.",
)
@click.option(
    "--accept-copies",
    is_flag=True,
    help="Take copies of events, too: only for a second tracker, which gets them from nowhere else.",
)
@state_dir
def command(
    url: str | None,
    api_key_file: Path | None,
    state_dir: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    admin_host: str,
    admin_port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    ingest_token_file: Path | None,
    accept_copies: bool,
) -> None:
    """Receive OTLP, and call the tracker with the events in it.

    It stands behind an OpenTelemetry Collector, or takes what applications send. An answer of success means that the
    events are on disk here; they are delivered under the same rules as in an application. Spans without events are
    passed over.
    """
    config = configured(url=url, api_key_file=api_key_file, state_dir=state_dir)
    if config.url is None:
        raise click.UsageError("No tracker is configured: give --url, or set AGENT_TRACKER_URL.")
    if config.disabled_because is not None:
        raise click.UsageError(f"Nothing would be kept: {config.disabled_because}.")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    usable_key(config)
    from otel_agent_tracker.bridge.run import Bridge, Listen

    where = Listen(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        admin_host=admin_host,
        admin_port=admin_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        token_file=ingest_token_file,
    )
    try:
        bridge = Bridge(config, where, accepts_copies=accept_copies)
    except OSError as error:
        raise click.ClickException(_explain(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _run(bridge, config.destination)


def _run(bridge: Bridge, tracker: str) -> None:
    """Until the process is asked to stop, by SIGINT or SIGTERM."""
    asked = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    with bridge:
        console = Console(highlight=False, soft_wrap=True)
        for name, value in (
            ("Tracker", tracker),
            ("OTLP/HTTP", f"OTEL_EXPORTER_OTLP_ENDPOINT={bridge.http_url}"),
            ("OTLP/gRPC", bridge.grpc_url),
            ("Admin", f"{bridge.admin_url}/readyz"),
        ):
            console.print(f"[bold]{name:10}[/] {escape(value)}")
        console.print("[dim]Ctrl-C stops it.[/]")
        asked.wait()
    click.echo("Stopped.")


def _explain(error: OSError) -> str:
    if isinstance(error, SSLError):
        return f"--tls-cert and --tls-key cannot be used: {error.reason or error}"
    if error.errno == errno.EADDRINUSE:
        return f"{error.strerror}: choose another port with --http-port, --grpc-port or --admin-port"
    return f"cannot listen: {error.strerror or error}; see --host and --admin-host"
