"""Small networks of one's own, and what dgn makes of them."""

import torch
from torch import nn

from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import load_weights

PX = 32


class Own(nn.Module):
    """Submodules by name, and a function that runs them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


class Plain(nn.Module):
    """A stem, a norm, a ReLU and a head. At module level, so that it can be pickled."""

    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 6, 3, 2, bias=False), nn.BatchNorm2d(6)
        self.relu, self.fc = nn.ReLU(), nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))


def conv(channels=4, kernel=8):
    """A stem that makes a map of 4 x 4 of pictures of `PX`."""
    return nn.Conv2d(3, channels, kernel, 8)


def network(model, **settings):
    return Network(model, **{"size": PX, "mean": 0.5, "std": 0.25, **settings})


def layers(model, **settings):
    return network(model, **settings).layers


def frozen(model, dtype=torch.float32, **settings):
    return FrozenNetwork(load_weights(network(model, **settings)), dtype=dtype)


def seeded(model, seed=0):
    """The module with random weights and statistics that a norm shows."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) / max(1, parameter[0].numel()) ** 0.5)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=stream) + 0.5)
    return model.eval()


def pictures(count=2, px=PX, channels=3, seed=1):
    return torch.rand(count, channels, px, px, generator=torch.Generator().manual_seed(seed))
