"""The U-Net of pix2pix and BicycleGAN (Isola et al., CVPR 2017, Sec. 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d, ConvTranspose2d
from unpaired.networks.blocks import gaussian


class ImageNorm(nn.BatchNorm2d):
    """Batch norm as it is with a batch of one, for each image by itself, in training and in use.

    The running averages of published files are kept with it, and used by nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:  # the same, without a copy
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class UNet(nn.Module):
    """Images (B, C_in, H, W) -> images (B, C_out, H, W) in [-1, 1]; sides multiples of 2^levels.

    `levels` 4x4 convolutions of stride 2 down and as many transposed ones up, each of which also
    sees the map of its size from the way down. No norm on the outermost level, nor at the bottom
    of the way down. A code of `z_dim` numbers, if there is one, enters every level of the way down.
    The maps from the way down stand before those of the way up (pix2pix) or after (BicycleGAN):
    `skip_last` matters to checkpoints alone.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        dim: int = 64,
        levels: int = 8,
        norm: type[nn.Module] = nn.BatchNorm2d,
        z_dim: int = 0,
        skip_last: bool = False,
    ) -> None:
        super().__init__()
        self.skip_last = skip_last
        self.widths = [dim * min(2**i, 8) for i in range(levels)]
        bias = not issubclass(norm, nn.BatchNorm2d)  # which has a shift of its own
        bottom = levels - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(zip([c_in, *self.widths], self.widths, strict=False)):
            before = [nn.LeakyReLU(0.2)] if i else []
            conv = Conv2d(a + z_dim, b, 4, 2, 1, bias=bias)
            after = [norm(b)] if 0 < i < bottom else []
            self.down.append(nn.Sequential(*before, conv, *after))

            skip = b if i < bottom else 0
            out = a if i else c_out
            up = ConvTranspose2d(b + skip, out, 4, 2, 1, bias=bias or not i)
            self.up.append(nn.Sequential(nn.ReLU(), up, norm(out) if i else nn.Tanh()))
        gaussian(self)

    def forward(
        self, x: Tensor, z: Tensor | None = None, noise: Sequence[Tensor] = (), dropout: float = 0.5
    ) -> Tensor:
        """`z` (B, z_dim); `noise`: uniform numbers of the shapes of `dropped`, from the bottom up.

        Where a number is below `dropout` an element is dropped; without `noise` none is.
        """
        skips = []
        for down in self.down:
            x = down(with_code(x, z))
            skips.append(x)
        skips.pop()
        drops = iter(noise)
        for up in reversed(self.up):
            x = up(x)
            if (u := next(drops, None)) is not None:
                x = x * (u >= dropout) / (1 - dropout)
            if skips:
                x = torch.cat([x, skips.pop()] if self.skip_last else [skips.pop(), x], dim=1)
        return x

    def dropped(self, x: Tensor, layers: int = 3) -> list[tuple[int, ...]]:
        """The shapes of the first maps on the way up, for images `x`."""
        n, _, h, w = x.shape
        inner = range(len(self.widths) - 1, 0, -1)[:layers]
        return [(n, self.widths[i - 1], h >> i, w >> i) for i in inner]


def with_code(x: Tensor, z: Tensor | None) -> Tensor:
    """Maps x (B, C, H, W), a code z (B, n) repeated at every position -> (B, C + n, H, W)."""
    if z is None:
        return x
    return torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
