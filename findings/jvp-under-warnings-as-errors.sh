#!/usr/bin/env bash
# torch.func.jvp works in no process that turns warnings into errors.
#
# Seen with torch 2.15.0, Python 3.11, Linux. A program that runs with `-W error` (or a test suite with pytest's
# `filterwarnings = error`) uses no TorchScript. Forward derivatives still raise FutureWarning "`torch.jit.script` is
# deprecated", whatever is differentiated: on its first call jvp imports a module of torch's own which scripts 18
# functions. That import fails, so the next call tries it again and fails again. After one call while warnings are
# allowed, all later ones work. torch.func.vjp has no such step.
#
# Output seen:
#   strict: jvp of relu raised FutureWarning
#   strict: jvp of relu raised FutureWarning
#   strict: vjp of relu works
#   lenient: jvp of relu works, 18 warnings
#   strict: jvp of relu works
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > "$folder/seen.py" <<'PYTHON'
import warnings

import torch

x = torch.linspace(-1, 1, 5)


def jvp():
    try:
        torch.func.jvp(torch.relu, (x,), (x,))
    except FutureWarning:
        return "raised FutureWarning"
    return "works"


def vjp():
    torch.func.vjp(torch.relu, x)[1](x)
    return "works"


warnings.simplefilter("error")
print("strict: jvp of relu", jvp())
print("strict: jvp of relu", jvp())
print("strict: vjp of relu", vjp())
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(f"lenient: jvp of relu {jvp()}, {len(seen)} warnings")
print("strict: jvp of relu", jvp())
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
