"""The pieces of networks, against what they stand for."""

import pytest
import torch
from torch.nn import functional as F

from unpaired.networks.blocks import reflect, up_conv
from unpaired.networks.norms import InstanceNorm, LayerNorm, StandardiseLayer, adain
from unpaired.networks.patch import MultiScale


@pytest.mark.parametrize("size", [(2, 2), (9, 24), (24, 25), (31, 40)])
@pytest.mark.parametrize("biased", [True, False])
def test_up_conv_is_upsampling_then_a_convolution(size, biased):
    """Values and gradients to rounding, the border included, on either side of the size from which it is folded."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weight, bias = random(2, 5, *size), random(3, 5, 5, 5), random(3) if biased else None
    expected = F.conv2d(reflect(F.interpolate(x, scale_factor=2), 2), weight, bias)
    found = up_conv(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [t for t in (x, weight, bias) if t is not None]
    direction = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


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
        (plain_layer_norm, lambda x, b, g: StandardiseLayer.apply(x, b, g, 1e-5), (5,)),
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


def test_norms_of_a_blank_map_have_gradients():
    """Blank images are blamed for losses that are not numbers: here they are not the cause."""
    x = torch.full((2, 3, 8, 8), 0.7, requires_grad=True)
    for norm in (InstanceNorm(3), LayerNorm(3)):
        (gradient,) = torch.autograd.grad(norm(x).square().sum() + norm(x).sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("norm", [InstanceNorm(6, affine=True), LayerNorm(6)])
def test_norms_of_bf16_are_those_of_fp32(norm):
    """To the rounding of bf16 in and out: statistics are not taken in bf16."""
    x = (20 + torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=2**-7, atol=2**-7)
    assert norm(x).dtype is torch.bfloat16


@pytest.mark.parametrize("dim", [8, 16, 64])
def test_a_discriminator_of_any_width_hears_its_images(dim):
    """Scores of different images differ from the start: in narrow ones N(0, 0.02) leaves under a thousandth."""
    torch.manual_seed(0)
    D = MultiScale(3, dim, layers=3, scales=1)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (scores,) = D(x)
    assert scores.std() > 2e-3
