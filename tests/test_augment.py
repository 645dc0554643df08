"""Second views: a pure function of an image and its numbers."""

import colorsys
from dataclasses import replace

import pytest
import torch

from unpaired.config import Data
from unpaired.data.augment import View

STILL = View(
    rotation=0, translation=0, shear=0, scale=0, ratio=1, jitter=None, flip=False
)  # nothing moves
NEUTRAL = torch.full((1, View.draws), 0.5)
TURN, SHEAR, RIGHT, DOWN = range(4)  # the numbers, in order
AREA, RATIO, CROP_RIGHT, CROP_DOWN, FLIP = range(4, 9)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(9, 13)


def images(n=2, channels=3, height=32, width=32):
    return (
        torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )


def draws(n):
    return torch.rand(n, View.draws, generator=torch.Generator().manual_seed(1))


def numbers(**values):
    """0.5 but for those named."""
    u = NEUTRAL.clone()
    for name, value in values.items():
        u[0, globals()[name]] = value
    return u


def dot(x, y, height=33, width=33):
    """A soft white dot at (x, y), in sides from the centre, on black."""
    rows = torch.linspace(-0.5, 0.5, height)[:, None] - y
    columns = torch.linspace(-0.5, 0.5, width)[None] - x
    return (2 * torch.exp(-(rows**2 + columns**2) / 0.005) - 1)[None, None]


def where(image):
    """The centre of what is white, in sides from the centre."""
    light = (image[0, 0] + 1) / 2
    h, w = light.shape
    rows, columns = torch.linspace(-0.5, 0.5, h)[:, None], torch.linspace(-0.5, 0.5, w)[None]
    return (
        ((light * columns).sum() / light.sum()).item(),
        ((light * rows).sum() / light.sum()).item(),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(32, 32), (24, 40)])
