"""SqueezeNet 1.1 without its classifier (Iandola et al., 2016), under the names of the published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fire(nn.Module):
    """A 1x1 convolution squeezes, a 1x1 and a 3x3 expand side by side."""

    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


def squeezenet() -> nn.Sequential:
    """Normalised images (B, 3, H, W) -> (B, 512, h, w), about a sixteenth of the sides; 17 px at least."""
    pool = [nn.MaxPool2d(3, stride=2, ceil_mode=True) for _ in range(3)]
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool[0]),
        *(Fire(64, 16, 64), Fire(128, 16, 64), pool[1]),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool[2]),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )


class SqueezeFeatures(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> (B, 512): the last features, averaged over positions, of length sqrt(512).

    Their own length is in the tens, which the cube in KID's kernel would turn into thousands.
    """

    side = 128  # px; trained at 224, which takes three times as long
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet()
        colours = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        self.register_buffer("mean", colours[0], persistent=False)
        self.register_buffer("std", colours[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        return F.normalize(self.features(x).mean((2, 3)), dim=1) * 512**0.5
