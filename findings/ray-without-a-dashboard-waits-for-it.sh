#!/usr/bin/env bash
# `ray.init(include_dashboard=False)` starts the dashboard's server all the same, waits for it, and at the end again.
#
# Seen with Ray 2.60.0 (`ray[default]`), CPython 3.11, Linux. The argument takes the web page away, not the process:
# `dashboard.py` runs with one module, which reports usage, and `ray.init` looks every tenth of a second whether it has
# written its address. The autoscaler's monitor and the one that passes logs on are started too, on a machine that starts
# no others and with `log_to_driver=False`. They import for a second each, and hold 300 MB. `ray.shutdown` then ends one
# process after the other, and gives each that does not listen to SIGTERM at once a second. Without the three, which no
# argument of `ray.init` takes away, Ray starts in half the time and ends in a third of it.
#
# Output seen:
#   ray 2.60.0
#   as it is: dashboard.py log_monitor.py monitor.py raylet
#   without the three methods: raylet
#   their start takes less than two thirds of the time: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default]==2.60.0"
cat > "$folder/program.py" <<'PYTHON'
import sys
import time

import ray
from ray._private import node

if sys.argv[1] == "less":
    for name in ("start_api_server", "start_monitor", "start_log_monitor"):
        setattr(node.Node, name, lambda *_, **__: None)
started_at = time.monotonic()
ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False, num_cpus=1)
seconds = time.monotonic() - started_at
commands = [" ".join(one.process.args[:3]) for [one] in ray._private.worker._global_node.all_processes.values()]
names = {name for name in ("dashboard.py", "/log_monitor.py", "/monitor.py", "raylet/raylet") for one in commands if name in one}
assert ray.get(ray.remote(lambda: 1).remote()) == 1
ray.shutdown()
print(*sorted(name.rpartition("/")[2] for name in names))
print(seconds, file=open(sys.argv[2], "w"))
PYTHON
run() { RAY_AUTH_MODE=disabled "$folder/venv/bin/python" "$folder/program.py" "$1" "$folder/$1.seconds" 2> /dev/null; }
run as-it-is > /dev/null # once, so that Python has compiled all
{
    "$folder/venv/bin/python" -c 'import ray; print("ray", ray.__version__)'
    echo "as it is: $(run as-it-is)"
    echo "without the three methods: $(run less)"
    echo "their start takes less than two thirds of the time: $("$folder/venv/bin/python" -c '
import sys
as_it_is, less = (float(open(f"{sys.argv[1]}/{name}.seconds").read()) for name in ("as-it-is", "less"))
print(less < as_it_is * 2 / 3)' "$folder")"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
