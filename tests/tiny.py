"""Tiny runs for tests: every method at a size where a step takes milliseconds."""

import torch

from unpaired.config import load
from unpaired.method import Step
from unpaired.registry import find_method

SMALL = dict(dim=4, mlp_dim=8, residuals=1, d_dim=4, d_layers=2, d_scales=2)
METHODS = {"munit": SMALL}


def run(method="munit", *overrides, size=16, batch=4, steps=6, **sections):
    """A resolved config of a tiny run on the scenes."""
    base = {
        "method": {"name": method, **METHODS.get(method, {})},
        "preset": "small",
        "data": {"root": "scenes", "size": size, "batch": batch, "count": 40},
        "train": {"steps": steps, "log_every": 1, "sample_every": 1000, "save_every": 2},
    }
    return load(None, overrides, **base, **sections)


def build(method="munit", *overrides, **kw):
    config = run(method, *overrides, **kw)
    layout = find_method(method).layout
    domains = {"two_domains": 2, "paired": 2, "domains": 3, "unlabelled": 1}[layout]
    return config.build(tuple("abc"[:domains])), config


def batch(layout, n=4, size=16, seed=0, channels=3):
    """A batch of noise in the layout's names."""
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
