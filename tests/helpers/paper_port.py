"""A plain port of the paper's loop, one target at a time: the independent answer that the engine is held against.

Written from Table 1, Table 2 and Eq. 1 to 4 with stock modules (upsampling, padding, BatchNorm2d) and nothing of the
engine but its start values, so that both begin at the same point and draw the same noise.
"""

import torch
import torch.nn.functional as F
from torch import nn

TABLE_2 = [(512, 2), (512, 2), (256, 3), (256, 3), (256, 3), (256, 3), (128, 3), (128, 3), (128, 4), (128, 4)]


class SamePad(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.pad = [(kernel - 1) // 2, kernel // 2] * 2

    def forward(self, x):
        return F.pad(x, self.pad)


class PaperGenerator(nn.Module):
    def __init__(self, mode, width):
        super().__init__()
        self.mode, self.channels = mode, round(128 * width)
        self.alpha = nn.Parameter(torch.ones(self.channels * 25))
        layers, incoming = [], self.channels

        def add(out, kernel, relu=True):
            nonlocal incoming
            layers.append(nn.Conv2d(incoming, out, kernel))
            if relu:
                layers.append(nn.ReLU())
            layers.append(nn.BatchNorm2d(out, eps=1e-3))
            incoming = out

        for i, (full, kernel) in enumerate(TABLE_2):
            layers.append(nn.Upsample(scale_factor=2, mode="nearest") if i % 2 == 0 else SamePad(kernel))
            add(round(full * width), kernel)
        layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        if mode == "untrained":
            add(3, 3)
        else:
            add(round(64 * width), 3)
            layers.append(SamePad(3))
            add(round(64 * width), 3)
            layers.append(SamePad(3))
            add(3, 3, relu=False)
        self.layers = nn.Sequential(*layers)
        self.train()  # batch of one: batch norm's statistics are those of the picture

    @torch.no_grad()
    def load(self, weights):
        if "alpha" in weights:
            self.alpha.copy_(weights["alpha"])
        convs = [m for m in self.layers if isinstance(m, nn.Conv2d)]
        norms = [m for m in self.layers if isinstance(m, nn.BatchNorm2d)]
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            conv.weight.copy_(weights[f"conv{i}.weight"])
            conv.bias.copy_(weights[f"conv{i}.bias"])
            norm.weight.copy_(weights[f"norm{i}.gamma"])
            norm.bias.copy_(weights[f"norm{i}.beta"])
        return self

    def forward(self, noise):
        f = torch.ones_like(self.alpha)
        if self.mode == "untrained":
            f = self.alpha * (f + 2.0 * noise)  # additive, sigma 2, before alpha
        else:
            f = F.relu(self.alpha * (f * (1 + 0.05 * noise)))  # multiplicative, sigma 0.05
        return self.layers(f.reshape(1, self.channels, 5, 5))

    @property
    def gamma(self):
        return self.layers[-1].weight


def paper_losses(generator, network, unit, stream, num_updates, weight_others=0.01):
    """The losses before each update of one target. `network` maps normalised pictures to logits."""
    if generator.mode == "untrained":
        optimiser = torch.optim.Adamax(generator.parameters(), lr=0.002, betas=(0.9, 0.999), eps=1e-8)
    else:
        optimiser = torch.optim.SGD([generator.alpha], lr=0.01, momentum=0.1, nesterov=True)
    losses = []
    for _ in range(num_updates):
        noise = torch.randn(generator.alpha.shape, generator=stream).to(generator.alpha)
        a = F.relu(network(generator(noise)))[0]
        others = a.sum() - a[unit]
        if generator.mode == "untrained":
            regulariser = 0.01 * generator.gamma.abs().sum()
        else:
            regulariser = 0.1 * (generator.alpha**2).sum().sqrt()
        loss = -a[unit] + weight_others * others + regulariser
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses
