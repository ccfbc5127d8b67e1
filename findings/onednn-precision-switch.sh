#!/usr/bin/env bash
# Allowing oneDNN less precision on the CPU allows cuBLAS and cuDNN TF32 on the GPU.
#
# Seen with torch 2.15.0, Python 3.11, Linux. `torch.backends.mkldnn.fp32_precision` reads oneDNN's own switch, but
# writing to it sets the switch above all backends, `torch.backends.fp32_precision`, which CUDA's operators follow. From
# then on, the older switch `torch.backends.cuda.matmul.allow_tf32` raises RuntimeError when it is read. The switches
# of single operators, such as `torch.backends.mkldnn.matmul.fp32_precision`, set what they name.
#
# Output seen:
#   mkldnn.matmul: bf16; cuda.matmul: none; all: none
#   mkldnn: tf32; cuda.matmul: tf32; cudnn: tf32; all: tf32
#   reading cuda.matmul.allow_tf32 raised RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > "$folder/seen.py" <<'PYTHON'
import torch

backends = torch.backends
backends.mkldnn.matmul.fp32_precision = "bf16"
print(
    f"mkldnn.matmul: {backends.mkldnn.matmul.fp32_precision}; cuda.matmul: {backends.cuda.matmul.fp32_precision}; "
    f"all: {backends.fp32_precision}"
)
backends.mkldnn.matmul.fp32_precision = "none"
backends.mkldnn.fp32_precision = "tf32"
print(
    f"mkldnn: {backends.mkldnn.fp32_precision}; cuda.matmul: {backends.cuda.matmul.fp32_precision}; "
    f"cudnn: {backends.cudnn.fp32_precision}; all: {backends.fp32_precision}"
)
try:
    print("reading cuda.matmul.allow_tf32 gave", backends.cuda.matmul.allow_tf32)
except RuntimeError:
    print("reading cuda.matmul.allow_tf32 raised RuntimeError")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
