"""Built-in scenes: one object drawn in many manners, from known factors, with no files.

A scene has content (which shape, where, how large, how turned) and a style (a few numbers in [0, 1], its own
for each domain). Content is shared by all domains, style is not: the situation that MUNIT and its family assume,
here with the truth at hand. A picture is a function of (seed, split, domain, index) drawn at the size asked for.

    scenes = Scenes("painted", size=64)
    image, mask, content, style = scenes[0]

Lengths are in half short sides of the picture: the picture spans [-1, 1] along its short side, y down.
"""

from __future__ import annotations

import difflib
import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from unpaired.errors import ConfigProblem

Array = np.ndarray
Size = int | tuple[int, int]

SHAPES = ("star", "heart", "mug", "leaf", "house", "fish")
CONTENT = MappingProxyType(
    {  # name: range, uniform
        "shape": (0, len(SHAPES)),  # index into SHAPES
        "x": (-0.22, 0.22),  # centre, in half widths
        "y": (-0.22, 0.22),  # centre, in half heights
        "scale": (0.56, 0.76),  # radius of the object, in half short sides
        "angle": (-0.45, 0.45),  # clockwise, in radians
    }
)
SPLITS = ("train", "val", "test")


class Scene(NamedTuple):
    """A picture and the truth about it."""

    image: Array  # (H, W, 3) uint8, sRGB
    mask: Array  # (H, W) float32, the part of each pixel that the object covers
    content: dict[str, float]  # the keys of CONTENT
    style: dict[str, float]  # the style factors of the domain, each in [0, 1]


# --- Shapes: signed distances in the object's own frame, y down, radius about 1 ---


def polygon(x: Array, y: Array, points: Sequence[tuple[float, float]] | Array) -> Array:
    """Signed distance to a closed polygon, negative inside (even-odd)."""
    points = np.asarray(points, x.dtype)  # a corner must compare alike from both of its edges
    square = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((px * ex + py * ey) / max(ex * ex + ey * ey, 1e-12), 0, 1)
        square = np.minimum(square, (px - ex * t) ** 2 + (py - ey * t) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (px < py * (ex / ey))
    return np.where(inside, -1, 1) * np.sqrt(square)


def line(x: Array, y: Array, *points: tuple[float, float]) -> Array:
    """Distance to an open line through the points."""
    there_and_back = list(points) + list(points[-2:0:-1])
    return np.abs(polygon(x, y, there_and_back))


def star(x: Array, y: Array) -> tuple[Array, Array]:
    turn = np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2, 0.48, 0.95)
    outline = np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 1)
    return polygon(x, y - 0.06, outline) - 0.09, np.full_like(x, 9)


def heart(x: Array, y: Array) -> tuple[Array, Array]:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([16 * np.sin(t) ** 3, -height], 1) / 18
    return polygon(x, y + 0.06, outline) - 0.05, np.full_like(x, 9)


def mug(x: Array, y: Array) -> tuple[Array, Array]:
    body = polygon(x, y, [(-0.72, -0.62), (0.4, -0.62), (0.34, 0.62), (-0.66, 0.62)]) - 0.13
    handle = np.abs(np.hypot(x - 0.5, (y + 0.03) * 0.92) - 0.35) - 0.095
    return np.minimum(body, handle), line(x, y, (-0.66, -0.42), (0.34, -0.42))


def leaf(x: Array, y: Array) -> tuple[Array, Array]:
    cos, sin = np.cos(0.6), np.sin(0.6)
    u, v = cos * x + sin * y, cos * y - sin * x  # leans to the right
    t = np.linspace(0, 1, 30)
    half = 0.54 * np.sin(np.pi * t**0.8) ** 0.9
    side = np.stack([half, 0.72 - 1.72 * t], 1)
    blade = polygon(u, v, np.concatenate([side, side[-2:0:-1] * (-1, 1)])) - 0.03
    stem = line(u, v, (0, 0.6), (-0.03, 1.02)) - 0.055
    veins = line(u, v, (0, 0.7), (0, -0.66))
    for at in (0.42, 0.08, -0.26):
        for way in (-1, 1):
            veins = np.minimum(veins, line(u, v, (0, at), (way * 0.3, at - 0.24)))
    return np.minimum(blade, stem), veins


