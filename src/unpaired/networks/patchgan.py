"""The discriminator of pix2pix, CycleGAN and BicycleGAN (Isola et al., CVPR 2017, Sec. 3.2.2)."""

from __future__ import annotations

from torch import nn

from unpaired.convolution import Conv2d
from unpaired.networks.blocks import Chain, ConvToFew, gaussian
from unpaired.networks.norms import InstanceNorm


class PatchGAN(nn.Sequential):
    """Images (B, C, H, W) -> scores of patches (B, 1, h, w): of 70x70 pixels with three `layers`.

    `layers` 4x4 convolutions of stride 2 and two of stride 1, leaky ReLU, norm on all but the first
    and the last. A norm that has its own shift takes the place of the convolution's bias.
    """

    def __init__(
        self,
        channels: int,
        dim: int = 64,
        layers: int = 3,
        norm: type[nn.Module] = InstanceNorm,
    ) -> None:
        widths = [dim * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [
            nn.Sequential(Conv2d(channels, dim, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True))
        ]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            bias = not issubclass(norm, nn.BatchNorm2d)
            conv = Conv2d(widths[i], widths[i + 1], 4, stride, 1, bias=bias)
            blocks.append(Chain(conv, norm(widths[i + 1]), nn.LeakyReLU(0.2, inplace=True)))
        super().__init__(*blocks, ConvToFew(widths[-1], 1, 4, 1, 1))
        gaussian(self)

    @staticmethod
    def smallest(layers: int, scales: int = 1) -> int:
        """The smallest side of an image that it can judge: three pixels reach the last two."""
        return 3 * 2 ** (layers + scales - 1)
