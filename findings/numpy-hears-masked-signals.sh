#!/usr/bin/env bash
# A signal that the main thread has masked still raises KeyboardInterrupt there, once NumPy is imported.
#
# Seen with CPython 3.11.7, numpy 2.4.6, Linux, two cores. `signal.pthread_sigmask` is how a program holds Ctrl-C back
# while it must not be interrupted, such as while it starts processes. The mask is the thread's own. NumPy's OpenBLAS
# starts a thread for each further core when it is imported, without a mask of its own kind; the kernel gives the signal
# to that thread, Python's handler there sets its flag, and the main thread raises KeyboardInterrupt at its next step,
# masked or not. Without NumPy, or with OPENBLAS_NUM_THREADS=1, the signal waits. PyArrow, gRPC and others start threads
# too. What holds Ctrl-C back in such a process is another Python handler (`signal.signal`), or a mask that is set
# before the first of these imports, which their threads inherit.
#
# Output seen:
#   numpy 2.4.6
#   without numpy: the signal waits
#   with numpy: KeyboardInterrupt
#   with numpy of one thread: the signal waits
#   masked before numpy is imported: the signal waits
set -euo pipefail
if [ "$(nproc)" = 1 ]; then
    echo "needs two cores, or OpenBLAS starts no thread" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat > "$folder/program.py" <<'PYTHON'
import os
import signal
import sys
import time

steps = sys.argv[1].split()
if steps[0] == "numpy":
    import numpy
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
if steps[-1] == "numpy":
    import numpy  # noqa: F811
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    print("the signal waits")
except KeyboardInterrupt:
    print("KeyboardInterrupt")
PYTHON
run() { "$folder/venv/bin/python" "$folder/program.py" "$1"; }
{
    "$folder/venv/bin/python" -c 'import numpy; print("numpy", numpy.__version__)'
    echo "without numpy: $(run mask)"
    echo "with numpy: $(run "numpy mask")"
    echo "with numpy of one thread: $(OPENBLAS_NUM_THREADS=1 run "numpy mask")"
    echo "masked before numpy is imported: $(run "mask numpy")"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
