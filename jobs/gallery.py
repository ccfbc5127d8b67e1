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
import re
from dataclasses import asdict
from importlib import resources
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from cluster.index import Index, update_index
from cluster.judgements import judged_key
from cluster.run import Run
from cluster.storage import LocalStore, Store
from dgn.errors import DgnError, StoreError, printable
from jobs.status import open_run

FOLDER, DATA = "gallery", "gallery/data"
BLOCK_BYTES = 1 << 16  # of a script, as jobs/web/source.js reads them; another size needs another folder than DATA
SERVED = ("index/", "images/")  # of the run, beside the page
LOOPBACK = "127.0.0.1"


def build_command(url: str, for_files: bool | None) -> None:
    """`for_files`: whether to write the data as scripts too; None: where the run is a folder."""
    run = open_run(url)
    index = update_index(run)
    for name, data in page().items():
        run.store.write(f"{FOLDER}/{name}", data)
    is_local = isinstance(run.store, LocalStore)
    if for_files or (for_files is None and is_local):
        _write_scripts(run, index)
    print(f"{index.num_rows:,} pictures: {run.store.url}/{FOLDER}/index.html")
    if not is_local:
        print(f"a bucket that browsers may read shows it at its own address; for others: dgn gallery serve {url}")


def page() -> dict[str, bytes]:
    """The page's files by name."""
    folder = resources.files("jobs") / "web"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if PurePosixPath(file.name).suffix in (".html", ".js", ".css")
    }


def _write_scripts(run: Run, index: Index) -> None:
    keys = {part.rows_key: part.rows_bytes for part in index.parts}
    keys |= {part.thumbs_key: part.thumbs_bytes for part in index.parts}
    keys |= {judged_key(part.id, judged.name): judged.bytes for part in index.parts for judged in part.judged}
    for key, num_bytes in keys.items():
        for n, start in enumerate(range(0, num_bytes, BLOCK_BYTES)):
            script = f"{DATA}/{key}/{n}.js"
            if run.store.exists(script):  # of an earlier build: what a key holds never changes
                continue
            block = run.store.read_range(key, start, min(start + BLOCK_BYTES, num_bytes))
            content = f'dgnBlock({json.dumps(key)}, {n}, "{base64.b64encode(block).decode()}")\n'
            run.store.write(script, content.encode())
    run.store.write(f"{DATA}/index.js", f"dgnIndex({json.dumps(asdict(index))})\n".encode())
    for key in list(run.store.list(DATA)):
        if key != f"{DATA}/index.js" and str(PurePosixPath(key).parent).removeprefix(f"{DATA}/") not in keys:
            run.store.delete(key)  # of parts that are no more


def serve_command(url: str, port: int) -> None:
    """Serves the page and the run on loopback until it is interrupted."""
    run = open_run(url)
    index = update_index(run)
    try:
        asyncio.run(_serve(run.store, port, f"{index.num_rows:,} pictures of {run.store.url}"))
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
        if request.host.rpartition(":")[0] not in (LOOPBACK, "localhost"):
            raise web.HTTPForbidden(text=f"only for {LOOPBACK} and localhost")
        response = await handler(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def show_page(request: web.Request) -> web.Response:
        name = request.match_info["name"] or "index.html"
        if name not in files:
            raise web.HTTPNotFound
        return web.Response(body=files[name], content_type=_kind(name), charset="utf-8")

    async def show_file(request: web.Request) -> web.Response:
        key = unquote(request.path).lstrip("/")
        if not key.startswith(SERVED):
            raise web.HTTPNotFound
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        try:
            if span and span[2]:
                start, stop = int(span[1]), int(span[2]) + 1
                body = await asyncio.to_thread(store.read_range, key, start, stop)
            else:
                start = int(span[1]) if span else 0
                body = (await asyncio.to_thread(store.read, key))[start:]
                stop = start + len(body)
        except FileNotFoundError as error:
            raise web.HTTPNotFound from error
        except StoreError as error:
            raise web.HTTPBadGateway(text=printable(error)) from error
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/*"} if span else {}
        headers["Cache-Control"] = "no-cache" if key.endswith(".json") else "private, max-age=86400"
        return web.Response(body=body, status=206 if span else 200, content_type=_kind(key), headers=headers)

    async def lead(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"/{FOLDER}/index.html")

    app = web.Application(middlewares=[guard])
    app.router.add_get("/", lead)
    app.router.add_get(f"/{FOLDER}/{{name}}", show_page)
    app.router.add_get("/{key:.*}", show_file)
    return app


def _kind(name: str) -> str:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
    return kinds.get(PurePosixPath(name).suffix, "application/octet-stream")
