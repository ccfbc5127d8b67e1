"""A proxy in front of a real S3 server that injects faults when a test says so.

It passes requests on byte for byte, Host and signature included, so that the server behind it accepts them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

ANSWERS = {
    "SlowDown": (503, "Please reduce your request rate."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "ConditionalRequestConflict": (409, "The conditional request cannot succeed due to a conflicting operation."),
    "AccessDenied": (403, "Access Denied"),
    "XAmzContentSHA256Mismatch": (400, "The provided 'x-amz-content-sha256' header does not match what was computed."),
    "BadDigest": (400, "The CRC32 you specified did not match the calculated checksum."),
}
ANY_REQUEST = ("SlowDown", "InternalError", "reset before", "reset after")  # faults that any request may meet
HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Expect")


@dataclass
class _Order:
    """The next `times` requests that match get the fault."""

    fault: str
    times: int
    method: str
    key: str
    seconds: float
    having: str
    lacking: str

    def matches(self, request: web.Request) -> bool:
        names = [name.lower() for name in request.headers]
        is_meant = self.having in " ".join(names) and (not self.lacking or self.lacking not in names)
        return is_meant and self.times > 0 and self.method in ("", request.method) and self.key in request.raw_path


class FaultyS3:
    """Runs in a thread of its own, on loopback. `injected` holds when each fault was (monotonic, the machine's)."""

    def __init__(self, target: str):
        self.target = target
        self.injected: list[float] = []
        self._orders: list[_Order] = []
        self._rivals: dict[str, asyncio.Event] = {}  # by path, set when a second creator has come
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: Any) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(
        self,
        fault: str,
        times: int = 1,
        method: str = "",
        key: str = "",
        seconds: float = 0.0,
        having: str = "",
        lacking: str = "",
    ) -> None:
        """Orders a fault: a code of ANSWERS, 'reset before' or 'reset after' the server has the request, 'truncate'
        the body of its answer, be 'away' for some seconds, or let both win where two create a key in a 'race'. `key` is
        any part of the path and query, `having` any part of a header's name, `lacking` a header's name, both in lower
        case."""
        assert fault in (*ANSWERS, "reset before", "reset after", "truncate", "away", "race")
        self._orders.append(_Order(fault, times, method, key, seconds, having, lacking))

    @property
    def num_waiting(self) -> int:
        """Faults that were ordered and met no request yet."""
        return sum(order.times for order in self._orders)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        self._port = 0
        await self._listen()
        self._port = self._runner.addresses[0][1]

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await self._site.start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _go_away(self, seconds: float) -> None:
        """Nobody listens, and whoever is connected is reset."""
        await self._site.stop()
        for connection in self._runner.server.connections:
            _reset(connection.transport)
        self._loop.call_later(seconds, lambda: self._loop.create_task(self._listen()))

    async def _has_rival(self, path: str) -> bool:
        """Whether this is one of the first two creators of a key; the first waits a second for another."""
        if path not in self._rivals:
            arrived = self._rivals[path] = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), 1)
            has_rival = arrived.is_set()
            arrived.set()
            return has_rival
        is_second = not self._rivals[path].is_set()
        self._rivals[path].set()
        return is_second

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        order = next((order for order in self._orders if order.matches(request)), None)
        fault = order.fault if order else None
        if order:
            order.times -= 1
            self.injected.append(time.monotonic())
        if fault in ANSWERS:
            return _refusal(fault, is_head=request.method == "HEAD")
        if fault == "away":
            await self._go_away(order.seconds)
            return web.Response()  # to nobody
        if fault == "reset before":
            _reset(request.transport)
            return web.Response()
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        if fault == "race" and await self._has_rival(request.path):
            del headers["If-None-Match"]
        async with self._session.request(
            request.method, URL(self.target + request.raw_path, encoded=True), headers=headers, data=body,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"), allow_redirects=False,
        ) as answer:  # fmt: skip
            content = await answer.read()
        if fault == "reset after":
            _reset(request.transport)
            return web.Response()
        headers = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(content)), **headers})
        await response.prepare(request)
        if fault == "truncate":
            assert len(content) > 1, f"nothing to truncate in the answer to {request.method} {request.path}"
            await response.write(content[: len(content) // 2])
            request.transport.close()
        elif content:
            await response.write(content)
        return response


def _refusal(code: str, is_head: bool) -> web.Response:
    status, message = ANSWERS[code]
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text="" if is_head else text, content_type="application/xml")


def _reset(transport: asyncio.Transport | None) -> None:
    """Closes a connection as a crash does: with RST, what was in flight is lost."""
    if transport is not None:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


def outlast(store, faulty, fault):
    """Each operation of a store meets a fault twice, and does what it should. Returns their names, in order."""
    operations = {
        "write": lambda: store.write("images/x.png", b"picture"),
        "read": lambda: store.read("images/x.png"),
        "list": lambda: list(store.list("images")),
        "exists": lambda: store.exists("images/x.png"),
        "delete": lambda: store.delete("images/x.png"),
    }
    answers = {}
    for name, call in operations.items():
        faulty.inject(fault, times=2)
        answers[name] = call()
    assert answers["read"] == b"picture"
    assert answers["list"] == ["images/x.png"]
    assert answers["exists"]
    assert list(store.list("")) == []
    assert faulty.num_waiting == 0
    return list(operations)
