#!/usr/bin/env bash
# `time` of a Python program leaves out what its processes did, if they are started by a fork server.
#
# Seen with CPython 3.11.7, Linux; it runs by the command python3.11 and needs no package. A program lets two processes
# calculate for a second each, and waits for them. `time`, and whoever else asks the kernel for the resources of an ended
# child and its children, gets about two seconds of processor time if multiprocessing started them by `fork` or `spawn`,
# and nearly none with `forkserver`, which Python 3.14 makes the default on Linux. The processes are then children of the
# server. The program never waits for the server, which ends a moment after it, and only children that were waited for
# are counted. So a benchmark that compares processor times finds that a program became ten times cheaper when it was
# only moved to a newer Python. Whoever measures can adopt and await such orphans (PR_SET_CHILD_SUBREAPER, then os.wait
# until there are none): that counts them.
#
# Output seen:
#   CPython 3.11.7
#   fork: two seconds are counted
#   spawn: two seconds are counted
#   forkserver: two seconds are missing
#   forkserver, orphans awaited: two seconds are counted
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/program.py" <<'PYTHON'
import multiprocessing
import sys
import time


def calculate(_):
    while time.process_time() < 1:
        pass


if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        pool.map(calculate, range(2), chunksize=1)
        pool.close()
        pool.join()
PYTHON
cat > "$folder/measure.py" <<'PYTHON'
import ctypes
import os
import resource
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36
if len(sys.argv) > 3:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
subprocess.run([sys.executable, *sys.argv[1:3]], check=True)
if len(sys.argv) > 3:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = used.ru_utime + used.ru_stime
print("two seconds are", "counted" if seconds > 1.9 else "missing" if seconds < 1 else f"partly counted: {seconds}")
PYTHON
{
    python3.11 -c 'import platform as p; print(p.python_implementation(), p.python_version())'
    for method in fork spawn forkserver; do
        echo "$method: $(python3.11 "$folder/measure.py" "$folder/program.py" "$method")"
    done
    echo "forkserver, orphans awaited: $(python3.11 "$folder/measure.py" "$folder/program.py" forkserver awaited)"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
