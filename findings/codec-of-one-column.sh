#!/usr/bin/env bash
# pyarrow: to name the codec of one Parquet column is to store all others uncompressed.
#
# Seen with pyarrow 26.0.1, Python 3.11, Linux. `write_table` compresses every column by snappy, and the
# argument `compression` is "a codec, or one per column". With a dictionary, columns that it does not name are not
# compressed at all: neither by snappy, as without the argument, nor by the codec of the one that is named. So whoever
# keeps pictures as they are, or packs one column harder, gets a file several times as large, and no warning. A column
# with fields of its own is not reached by its name, but by the path of each leaf (`top5.list.element.unit`); its plain
# name is accepted and does nothing.
#
# Output seen:
#   no argument: label SNAPPY, picture SNAPPY, top5.list.element.unit SNAPPY
#   zstd: label ZSTD, picture ZSTD, top5.list.element.unit ZSTD
#   picture none: label UNCOMPRESSED, picture UNCOMPRESSED, top5.list.element.unit UNCOMPRESSED
#   label zstd: label ZSTD, picture UNCOMPRESSED, top5.list.element.unit UNCOMPRESSED
#   top5 zstd: label UNCOMPRESSED, picture UNCOMPRESSED, top5.list.element.unit UNCOMPRESSED
#   top5.list.element.unit zstd: label UNCOMPRESSED, picture UNCOMPRESSED, top5.list.element.unit ZSTD
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cat > "$folder/seen.py" <<'PYTHON'
import io

import pyarrow as pa
import pyarrow.parquet as pq

table = pa.table({
    "label": [f"class {n % 10}" for n in range(1000)],
    "picture": [bytes([n % 256]) * 100 for n in range(1000)],
    "top5": [[{"unit": n}] for n in range(1000)],
})


def show(name, **arguments):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **arguments)
    group = pq.ParquetFile(buffer).metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    print(f"{name}: " + ", ".join(f"{one.path_in_schema} {one.compression}" for one in columns))


show("no argument")
show("zstd", compression="zstd")
show("picture none", compression={"picture": "none"})
show("label zstd", compression={"label": "zstd"})
show("top5 zstd", compression={"top5": "zstd"})
show("top5.list.element.unit zstd", compression={"top5.list.element.unit": "zstd"})
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
