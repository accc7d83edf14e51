"""The destination: whether it answers, how it is secured, whether it takes the key, and what it offers."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from otel_agent_tracker.cli.doctor.checks import Check, Level, ok, warning, wrong
from otel_agent_tracker.cli.options import connected
from otel_agent_tracker.config import Config
from otel_agent_tracker.exceptions import TrackerUnavailable
from otel_agent_tracker.wire import Capabilities

if TYPE_CHECKING:
    from otel_agent_tracker.client import TrackerClient

__all__ = ["check_otlp", "check_tracker"]

DAYS_TO_RENEW = 14
_NEEDS_A_KEY = "/conversations/active"
_UNREACHED = "Is the URL right, is the tracker up, and may this machine reach it?"


def check_tracker(config: Config) -> Iterator[Check]:
    """The tracker; nothing is sent to it but questions."""
    if config.url is not None and config.url.startswith("https:"):
        yield (secured := _check_tls(config.url, config))
        if secured.level is Level.WRONG:
            return
    with connected(config) as client:
        yield from _check_answers(client, config)


def check_otlp(config: Config) -> Iterator[Check]:
    """The OTLP endpoint, with an export of no spans."""
    from otel_agent_tracker.client import Delivered, TrackerClient

    client = TrackerClient(
        config.otlp_endpoint, timeout_seconds=config.timeout_seconds, trust_env=config.trust_env
    )
    began = time.monotonic()
    try:
        result = client.post_otlp(config.otlp_endpoint, b"", config.otlp_headers)
    finally:
        client.close()
    if isinstance(result, Delivered):
        yield ok("reachable", f"{config.otlp_endpoint} took an export of no spans in {_since(began)}")
    else:
        advice = "See OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS; it must speak OTLP/HTTP."
        yield wrong("reachable", f"{config.otlp_endpoint}: {result.reason}", advice)


def _check_answers(client: TrackerClient, config: Config) -> Iterator[Check]:
    from otel_agent_tracker.client import Misconfigured

    began = time.monotonic()
    answer = client.capabilities()
    if isinstance(answer, Misconfigured) and "key" in answer.reason:
        yield ok("reachable", f"in {_since(began)}")
        yield wrong("authorised", f"No: {answer.reason}.", _key_advice(config))
    elif not isinstance(answer, Capabilities):
        yield wrong("reachable", f"No: {answer.reason}.", _UNREACHED)
    else:
        yield ok("reachable", f"in {_since(began)}")
        yield _check_key(client, config)
        yield from _check_capabilities(answer)


def _check_key(client: TrackerClient, config: Config) -> Check:
    try:
        found = client.get(_NEEDS_A_KEY, {"limit": 1})
    except TrackerUnavailable as error:
        advice = _key_advice(config) if "key" in str(error) else "Is a tracker at this address?"
        return wrong("authorised", f"No: GET {_NEEDS_A_KEY}: {error}.", advice)
    if found is None:
        return wrong(
            "authorised", f"GET {_NEEDS_A_KEY} is not known there.", "Is the URL right, prefix included?"
        )
    has_key = config.api_key is not None or config.api_key_file is not None
    return ok("authorised", "with the key" if has_key else "without a key")


def _key_advice(config: Config) -> str:
    if config.api_key is None and config.api_key_file is None:
        return "Set AGENT_TRACKER_API_KEY or AGENT_TRACKER_API_KEY_FILE."
    return "Check the key; on a tracker of `serve`, `otel-agent-tracker keys create` makes one."


def _check_capabilities(offered: Capabilities) -> Iterator[Check]:
    names = [name for name in Capabilities.__slots__ if getattr(offered, name)]
    if names:
        yield ok("capabilities", ", ".join(names))
    else:
        yield ok("capabilities", "the plain protocol: turns are summed up with the end of their conversation")
    if offered.batch:
        yield ok("exactly once", "event ids are known, so what is sent twice counts once")
    else:
        yield warning(
            "exactly once",
            "This tracker does not say that it knows event ids; what is sent twice may count twice.",
            "Feed it one way only: by the library, by auto-instrumentation or by a bridge.",
        )


# --- TLS ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tls:
    version: str
    issuer: str
    expires: datetime


def _check_tls(url: str, config: Config) -> Check:
    if config.trust_env:
        return ok("TLS", "not looked at: there may be a proxy in between")
    try:
        tls = _look(url, config.timeout_seconds)
    except ssl.SSLCertVerificationError as error:
        advice = "Renew it, or add its authority to this machine's (SSL_CERT_FILE)."
        return wrong("TLS", f"The certificate is not accepted: {error.verify_message}.", advice)
    except ssl.SSLError as error:
        reason = (error.reason or "no handshake").replace("_", " ").lower()
        return wrong("TLS", f"No: {reason}.", "Does the tracker speak https at this port?")
    except OSError as error:
        return wrong("reachable", f"No: {error.strerror or error}.", _UNREACHED)
    finding = f"{tls.version}, certificate by {tls.issuer}, until {tls.expires:%Y-%m-%d}"
    if (tls.expires - datetime.now(UTC)).days < DAYS_TO_RENEW:
        return warning("TLS", finding, "Renew the certificate.")
    return ok("TLS", finding)


def _look(url: str, timeout_seconds: float) -> _Tls:
    from otel_agent_tracker.client import tls_context

    parts = urlsplit(url)
    host = parts.hostname or ""
    with (
        socket.create_connection((host, parts.port or 443), timeout_seconds) as plain,
        tls_context().wrap_socket(plain, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert() or {}
        version = secured.version() or "TLS"
    expires = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return _Tls(version, _issuer(certificate), datetime.fromtimestamp(expires, UTC))


def _issuer(certificate: Mapping[str, Any]) -> str:
    names = {name: value for part in certificate.get("issuer", ()) for name, value in part}
    return str(names.get("organizationName") or names.get("commonName") or "an unnamed authority")


def _since(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"
