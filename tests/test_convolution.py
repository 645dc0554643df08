"""Convolutions by matrix products, against torch's own."""

import copy

import pytest
import torch
from torch.nn import functional as F

from unpaired import convolution, winograd
from unpaired.convolution import Conv2d, ConvTranspose2d, Twice, conv2d
from unpaired.losses import r1

LAST = torch.channels_last
# Batch, side of the map, channels in and out, kernel, stride, padding; how much of it is products
SHAPES = {
    "tiny": (2, (2, 3), 3, 64, 3, 1, 1),
    "one position": (2, (4, 4), 6, 16, 4, 1, 0),
    "tiny, halved": (1, (5, 6), 4, 32, 4, 2, 1),
    "its kernel alone": (2, (6, 4), 4, 32, 3, 1, 1),
    "its kernel, halved": (2, (9, 8), 4, 16, 4, 2, 1),
    "its kernel, to 1x1 padded": (1, (1, 1), 4, 3, 3, 1, 1),
    "none": (2, (12, 12), 4, 4, 3, 1, 1),
}
TINY = ("tiny", "one position", "tiny, halved")


@pytest.fixture(autouse=True)
def however_few_weights(monkeypatch):
    monkeypatch.setattr(convolution, "LEAST", 0)


def random(*shape, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype)
    return (x.contiguous(memory_format=LAST) if x.dim() == 4 else x).requires_grad_()


def as_if_faster(x, weight, how):
    return weight.shape[2:] == (3, 3) and list(how.stride) == [1, 1]


