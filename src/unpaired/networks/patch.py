"""Discriminators that judge patches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.networks.blocks import Conv, gaussian, kaiming


class MultiScale(nn.Module):
    """A patch discriminator at each of `scales` sizes, half the one before (MUNIT, appendix B).

    Each: `layers` 4x4 convolutions of stride 2, channels doubling from `dim`, no norm, leaky ReLU; then a 1x1
    convolution.

    It starts from N(0, 0.02) as the official one, from Kaiming's initialisation where it is narrower than the official
    64 channels: there 0.02 all but stops the signal, and D learned next to nothing in 500 steps (docs/log.md).
    """

    def __init__(self, channels: int, dim: int = 64, layers: int = 4, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(self._scale(channels, dim, layers) for _ in range(scales))
        if dim < 64:
            kaiming(self)
        else:
            gaussian(self)

    @staticmethod
    def _scale(channels: int, dim: int, layers: int) -> nn.Sequential:
        widths = [channels] + [dim * 2**i for i in range(layers)]
        convs = [
            Conv(a, b, 4, stride=2, padding=1, activation=nn.LeakyReLU(0.2, inplace=True))
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        return nn.Sequential(*convs, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) -> a map of scores (B, 1, h, w) from each scale, finest first."""
        scores = []
        for scale in self.scales:
            scores.append(scale(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return scores

    @staticmethod
    def smallest(layers: int, scales: int) -> int:
        """The smallest side of an image that `layers` at `scales` can judge: the last reflects a map of 2 pixels."""
        return 2 ** (layers + scales - 1)
