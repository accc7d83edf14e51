"""Calls: requests that are ready to go, and what comes back from them, both without I/O."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import httpcore

from otel_agent_tracker.client.answers import Answer, Misconfigured, Retry, excerpt, retry_after_seconds
from otel_agent_tracker.semconv import VERSION

__all__ = ["ApiKey", "Call", "Query", "Tracker", "otlp_call"]

ApiKey: TypeAlias = str | Callable[[], str | None] | None
"""A key, or what is asked for it at every request; None for trackers without keys."""

Query: TypeAlias = Mapping[str, str | int | None]
"""Names and values of a query; one that is None is left out."""


class Tracker:
    """Builds the requests to one tracker."""

    def __init__(self, base_url: str, api_key: ApiKey) -> None:
        self._address = _address("base_url", base_url)
        self._key = _Key(api_key)
        self._prefix = self._address.target.rstrip("/")
        self._headers = _common_headers(self._address, "application/json")

    @property
    def url(self) -> httpcore.URL:
        """Where the tracker is."""
        return self._address.url(self._prefix or "/")

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        event_id: str | None = None,
        query: Query | None = None,
    ) -> Call | Misconfigured:
        """A call of `path` below the base URL; Misconfigured if the key cannot be had."""
        key = self._key.current()
        if isinstance(key, Misconfigured):
            return key
        headers = self._headers.copy()
        if key is not None:
            headers.append((b"Authorization", b"Bearer " + key.encode()))
        if event_id is not None and not _fault(event_id):  # ids of other senders may be unfit for a header
            headers.append((b"Idempotency-Key", event_id.encode()))
        url = self._address.url(self._prefix + _with_query(path, query))
        return Call(_request(method, url, headers, body), (key,) if key else ())


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way, with what its result must not show."""

    request: httpcore.Request
    secrets: tuple[str, ...] = field(repr=False)

    def answer(self, response: httpcore.Response, body: bytearray) -> Answer:
        """The answer that `response` brought, with as much of its body as was read."""
        headers = {name.lower(): value for name, value in reversed(response.headers)}  # the first one holds
        encoded = headers.get(b"content-encoding", b"identity") != b"identity"
        retry_after = headers.get(b"retry-after")
        return Answer(
            response.status,
            b"" if encoded else bytes(body),  # we asked for none; decoding one could fill the memory
            headers.get(b"content-type", b"").decode("latin-1"),
            None if retry_after is None else retry_after_seconds(retry_after.decode("latin-1"), time.time()),
            self.secrets,
        )

    def failure(self, error: Exception) -> Retry | Misconfigured:
        """What an exception of the transport means: nearly always, that the same may succeed later."""
        name = type(error).__name__
        if isinstance(error, httpcore.LocalProtocolError):  # its text holds the header at fault
            return Misconfigured(f"{name}: a header or the path cannot be sent")
        if error.args and isinstance(error.args[0], ssl.SSLCertVerificationError):
            return Misconfigured(f"certificate not accepted: {error.args[0].verify_message}")
        return Retry(excerpt(f"{name}: {error}", self.secrets).removesuffix(": "))


def otlp_call(url: str, body: bytes, headers: Mapping[str, str]) -> Call | Misconfigured:
    """A post of OTLP spans to the absolute `url`; Misconfigured if `url` or `headers` cannot be used."""
    try:
        address = _address("the OTLP URL", url, query_allowed=True)
        ours = _common_headers(address, "application/x-protobuf")
        reserved = {name.lower() for name, _ in ours} | _FRAMING_HEADERS
        theirs = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    except UnicodeEncodeError:
        return Misconfigured("an OTLP header is not ASCII")
    except ValueError as error:
        return Misconfigured(str(error))
    ours += [(name, value) for name, value in theirs if name.lower() not in reserved]
    request = _request("POST", address.url(address.target or "/"), ours, body)
    return Call(request, tuple(word for value in headers.values() for word in value.split()))


def _request(
    method: str, url: httpcore.URL, headers: list[tuple[bytes, bytes]], body: bytes | None
) -> httpcore.Request:
    if body is not None:
        headers.append((b"Content-Length", b"%d" % len(body)))
    return httpcore.Request(method, url, headers=headers, content=body)


def _common_headers(address: _Address, content_type: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", address.authority.encode()),
        (b"User-Agent", f"otel-agent-tracker/{VERSION}".encode()),
        (b"Accept-Encoding", b"identity"),
        (b"Content-Type", content_type.encode()),
    ]


@dataclass(frozen=True, slots=True)
class _Address:
    """A checked URL in the parts that a request needs; `target` keeps the path as it was given."""

    scheme: str
    host: str
    port: int | None
    target: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (None, _DEFAULT_PORTS[self.scheme]) else f"{host}:{self.port}"

    def url(self, target: str) -> httpcore.URL:
        return httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=target)


class _Key:
    """Where the key comes from; it is asked at every request, so that a rotated key works at once."""

    def __init__(self, source: ApiKey) -> None:
        if isinstance(source, str) and (fault := _fault(source)):
            raise ValueError(f"api_key {fault}")
        if source is not None and not isinstance(source, str) and not callable(source):
            raise TypeError("api_key must be a str, a callable that returns one, or None")
        self._source = source

    def current(self) -> str | Misconfigured | None:
        if not callable(self._source):
            return self._source
        try:
            key = self._source()
        except Exception as error:  # noqa: BLE001 - the caller's code may raise anything, and our thread must go on
            return Misconfigured(f"the api_key callable raised {type(error).__name__}")
        if key is None:
            return None
        fault = _fault(key) if isinstance(key, str) else "is no str"
        return Misconfigured(f"what the api_key callable returned {fault}") if fault else key


def _address(name: str, url: str, *, query_allowed: bool = False) -> _Address:
    """Check `url` and take it apart; raises ValueError with a message that shows no part of it."""
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str, not {type(url).__name__}")
    if not url.isprintable() or " " in url:
        raise ValueError(f"{name} must not contain spaces or control characters")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # its text would show what was taken for the port, maybe a password
        raise ValueError(f"{name} has no valid host and port") from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise ValueError(f"{name} must start with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError(f"{name} must not contain a user or password; give the key as api_key")
    if "#" in url or ("?" in url and not query_allowed):
        raise ValueError(f"{name} must not contain a query or fragment")
    target = quote(parts.path, safe=_PATH_CHARACTERS) + (
        f"?{quote(parts.query, safe=_PATH_CHARACTERS + '?')}" if parts.query else ""
    )
    return _Address(parts.scheme, host, port, target)


def _fault(value: str) -> str | None:
    """What makes `value` unfit for a header, in words that do not show it."""
    if not value:
        return "is empty"
    if not value.isascii() or not value.isprintable() or " " in value:
        return "holds a space, a control character or one that is not ASCII"
    return None


def _with_query(path: str, query: Query | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


_DEFAULT_PORTS = {"http": 80, "https": 443}
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._"
_FRAMING_HEADERS = {b"content-length", b"transfer-encoding", b"connection"}
