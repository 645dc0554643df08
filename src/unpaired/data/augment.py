"""Second views of whole batches, on their device, each sample by its own random numbers (TUNIT).

The numbers are handed in: a view depends on an image and its numbers, not on the rest of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unpaired.config import Data

YIQ = torch.tensor(  # RGB -> luma and two of chroma
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
    dtype=torch.float64,
)
RGB = torch.linalg.inv(YIQ)


@dataclass(frozen=True)
class View:
    """An affine map, a crop that is resized to the whole, colour jitter, a mirror: TUNIT's x+.

        u = torch.rand(len(x), View.draws)
        x_tf = View()(x, u)

    Black comes in from outside. Say `jitter=None` where colour is the domain. At u = 0.5 nothing
    changes. Unlike the official transforms it resamples once, bilinearly, and the colour changes
    have a fixed order, hue being turned in YIQ.
    """

    rotation: float = 20.0  # degrees either way
    translation: float = 0.1  # of the side, either way
    shear: float = 10.0  # degrees either way
    scale: float = 0.1  # the crop's area is 1 - scale to 1 + scale of the image's
    ratio: float = 1.1  # and its ratio of width to height from 1 / ratio to ratio
    # brightness, contrast, saturation, hue (as a share of the circle), each either way
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.125)
    flip: bool = True
    draws = 13  # numbers in [0, 1) a sample

    @classmethod
    def of(cls, data: Data) -> View:
        """As the config says."""
        jitter = (0.4, 0.4, 0.4, data.hue) if data.jitter else None
        return cls(jitter=jitter, flip=data.mirrors)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] and numbers (B, draws) -> images, likewise."""
        u = u.to(x)
        affine = self.affine(u[:, :4], aspect=x.shape[-1] / x.shape[-2])
        theta = affine @ self.crop(u[:, 4:8]) @ self.mirror(u[:, 8])  # the mirror comes last
        grid = F.affine_grid(theta[:, :2], list(x.shape), align_corners=False)
        inside = (grid.abs().amax(-1) <= 1).to(x)[:, None]  # (B, 1, H, W)
        x = F.grid_sample((x + 1) / 2, grid, padding_mode="border", align_corners=False) * inside
        if self.jitter:
            x = self.colours(x, u[:, 9:])
        return x.clamp(0, 1) * 2 - 1

    # Where a pixel of the view comes from: (B, 3, 3) on (x, y, 1), sides in [-1, 1] ---------------

    def affine(self, u: Tensor, aspect: float) -> Tensor:
        """The inverse of: shear along x, turn clockwise, shift. Angles are of square pixels."""
        turn, shear, right, down = (2 * u - 1).unbind(1)
        a, k = torch.deg2rad(self.rotation * turn), torch.deg2rad(self.shear * shear).tan()
        dx, dy = 2 * self.translation * right, 2 * self.translation * down
        unshift = matrices(1, 0, -dx, 0, 1, -dy)
        unturn = matrices(a.cos(), a.sin() / aspect, 0, -a.sin() * aspect, a.cos(), 0)
        unshear = matrices(1, -k / aspect, 0, 0, 1, 0)
        return unshear @ unturn @ unshift

    def crop(self, u: Tensor) -> Tensor:
        """A window of some area, ratio and place; no side is longer than the image's."""
        size, shape, right, down = (2 * u - 1).unbind(1)
        area, ratio = 1 + self.scale * size, self.ratio**shape
        w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        return matrices(w, 0, (1 - w) * right, 0, h, (1 - h) * down)

    def mirror(self, u: Tensor) -> Tensor:
        """Half of the images."""
        return matrices(1 - 2 * (u > 0.5).to(u) * self.flip, 0, 0, 0, 1, 0)

    # Colour --------------------------------------------------------------------------------------

    def colours(self, x: Tensor, u: Tensor) -> Tensor:
        """Brightness, contrast about mean luma, saturation, hue; grey images have the first two.

        x (B, C, H, W) in [0, 1], u (B, 4).
        """
        amounts = torch.tensor(self.jitter).to(u) * (2 * u - 1)
        bright, contrast, saturation, hue = amounts[..., None, None, None].unbind(1)  # (B, 1, 1, 1)
        yiq = mix(YIQ, x) if x.shape[1] == 3 else x
        luma = (1 + bright) * yiq[:, :1]
        luma = torch.lerp(luma.mean((2, 3), keepdim=True), luma, 1 + contrast)
        if x.shape[1] == 1:
            return luma
        i, q = ((1 + bright) * (1 + contrast) * (1 + saturation) * yiq[:, 1:]).split(1, dim=1)
        cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
        return mix(RGB, torch.cat([luma, cos * i + sin * q, cos * q - sin * i], dim=1))


def mix(matrix: Tensor, x: Tensor) -> Tensor:
    """The channels of images, mixed by a matrix (C', C)."""
    return torch.einsum("ij,bjhw->bihw", matrix.to(x), x)


def matrices(*rows: Tensor | float) -> Tensor:
    """(B, 3, 3) from two rows, each entry (B,) or a number; the third is (0, 0, 1)."""
    like = next(r for r in rows if isinstance(r, Tensor))
    filled = [r if isinstance(r, Tensor) else torch.full_like(like, r) for r in (*rows, 0, 0, 1)]
    return torch.stack(filled, dim=1).view(-1, 3, 3)
