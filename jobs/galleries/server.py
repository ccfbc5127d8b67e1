"""Serves the gallery's page and a run's data to this machine's browser only, for private buckets."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from dgn.errors import DgnError, StoreError, Truncated
from dgn.jobs.galleries.build import FOLDER, KINDS, describe, page_files
from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.runs.stores import Store
from dgn.text import printable

SERVED = ("index/", "images/", "metadata/", "examples/sheets/", "alike/")  # of the run
PICTURES = {".png": "image/png", ".webp": "image/webp"}
LOOPBACK = "127.0.0.1"
HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def serve_page(run: Run, port: int, hosts: Iterable[str] = ()) -> None:
    """Serves until interrupted.

    Args:
        hosts: names that requests may come for, besides loopback's: those that a proxy is reached by.

    Raises:
        DgnError: if a name is none, or it cannot listen on the port.
    """
    names = [checked_host(host) for host in hosts]
    index = update_index(run)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio replaces only this one by its own, orderly end
    try:
        asyncio.run(_serve(run.store, port, names, f"{describe(index)} of {run.store.url}"))
    except OSError as error:
        raise DgnError(
            f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; give another --port, or leave it out"
        ) from error


def checked_host(text: str) -> str:
    """A host's name or address as `host_of` gives it. Raises: DgnError if the text is something else."""
    name = _address(text) or host_of(text) or ""
    if not _address(name) and not HOST_NAME.fullmatch(name):
        raise DgnError(
            f"--host-header {text!r}: expected a host's name as browsers send it, such as gallery.example.org, without"
            " scheme or path"
        )
    return _address(name) or name


def host_of(header: str) -> str | None:
    """The name or address in a Host header, in lower case and without the port; None if it has another form."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return None
    is_host = parts.netloc == header and parts.username is None
    return parts.hostname if is_host else None


def _address(text: str) -> str | None:
    """An IP address in the form that browsers send; None if it is not one."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return None


async def _serve(store: Store, port: int, hosts: Iterable[str], what: str) -> None:
    runner = web.AppRunner(application(store, hosts), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, port)
        await site.start()
        print(f"{printable(what)}: http://{LOOPBACK}:{runner.addresses[0][1]}/{FOLDER}/index.html", flush=True)
        with suppress(asyncio.CancelledError):  # by Ctrl-C
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(store: Store, hosts: Iterable[str] = ()) -> Any:
    """Serves the page, and the run's index and pictures, for reading only, under loopback's names and `hosts`."""
    files = page_files(store)
    allowed = (LOOPBACK, "localhost", *hosts)

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        # Against DNS rebinding: another site's page must not read a private bucket.
        if host_of(request.host) not in allowed:
            raise web.HTTPForbidden(text=f"only for {', '.join(allowed)}: --host-header NAME allows another name")
        response = await handler(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def show_page(request: web.Request) -> web.Response:
        name = request.match_info["name"] or "index.html"
        if name not in files:
            raise web.HTTPNotFound
        kind = KINDS[PurePosixPath(name).suffix]
        return web.Response(body=files[name], content_type=kind, charset="utf-8")

    async def show_file(request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if not key.startswith(SERVED):
            raise web.HTTPNotFound
        try:
            span = request.http_range
        except ValueError as error:
            raise web.HTTPRequestRangeNotSatisfiable from error
        is_part = "Range" in request.headers
        try:
            first, body = await asyncio.to_thread(_read, store, key, span)
        except FileNotFoundError as error:
            raise web.HTTPNotFound from error
        except StoreError as error:
            raise web.HTTPBadGateway(text=printable(error)) from error
        if is_part and not body:
            raise web.HTTPRequestRangeNotSatisfiable
        headers = {"Content-Range": f"bytes {first}-{first + len(body) - 1}/*"} if is_part else {}
        headers["Cache-Control"] = "no-cache" if key.endswith(".json") else "private, max-age=86400"
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
        kind = PICTURES.get(PurePosixPath(key).suffix, "application/octet-stream")  # never HTML: the run is data
        return web.Response(body=body, status=206 if is_part else 200, content_type=kind, headers=headers)

    async def lead(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"{FOLDER}/index.html")  # relative: a proxy may serve it below a path of its own

    app = web.Application(middlewares=[guard])
    app.router.add_get("/", lead)
    app.router.add_get(f"/{FOLDER}/{{name}}", show_page)
    app.router.add_get("/{key:.*}", show_file)
    return app


def _read(store: Store, key: str, span: slice) -> tuple[int, bytes]:
    """The offset and the bytes of a span of a file, cut at the file's end."""
    if span.start is not None and span.start >= 0 and span.stop is not None:
        try:
            return span.start, store.read_range(key, span.start, span.stop)
        except Truncated:
            pass
    data = store.read(key)
    first, stop, _ = span.indices(len(data))
    return first, data[first:stop]
