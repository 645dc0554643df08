"""Convolutions of 3x3 and 4x4 by tiles: Winograd's F(4x4, 3x3) and F(3x3, 4x4), a quarter of the products.

A tile is 4x4 or 3x3 positions of the output, which see 6x6 of the input. In other coordinates of the tile (B of the
input, G of the kernel, A of the output; all of them for rows and columns alike) the convolution is a product for each
of 36 numbers: y = A [(G w) (B x)], and its gradients are the same three in reverse, g_x = B' [(G w) (A' g)] and
g_w = G' [(B x) (A' g)].

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.3. In fp32 the result is within
3e-6 of its norm, where torch's convolutions are within 1e-6; bf16 is too coarse for it.

Maps are (B, C, H, W), channels last. Tiles are worked through in parts, as many as the heap keeps and hands out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LAST = torch.channels_last
SEEN = 6  # side of what a tile sees
NUMBERS = SEEN**2
ROOM = 2**22  # numbers of the tiles that are worked at once, or one row of them


def powers(n: int) -> Tensor:
    """Polynomials of n coefficients at six points, the last of which is infinite: (6, n)."""
    finite = torch.tensor([0, 1, -1, 2, -2], dtype=torch.float64)[:, None] ** torch.arange(n)
    return torch.cat([finite, torch.eye(n, dtype=torch.float64)[-1:]])


B = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
SCALES = torch.tensor([1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24, 1], dtype=torch.float64)
# By the side of the kernel
G = {k: SCALES[:, None] * powers(k) for k in (3, 4)}
A = {k: powers(SEEN - k + 1).T for k in (3, 4)}


def pays(images: int, h: int, w: int, c: int, c_out: int, k: int) -> bool:
    """Whether tiles are faster for an output of h x w: where channels are many, and tiles enough for their kernel."""
    tile = SEEN - k + 1
    tiles = images * -(-h // tile) * -(-w // tile)
    least, share = (2**15, 4) if k == 3 else (2**17, 8)
    return min(c, c_out) >= 128 and c * c_out >= least and share * tiles >= max(c, c_out)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """`F.conv2d` by `weight` (C', C, k, k), k 3 or 4."""
    t = Tiling(x, weight, padding)
    seen, kernel = t.seen(x), t.kernel(weight)
    shape = t.b, t.c_out, t.tile * t.down, t.tile * t.across
    y = torch.empty(shape, dtype=x.dtype, memory_format=LAST)
    tiles = t.tiles(y.permute(0, 2, 3, 1))
    p, q = t.room(x), t.room(x)
    for part in t.parts():
        u = transformed(B, copied(seen[:, :, *part], p), q, p)
        v = transformed(A[t.k], products(u, kernel.mT, q), p, q)
        tiles[:, :, *part] = v.view_as(tiles[:, :, *part])
    y = y if bias is None else y.add_(bias[:, None, None])
    if y.shape[2:] == (t.h, t.w):
        return y
    return y[:, :, : t.h, : t.w].clone(memory_format=LAST)  # no view: it may be changed in place


def of_input(g: Tensor, weight: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of an input `x`, of which the shape matters alone, from that of the output (B, C', h, w)."""
    t = Tiling(x, weight, padding)
    tiles, kernel = t.tiles(t.given(g)), t.kernel(weight)
    g_x = g.new_zeros(t.b, t.down + 1, t.tile, t.across + 1, t.tile, t.c)
    p, q = t.room(g), t.room(g)
    for part in t.parts():
        v = transformed(A[t.k].T, copied(tiles[:, :, *part], p), q, p)
        u = transformed(B.T, products(v, kernel, q), p, q)
        t.add_patches(g_x, u, part)
    (top, left), (h, w) = padding, x.shape[2:]
    return g_x.flatten(3, 4).flatten(1, 2)[:, top : top + h, left : left + w].permute(0, 3, 1, 2)


def of_kernel(g: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a kernel, of which the shape matters alone."""
    t = Tiling(x, weight, padding)
    tiles, seen = t.tiles(t.given(g)), t.seen(x)
    g_kernel = g.new_empty(NUMBERS, t.c_out, t.c)
    p, q, r = t.room(g), t.room(g), t.room(g)
    for i, part in enumerate(t.parts()):
        v = transformed(A[t.k].T, copied(tiles[:, :, *part], p), q, p)
        u = transformed(B, copied(seen[:, :, *part], r), q, r)
        rows, columns = matrices(v, t.c_out).mT, matrices(u, t.c)
        g_kernel.baddbmm_(
            rows, columns, beta=float(i > 0)
        )  # the first takes the place of what is there
    taps = transformed(G[t.k].T, g_kernel.view(SEEN, SEEN, -1))
    return taps.view(t.k, t.k, t.c_out, t.c).permute(2, 3, 0, 1).contiguous(memory_format=LAST)


class Tiling:
    """How the output of a convolution is divided: of each of `b` images `down` rows of `across` tiles.

    All are whole: what the input lacks is zeros, and what the output has too much is cut off.
    """

    def __init__(self, x: Tensor, weight: Tensor, padding: Sequence[int]) -> None:
        self.b, self.c, height, width = x.shape
        self.c_out, self.padding, self.k = len(weight), padding, weight.shape[2]
        self.tile = SEEN - self.k + 1
        self.h, self.w = (height + 2 * padding[0] - self.k + 1, width + 2 * padding[1] - self.k + 1)
        self.down, self.across = -(-self.h // self.tile), -(-self.w // self.tile)

    @staticmethod
    def whole(x: Tensor, before: Sequence[int], height: int, width: int) -> Tensor:
        """Maps (B, h, w, C) of that size, in zeros."""
        (top, left), (h, w) = before, x.shape[1:3]
        rest = (0, 0, left, width - w - left, top, height - h - top)
        return (F.pad(x, rest) if any(rest) else x).contiguous()

    def seen(self, x: Tensor) -> Tensor:
        """What each tile sees: (6, 6, B, down, across, C)."""
        height, width = (self.tile * (n - 1) + SEEN for n in (self.down, self.across))
        x = self.whole(x.permute(0, 2, 3, 1), self.padding, height, width)
        image, line, pixel, _ = x.stride()
        strides = (line, pixel, image, self.tile * line, self.tile * pixel, 1)
        return x.as_strided((SEEN, SEEN, self.b, self.down, self.across, self.c), strides)

    def given(self, g: Tensor) -> Tensor:
        """The gradient of the output as whole maps (B, H, W, C')."""
        return self.whole(
            g.permute(0, 2, 3, 1), (0, 0), self.tile * self.down, self.tile * self.across
        )

    def tiles(self, y: Tensor) -> Tensor:
        """Whole maps (B, H, W, C') by tile: (tile, tile, B, down, across, C')."""
        return y.view(self.b, self.down, self.tile, self.across, self.tile, -1).permute(
            2, 4, 0, 1, 3, 5
        )

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Images and their rows of tiles: of several images all rows, or some of one's."""
        rows = max(1, ROOM // (NUMBERS * self.across * max(self.c, self.c_out)))
        images, rows = max(1, rows // self.down), min(rows, self.down)
        for i in range(0, self.b, images):
            for row in range(0, self.down, rows):
                yield slice(i, min(i + images, self.b)), slice(row, min(row + rows, self.down))

    def room(self, like: Tensor) -> Tensor:
        """For the numbers of the largest part."""
        images, rows = next(self.parts())
        tiles = images.stop * rows.stop * self.across
        return like.new_empty(NUMBERS * tiles * max(self.c, self.c_out))

    def add_patches(self, x: Tensor, u: Tensor, part: tuple[slice, slice]) -> None:
        """To x (B, down + 1, tile, across + 1, tile, C) what each tile gives to the four that its patch enters."""
        images, rows = part
        u = u.view(SEEN, SEEN, images.stop - images.start, rows.stop - rows.start, self.across, -1)
        n = self.tile
        for i, high in enumerate((n, SEEN - n)):
            for j, wide in enumerate((n, SEEN - n)):
                reached = u[n * i :, n * j :][:high, :wide].permute(2, 3, 0, 4, 1, 5)
                below, beside = slice(rows.start + i, rows.stop + i), slice(j, self.across + j)
                x[images, below, :high, beside, :wide] += reached

    def kernel(self, weight: Tensor) -> Tensor:
        """G w: (C', C, k, k) -> (36, C', C)."""
        taps = weight.permute(2, 3, 0, 1).reshape(self.k, self.k, -1)
        return transformed(G[self.k], taps).view(NUMBERS, *weight.shape[:2])


def copied(x: Tensor, room: Tensor) -> Tensor:
    """(n, n, ...) -> (n, n, N)."""
    return room[: x.numel()].view(x.shape).copy_(x).view(len(x), len(x), -1)


def transformed(
    t: Tensor, x: Tensor, between: Tensor | None = None, room: Tensor | None = None
) -> Tensor:
    """The transform t (m, n) of rows and columns: (n, n, N) -> (m, m, N). `room` may be that of x.

    One after the other: both at once, as m^2 by n^2, would be three times the products.
    """
    (m, n), size = t.shape, x.shape[2]
    t = t.to(x.dtype)
    between = x.new_empty(m * n * size) if between is None else between[: m * n * size]
    room = x.new_empty(m * m * size) if room is None else room[: m * m * size]
    torch.mm(t, x.view(n, -1), out=between.view(m, -1))
    return torch.bmm(t.expand(m, m, n), between.view(m, n, -1), out=room.view(m, m, -1))


def products(u: Tensor, kernel: Tensor, room: Tensor) -> Tensor:
    """For each of 36 numbers a product: (6, 6, tiles C), (36, C, C') -> (6, 6, tiles C')."""
    u = matrices(u, kernel.shape[1])
    out = room[: NUMBERS * u.shape[1] * kernel.shape[2]].view(NUMBERS, u.shape[1], -1)
    return torch.bmm(u, kernel, out=out).view(SEEN, SEEN, -1)


def matrices(u: Tensor, c: int) -> Tensor:
    """(6, 6, tiles C) -> (36, tiles, C)."""
    return u.view(NUMBERS, -1, c)
