"""Inception-v3 up to its pooled features, with the pooling of the weights that FID is defined on.

Szegedy et al., CVPR 2016. The weights of 2015-12-05 (1,008 classes) differ from later ones in three things: average
pooling leaves out the padding, the last block pools by the maximum, and the input is in [-1, 1]. Names are those of the
published PyTorch file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.errors import DataProblem
from unpaired.networks.blocks import fixed

Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the size unless it strides or is `valid`."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, valid: bool = False):
        super().__init__()
        k = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride > 1 else (k[0] // 2, k[1] // 2)
        self.conv = nn.Conv2d(c_in, c_out, k, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Narrow(nn.Module):
    """Mixed_5b, 5c, 5d: 1x1, 5x5, twice 3x3, pooled."""

    def __init__(self, c_in: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c_in, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(c_in, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c_in, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        wide = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(mean_pool(x))], 1)


class Halve(nn.Module):
    """Mixed_6a."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c_in, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class Crossed(nn.Module):
    """Mixed_6b to 6e: 7x7 taken apart into rows and columns."""

    def __init__(self, c: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, c, 1), Conv(c, c, row)
        self.branch7x7_3 = Conv(c, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, c, 1), Conv(c, c, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(c, c, row), Conv(c, c, column)
        self.branch7x7dbl_5 = Conv(c, 192, row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(mean_pool(x))], 1)


class HalveAgain(nn.Module):
    """Mixed_7a."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, 2)], 1)


class Split(nn.Module):
    """Mixed_7b, 7c: 3x3 taken apart into a row and a column side by side."""

    def __init__(self, c_in: int, largest: bool) -> None:
        super().__init__()
        self.largest = largest  # pooled by the maximum, in the last block
        self.branch1x1 = Conv(c_in, 320, 1)
        self.branch3x3_1 = Conv(c_in, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(c_in, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.largest else mean_pool(x)
        return torch.cat(
            [
                self.branch1x1(x),
                *(self.branch3x3_2a(single), self.branch3x3_2b(single)),
                *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """Images (B, C, 299, 299) in [-1, 1] -> pooled features (B, 2048)."""

    side = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            Narrow(192, 32),
            Narrow(256, 64),
            Narrow(288, 64),
        )
        self.Mixed_6a = Halve(288)
        self.Mixed_6b, self.Mixed_6c = Crossed(128), Crossed(160)
        self.Mixed_6d, self.Mixed_6e = Crossed(160), Crossed(192)
        self.Mixed_7a = HalveAgain()
        self.Mixed_7b, self.Mixed_7c = Split(1280, False), Split(2048, True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_1a_3x3(x.expand(-1, 3, -1, -1))
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x)), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def load_inception(tensors: Mapping[str, Tensor], said: str) -> Inception:
    """From the tensors of the file that FID is defined on; `said` names it. Raises `DataProblem` for another."""
    classes = tensors.get("fc.weight")
    if classes is not None and len(classes) != 1008:
        raise DataProblem(
            f"{said} holds Inception-v3 of {len(classes):,} classes, not that of 1,008 on which FID is defined: "
            "leave the file out to fetch those (--features inception)."
        )
    net = Inception()
    own = net.state_dict()
    lacking = [
        n
        for n, p in own.items()
        if not n.endswith("tracked") and (n not in tensors or tensors[n].shape != p.shape)
    ]
    if lacking:
        raise DataProblem(
            f"{said} lacks {lacking[0]} of Inception-v3: name another file, or --features inception to fetch it."
        )
    net.load_state_dict({n: tensors.get(n, p) for n, p in own.items()})
    return fixed(net)  # type: ignore[return-value]