def test_neutral_numbers_change_nothing(channels, sides):
    x = images(2, channels, *sides)
    assert torch.allclose(View()(x, NEUTRAL.expand(2, -1)), x, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range(channels):
    x, u = images(16, channels), draws(16)
    view = View()(x, u)
    assert view.shape == x.shape and view.dtype == x.dtype
    assert view.min() >= -1 and view.max() <= 1 and view.isfinite().all()
    assert not torch.allclose(view, x, atol=0.1)


def test_a_view_depends_on_its_own_numbers_only():
    x, u = images(8), draws(8)
    together = View()(x, u)
    alone = torch.cat([View()(x[i : i + 1], u[i : i + 1]) for i in range(8)])
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(View()(x[order], u[order]), together[order], atol=1e-5)
    assert torch.equal(View()(x, u), together)


@pytest.mark.parametrize("sides", [(33, 33), (33, 65)])
def test_rotation_is_clockwise(sides):
    h, w = sides
    turned = replace(STILL, rotation=20.0)(
        dot(0.0, -0.3, h, w), numbers(TURN=1.0)
    )  # from the top ...
    x, y = where(turned)
    angle = torch.tensor(20.0).deg2rad()
    assert x * w == pytest.approx(0.3 * h * angle.sin().item(), abs=0.03 * w)  # ... to the right
    assert y * h == pytest.approx(-0.3 * h * angle.cos().item(), abs=0.03 * h)


def test_shift():
    x, y = where(replace(STILL, translation=0.1)(dot(0.0, 0.0), numbers(RIGHT=1.0, DOWN=0.0)))
    assert x == pytest.approx(0.1, abs=0.01) and y == pytest.approx(-0.1, abs=0.01)


def test_shear_moves_rows_apart():
    shear = replace(STILL, shear=10.0)
    above, below = (shear(dot(0.0, y), numbers(SHEAR=1.0)) for y in (-0.3, 0.3))
    slope = torch.tensor(10.0).deg2rad().tan().item()
    assert where(below)[0] - where(above)[0] == pytest.approx(0.6 * slope, abs=0.02)
    assert where(below)[1] == pytest.approx(0.3, abs=0.02)


def test_flip():
    x = images()
    flip = replace(STILL, flip=True)
    assert torch.allclose(flip(x, numbers(FLIP=0.9).expand(2, -1)), x.flip(3), atol=1e-5)
    assert torch.allclose(flip(x, numbers(FLIP=0.1).expand(2, -1)), x, atol=1e-5)


def test_crop_enlarges_and_never_leaves_the_image():
    crop = replace(STILL, scale=0.19, ratio=1.1)
    x, y = where(crop(dot(0.2, 0.0), numbers(AREA=0.0)))  # 0.81 of the area: 0.9 of the side
    assert x == pytest.approx(0.2 / 0.9, abs=0.01) and y == pytest.approx(0, abs=0.01)
    x, _ = where(crop(dot(0.2, 0.0), numbers(AREA=0.0, CROP_RIGHT=0.0)))  # the leftmost window
    assert x == pytest.approx((0.2 + 0.05) / 0.9, abs=0.01)
    white = torch.ones(64, 3, 32, 32)
    assert torch.allclose(crop(white, draws(64)), white, atol=1e-4)


def test_outside_is_black():
    view = View(jitter=None)(torch.ones(1, 3, 32, 32), numbers(TURN=1.0))
    assert view[0, :, 0, 0].max() == -1


def test_without_jitter_colours_stay():
    x = images(8)
    u = draws(8)
    assert torch.allclose(replace(STILL, jitter=None)(x, u), x, atol=1e-5)
    moved = replace(View(), jitter=None)(x[:, :1].expand(-1, 3, -1, -1), u)
    assert torch.allclose(moved[:, 0], moved[:, 1]) and torch.allclose(moved[:, 0], moved[:, 2])


JITTER = replace(STILL, jitter=(0.4, 0.4, 0.4, 0.125))


def colour(*rgb):
    return torch.tensor(rgb)[None, :, None, None].expand(1, 3, 8, 8) * 2 - 1


def test_brightness():
    view = JITTER(colour(0.2, 0.4, 0.6), numbers(BRIGHTNESS=0.0))
    assert torch.allclose(view, colour(0.12, 0.24, 0.36), atol=1e-3)


def test_contrast_is_about_the_mean():
    x = images(1) * 0.3
    view = JITTER(x, numbers(CONTRAST=1.0))
    luma = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    mean = (x * luma).sum(1).mean()
    assert torch.allclose(view, mean + 1.4 * (x - mean), atol=1e-3)


def test_saturation_keeps_grey():
    grey = colour(0.4, 0.4, 0.4)
    for value in (0.0, 0.999):
        assert torch.allclose(JITTER(grey, numbers(SATURATION=value, HUE=value)), grey, atol=1e-3)
    view = (JITTER(colour(0.6, 0.4, 0.4), numbers(SATURATION=0.0)) + 1) / 2
    assert (view[0, 0] - view[0, 1]).mean().item() == pytest.approx(0.6 * 0.2, abs=1e-3)


@pytest.mark.parametrize("rgb", [(0.6, 0.4, 0.4), (0.4, 0.6, 0.4), (0.4, 0.4, 0.6)])
@pytest.mark.parametrize("value, turn", [(0.0, -0.125), (1.0, 0.125)])
def test_hue_turns_by_the_share_it_says(rgb, value, turn):
    """As the hue of HSV, but for the difference between its hexagon and the circle of YIQ."""
    before = colorsys.rgb_to_hsv(*rgb)[0]
    view = (JITTER(colour(*rgb), numbers(HUE=value))[0, :, 0, 0] + 1) / 2
    after = colorsys.rgb_to_hsv(*view.tolist())[0]
    assert abs((after - before - turn + 0.5) % 1 - 0.5) < 0.06


def test_grey_images_have_brightness_and_contrast():
    x = images(2, 1) * 0.2
    assert torch.allclose(JITTER(x, numbers(SATURATION=1.0, HUE=1.0).expand(2, -1)), x, atol=1e-5)
    assert not torch.allclose(JITTER(x, numbers(CONTRAST=1.0).expand(2, -1)), x, atol=1e-2)


def test_views_are_as_the_config_says():
    assert View.of(Data()) == View()
    assert View.of(Data(hue=0.5)).jitter == (0.4, 0.4, 0.4, 0.5)
    assert View.of(Data(jitter=False, flip=False)) == View(jitter=None, flip=False)
    assert not View.of(Data(root="scenes")).flip  # a mirrored light is another style
