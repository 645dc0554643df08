"""The pieces of networks, against what they stand for."""

import copy
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from unpaired.convolution import Twice
from unpaired.losses import l1, r1
from unpaired.networks import blocks, memory
from unpaired.networks.blocks import (
    Conv,
    ConvToFew,
    Residual,
    UpConv,
    down_conv,
    pad,
    reflect,
    up_conv,
    up_conv_zeros,
)
from unpaired.networks.memory import padded
from unpaired.networks.norms import (
    FilterResponseNorm,
    InstanceNorm,
    LayerNorm,
    StandardiseLayer,
    adain,
)
from unpaired.networks.patch import MultiScale


@pytest.mark.parametrize("size", [(2, 2), (7, 9), (8, 24), (24, 25), (31, 40)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("k", [5, 3])
def test_up_conv_is_upsampling_then_a_convolution(k, size, biased):
    """Values and gradients to rounding, the border included, on either side of the size from which it is folded."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weight, bias = random(2, 5, *size), random(3, 5, k, k), random(3) if biased else None
    large = F.interpolate(x, scale_factor=2)
    large = reflect(large, 2) if k == 5 else F.pad(large, (1, 1, 1, 1))
    expected = F.conv2d(large, weight, bias)
    found = up_conv(x, weight, bias) if k == 5 else up_conv_zeros(x, Like(weight, bias))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [t for t in (x, weight, bias) if t is not None]
    direction = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("k, padding", [(7, 0), (7, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution_to_few_channels_is_a_convolution(k, padding, biased):
    torch.manual_seed(0)
    conv = ConvToFew(5, 3, k, padding=padding, bias=biased).double()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    found, expected = conv(x), F.conv2d(x, conv.weight, conv.bias, padding=padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction, inputs = torch.randn_like(expected), [x, *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_to_few_channels_is_differentiated_twice(padding):
    """Also as the last layer under a sum of scores, where what comes in is a constant."""
    torch.manual_seed(0)
    convs = [torch.nn.Conv2d(2, 4, 3), torch.nn.Softplus(), ConvToFew(4, 1, 3, padding=padding)]
    D = torch.nn.Sequential(*convs).double()
    plain = copy.deepcopy(D)
    plain[2].__class__ = torch.nn.Conv2d
    x = torch.randn(2, 2, 8, 7, dtype=torch.float64, requires_grad=True)
    penalties = [r1(net(x).sum((1, 2, 3)), x) for net in (D, plain)]
    for net, penalty in zip((D, plain), penalties, strict=True):
        penalty.backward(inputs=[p for p in net.parameters() if p.dim() > 1])
    for p, q in zip(D.parameters(), plain.parameters(), strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", [InstanceNorm, LayerNorm, FilterResponseNorm])
def test_what_has_no_second_derivative_says_so(norm):
    """And not only where what comes in is no constant, as torch does: half a gradient would come of it."""
    layer, x = norm(3), torch.randn(2, 3, 4, 5, requires_grad=True)
    layer(x).sum().backward()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("size", [(2, 2), (7, 9), (16, 6)])
@pytest.mark.parametrize("biased", [True, False])
def test_down_conv_is_a_convolution_then_pooling(size, biased):
    """Values, gradients and the gradients of a penalty on gradients, to rounding, also where sides are odd."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weight, bias = random(2, 5, *size), random(3, 5, 3, 3), random(3) if biased else None
    inputs = [t for t in (x, weight, bias) if t is not None]

    def all_of(y):
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs)
        return (y, *first, *second)

    found = all_of(down_conv(x, Like(weight, bias)))
    expected = all_of(F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)


class Like(NamedTuple):
    """A convolution, as far as its weights go."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def plain_adain(x, shift, scale, eps=1e-5):
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return scale[:, :, None, None] * (x - mean) / (var + eps).sqrt() + shift[:, :, None, None]


def plain_layer_norm(x, beta, gamma, eps=1e-5):
    std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
    return gamma[:, None, None] * (x - mean) / (std + eps) + beta[:, None, None]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    "plain, ours, numbers",
    [
        (plain_adain, adain, (2, 5)),
        (plain_layer_norm, lambda x, b, g: StandardiseLayer.apply(x, b, g, 1e-5, None), (5,)),
    ],
)
def test_norms_are_their_formulas(plain, ours, numbers, layout):
    """Values and all gradients to rounding, in either memory layout."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = (3 + 2 * random(2, 5, 7, 4)).contiguous(memory_format=layout)
    inputs = [t.requires_grad_() for t in (x, random(*numbers), random(*numbers))]
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    direction = random(*x.shape)
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [InstanceNorm(4, affine=True), LayerNorm(4)])
@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
def test_what_the_compiler_is_given_is_the_same(norm, slope, monkeypatch):
    norm, x = copy.deepcopy(norm).double(), torch.randn(3, 4, 6, 5, dtype=torch.float64)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    inputs = [x.requires_grad_(), *norm.parameters()]
    each = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda now=compiling: now)
        y = norm(x, slope=slope)
        each.append([y, *torch.autograd.grad(y.pow(3).sum(), inputs)])
    for a, b in zip(*each, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("kind", [InstanceNorm, LayerNorm])
def test_blocks_are_the_plain_chain(kind, monkeypatch):
    """Same values and gradients as the plain chain."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        *(Conv(4, 4, 3, 1, 1, kind, torch.nn.ReLU()) for _ in range(3)),
        UpConv(4, 4, kind, torch.nn.ReLU()),
    ).double()
    x = torch.randn(2, 4, 26, 26, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = [x, *net.parameters()]
    monkeypatch.setattr(memory, "LEAST", 0)
    found = net(x)
    ours = torch.autograd.grad(found.square().sum(), inputs, allow_unused=True)
    monkeypatch.setattr(memory, "LEAST", 1e9)
    monkeypatch.setattr(blocks, "padded", lambda x, pad, conv: conv(pad(x)))
    monkeypatch.setattr(blocks, "finished", lambda y, norm, activation: activation(norm(y)))
    expected = net(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    plain = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_a_blank_map_have_gradients(dtype):
    """Blank images are blamed for losses that are not numbers: here they are not the cause."""
    x = torch.full((2, 3, 8, 8), 0.7, dtype=dtype, requires_grad=True)
    for norm in (InstanceNorm(3), LayerNorm(3)):
        (gradient,) = torch.autograd.grad(norm(x).square().sum() + norm(x).sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", [InstanceNorm(6, affine=True), LayerNorm(6)])
def test_norms_of_bf16_are_those_of_fp32(norm, batch):
    """To the rounding of bf16 in and out: statistics are not taken in bf16, nor are gradients of scale and shift."""
    torch.manual_seed(0)
    x = (20 + torch.randn(batch, 6, 64, 64)).bfloat16().requires_grad_()
    g = torch.randn_like(x)
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        y = norm(x.to(dtype), slope=0.2)
        assert y.dtype is dtype
        seen[dtype] = [y, *torch.autograd.grad(y, [x, *norm.parameters()], g.to(dtype))]
    torch.testing.assert_close(norm(x[..., 1:]), norm(x[..., 1:].contiguous()))
    for part in (x, x[..., 1:]):
        learning = norm(part, slope=0.2)
        with torch.no_grad():  # sample by sample
            assert torch.equal(norm(part, slope=0.2), learning)
    close = 2**-7
    for wide, narrow in zip(seen[torch.float32], seen[torch.bfloat16], strict=True):
        size = wide.detach().abs().max().item()
        torch.testing.assert_close(narrow.float(), wide.float(), rtol=close, atol=close * size)


@pytest.mark.parametrize("dim", [8, 16, 64])
def test_a_discriminator_of_any_width_hears_its_images(dim):
    """Scores of different images differ from the start: in narrow ones N(0, 0.02) leaves under a thousandth."""
    torch.manual_seed(0)
    D = MultiScale(3, dim, layers=3, scales=1)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (scores,) = D(x)
    assert scores.std() > 2e-3


@pytest.fixture
def always(monkeypatch):
    """Maps of any size are made again."""
    monkeypatch.setattr(memory, "LEAST", 0)


def kept(net, x):
    """How much is kept for the backward pass, and the output, in maps of the size of `x`."""
    net(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        y = net(x)
    assert y.requires_grad
    return sum(e.self_cpu_memory_usage for e in noted.key_averages()) / x.nbytes


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize(("n", "size"), [(1, (2, 3)), (2, (3, 4)), (3, (4, 9)), (1, (8, 8))])
def test_padding_before_a_convolution(mode, n, size):
    """Values, gradient and its derivative are those of torch's, down to the smallest map that reflects."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    results = []
    for padding in (pad, lambda t, n, mode: F.pad(t, (n,) * 4, mode=mode)):
        y = F.conv2d(padding(x, n, mode), weight)
        (g,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        (twice,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append([y, g, twice, *torch.autograd.grad(twice.pow(3).sum(), (x, weight))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_a_padded_map_is_made_again_and_can_be_derived_twice(always):
    weight = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    calls = []

    def pad(t):
        calls.append(t)
        return reflect(t, 1)

    def f(x, weight):
        return padded(x, pad, lambda t: F.conv2d(t, weight))

    y = f(x, weight)
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2  # not kept
    assert torch.autograd.gradcheck(f, (x, weight)) and torch.autograd.gradgradcheck(f, (x, weight))
    with torch.no_grad():
        assert torch.equal(f(x, weight), y)


def test_behind_a_norm_nothing_but_the_norms_input_is_kept(always):
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    net = torch.nn.Sequential(
        *(Conv(8, 8, 3, 1, 1, InstanceNorm, torch.nn.ReLU()) for _ in range(4))
    )
    assert kept(net, x) < 4 + 1 + 0.1  # where each convolution, norm and ReLU would keep one: 12.5


def test_a_block_that_is_run_again_keeps_its_input(always):
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    net = torch.nn.Sequential(*(Residual(8) for _ in range(4)))
    before, given = kept(net, x), net(x)
    wanted = torch.autograd.grad(given.square().sum(), [x, *net.parameters()])
    memory.checkpointed(net)
    assert before > 8 and kept(net, x) < 4 + 1 + 0.1
    y = net(x)
    assert torch.equal(y, given)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), [x, *net.parameters()]), wanted, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_leaky_relu_without_a_norm_keeps_one_map(always):
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    leaky = torch.nn.LeakyReLU(0.2, inplace=True)
    net = torch.nn.Sequential(*(Conv(8, 8, 3, 1, 1, activation=leaky) for _ in range(4)))
    assert kept(net, x) < 4 + 0.1  # the last one is the output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_channels_last(dtype):
    """One that is contiguous makes all gradients before it so: every kernel on its way then copies maps to and fro."""
    last = {"memory_format": torch.channels_last}
    x = torch.randn(2, 8, 16, 16).to(dtype).contiguous(**last).requires_grad_()
    weight = torch.randn(4, 8, 5, 5).to(dtype).contiguous(**last)
    three = torch.nn.Conv2d(8, 4, 3, padding=1).to(dtype=dtype, **last)
    few = ConvToFew(8, 3, 7).to(dtype=dtype, **last)
    target = torch.zeros_like(x)
    losses = {
        "l1": lambda: l1(x, target),
        "up": lambda: up_conv(x, weight, None).square().sum(),
        "up, zeros": lambda: up_conv_zeros(x, three).square().sum(),
        "down": lambda: down_conv(x, three).square().sum(),
        "to few": lambda: few(x).square().sum(),
        "adain": lambda: adain(x, *torch.ones(2, 2, 8)).square().sum(),
        "layer norm": lambda: LayerNorm(8)(x, slope=0.2).square().sum(),
    }
    for name, loss in losses.items():
        (g,) = torch.autograd.grad(loss(), x)
        assert g.is_contiguous(**last), name


def penalty_gradients(D, x, twice):
    """Of a penalty and a loss of scores: by D's weights."""
    with Twice() if twice else nullcontext():
        scores = D(x)
        loss = scores.square().mean() + (r1(scores, x) if twice else plain_r1(scores, x))
    return loss, torch.autograd.grad(loss, list(D.parameters()))


def plain_r1(scores, x):
    (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return 0.5 * g.square().flatten(1).sum(1).mean()


class PlainFilterResponseNorm(FilterResponseNorm):
    def forward(self, x):
        rms = (x.square().mean((2, 3), keepdim=True) + self.eps).sqrt()
        return torch.maximum(self.gamma * x / rms + self.beta, self.tau)


@pytest.mark.parametrize("again", [False, True])
def test_a_penalty_has_the_gradients_of_the_plain_one(again, monkeypatch):
    """Second derivatives of convolutions, strided and not, and of filter response norm; also of blocks run again."""
    monkeypatch.setattr(memory, "LEAST", 0)
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), FilterResponseNorm(6))
    rest = [torch.nn.Conv2d(6, 4, 4, 2, 1, bias=False), FilterResponseNorm(4)]
    D = torch.nn.Sequential(block, *rest, torch.nn.Conv2d(4, 1, 4)).double()
    for p in D.parameters():
        torch.nn.init.normal_(p, std=0.5)
    plain = copy.deepcopy(D)
    for norm in (plain[0][1], plain[2]):
        norm.__class__ = PlainFilterResponseNorm
    if again:
        memory.checkpointed(D)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (a, found), (b, expected) = penalty_gradients(D, x, True), penalty_gradients(plain, x, False)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_a_penalty_makes_no_convolution_as_large_as_its_maps():
    D = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 1, 3))
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as trace:
        penalty_gradients(D, x, True)
    kernels = [e.input_shapes[1] for e in trace.events() if e.name == "aten::convolution"]
    assert kernels and all(kernel[2] == 3 for kernel in kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filter_response_norm_of_bf16_has_statistics_in_fp32(dtype):
    torch.manual_seed(0)
    norm, x = FilterResponseNorm(4), (100 * torch.randn(2, 4, 16, 16)).to(dtype)
    y = norm(x)
    assert y.dtype is dtype
    expected = PlainFilterResponseNorm.forward(norm, x.float())
    torch.testing.assert_close(
        y.float(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5
    )
