"""A proxy between workers and tracker: it cuts connections, holds answers back, and loses them."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread

__all__ = ["CALM", "Proxy", "Weather"]

CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Weather:
    """How likely it is that a connection is refused, a request cut, an answer lost, cut or held back."""

    name: str = "calm"
    refuse: float = 0.0
    cut_request: float = 0.0
    lose_answer: float = 0.0
    cut_answer: float = 0.0
    delay_answer: float = 0.0
    longest_delay: float = 0.0


CALM = Weather()


class Proxy:
    """Listens on `port` of loopback and passes on to `upstream_port`, as `weather` has it.

    Both may be changed at any time; it runs in a thread of its own from `start` to `stop`.
    """

    def __init__(self, randomness: random.Random) -> None:
        self.weather = CALM
        self.upstream_port = 0
        self.struck = 0
        self._random = randomness
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._socket.getsockname()[1]
        self._open: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), name="chaos-proxy")

    def start(self) -> None:
        """Begin to pass on."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cut every connection and end."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._socket.close()

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=self._socket)
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side or the weather ends it."""
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._strikes(self.weather.refuse):
                return
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            await _first_of(
                self._pass_on(reader, upstream, self._request),
                self._pass_on(answers, writer, self._answer),
            )
        except OSError:
            return  # a tracker that is not there: the client finds its connection cut
        finally:
            for each in filter(None, (writer, upstream)):
                self._end(each)

    async def _pass_on(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        fate: Callable[[bytes], Awaitable[tuple[bytes, bool]]],
    ) -> None:
        while data := await source.read(CHUNK):
            passed, goes_on = await fate(data)
            target.write(passed)
            await target.drain()
            if not goes_on:
                return

    async def _request(self, data: bytes) -> tuple[bytes, bool]:
        """What of it is passed on, and whether the connection goes on."""
        if self._strikes(self.weather.cut_request):
            return data[: self._random.randrange(len(data))], False
        return data, True

    async def _answer(self, data: bytes) -> tuple[bytes, bool]:
        """By the time of an answer the tracker has seen the request, and done what it asks."""
        weather = self.weather
        if self._strikes(weather.delay_answer):
            await asyncio.sleep(self._random.uniform(0, weather.longest_delay))
        if self._strikes(weather.lose_answer):
            return b"", False
        if self._strikes(weather.cut_answer):
            return data[: self._random.randrange(len(data))], False
        return data, True

    def _strikes(self, probability: float) -> bool:
        strikes = self._random.random() < probability
        self.struck += strikes
        return strikes

    def _end(self, writer: asyncio.StreamWriter) -> None:
        """Close, half of the time by a reset."""
        if self._random.random() < 0.5:
            with suppress(OSError):  # it is closed already
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            writer.transport.abort()
        else:
            writer.close()


async def _first_of(*coroutines: Awaitable[None]) -> None:
    """Run both until one ends; raises what it raised."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
