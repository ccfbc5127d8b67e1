#!/usr/bin/env bash
# Loading cuBLASLt's library fills 90 MB of a process's own memory, before anything is called, also without a GPU.
#
# Seen with nvidia-cublas 13.4.1.3 (the one of PyTorch 2.15.0's build for GPUs), CPython 3.11, Linux on x86-64. Functions
# that run when the library is loaded write tables into its zeroed data. Pages that were written cannot be shared with
# other processes that load the same file, as its code and constants are. PyTorch's build for GPUs, which pip installs by
# default on Linux, loads the library on `import torch`, so each of a machine's worker processes holds such pages, also
# where all of them compute on the CPU: a third of what `import torch` costs each. libcublas itself adds a few MB.
#
# Output seen:
#   libcublasLt.so.13: 80 to 110 MB written before the first call
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-cublas==13.4.1.3
cat > "$folder/program.py" <<'PYTHON'
import ctypes
import re
import sys
from pathlib import Path


def written_mb():
    """Pages of this process that no file can give back."""
    return int(re.search(r"Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1]) / 1e3


[library] = Path(sys.prefix).rglob("libcublasLt.so.13")
before = written_mb()
ctypes.CDLL(str(library))
megabytes = written_mb() - before
seen = "80 to 110" if 80 < megabytes < 110 else f"{megabytes:.0f}"
print(f"{library.name}: {seen} MB written before the first call")
PYTHON
"$folder/venv/bin/python" "$folder/program.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
