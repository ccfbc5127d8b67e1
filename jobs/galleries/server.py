"""Serves the gallery's page and a run's data to this machine's browser only, for private buckets."""

from __future__ import annotations

import asyncio
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

SERVED = ("index/", "images/", "examples/sheets/", "alike/")  # of the run
PICTURES = {".png": "image/png", ".webp": "image/webp"}
LOOPBACK = "127.0.0.1"


def serve_page(run: Run, port: int) -> None:
    """Serves until interrupted. Raises: DgnError if it cannot listen on the port."""
    index = update_index(run)
    try:
        asyncio.run(_serve(run.store, port, f"{describe(index)} of {run.store.url}"))
    except OSError as error:
        raise DgnError(
            f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; give another --port, or leave it out"
        ) from error


async def _serve(store: Store, port: int, what: str) -> None:
    runner = web.AppRunner(application(store), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, port)
        await site.start()
        print(f"{printable(what)}: http://{LOOPBACK}:{runner.addresses[0][1]}/{FOLDER}/index.html", flush=True)
        with suppress(asyncio.CancelledError):  # by Ctrl-C
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(store: Store) -> Any:
    """Serves the page, and the run's index and pictures, for reading only."""
    files = page_files(store)

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        # Against DNS rebinding: another site's page must not read a private bucket.
        if urlsplit(f"//{request.host}").hostname not in (LOOPBACK, "localhost"):
            raise web.HTTPForbidden(text=f"only for {LOOPBACK} and localhost")
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
        raise web.HTTPFound(f"/{FOLDER}/index.html")

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
