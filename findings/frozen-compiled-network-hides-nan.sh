#!/usr/bin/env bash
# A compiled network with frozen weights answers NaN with 0 on a CPU: whatever looks for NaN in its output finds none.
#
# Seen with torch 2.15.0, Python 3.11, Linux, x86-64, which needs a C++ compiler for this. With
# `torch._inductor.config.freezing`, the documented setting for inference, `torch.compile` gives a convolution and the
# ReLU or ReLU6 behind it to one operator of oneDNN, which answers 0 where the convolution is NaN. `nn.ReLU` and
# `nn.ReLU6` keep NaN, and so does the compiled network without freezing, or without an activation.
#
# Output seen, of how many values are NaN after one of the input is:
#   ReLU: eager 144, compiled 144, frozen 0
#   ReLU6: eager 144, compiled 144, frozen 0
#   Identity: eager 144, compiled 144, frozen 144
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > "$folder/seen.py" <<'PYTHON'
import torch
from torch import nn
from torch._inductor import config

pictures = torch.linspace(-1, 1, 8 * 16 * 16).reshape(1, 8, 16, 16)
pictures[0, 0, 5, 5] = torch.nan
for activation in (nn.ReLU(), nn.ReLU6(), nn.Identity()):
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), activation).eval()
    found = [network(pictures).isnan().sum().item()]
    for config.freezing in (False, True):
        torch._dynamo.reset()
        with torch.no_grad():
            found.append(torch.compile(network)(pictures).isnan().sum().item())
    eager, compiled, frozen = found
    print(f"{type(activation).__name__}: eager {eager}, compiled {compiled}, frozen {frozen}")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output" 2> "$folder/warnings"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