def house(x: Array, y: Array) -> tuple[Array, Array]:
    walls = polygon(x, y, [(-0.6, -0.05), (0.6, -0.05), (0.6, 0.76), (-0.6, 0.76)])
    roof = polygon(x, y, [(0, -0.8), (0.86, -0.02), (-0.86, -0.02)])
    chimney = polygon(x, y, [(0.38, -0.72), (0.58, -0.72), (0.58, -0.2), (0.38, -0.2)])
    door = line(x, y, (-0.38, 0.8), (-0.38, 0.3), (-0.08, 0.3), (-0.08, 0.8))
    window = np.abs(polygon(x, y, [(0.15, 0.22), (0.44, 0.22), (0.44, 0.5), (0.15, 0.5)]))
    return np.minimum(np.minimum(walls, roof), chimney) - 0.06, np.minimum(door, window)


def fish(x: Array, y: Array) -> tuple[Array, Array]:
    t = np.linspace(0, 1, 24)
    half = 0.62 * np.sin(np.pi * t) ** 0.75 * (1 - 0.22 * t)
    side = np.stack([1.5 * t - 1, half], 1)
    body = polygon(x, y, np.concatenate([side, side[-2:0:-1] * (1, -1)]))
    tail = polygon(x, y, [(0.3, 0), (0.95, -0.55), (0.8, 0), (0.95, 0.55)])
    fin = polygon(x, y, [(-0.35, -0.45), (0.02, -0.85), (0.26, -0.35)])
    eye = np.hypot(x + 0.62, y + 0.12) - 0.06
    gill = line(x, y, (-0.34, -0.3), (-0.26, -0.1), (-0.26, 0.1), (-0.34, 0.3))
    return np.minimum(np.minimum(body, tail), fin) - 0.05, np.minimum(np.maximum(eye, 0), gill)


REACH, CELLS = 2.0, 240  # a shape's table covers [-REACH, REACH] in CELLS steps


