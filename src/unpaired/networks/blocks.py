"""The pieces that two methods share: convolution blocks and initialisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unpaired.convolution import Conv2d, by_taps, conv2d
from unpaired.networks.memory import finished, padded, without
from unpaired.networks.norms import InstanceNorm, adain


class Conv(nn.Module):
    """Reflection padding, convolution, norm, activation. (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        norm: Callable[[int], nn.Module] | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.padding = padding
        few = c_out <= 4 and stride == 1 and kernel > 1
        self.conv = (ConvToFew if few else Conv2d)(c_in, c_out, kernel, stride)
        self.norm = norm(c_out) if norm else nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return finished(reflected(x, self.padding, self.conv), self.norm, self.activation)


class ConvToFew(nn.Conv2d):
    """A convolution of stride 1 to a few channels, as that which gives images."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return super().forward(x)
        w, b = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
        return ToFew.apply(x, w, b, self.padding[0])


class ToFew(torch.autograd.Function):
    """conv2d(x, weight, bias, padding=padding), in whose backward pass map and gradient change places.

    A CPU's kernels go from few channels to many two to five times as fast as from many to few. In fp32 the rows of the
    kernel are channels of a convolution of lines, and added up afterwards. The same to rounding.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        if x.dtype is torch.bfloat16:
            return F.conv2d(x, weight, bias, padding=padding)
        return by_rows(x, weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        g_pad = F.pad(g, (weight.shape[2] - 1 - ctx.padding,) * 4)
        g_x = F.conv2d(g_pad, turned) if wants_x else None
        g_weight = None
        if wants_weight:
            _, swapped, _ = torch.ops.aten.convolution_backward(
                x, g_pad, turned, None, *CONVOLVED, [False, True, False]
            )
            g_weight = swapped.flip(2, 3).transpose(0, 1)
        return g_x, g_weight, g.sum((0, 2, 3)) if wants_bias else None, None


def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """`F.conv2d` by `weight` (C', C, k, k): for each of its rows C' channels, their sum a line lower each."""
    c_out, c, k, _ = weight.shape
    rows = weight.permute(2, 0, 1, 3).reshape(k * c_out, c, 1, k)
    lines = F.conv2d(x, rows.contiguous(memory_format=torch.channels_last), padding=padding)
    parts = lines.permute(0, 2, 3, 1).unflatten(3, (k, c_out))
    h = parts.shape[1] - k + 1
    y = parts[:, :h, :, 0] + (0 if bias is None else bias)
    for i in range(1, k):
        y += parts[:, i : i + h, :, i]
    return y.permute(0, 3, 1, 2)


# Stride, padding, dilation, whether transposed, padding of the output, groups: of a plain convolution
CONVOLVED = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)


class UpConv(Conv):
    """Nearest up-sampling to twice the size, then `Conv` of 5x5, as four 3x3 convolutions of the small map.

    That is 2.8 times less work. Each of the four pixels that a pixel becomes sees 3x3 of the small map, through sums of
    the kernel's taps; only the outermost, which reflection makes see more, need a correction.

    (B, C, H, W) -> (B, C', 2 H, 2 W).
    """

    def __init__(
        self, c_in: int, c_out: int, norm: Callable[[int], nn.Module], activation: nn.Module
    ) -> None:
        super().__init__(c_in, c_out, 5, 1, 2, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        y = up_conv(x, self.conv.weight, self.conv.bias)
        return finished(y, self.norm, self.activation)


def up_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(reflect(nearest(x, 2), 2), weight, bias) for a 5x5 kernel and maps of at least 2x2, to rounding.

    Maps below 8 pixels have too much border for it to pay.
    """
    if min(x.shape[2:]) < 8:
        return padded(
            x,
            lambda t: reflect(F.interpolate(t, scale_factor=2), 2),
            lambda t: conv2d(t, weight, bias),
        )
    # Each phase of the large map is a 3x3 convolution of the small one, as if padded by repetition.
    kernels = phases(
        weight,
        [
            [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]],
            [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]],
        ],
    )
    biases = None if bias is None else bias.repeat(4)
    y = padded(
        x,
        lambda t: pad(t, 1, "replicate"),
        lambda t: conv2d(t, kernels, biases),
    )

    # Reflection differs from repetition only in the outermost padding, which only the outermost pixels see, by one tap.
    def row(outer: Tensor, inner: Tensor, tap: Tensor) -> Tensor:
        outer, inner = (F.interpolate(line, scale_factor=(1.0, 2.0)) for line in (outer, inner))
        change = F.pad(inner, (2, 2, 0, 0), "reflect") - F.pad(outer, (2, 2, 0, 0), "replicate")
        return F.conv2d(change, tap[:, :, None])

    def column(outer: Tensor, inner: Tensor, tap: Tensor) -> Tensor:
        change = F.interpolate((inner - outer).transpose(2, 3), scale_factor=(1.0, 2.0))
        change = F.pad(F.pad(change, (1, 1, 0, 0), "replicate"), (1, 1, 0, 0))
        return F.conv2d(change, tap[:, :, None]).transpose(2, 3)  # lying: three times faster

    edges = list(zip(Sides.apply(x), Sides.apply(weight), strict=True))  # left, right, top, bottom
    (left, tap_l), (right, tap_r), (top, tap_t), (bottom, tap_b) = edges
    left = column(left[..., :1], left[..., 1:], tap_l[..., 0])
    right = column(right[..., 1:], right[..., :1], tap_r[..., 1])
    top = row(top[:, :, :1], top[:, :, 1:], tap_t[:, :, 0])
    bottom = row(bottom[:, :, 1:], bottom[:, :, :1], tap_b[:, :, 1])
    return Framed.apply(y, left, right, top, bottom)


def up_conv_zeros(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(nearest(x, 2)) for a 3x3 convolution padded with zeros, to rounding: four 2x2 convolutions of the small map.

    That is 2.25 times less work, and there is no border to mind: zeros stay zeros when they are enlarged.
    (B, C, H, W) -> (B, C', 2 H, 2 W).
    """
    kernels = phases(conv.weight, [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    biases = None if conv.bias is None else conv.bias.repeat(4)
    return Interleaved.apply(without(x, lambda t: conv2d(t, kernels, biases, padding=1)))


def down_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """avg_pool2d(conv(x), 2) for a 3x3 convolution padded with zeros, to rounding: one of 4x4 and stride 2.

    That is 2.25 times less work. (B, C, H, W) -> (B, C', H / 2, W / 2).
    """
    t = like(conv.weight, [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]) / 2
    sums = torch.einsum("ik,jl->ijkl", t, t).reshape(16, 9)
    kernel = (sums @ by_taps(conv.weight)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    return without(x, lambda t: conv2d(t, kernel, conv.bias, stride=2, padding=1))


def phases(weight: Tensor, taps: list[list[list[int]]]) -> Tensor:
    """(C', C, k, k) -> (4 C', C, n, n): for each pixel of the 2x2 that a pixel becomes, its kernel of the small map.

    Its taps are sums of the large kernel's: `taps` are (pixel of 2, tap of the n, tap of the k), for a side.
    """
    t = like(weight, taps)
    n = t.shape[1]
    sums = torch.einsum("pik,qjl->pqijkl", t, t).reshape(4 * n * n, -1)
    four = (sums @ by_taps(weight)).unflatten(1, (4, n, n))  # (C', 4, n, n, C)
    return four.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)


def like(x: Tensor, numbers: list[Any]) -> Tensor:
    """`x.new_tensor(numbers)`, for which no step waits."""
    return torch.tensor(numbers, dtype=x.dtype).to(x.device, non_blocking=True)


class Interleaved(torch.autograd.Function):
    """Four maps, one for each pixel of 2x2, as one; the maps of lower and right pixels begin one pixel later.

    (B, 4 C, H + 1, W + 1) -> (B, C, 2 H, 2 W), channels last.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        b, c, h, w = y.shape[0], y.shape[1] // 4, y.shape[2] - 1, y.shape[3] - 1
        four = y.permute(0, 2, 3, 1).reshape(b, h + 1, w + 1, 2, 2, c)
        z = y.new_empty(b, h, 2, w, 2, c)
        for p, q in PIXELS:
            z[:, :, p, :, q] = four[:, p : p + h, q : q + w, p, q]
        return z.view(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        b, c, h, w = g.shape[0], g.shape[1], g.shape[2] // 2, g.shape[3] // 2
        z = g.permute(0, 2, 3, 1).reshape(b, h, 2, w, 2, c)
        four = g.new_zeros(b, h + 1, w + 1, 2, 2, c)
        for p, q in PIXELS:
            four[:, p : p + h, q : q + w, p, q] = z[:, :, p, :, q]
        return four.view(b, h + 1, w + 1, 4 * c).permute(0, 3, 1, 2)


PIXELS = ((0, 0), (0, 1), (1, 0), (1, 1))


class Sides(torch.autograd.Function):
    """The two outermost columns at the left and at the right, and rows at the top and at the bottom.

    Slices would each have a gradient of the size of the map, and not channels last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.of = torch.empty_like(x, device="meta"), x.device
        return x[..., :2].clone(), x[..., -2:].clone(), x[:, :, :2].clone(), x[:, :, -2:].clone()

    @staticmethod
    def backward(ctx: Any, left: Tensor, right: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
        form, device = ctx.of
        g = torch.zeros_like(form, dtype=left.dtype, device=device)
        g[..., :2] += left
        g[..., -2:] += right
        g[:, :, :2] += top
        g[:, :, -2:] += bottom
        return g


class Framed(torch.autograd.Function):
    """Four maps, one for each pixel of 2x2, as one, and columns and rows added to its edges.

    (B, 4 C, H, W) -> (B, C, 2 H, 2 W), channels last. `F.pixel_shuffle` has the four of a channel side by side, which
    makes its gradient slow; slices that are added and joined again are copies of the map.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, left: Tensor, right: Tensor, top: Tensor, bottom: Tensor
    ) -> Tensor:
        b, c, h, w = y.shape
        pairs = y.permute(0, 2, 3, 1).reshape(b, h, w, 2, c // 2).transpose(2, 3)
        y = pairs.reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)
        y[..., :1] += left
        y[..., -1:] += right
        y[:, :, :1] += top
        y[:, :, -1:] += bottom
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        b, c, h, w = g.shape
        pairs = g.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2 * c).transpose(2, 3)
        four = pairs.reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)
        return four, g[..., :1], g[..., -1:], g[:, :, :1], g[:, :, -1:]


class Residual(nn.Module):
    """x + two 3x3 convolutions of x, no activation after the sum."""

    def __init__(self, c: int, norm: Callable[[int], nn.Module] | None = InstanceNorm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(c, c, 3, padding=1, norm=norm, activation=nn.ReLU()),
            Conv(c, c, 3, padding=1, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class AdaINResidual(nn.Module):
    """`Residual` whose two norms are AdaIN. Takes 4C numbers a sample: shift and scale of each norm."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = Conv2d(c, c, 3), Conv2d(c, c, 3)
        self.numbers = 4 * c

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        shift_1, scale_1, shift_2, scale_2 = numbers.chunk(4, dim=1)  # the shift comes first
        h = adain(reflected(x, 1, self.conv_1), shift_1, scale_1, slope=0.0)
        return x + adain(reflected(h, 1, self.conv_2), shift_2, scale_2)


class Chain(nn.Sequential):
    """Convolution, norm and activation, of which the norm's input alone is kept for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, activation = self
        return finished(without(x, conv), norm, activation)


def reflected(x: Tensor, n: int, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """conv(reflect(x, n))."""
    return padded(x, lambda t: reflect(t, n), conv) if n else without(x, conv)


def reflect(x: Tensor, n: int) -> Tensor:
    """Pads `n` pixels on each side by reflection."""
    return pad(x, n, "reflect") if n else x


def pad(x: Tensor, n: int, mode: str) -> Tensor:
    """By "reflect" or "replicate", `n` pixels on each side of what a convolution is given next, in the format of `x`:
    autocast would widen bf16 for it, on a CPU."""
    with torch.autocast(x.device.type, enabled=False):
        if torch.compiler.is_compiling():
            return F.pad(x, (n, n, n, n), mode=mode)
        return Padded.apply(x, n, mode)


class Padded(torch.autograd.Function):
    """`F.pad`, whose gradient is that of the padded map, a view of it: what stands in the margin is added in place to
    where the margin comes from. Torch's own kernel takes five to forty times as long, from a map of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int, mode: str) -> Tensor:
        ctx.n, ctx.mode = n, mode
        return F.pad(x, (n, n, n, n), mode=mode)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n, reflects = ctx.n, ctx.mode == "reflect"
        inner = g[:, :, n:-n, n:-n]
        if torch.is_grad_enabled():  # to be differentiated again, which writing in place makes slow
            name = "reflection" if reflects else "replication"
            gradient = getattr(torch.ops.aten, f"{name}_pad2d_backward")
            return gradient(g, inner, [n] * 4), None, None
        for lines in (g.movedim(2, 0), g.movedim(3, 0)):
            last = len(lines) - 1
            for i in range(n):
                at = 2 * n - i if reflects else n
                lines[at] += lines[i]
                lines[last - at] += lines[last - i]
        return inner, None, None


def kaiming(net: nn.Module) -> None:
    """Kaiming's initialisation over fan-in for convolutions and linear layers, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def gaussian(net: nn.Module, std: float = 0.02) -> None:
    """pix2pix's start: N(0, std) for all weights, N(1, std) for scales of norms, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1.0, std)


def fixed(net: nn.Module) -> nn.Module:
    """`net` with its weights turned into buffers that are not saved: a pretrained network that never learns."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return net.eval()
