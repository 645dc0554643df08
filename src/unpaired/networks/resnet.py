"""CycleGAN's generator: residual blocks between down- and up-sampling."""

from __future__ import annotations

from torch import Tensor, nn

from unpaired.convolution import Conv2d, ConvTranspose2d
from unpaired.networks.blocks import Chain, Conv, Residual, gaussian
from unpaired.networks.norms import InstanceNorm


class ResNet(nn.Module):
    """Images (B, C_in, H, W) -> images (B, C_out, H, W) in [-1, 1]; H and W multiples of 2^downsamplings.

    Johnson et al., ECCV 2016; CycleGAN, appendix.
    c7s1-dim, convolutions of stride 2, `residuals` blocks, as many transposed convolutions, c7s1
    and tanh; instance norm. Only the 7x7 convolutions and the blocks pad by reflection.
    """

    def __init__(
        self, c_in: int, c_out: int, dim: int = 64, residuals: int = 9, downsamplings: int = 2
    ) -> None:
        super().__init__()
        widths = [dim * 2**i for i in range(downsamplings + 1)]
        self.down = nn.Sequential(
            Conv(c_in, dim, 7, 1, 3, InstanceNorm, nn.ReLU()),
            *(self._down(c, 2 * c) for c in widths[:-1]),
        )
        self.residuals = nn.Sequential(*(Residual(widths[-1]) for _ in range(residuals)))
        self.up = nn.Sequential(*(self._up(2 * c, c) for c in reversed(widths[:-1])))
        self.rgb = Conv(dim, c_out, 7, 1, 3, activation=nn.Tanh())
        gaussian(self)

    @staticmethod
    def _down(c_in: int, c_out: int) -> nn.Sequential:
        return Chain(Conv2d(c_in, c_out, 3, 2, 1), InstanceNorm(c_out), nn.ReLU())

    @staticmethod
    def _up(c_in: int, c_out: int) -> nn.Sequential:
        conv = ConvTranspose2d(c_in, c_out, 3, 2, 1, output_padding=1)
        return Chain(conv, InstanceNorm(c_out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.rgb(self.up(self.residuals(self.down(x))))

    @staticmethod
    def smallest(downsamplings: int) -> int:
        """The smallest side of an image: the blocks reflect a map of 2 pixels."""
        return 2 ** (downsamplings + 1)