def agree(found, expected, inputs):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, direction) for y in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        if a.dim() == 4:
            assert a.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_a_convolution_is_torchs(name, biased):
    b, size, c_in, c_out, k, stride, padding = SHAPES[name]
    torch.manual_seed(0)
    x, weight = random(b, c_in, *size), random(c_out, c_in, k, k)
    inputs = [x, weight, *([random(c_out)] if biased else [])]
    agree(
        conv2d(*inputs, stride=stride, padding=padding),
        F.conv2d(*inputs, stride=stride, padding=padding),
        inputs,
    )


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("c_in", [64, 16, 4])
@pytest.mark.parametrize(("k", "more"), [(4, 0), (3, 1)])
def test_a_transposed_convolution_is_torchs(k, more, c_in, biased):
    torch.manual_seed(0)
    net = ConvTranspose2d(c_in, 5, k, 2, 1, output_padding=more, bias=biased)
    net = net.to(dtype=torch.float64, memory_format=LAST)
    plain = copy.deepcopy(net)
    plain.__class__ = torch.nn.ConvTranspose2d
    x = random(2, c_in, 2, 3)
    y, z = net(x), plain(x)
    torch.testing.assert_close(y, z, rtol=0, atol=1e-12)
    direction = torch.randn_like(z)
    found = torch.autograd.grad(y, [x, *net.parameters()], direction)
    expected = torch.autograd.grad(z, [x, *plain.parameters()], direction)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_map_smaller_than_its_kernel_is_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        conv2d(random(1, 2, 2, 2), random(8, 2, 4, 4))


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("twice", [True, False])
def test_a_penalty_on_small_maps_is_torchs(twice, tiles, monkeypatch):
    """Second derivatives, under `Twice` and by autograd; by tiles too, as if these were faster."""
    if tiles:
        monkeypatch.setattr(convolution, "tiled", as_if_faster)
    torch.manual_seed(0)
    layers = [Conv2d(3, 48, 4, 2, 1), torch.nn.Softplus(), Conv2d(48, 8, 3, 1, 1)]
    layers += [torch.nn.Softplus(), Conv2d(8, 8, 4, 1, 0)]
    D = torch.nn.Sequential(*layers).to(dtype=torch.float64, memory_format=LAST)
    plain = copy.deepcopy(D)
    for conv in plain[::2]:
        conv.__class__ = torch.nn.Conv2d
    x = random(2, 3, 8, 8)
    losses = []
    for net, fast in (D, True), (plain, False):
        with Twice() if twice and fast else torch.enable_grad():
            scores = net(x)
        if twice and fast:
            penalty = r1(scores, x)
        else:
            (g,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
            penalty = 0.5 * g.square().flatten(1).sum(1).mean()
        loss = penalty + scores.square().mean()
        losses.append((loss, torch.autograd.grad(loss, list(net.parameters()))))
    (a, found), (b, expected) = losses
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("transposed", [False, True])
def test_autocast_narrows_it_as_torchs(transposed):
    torch.manual_seed(0)
    net = ConvTranspose2d(64, 8, 4, 2, 1) if transposed else Conv2d(8, 64, 4, 2, 1)
    plain = copy.deepcopy(net)
    plain.__class__ = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    x = (
        random(1, 64, 2, 2, dtype=torch.float32)
        if transposed
        else random(1, 8, 8, 8, dtype=torch.float32)
    )
    with torch.autocast("cpu", torch.bfloat16):
        y, z = net(x), plain(x)
    assert y.dtype is z.dtype is torch.bfloat16
    direction = torch.randn_like(z)
    found = torch.autograd.grad(y, [x, *net.parameters()], direction)
    expected = torch.autograd.grad(z, [x, *plain.parameters()], direction)
    for a, b in zip((y, *found), (z, *expected), strict=True):
        assert a.dtype is b.dtype
        assert (a - b).norm() <= 5e-3 * b.norm()


@pytest.mark.parametrize("name", SHAPES)
def test_small_maps_go_through_products(name):
    b, size, c_in, c_out, k, stride, padding = SHAPES[name]
    x, weight = (
        random(*shape, dtype=torch.float32) for shape in ((b, c_in, *size), (c_out, c_in, k, k))
    )
    with torch.profiler.profile() as trace:
        conv2d(x, weight, None, stride, padding).sum().backward()
    calls = {e.name for e in trace.events()}
    assert ("aten::convolution" in calls) == (name not in TINY)
    assert ("aten::convolution_backward" in calls) == (name not in TINY)
    assert ("aten::mm" in calls) == (name != "none")


def test_small_kernels_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(convolution, "LEAST", 16 * 6 * 16 + 1)
    x, weight = random(1, 6, 4, 4, dtype=torch.float32), random(16, 6, 4, 4, dtype=torch.float32)
    with torch.profiler.profile() as trace:
        conv2d(x, weight).sum().backward()
    assert "aten::mm" not in {e.name for e in trace.events()}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_activation_may_work_in_place(dtype, batch):
    for net, size in (Conv2d(4, 32, 4), (4, 4)), (ConvTranspose2d(32, 4, 4), (1, 1)):
        net = net.to(dtype=dtype)
        x = random(batch, net.in_channels, *size, dtype=dtype)
        F.leaky_relu(net(x), 0.2, inplace=True).sum().backward()
        assert x.grad is not None


# Batch, side of the map, channels in and out, padding; numbers at once
TILED = {
    "whole tiles": (2, (10, 14), 3, 5, 0, 10**6),
    "padded": (2, (8, 8), 3, 5, 1, 10**6),
    "in part beyond the map": (1, (7, 9), 4, 3, 1, 10**6),
    "less than a tile": (1, (4, 5), 2, 3, 0, 10**6),
    "an image at a time": (3, (9, 8), 3, 2, 1, 36 * 3 * 3 * 2),
    "a row at a time": (2, (13, 9), 3, 4, 1, 1),
}


@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("name", TILED)
def test_tiles_are_torchs_convolution(name, k, monkeypatch):
    b, size, c_in, c_out, padding, room = TILED[name]
    monkeypatch.setattr(winograd, "ROOM", room)
    torch.manual_seed(0)
    x, weight, bias = random(b, c_in, *size), random(c_out, c_in, k, k), random(c_out)
    expected = F.conv2d(x, weight, bias, padding=padding)
    g = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, weight], g)
    with torch.no_grad():
        y = winograd.convolution(x, weight, bias, (padding, padding))
        of_x = winograd.of_input(g, weight, x, (padding, padding))
        of_weight = winograd.of_kernel(g, x, weight, (padding, padding))
    for a, b in zip((y, of_x, of_weight), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        assert a.stride(1) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_what_does_not_move_has_no_gradient_made(transposed, monkeypatch):
    made = []
    for name in ("of_kernel", "of_input", "convolution"):
        plain = getattr(convolution, name)
        monkeypatch.setattr(
            convolution, name, lambda *args, n=name, f=plain: made.append(n) or f(*args)
        )
    net = (ConvTranspose2d if transposed else Conv2d)(64, 64, 3).double()
    x = random(1, 64, 3, 3)
    of_x = "convolution" if transposed else "of_input"
    for inputs, expected in ([x], [of_x]), ([net.weight], ["of_kernel"]), ([net.bias], []):
        y = net(x * 2).sum()
        made.clear()
        y.backward(inputs=inputs)
        assert made == expected
        y = net(x * 2).sum()
        made.clear()
        torch.autograd.grad(y, inputs)
        assert made == expected


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("k", "c_in", "c_out"), [(3, 128, 256), (4, 256, 512)])
def test_many_channels_go_by_tiles_in_fp32(k, c_in, c_out, bf16):
    torch.manual_seed(0)
    x, weight, bias = (
        random(*shape, dtype=torch.float32)
        for shape in ((2, c_in, 16, 32), (c_out, c_in, k, k), (c_out,))
    )
    with torch.profiler.profile() as trace, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv2d(x, weight, bias, padding=1)
        g = torch.randn_like(y)
        found = torch.autograd.grad(y, [x, weight, bias], g)
    assert any(e.name == "aten::bmm" for e in trace.events()) is not bf16
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    z = F.conv2d(*wide, padding=1)
    expected = torch.autograd.grad(z, wide, g.double())
    for a, b in zip((y, *found), (z, *expected), strict=True):
        assert (a - b).norm() < (2e-2 if bf16 else 1e-5) * b.norm()


@pytest.mark.parametrize("side", [28, 29])
def test_a_result_of_tiles_may_be_changed_in_place(side):
    x, weight = (
        random(*shape, dtype=torch.float32) for shape in ((1, 128, side, side), (256, 128, 3, 3))
    )
    y = F.relu(conv2d(x, weight, padding=1), inplace=True)
    y.sum().backward()
    assert x.grad is not None and weight.grad is not None
