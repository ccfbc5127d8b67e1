"""`dgn gallery`: a page beside the data that shows every picture of a run, and a server on loopback for private ones.

gallery/index.html, *.js, *.css        the page, which reads index/current.json, the index's parts, and images/
gallery/data/index.js                  current.json as a script, written last
gallery/data/<key>/<n>.js              the index's files in blocks, as scripts: for file://, where a page may load no
                                       other files, and for web servers that know no byte ranges
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import asdict
from importlib import resources
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cluster.index import ADVICE, Index, update_index
from cluster.judgements import judged_key
from cluster.run import Run
from cluster.storage import LocalStore, Store
from dgn.errors import DgnError, Shortened, StoreError, printable
from jobs.status import open_run

FOLDER, DATA = "gallery", "gallery/data"
BLOCK_BYTES = 1 << 16  # of a script, as jobs/web/source.js reads them; another size needs another folder than DATA
SERVED = ("index/", "images/")  # of the run, beside the page
LOOPBACK = "127.0.0.1"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}  # of the page's files


def build_command(url: str, for_files: bool | None) -> None:
    """`for_files`: whether to write the data as scripts too; None: where the run is a folder."""
    run = open_run(url)
    index = update_index(run)
    for name, data in page().items():
        run.store.write(f"{FOLDER}/{name}", data)
    is_local = isinstance(run.store, LocalStore)
    if for_files or (for_files is None and is_local):
        _write_scripts(run, index)
    elif for_files is False:  # of an earlier build, which would be shown as it was then
        for key in list(run.store.list(DATA)):
            run.store.delete(key)
    print(f"{_counted(index)}: {run.store.url}/{FOLDER}/index.html")
    if not is_local:
        print(f"a bucket that browsers may read shows it at its own address; for others: dgn gallery serve {url}")


def _counted(index: Index) -> str:
    missing = index.num_targets - index.num_rows
    return f"{index.num_rows:,} pictures" + (f" ({missing:,} of the run's are not made yet)" if missing else "")


def page() -> dict[str, bytes]:
    """The page's files by name."""
    folder = resources.files("jobs") / "web"
    return {file.name: file.read_bytes() for file in folder.iterdir() if PurePosixPath(file.name).suffix in KINDS}


def _write_scripts(run: Run, index: Index) -> None:
    keys = {part.rows_key: part.rows_bytes for part in index.parts}
    keys |= {part.thumbs_key: part.thumbs_bytes for part in index.parts}
    keys |= {judged_key(part.id, judged.name): judged.bytes for part in index.parts for judged in part.judged}
    for key, num_bytes in keys.items():
        for n, start in enumerate(range(0, num_bytes, BLOCK_BYTES)):
            script = f"{DATA}/{key}/{n}.js"
            if run.store.exists(script):  # of an earlier build: what a key holds never changes
                continue
            try:
                block = run.store.read_range(key, start, min(start + BLOCK_BYTES, num_bytes))
            except FileNotFoundError as error:
                raise StoreError(f"{run.store.url}/{key} is gone: {ADVICE}") from error
            content = f'dgnBlock({json.dumps(key)}, {n}, "{base64.b64encode(block).decode()}")\n'
            run.store.write(script, content.encode())
    run.store.write(f"{DATA}/index.js", f"dgnIndex({json.dumps(asdict(index))})\n".encode())
    for key in list(run.store.list(DATA)):
        of = str(PurePosixPath(key).parent).removeprefix(f"{DATA}/")
        if key != f"{DATA}/index.js" and of not in keys and of.split("/")[1] not in index.former:
            run.store.delete(key)  # of parts that are no more, and that no open page can be reading


def serve_command(url: str, port: int) -> None:
    """Serves the page and the run on loopback until it is interrupted."""
    run = open_run(url)
    index = update_index(run)
    try:
        asyncio.run(_serve(run.store, port, f"{_counted(index)} of {run.store.url}"))
    except OSError as error:
        raise DgnError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; give another --port, or none") from error


async def _serve(store: Store, port: int, what: str) -> None:
    from aiohttp import web

    runner = web.AppRunner(application(store), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, port)
        await site.start()
        print(f"{printable(what)}: http://{LOOPBACK}:{runner.addresses[0][1]}/{FOLDER}/index.html", flush=True)
        with suppress(asyncio.CancelledError):  # Ctrl-C, the way to end it
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(store: Store) -> Any:
    """The page, and of the run its index and its pictures, to read."""
    from aiohttp import web

    files = page()

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        # A page of another site whose name was made to lead here must not read a private bucket.
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
        kind = "image/png" if key.endswith(".png") else "application/octet-stream"  # never a page: the run is data
        return web.Response(body=body, status=206 if is_part else 200, content_type=kind, headers=headers)

    async def lead(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"/{FOLDER}/index.html")

    app = web.Application(middlewares=[guard])
    app.router.add_get("/", lead)
    app.router.add_get(f"/{FOLDER}/{{name}}", show_page)
    app.router.add_get("/{key:.*}", show_file)
    return app


def _read(store: Store, key: str, span: slice) -> tuple[int, bytes]:
    """Bytes of a file and where they begin; of what is asked for beyond its end, those that there are."""
    if span.start is not None and span.start >= 0 and span.stop is not None:
        try:
            return span.start, store.read_range(key, span.start, span.stop)
        except Shortened:
            pass
    data = store.read(key)
    first, stop, _ = span.indices(len(data))
    return first, data[first:stop]