@cache
def table(shape: int) -> Array:
    """What is known of a shape, tabulated once: (CELLS + 1, CELLS + 1, 4), rows are y.

    Channels: signed distance to the edge, distance to the inner lines, and the x and y of the surface normal
    of a puffed-up object.
    """
    axis = np.linspace(-REACH, REACH, CELLS + 1, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    edge, inner = globals()[SHAPES[shape]](x, y)
    step = axis[1] - axis[0]
    inside = np.fft.rfft2(np.clip(0.5 - edge / step, 0, 1))
    fy, fx = np.fft.fftfreq(len(axis))[:, None], np.fft.rfftfreq(len(axis))
    soft = sum(
        weight * np.exp(-2 * (np.pi * sigma / step) ** 2 * (fx**2 + fy**2))
        for sigma, weight in ((0.1, 0.35), (0.22, 0.8), (0.4, 1.0))
    )
    dy, dx = np.gradient(np.fft.irfft2(inside * soft, s=x.shape), step)
    slope = np.sqrt(1 + dx**2 + dy**2)
    return np.stack([edge, inner, -dx / slope, -dy / slope], -1).astype(np.float32)


class Figure(NamedTuple):
    """The object on the pixels of a picture; every field (H, W), lengths in half short sides."""

    x: Array
    y: Array
    pixel: float  # width of a pixel
    edge: Array  # signed distance to the silhouette, negative inside
    inner: Array  # distance to the lines drawn inside the object
    nx: Array  # surface normal of the puffed-up object, x and y parts
    ny: Array
    content: Mapping[str, float]

    @property
    def size(self) -> tuple[int, int]:
        return self.x.shape

    def cover(self, distance: Array) -> Array:
        """The part of each pixel with distance < 0, by a ramp one pixel wide."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def stroke(self, distance: Array, width: float) -> Array:
        """The part of each pixel covered by a pen of this width drawn along distance = 0."""
        half = width / 2
        return self.cover(np.abs(distance) - half) * min(1, width / self.pixel)

    def shifted(self, dx: float, dy: float) -> Array:
        """Signed distance to the silhouette moved by (dx, dy), for shadows."""
        return locate(self.content, self.size, dx, dy)[0]


@lru_cache(maxsize=8)
def grid(size: tuple[int, int]) -> tuple[Array, Array, float]:
    """Pixel centres x and y, each (H, W), and the width of a pixel."""
    H, W = size
    pixel = 2 / min(H, W)
    x = (np.arange(W, dtype=np.float32) + 0.5 - W / 2) * pixel
    y = (np.arange(H, dtype=np.float32) + 0.5 - H / 2) * pixel
    X, Y = np.meshgrid(x, y)
    return np.ascontiguousarray(X), np.ascontiguousarray(Y), pixel


def locate(content: Mapping[str, float], size: tuple[int, int], dx: float, dy: float) -> Array:
    """The table of the shape seen through the pixels of a picture: (4, H, W)."""
    x, y, pixel = grid(size)
    H, W = size
    scale, angle = content["scale"], content["angle"]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x = x - (content["x"] * W * pixel / 2 + dx)
    y = y - (content["y"] * H * pixel / 2 + dy)
    to_cell = CELLS / (2 * REACH)
    u = (x * (cos * to_cell) + y * (sin * to_cell)).ravel() + CELLS / 2
    v = (y * (cos * to_cell) - x * (sin * to_cell)).ravel() + CELLS / 2
    near_u, near_v = np.clip(u, 0, CELLS - 1e-3), np.clip(v, 0, CELLS - 1e-3)
    i, j = near_v.astype(np.intp), near_u.astype(np.intp)
    a, b = (near_v - i)[:, None], (near_u - j)[:, None]
    rows, at = table(int(content["shape"])).reshape(-1, 4), i * (CELLS + 1) + j
    above = rows[at] * (1 - b) + rows[at + 1] * b
    below = rows[at + CELLS + 1] * (1 - b) + rows[at + CELLS + 2] * b
    seen = (above * (1 - a) + below * a).T
    seen[:2] += np.hypot(u - near_u, v - near_v) / to_cell  # beyond the table
    seen[:2] *= scale
    return seen.reshape(4, H, W)


def place(content: Mapping[str, float], size: tuple[int, int]) -> Figure:
    """The object of a scene on the pixels of a picture."""
    edge, inner, nx, ny = locate(content, size, 0, 0)
    cos, sin = np.cos(content["angle"]), np.sin(content["angle"])
    return Figure(*grid(size), edge, inner, nx * cos - ny * sin, nx * sin + ny * cos, content)


# --- Colour and texture ---


def path(*colours: str) -> Array:
    """A walk through colours "rrggbb" at even speed in OKLab: (256, 3) in [0, 1]. Never closed."""
    rgb = np.array([[int(c[k : k + 2], 16) / 255 for k in (0, 2, 4)] for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ LMS.T) @ LAB.T
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    at = np.linspace(0, way[-1], 256)
    lab = np.stack([np.interp(at, way, channel) for channel in lab.T], 1)
    linear = np.clip((lab @ np.linalg.inv(LAB).T) ** 3 @ np.linalg.inv(LMS).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)


# Björn Ottosson, "A perceptual color space for image processing", 2020
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

FRUIT = path("d8435a", "ee7b4d", "efb243", "8fb35a", "3fa394", "3f83bd", "7460b5")
INK = path("8f2438", "a8501f", "4f6b22", "14685f", "1f4a86", "4a2f7a")
PAPER = path("fbe9d2", "f8d9d6", "e6daf0", "d3e3f3", "d5ecdd")
WALL = path("f6e3bd", "f3c9bd", "d9c6e6", "bcd6ec", "bfe0cb")
GLOW = path("ff5a4d", "ff9d3c", "ffe066", "6df29a", "4cd9ff", "7f8cff", "ff6ad5")
NIGHT = path("1d1026", "131638", "0c2533", "10281f")
BOARD = path("2c2a2b", "3a2f42", "27364f", "22453c")
CHALK = path("ffb3ab", "ffd9a0", "fbf6c4", "bfeec6", "b5dcfa", "d9c4f7")
CYAN = path("2b2f74", "1d4a93", "1f70a6", "1d8292")


def tint(palette: Array, t: float) -> Array:
    """The colour at t in [0, 1]: (3,)."""
    at = min(max(t, 0), 1) * 255
    low = min(int(at), 254)
    return palette[low] + (palette[low + 1] - palette[low]) * (at - low)


def mix(a: Array, b: Array, t: Array | float) -> Array:
    """From colour a to colour b; t is a number or a map (H, W)."""
    return a + (b - a) * (t[..., None] if isinstance(t, np.ndarray) else t)


BLACK, WHITE = np.zeros(3, np.float32), np.ones(3, np.float32)
DUSK, SUN = np.array([0.20, 0.13, 0.30], np.float32), np.array([1.0, 0.97, 0.86], np.float32)


@lru_cache(maxsize=64)
def grain(size: tuple[int, int], across: float, down: float, key: int = 0) -> Array:
    """Smooth noise (H, W), mean 0, deviation about 1, with so many waves a half side.

    It belongs to the paper: the same for every picture, and the same at every size.
    """
    x, y, _ = grid(size)
    lattice = np.random.default_rng(key).standard_normal((64, 64)).astype(np.float32)

    def curve(t: Array) -> tuple[Array, Array]:
        cell = np.floor(t)
        part = t - cell
        return cell.astype(int), part * part * (3 - 2 * part)

    (j, b), (i, a) = curve(x * across + 0.37), curve(y * down + 0.61)
    corner = lambda di, dj: lattice[(i + di) % 64, (j + dj) % 64]  # noqa: E731
    top = corner(0, 0) * (1 - b) + corner(0, 1) * b
    return 1.5 * (top * (1 - a) + (corner(1, 0) * (1 - b) + corner(1, 1) * b) * a)


@lru_cache(maxsize=16)
def tiles(size: tuple[int, int], across: int = 5) -> tuple[Array, Array]:
    """Irregular tiles: the shade of each in [-1, 1], and the distance to the joints; both (H, W)."""
    x, y, _ = grid(size)
    rng = np.random.default_rng(3)
    H, W = size
    reach = across * max(H, W) // min(H, W) + 2
    cells = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), -1)
    order = np.argsort(np.abs(cells).max(-1).ravel(), kind="stable")  # the same inner tiles anyway
    cells = cells.reshape(-1, 2)[order]
    seeds = (cells + rng.uniform(-0.33, 0.33, cells.shape)) / across
    shade = rng.uniform(-1, 1, len(seeds)).astype(np.float32)
    square = (x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2
    first, second = np.argsort(square, -1)[..., :2].transpose(2, 0, 1)
    gap = np.linalg.norm(seeds[second] - seeds[first], axis=-1)
    near, far = (np.take_along_axis(square, k[..., None], -1)[..., 0] for k in (first, second))
    return shade[first], ((far - near) / (2 * gap)).astype(np.float32)


def lit(figure: Figure, colour: Array, light: float, strength: float) -> Array:
    """A matt, puffed-up surface (H, W, 3); light is an angle in radians, 0 from the right, pi/2 from above."""
    facing = figure.nx * np.float32(np.cos(light)) - figure.ny * np.float32(np.sin(light))
    shaded = mix(colour, mix(colour * 0.8, DUSK, 0.5), np.clip(-facing * strength, 0, 1))
    return mix(shaded, SUN, np.clip(facing * (0.75 * strength), 0, 1))


# --- Painters: one for each domain; the parameters after `f` are its style factors, each in [0, 1] ---


def outline(f: Figure, width: float, ink: float, paper: float) -> Array:
    """Ink on tinted paper."""
    sheet = tint(PAPER, paper) * (1 + 0.008 * grain(f.size, 9, 9))[..., None]
    pen = 0.035 + 0.105 * width
    drawn = np.maximum(f.stroke(f.edge + pen / 2, pen), f.stroke(f.inner, 0.5 * pen))
    return mix(sheet, tint(INK, ink), drawn)


def painted(f: Figure, hue: float, shading: float, light: float, background: float) -> Array:
    """A soft body under a lamp."""
    angle, colour, wall = np.pi * (0.05 + 0.9 * light), tint(FRUIT, hue), tint(WALL, background)
    sheet = wall * (1.03 - 0.07 * f.y + 0.008 * grain(f.size, 3, 10, 1))[..., None]
    away = f.shifted(-0.11 * np.cos(angle), 0.11 * np.sin(angle))
    sheet = mix(sheet, mix(wall * 0.55, DUSK, 0.3), 0.55 * np.clip(0.5 - away / 0.16, 0, 1))
    body = lit(f, colour, angle, 0.25 + 0.75 * shading)
    body = mix(body, colour * 0.45, 0.75 * f.stroke(f.inner, 0.045))
    return mix(sheet, body, f.cover(f.edge))


def mosaic(f: Figure, hue: float, ground: float, variety: float) -> Array:
    """Irregular tiles in pale mortar."""
    shade, joint = tiles(f.size)
    shade = shade * (0.05 + 0.30 * variety)
    mortar = mix(tint(WALL, ground), WHITE, 0.6)
    stone = mix(tint(FRUIT, hue), tint(WALL, ground) * 0.93, f.cover(-f.edge))
    stone = mix(stone, WHITE, np.maximum(shade, 0)) * (1 + np.minimum(shade, 0))[..., None]
    return mix(stone, mortar, np.maximum(f.cover(joint - 0.017), f.stroke(f.edge, 0.04)))


def neon(f: Figure, colour: float, glow: float, night: float) -> Array:
    """A glass tube on a brick wall at night."""
    wall, lamp = tint(NIGHT, night), tint(GLOW, colour)
    row = np.floor(f.y * 5)
    across = np.abs((f.x * 2.5 + 0.5 * (row % 2)) % 1 - 0.5) / 2.5
    brick = np.minimum(np.abs(f.y * 5 % 1 - 0.5) / 5 * -1 + 0.1, 0.2 - across)
    brick = 1 - 0.45 * f.cover(brick - 0.012) + 0.06 * grain(f.size, 5, 5, 2)
    away = np.abs(f.edge + 0.035)
    halo = np.exp(-away / (0.06 + 0.24 * glow))
    lit_wall = (wall * 1.25 + lamp * (0.12 + 0.5 * halo)[..., None] * 0.7) * brick[..., None]
    air = mix(lit_wall, lamp, 0.55 * halo * halo)
    inner = 0.6 * f.stroke(f.inner, 0.04)
    tube = mix(lamp, WHITE, 0.25 + 0.6 * f.stroke(away, 0.045))
    return mix(air, tube, np.maximum(f.stroke(away, 0.085), inner))


def chalk(f: Figure, stick: float, board: float, filling: float) -> Array:
    """Coloured chalk on a wiped blackboard."""
    slate = tint(BOARD, board) * (1 + 0.05 * grain(f.size, 1.5, 3, 4))[..., None]
    rough = np.clip(0.82 + 0.16 * grain(f.size, 14, 14, 5), 0.35, 1)
    hatch = (f.x + f.y) / (0.15 * np.sqrt(2)) % 1 - 0.5
    hatch = f.stroke(hatch * 0.15, 0.075) * (0.05 + 0.75 * filling)
    hatch = np.maximum(hatch, 0.3 * filling) * f.cover(f.edge)
    drawn = np.maximum(f.stroke(f.edge + 0.035, 0.075), 0.85 * f.stroke(f.inner, 0.05))
    return mix(slate, tint(CHALK, stick), np.maximum(drawn, hatch) * rough)


def blueprint(f: Figure, blue: float, ruling: float, width: float) -> Array:
    """White lines on cyanotype paper, ruled, with the axes of the object."""
    sheet = tint(CYAN, blue) * (1 + 0.04 * grain(f.size, 2, 2, 6))[..., None]
    ruled = sum(
        weight * np.maximum(*(f.stroke((a * n + 0.5) % 1 / n - 0.5 / n, 0.014) for a in (f.x, f.y)))
        for n, weight in ((2, 0.6), (8, 0.4))
    )
    sheet = mix(sheet, WHITE, (0.04 + 0.6 * ruling) * ruled)
    sheet = mix(sheet, WHITE, 0.10 * f.cover(f.edge))
    pen = 0.03 + 0.085 * width
    drawn = np.maximum(f.stroke(f.edge + pen / 2, pen), f.stroke(f.inner, 0.5 * pen))
    return mix(sheet, np.array([0.95, 0.98, 1.0], np.float32), 0.96 * drawn)


def papercut(f: Figure, hue: float, depth: float, step: float) -> Array:
    """Sheets of coloured paper, one on another."""
    colour, drop = tint(FRUIT, hue), 0.03 + 0.09 * depth
    image = mix(mix(colour, WHITE, 0.78), WHITE, 0.01 * grain(f.size, 8, 8, 7))
    fallen = f.shifted(0.6 * drop, drop)
    for k in range(3):
        inset = k * (0.06 + 0.12 * step)
        shadow = np.clip(0.5 - (fallen + inset) / (0.03 + drop), 0, 1)
        image = mix(image, mix(colour * 0.35, DUSK, 0.5), (0.35 + 0.35 * depth) * shadow)
        image = mix(image, mix(colour, WHITE, 0.26 * k), f.cover(f.edge + inset))
    return image


def watercolour(f: Figure, hue: float, wash: float, wet: float) -> Array:
    """Pigment that gathers at the edge, on rough paper with a wash."""
    rough, cloud = grain(f.size, 10, 10, 8), grain(f.size, 2.2, 2.2, 9)
    sheet = mix(WHITE * 0.985, tint(WALL, wash), np.clip(0.62 + 0.16 * cloud + 0.03 * rough, 0, 1))
    rim = np.exp(np.minimum(f.edge, 0) / (0.03 + 0.05 * wet))
    pool = 0.55 + 0.35 * rim + (0.05 + 0.22 * wet) * grain(f.size, 3.2, 3.2, 10) + 0.03 * rough
    pool += 0.12 * f.stroke(f.inner, 0.06)
    pigment = tint(FRUIT, hue) ** 1.25
    return mix(sheet, sheet * pigment, np.clip(pool, 0.25, 1) * f.cover(f.edge))


def halftone(f: Figure, ink: float, tone: float, paper: float) -> Array:
    """Printed dots, larger where the object is darker."""
    sheet, colour = np.broadcast_to(tint(PAPER, paper), (*f.size, 3)), tint(INK, ink)
    pitch = 0.19
    u, v = ((f.x + way * f.y) * np.sqrt(0.5) / pitch % 1 - 0.5 for way in (-1, 1))
    dark = 0.12 + 0.36 * tone + 0.16 * np.clip(f.nx + f.ny, -1, 1)
    dots = f.cover((np.hypot(u, v) - np.clip(dark, 0.08, 0.66)) * pitch)
    body = mix(mix(sheet, WHITE, 0.5), colour, dots)
    body = mix(body, colour * 0.5, np.maximum(f.stroke(f.inner, 0.045), f.cover(-f.edge - 0.06)))
    return mix(sheet, body, f.cover(f.edge))


def study(f: Figure, hue: float, ground: float, line: float, shading: float, light: float) -> Array:
    """The one manner of `family`: a shaded, contoured object on a plain ground."""
    sheet = np.broadcast_to(tint(GROUND, ground), (*f.size, 3))
    body = lit(f, tint(SUNSET, hue), np.pi * (0.05 + 0.9 * light), 0.2 + 0.8 * shading)
    body = mix(body, DUSK * 0.8, f.cover(-f.edge - (0.02 + 0.14 * line)))
    return mix(sheet, body, f.cover(f.edge))


GROUND = path("4a4f63", "f4efe6")
# Its ends are far apart: where they meet, as all hues do, a generator may begin at another of them.
SUNSET = path("3f83bd", "7460b5", "b5508f", "d8435a", "ee7b4d")

PAINTERS = MappingProxyType(
    {
        painter.__name__: painter
        for painter in (
            outline,
            painted,
            mosaic,
            neon,
            chalk,
            blueprint,
            papercut,
            watercolour,
            halftone,
        )
    }
)


def factors(painter: Callable) -> tuple[str, ...]:
    """The style factors of a painter: the names of its parameters after the figure."""
    return tuple(inspect.signature(painter).parameters)[1:]


DOMAINS = tuple(PAINTERS)
STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: factors(painter) for name, painter in PAINTERS.items()}
)
FAMILY = factors(study)


# --- Scenes ---


def draw(
    domain: str, content: Mapping[str, float], style: Mapping[str, float], size: Size = 64
) -> Scene:
    """Draw a scene from given factors; `domain` is one of DOMAINS, or "family" for the manner of `family`.

    Factors that are left out are in the middle of their range. Raises ConfigProblem for an unknown name.
    """
    painter = study if domain == "family" else PAINTERS[known(domain, DOMAINS, "domain of scenes")]
    middle = {name: (low + high) / 2 for name, (low, high) in CONTENT.items()}
    content = middle | {known(k, CONTENT, "content factor"): float(v) for k, v in content.items()}
    names = factors(painter)
    style = dict.fromkeys(names, 0.5) | {
        known(k, names, f"style factor of {domain}"): float(v) for k, v in style.items()
    }
    figure = place(content, (size, size) if isinstance(size, int) else (size[0], size[1]))
    image = np.clip(painter(figure, **style), 0, 1) * 255 + 0.5
    return Scene(image.astype(np.uint8), figure.cover(figure.edge), content, style)


def known(name: str, names: Sequence[str] | Mapping[str, object], what: str) -> str:
    """`name`, if it is one of `names`; otherwise a ConfigProblem that offers the nearest."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise ConfigProblem(f"there is no {what} {name!r}; did you mean {near[0]!r}?")


class Scenes(Sequence[Scene]):
    """One domain's scenes.

    size: pixels, a side or (H, W). split: "train", "val" or "test", which share no scene. paired: the same index
    has the same content in every domain; otherwise each domain draws its own. Raises ConfigProblem.
    """

    def __init__(
        self,
        domain: str,
        size: Size = 64,
        split: str = "train",
        seed: int = 0,
        count: int = 2000,
        paired: bool = False,
    ):
        self.domain = known(domain, DOMAINS, "domain of scenes")
        self._set(size, split, seed, count, paired)

    def _set(self, size: Size, split: str, seed: int, count: int, paired: bool) -> None:
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.split, self.seed = known(split, SPLITS, "split of scenes"), seed
        self.scenes, self.paired = count, paired

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        index = self._at(index)
        return draw(self.domain, self.content(index), self.style(index), self.size)

    def _at(self, index: int) -> int:
        if not -self.scenes <= index < self.scenes:
            raise IndexError(f"scene {index} of {self.scenes}")
        return index % self.scenes

    def content(self, index: int) -> dict[str, float]:
        """The content factors of a scene, without drawing it."""
        rng = self._rng("content", "" if self.paired else self.domain, index)
        low, high = np.array(list(CONTENT.values())).T
        content = dict(
            zip(CONTENT, (low + (high - low) * rng.random(len(low))).tolist(), strict=True)
        )
        return content | {"shape": float(int(content["shape"]))}

    def style(self, index: int) -> dict[str, float]:
        """The style factors of a scene, independent and uniform in [0, 1), without drawing it."""
        names = STYLES[self.domain]
        return dict(
            zip(
                names,
                self._rng("style", self.domain, index).random(len(names)).tolist(),
                strict=True,
            )
        )

    def _rng(self, what: str, domain: str, index: int) -> np.random.Generator:
        key = zlib.crc32(f"{what} {domain}".encode())
        return np.random.default_rng([self.seed, SPLITS.index(self.split), key, index])


class Study(Scenes):
    """One domain of a `family`: the manner `study`, with the first n factors free and Gaussian before squashing.

    mean, deviation: of each free factor, (n,). The factor itself is the normal's distribution function of the true
    one, so it lies in (0, 1); the others stay in the middle.
    """

    def __init__(
        self,
        domain: str,
        mean: Array,
        deviation: Array,
        size: Size,
        split: str,
        seed: int,
        count: int,
    ) -> None:
        self.domain, self.mean, self.deviation = domain, mean, deviation
        self._set(size, split, seed, count, False)

    def __getitem__(self, index: int) -> Scene:  # type: ignore[override]
        index = self._at(index)
        return draw("family", self.content(index), self.style(index), self.size)

    def true(self, index: int) -> Array:
        """The true factors (n,) of a scene, before squashing: independent given the domain."""
        normal = self._rng("style", self.domain, index).standard_normal(len(self.mean))
        return self.mean + self.deviation * normal

    def style(self, index: int) -> dict[str, float]:
        return {
            name: 0.5 * (1 + math.erf(value / math.sqrt(2)))
            for name, value in zip(FAMILY, self.true(index).tolist(), strict=False)
        }


def family(
    domains: int,
    factors: int,
    size: Size = 64,
    split: str = "train",
    seed: int = 0,
    count: int = 2000,
) -> list[Study]:
    """Domains that differ in nothing but how their `factors` independent style factors are distributed.

    Means in [-1.2, 1.2] and deviations in [0.3, 1] are drawn from `seed`. For 2n + 1 domains the vectors of the
    identifiability theorem (first and second derivatives of the log densities, against the first domain) are then
    linearly independent: they are linear in mean / variance and 1 / variance. Raises ConfigProblem.
    """
    if not 1 <= factors <= len(FAMILY) or domains < 1:
        raise ConfigProblem(
            f"a family has 1 to {len(FAMILY)} factors and at least one domain, not {factors} and {domains}"
        )
    rng = np.random.default_rng([seed, 7])
    means = rng.uniform(-1.2, 1.2, (domains, factors))
    deviations = rng.uniform(0.3, 1.0, (domains, factors))
    return [
        Study(f"study {u}", mean, deviation, size, split, seed, count)
        for u, (mean, deviation) in enumerate(zip(means, deviations, strict=True))
    ]
