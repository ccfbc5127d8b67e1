#!/usr/bin/env bash
# "Area" averaging changes a picture's mean where the new size does not divide the old one.
#
# Seen with torch 2.15.0, pillow 13.0.0 and numpy 2.4.6, Python 3.11, Linux. `interpolate(mode="area")` of 224 pixels to
# 80 takes, for each new pixel, every old one that it touches, and all of them with the same weight. Pixels that two new
# ones touch therefore count twice: some weigh 0.7, others 1.633, in a pattern of 14. A picture whose share of white is
# 0.286 has a mean of 0.433 afterwards if its stripes fall on the heavy pixels. Nothing is averaged by area. Pillow's
# BOX filter takes whole pixels too, each once: its mean is 0.267. `mode="bilinear", antialias=True` keeps the mean
# (0.287). So thumbnails, statistics and features from "area" pictures depend on how stripes fall.
#
# Output seen:
#   weights of the old pixels: 0.700 0.933 1.400 1.633
#   share of white: 0.286
#   area: 0.433
#   Pillow's BOX: 0.267
#   bilinear, antialias: 0.287
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - > "$folder/output" <<'PYTHON'
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

OLD, NEW = 224, 80
columns = torch.eye(OLD)[:, None, None, :]  # each old pixel by itself
weights = F.interpolate(columns, size=(1, NEW), mode="area").sum((1, 2, 3)) * OLD / NEW
print("weights of the old pixels:", *(f"{weight:.3f}" for weight in sorted({round(w, 3) for w in weights.tolist()})))
stripes = (weights > 1).float().expand(OLD, OLD)
print(f"share of white: {stripes.mean():.3f}")
print(f"area: {F.interpolate(stripes[None, None], size=(NEW, NEW), mode='area').mean():.3f}")
boxed = Image.fromarray(stripes.numpy().copy()).resize((NEW, NEW), Image.Resampling.BOX)
print(f"Pillow's BOX: {np.asarray(boxed).mean():.3f}")
smooth = F.interpolate(stripes[None, None], size=(NEW, NEW), mode="bilinear", antialias=True)
print(f"bilinear, antialias: {smooth.mean():.3f}")
PYTHON
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
