#!/usr/bin/env bash
# torchvision's feature extractor answers with another module's output if names of modules end in _NUMBER.
#
# Seen with torchvision 0.29.2, torch 2.15.0, Python 3.11, Linux. `create_feature_extractor` names graph nodes after
# modules and numbers nodes of the same name with _1, _2. Before it counts, it takes a trailing _NUMBER for its own and
# cuts it off. So modules called stage_1, stage_2, stage_3 become nodes stage, stage_1, stage_2: each name that is asked
# for stands for the module after it, and nothing is raised. With names in another order the same name stands for itself.
#
# Output seen:
#   nodes: x, stage, stage_1, stage_2
#   asked for stage_1: got the output of stage_2
#   asked for stage_2: got the output of stage_3
#   asked for stage_3: ValueError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat > "$folder/seen.py" <<'PYTHON'
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage_1, self.stage_2, self.stage_3 = (nn.Linear(n, n + 1) for n in (3, 4, 5))

    def forward(self, x):
        return self.stage_3(self.stage_2(self.stage_1(x)))


network, x = Network().eval(), torch.rand(1, 3)
outputs = {}
for name, module in network.named_children():
    module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
network(x)
print("nodes:", ", ".join(get_graph_node_names(network)[1]))
for asked in ("stage_1", "stage_2", "stage_3"):
    try:
        got = create_feature_extractor(network, [asked])(x)[asked]
    except ValueError as error:
        print(f"asked for {asked}: {type(error).__name__}")
        continue
    [name] = (name for name, output in outputs.items() if got.shape == output.shape and torch.equal(got, output))
    print(f"asked for {asked}: got the output of {name}")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/seen.py" > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
