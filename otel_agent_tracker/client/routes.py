"""Routes: how a server is reached, with TLS or without, directly or through the environment's proxy."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import httpcore

from otel_agent_tracker.client.answers import Misconfigured
from otel_agent_tracker.client.deadline import DeadlineBackend

__all__ = ["Route", "Routes", "Verify", "new_async_pool", "new_pool", "tls_context"]

Verify: TypeAlias = bool | str | os.PathLike[str] | ssl.SSLContext
"""True, False, the path of a CA file or folder, or a finished context."""

KEEPALIVE_SECONDS = 4.0  # below the 5 s after which uvicorn and others close an idle connection


@dataclass(frozen=True, slots=True)
class Route:
    """What connections are pooled by: whether they are encrypted, and the proxy if there is one."""

    scheme: str
    proxy: str | None = field(repr=False)


class Routes:
    """How servers are reached: directly, or through the environment's proxies if that is trusted."""

    def __init__(self, trust_env: bool, verify: Verify) -> None:
        self._trust_env = trust_env
        self._verify = verify
        self._tls = None if isinstance(verify, bool) else tls_context(verify)

    def to(self, url: httpcore.URL) -> Route | Misconfigured:
        """The route to the server of `url`, by the environment as it is now."""
        scheme, host = url.scheme.decode(), url.host.decode()
        proxy = _environment_proxy(scheme, host) if self._trust_env else None
        if proxy is not None and not _is_http(proxy):
            return Misconfigured("the environment names a proxy that is no valid http:// URL")
        return Route(scheme, proxy)

    def pool_options(self, route: Route) -> dict[str, Any]:
        """What a pool of connections on `route` is made with."""
        options: dict[str, Any] = {"max_connections": 1, "keepalive_expiry": KEEPALIVE_SECONDS}
        if route.scheme == "https":  # only now: the system's certificates take some 20 ms to load
            self._tls = self._tls or tls_context(self._verify)
            options["ssl_context"] = self._tls
        if route.proxy is not None:
            options |= _proxy_options(route.proxy)
        return options


def new_pool(options: dict[str, Any]) -> httpcore.ConnectionPool:
    """A pool of one connection whose requests take their deadline from `deadline.timeouts`."""
    pool = httpcore.HTTPProxy if "proxy_url" in options else httpcore.ConnectionPool
    return pool(network_backend=DeadlineBackend(), **options)


def new_async_pool(options: dict[str, Any]) -> httpcore.AsyncConnectionPool:
    """A pool of one connection for asyncio, whose callers keep the deadline."""
    pool = httpcore.AsyncHTTPProxy if "proxy_url" in options else httpcore.AsyncConnectionPool
    return pool(**options)


def _environment_proxy(scheme: str, host: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass  # slow to import, and rarely needed

    if proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.port != 0 and bool((parts.hostname or "").encode("ascii"))
    except ValueError:  # a port that is no number, a host that is not ASCII
        return False


def _proxy_options(proxy: str) -> dict[str, Any]:
    parts = urlsplit(proxy)
    url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target="/")
    if parts.username is None:
        return {"proxy_url": url}
    login = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    return {"proxy_url": url, "proxy_auth": login}


def tls_context(verify: Verify = True) -> ssl.SSLContext:
    """What connections are encrypted and servers checked with; ValueError if `verify` names no certificates."""
    if isinstance(verify, ssl.SSLContext):
        return verify
    if not isinstance(verify, bool):
        return _context_of_authorities(Path(verify))
    context = httpcore.default_ssl_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _context_of_authorities(path: Path) -> ssl.SSLContext:
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # an SSLError too
        raise ValueError(f"verify names no readable certificates: {type(error).__name__}") from None
