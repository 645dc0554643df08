"""Tiny runs for tests: every method at a size where a step takes milliseconds."""

import torch

from unpaired.config import load
from unpaired.method import Step
from unpaired.registry import find_method

STARGAN = dict(width=512, max_dim=16, mlp_dim=8, style_dim=4)
METHODS = {  # side of the images, settings; a method that is not here runs as its preset `small`
    "munit": (16, dict(dim=4, mlp_dim=8, residuals=1, d_dim=4, d_layers=2, d_scales=2)),
    "unit": (16, dict(dim=4, residuals=1, d_dim=4, d_layers=2, d_scales=2)),
    "cyclegan": (32, dict(dim=4, downsamplings=2, residuals=1, d_dim=4, d_layers=2, pool=8)),
    "augmented_cyclegan": (
        32,
        dict(dim=4, residuals=1, e_dim=4, e_layers=3, d_A_layers=3, z_dim=4, d_z_dim=8),
    ),
    "pix2pix": (
        32,
        dict(dropout=0.5, dim=4, levels=5, d_dim=4, d_layers=2, norm="batch"),
    ),
    "bicyclegan": (32, dict(dim=4, levels=5, e_dim=4, e_blocks=2, d_dim=4, d_layers=2, z_dim=4)),
    "stargan_v2": (32, STARGAN),
    "smoothgan": (32, STARGAN),
    "dsm": (32, STARGAN | dict(d_dim=8)),
    "tunit": (
        32,
        dict(clusters=3, style_dim=4, mlp_dim=8, dim=4, c_dim=4, d_dim=4, d_max_dim=8, queue=16),
    ),
}
DOMAINS = {"two_domains": 2, "paired": 2, "domains": 3, "unlabelled": 1}


def side(method):
    return METHODS.get(method, (32, {}))[0]


def run(method="munit", *overrides, size=None, batch=4, steps=6, **sections):
    """A resolved config of a tiny run on the scenes."""
    size = size or side(method)
    domains = ["outline", "painted", "neon"][: DOMAINS[find_method(method).layout]]
    base = {
        "method": {"name": method, **METHODS.get(method, (32, {}))[1]},
        "preset": "small",
        "data": {"root": "scenes", "domains": domains, "size": size, "batch": batch, "count": 40},
        "train": {"steps": steps, "log_every": 1, "sample_every": 1000, "save_every": 2},
    }
    return load(None, overrides, **base, **sections)


def build(method="munit", *overrides, **kw):
    config = run(method, *overrides, **kw)
    return config.build(config.data.domains), config


def batch(method, n=4, size=None, seed=0, channels=3):
    """A batch of noise in the names of the method's layout."""
    layout, size = find_method(method).layout, size or side(method)
    g = torch.Generator().manual_seed(seed)
    image = lambda: torch.rand(n, channels, size, size, generator=g) * 2 - 1  # noqa: E731
    if layout in ("two_domains", "paired"):
        return {"x_1": image(), "x_2": image()}
    if layout == "domains":
        y = torch.arange(n) % 3
        images = {name: image() for name in ("x_src", "x_ref", "x_ref2")}
        return images | {"y_src": y, "y_ref": (y + 1) % 3}
    return {"x": image(), "x_tf": image(), "y": torch.full((n,), -1)}


def step(index=0, total=10, **kw):
    return Step(index, total, **kw)


def altered(monkeypatch, cls, nets, change):
    """From now on each move of `nets` is change(method, update, batch, step)."""
    updates = cls.updates

    def play(self, batch, step):
        for update in updates(self, batch, step):
            yield change(self, update, batch, step) if update.nets == nets else update

    monkeypatch.setattr(cls, "updates", play)
