"""Sockets that listen, and the URL under which this machine reaches them."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

__all__ = ["is_local", "listen", "url_of"]


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket on `host` and `port`, 0 for any that is free. Raises OSError if it cannot be had."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(address[:2], family=family, backlog=2048)
    # Connections inherit it. asyncio would set it only on sockets whose protocol number is spelt out, and
    # without it each answer waits 40 ms for the acknowledgement of its own headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def is_local(address: tuple[Any, ...]) -> bool:
    """Whether only this machine reaches the address of a socket."""
    return ip_address(address[0]).is_loopback


def url_of(address: tuple[Any, ...], scheme: str = "http") -> str:
    """Where this machine reaches the address of a socket."""
    host, port = ip_address(address[0]), address[1]
    if host.is_unspecified:
        return f"{scheme}://{'127.0.0.1' if host.version == 4 else '[::1]'}:{port}"
    return f"{scheme}://{host if host.version == 4 else f'[{host}]'}:{port}"
