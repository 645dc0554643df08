"""The pieces of networks, against what they stand for."""

import pytest
import torch
from torch.nn import functional as F

from unpaired.networks.blocks import reflect, up_conv


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
