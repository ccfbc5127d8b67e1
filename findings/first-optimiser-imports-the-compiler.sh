#!/usr/bin/env bash
# The first optimiser of a process imports PyTorch's compiler, though nothing is compiled; so does a sum of shapes.
#
# Seen with PyTorch 2.15.0, CPython 3.11, Linux. `import torch` leaves `torch._dynamo` and what belongs to it
# out. `torch.optim.SGD([weight], lr=1)` then imports it, because a method of every optimiser is marked to be left alone
# by the compiler, and the mark is made at the first call, by the compiler. The same is true of the reference operations
# that stand in on the meta device, where networks are looked at without weights: `x + y` there, or concatenation. It
# takes about as long as `import torch` itself, and hundreds of modules. A program that draws one picture, or a worker
# that lives for a minute, pays it each time; nobody finds it among the imports, because it happens at the first update.
#
# Output seen:
#   import torch: without the compiler
#   a network on the CPU, and its gradient: without the compiler
#   a network on the meta device: with the compiler
#   an optimiser: with the compiler
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > "$folder/program.py" <<'PYTHON'
import sys

import torch

what = sys.argv[1]
device = "meta" if what == "meta" else "cpu"
if what != "import":
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).to(device)
    y = network(torch.zeros(1, 3, 8, 8, device=device))
    torch.cat([y, y], 1).sum().backward()
if what == "optimiser":
    torch.optim.SGD(network.parameters(), lr=1)
print("with the compiler" if "torch._dynamo" in sys.modules else "without the compiler")
PYTHON
run() { "$folder/venv/bin/python" "$folder/program.py" "$1"; }
{
    echo "import torch: $(run import)"
    echo "a network on the CPU, and its gradient: $(run cpu)"
    echo "a network on the meta device: $(run meta)"
    echo "an optimiser: $(run optimiser)"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
